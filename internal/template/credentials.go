package template

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// credentials are those of an auth file, by registry. It is read for each build,
// so that a changed password needs no restart. Nothing of it is ever printed.
type credentials struct {
	auths   map[string]authn.AuthConfig
	helpers map[string]string
}

var _ authn.Keychain = credentials{}

// maxAuthFile is far beyond what anybody writes by hand.
const maxAuthFile = 1 << 20

// loadCredentials reads an auth file; an empty path has none. Errors: KindInvalid
// and KindDenied with a hint; they name the file and nothing in it.
func loadCredentials(path string) (credentials, error) {
	c := credentials{}
	if path == "" {
		return c, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return c, sandbox.Errorf(opBuild, sandbox.KindUnavailable, "registry_auth_file: %w", err).WithHint("mend or unset it in firebreak.yaml")
	}
	if st.Mode().Perm()&0o022 != 0 {
		return c, sandbox.Errorf(opBuild, sandbox.KindDenied, "registry_auth_file %s can be written by others", path).WithHint("chmod go-w %s", path)
	}
	bad := func(what string) error {
		return sandbox.Errorf(opBuild, sandbox.KindInvalid, "registry_auth_file %s: %s", path, what).
			WithHint(`its format is docker's: {"auths":{"registry.example.com":{"auth":"…"}}}`)
	}
	if st.Size() > maxAuthFile || !st.Mode().IsRegular() {
		return c, bad("no such file holds credentials")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return c, sandbox.Wrap(opBuild, path, err)
	}
	var file struct {
		Auths map[string]struct {
			Auth, Username, Password     string
			IdentityToken, RegistryToken string
		}
		CredHelpers map[string]string
	}
	if json.Unmarshal(b, &file) != nil { // its error would quote the file
		return c, bad("not JSON of that shape")
	}
	c.auths, c.helpers = map[string]authn.AuthConfig{}, map[string]string{}
	for host, a := range file.Auths {
		config := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if a.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(string(plain), ":")
			if err != nil || !ok {
				return c, bad(fmt.Sprintf("auth of %q is not base64 of user:password", clip(host)))
			}
			config.Username, config.Password = user, strings.TrimRight(password, "\x00")
		}
		c.auths[authHost(host)] = config
	}
	for host, helper := range file.CredHelpers {
		c.helpers[authHost(host)] = helper
	}
	return c, nil
}

// authHost makes a registry's host of the several spellings docker writes.
func authHost(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key, _, _ = strings.Cut(key, "/")
	if key == "docker.io" || key == "registry-1.docker.io" {
		key = "index.docker.io"
	}
	return key
}

// Resolve implements authn.Keychain. Each registry gets its own credentials and
// no other's.
func (c credentials) Resolve(r authn.Resource) (authn.Authenticator, error) {
	host := authHost(r.RegistryStr())
	if a, ok := c.auths[host]; ok && a != (authn.AuthConfig{}) {
		return authn.FromConfig(a), nil
	}
	if _, ok := c.helpers[host]; ok {
		return nil, sandbox.Errorf(opBuild, sandbox.KindUnsupported, "registry_auth_file names a credential helper for %s, and none is run", host).
			WithHint("put the credentials themselves into it, under auths")
	}
	return authn.Anonymous, nil
}

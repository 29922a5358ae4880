package broker

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	vaultToken = "hvs.the-token-of-the-test"
	vaultValue = "sk-from-the-store"
)

// fakeStore is a server that answers as a KV store of version 2 does, from a list: it is
// neither OpenBao nor Vault.
func fakeStore(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "a fake KV store, of a test")
		say := func(status int, v any) {
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(v)
		}
		if r.Header.Get("X-Vault-Token") != vaultToken || r.Header.Get("X-Vault-Namespace") != "team" {
			say(http.StatusForbidden, map[string]any{"errors": []string{"permission denied"}})
			return
		}
		switch r.URL.Path {
		case "/v1/kv/data/app/prod":
			say(200, map[string]any{"request_id": "x", "data": map[string]any{"data": map[string]any{"key": vaultValue, "number": 7, "two": "a\nb"}, "metadata": map[string]any{"version": 3}}})
		case "/v1/kv/data/old": // of version 1
			say(200, map[string]any{"data": map[string]any{"key": vaultValue}})
		case "/v1/kv/data/moved":
			http.Redirect(w, r, "/v1/kv/data/app/prod", http.StatusTemporaryRedirect)
		case "/v1/kv/data/sealed":
			say(http.StatusServiceUnavailable, map[string]any{"errors": []string{"Vault is sealed"}})
		case "/v1/kv/data/long":
			fmt.Fprintf(w, `{"data":{"data":{"key":%q}}}`, strings.Repeat("x", maxVault))
		default:
			say(http.StatusNotFound, map[string]any{"errors": []string{}})
		}
	}))
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificate(s.Certificate().Raw); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"BAO_ADDR": "", "BAO_TOKEN": "", "VAULT_ADDR": s.URL, "VAULT_TOKEN": vaultToken, "VAULT_NAMESPACE": "team", "VAULT_CACERT": ca, "BAO_CACERT": "", "BAO_NAMESPACE": ""} {
		t.Setenv(name, value)
	}
	return s
}

// TestVault: a reference to a KV store is read on each use, with the server's token; what
// goes wrong says where and nothing of what was answered.
func TestVault(t *testing.T) {
	fakeStore(t)
	get := func(ref string) (string, error) {
		r, err := ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if r.String() != ref {
			t.Errorf("%q is written %q", ref, r)
		}
		secret, err := r.resolve(t.Context(), "name")
		if err != nil {
			if sandbox.KindOf(err) != sandbox.KindUnavailable || strings.Contains(err.Error(), vaultValue) || strings.Contains(err.Error(), vaultToken) || !strings.Contains(err.Error(), ref) {
				t.Errorf("%s: %v", ref, err)
			}
			return "", err
		}
		defer secret.Destroy()
		var out string
		secret.Use(func(b []byte) { out = string(b) })
		return out, nil
	}
	const good = "vault:kv/app/prod#key"
	if got, err := get(good); got != vaultValue {
		t.Errorf("%q, %v", got, err)
	}
	for ref, why := range map[string]string{
		"vault:kv/app/prod#other": "no such field", "vault:kv/app/prod#number": "no text", "vault:kv/app/prod#two": "more than one line", "vault:kv/old#key": "no such field", "vault:kv/none#key": "no such secret",
		"vault:kv/moved#key": "redirect", "vault:kv/sealed#key": "sealed", "vault:kv/long#key": "version 2",
	} {
		if _, err := get(ref); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", ref, err, why)
		}
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(vaultToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VAULT_TOKEN", "")
	t.Setenv("BAO_TOKEN_FILE", file)
	if got, err := get(good); got != vaultValue {
		t.Errorf("with the token in a file: %q, %v", got, err)
	}
	t.Setenv("BAO_TOKEN", "another")
	if _, err := get(good); err == nil || !strings.Contains(err.Error(), "denies") {
		t.Errorf("another token: %v", err)
	}
	for addr, why := range map[string]string{"": "no BAO_ADDR", "ftp://x": "no URL", "http://169.254.169.254": "not dialled"} {
		t.Setenv("VAULT_ADDR", addr)
		if _, err := get(good); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", addr, err, why)
		}
	}
	for _, bad := range []string{"vault:", "vault:kv", "vault:kv/a", "vault:kv/a#", "vault:kv/#x", "vault:kv/../x#y", "vault:kv/a/./b#c", "vault:kv/a//b#c", "vault:kv/a b#c", "vault:k/v?x#y", "vault:/a/b#c", "vault:kv/a%2f#c"} {
		if _, err := ParseReference(bad); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Use says what a sandbox's token opens.
type Use string

// The uses.
const (
	UseInside  Use = "inside"  // its processes, files and contexts
	UseFile    Use = "file"    // signs URLs of single files; it is never handed out
	UseTraffic Use = "traffic" // the ports its programs listen on
)

// Tokens makes the tokens that open one sandbox each, for whoever is handed
// them. They are derived from a key of the installation, the sandbox's id, which
// is never used again, and the use: nothing about them is stored, the same ones
// can be shown again, and one says nothing about any other. Whether the sandbox
// still lives is for the caller to find out.
type Tokens struct{ key []byte }

// tokensName is the file of the installation's key for tokens.
const tokensName = "token-key"

// OpenTokens returns the Tokens of the installation in dir, which the caller owns
// (store.Lock). The first call makes the key, in dir/token-key, mode 0600: whole
// and durable, or not at all. Without the file, tokens handed out before are
// refused.
//
// Errors: KindDenied when others may read the file; KindInvalid when it holds no
// key.
func OpenTokens(dir string) (*Tokens, error) {
	const op = "open tokens"
	path := filepath.Join(dir, tokensName)
	text, err := readKeyFile(op, path)
	if errors.Is(err, os.ErrNotExist) {
		text = random(secretLen, base62)
		if err = writeKeyFile(path, text); err != nil {
			return nil, sandbox.Wrap(op, path, err)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(text) != secretLen || !only(text, base62) {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "the file holds no key").WithID(path).
			WithHint("remove it: the next start makes a new one, and tokens handed out before no longer work")
	}
	return &Tokens{key: []byte(text)}, nil
}

// Token returns the token for one use of a sandbox: 43 characters of the URL
// alphabet. Cost: about a microsecond.
func (t *Tokens) Token(use Use, tenant sandbox.TenantID, id sandbox.ID) string {
	m := hmac.New(sha256.New, t.key)
	for _, part := range []string{string(use), string(tenant), string(id)} {
		m.Write([]byte(part))
		m.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// Valid reports, in constant time, whether token is the one for that use.
func (t *Tokens) Valid(use Use, tenant sandbox.TenantID, id sandbox.ID, token string) bool {
	return subtle.ConstantTimeCompare([]byte(t.Token(use, tenant, id)), []byte(token)) == 1
}

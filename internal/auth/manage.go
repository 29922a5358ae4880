package auth

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// NewKeyRequest says what key to make.
type NewKeyRequest struct {
	Name    string // for people; up to 100 bytes
	Role    Role
	Scopes  []Scope   // narrows the role; "noun:*" is all of a noun; empty: all the role has
	Expires time.Time // zero: never
	E2B     bool      // spelt as E2B's clients demand
}

const maxKeyName = 100

// CreateKey makes and stores a key of p's tenant. The token is returned here
// and cannot be had again.
//
// Errors: KindDenied without KeyWrite, or when the key could do what p cannot;
// KindInvalid for an unknown role or scope, or an expiry that has passed.
func (a *Authenticator) CreateKey(ctx context.Context, p Principal, req NewKeyRequest) (token string, k store.Key, err error) {
	const op = "create key"
	if !p.Can(KeyWrite) {
		return "", store.Key{}, sandbox.Errorf(op, sandbox.KindDenied, "%s lacks the scope %s", p.ID, KeyWrite)
	}
	if err := req.check(op); err != nil {
		return "", store.Key{}, err
	}
	if !p.covers(Principal{Tenant: p.Tenant, Role: req.Role, Scopes: req.Scopes}) {
		return "", store.Key{}, sandbox.Errorf(op, sandbox.KindDenied, "the key would be stronger than its maker").
			WithHint("ask for no more than a %s with your scopes may do", p.Role)
	}
	newKey := NewKey
	if req.E2B {
		newKey = NewE2BKey
	}
	token, id, hash := newKey()
	k = store.Key{ID: id, Name: req.Name, Hash: hash, Role: string(req.Role), Expires: req.Expires}
	for _, s := range req.Scopes {
		k.Scopes = append(k.Scopes, string(s))
	}
	if k, err = a.st.Tenant(p.Tenant).CreateKey(ctx, k); err != nil {
		return "", store.Key{}, err
	}
	failpoint.Hit("key.create/after-record")
	return token, k, nil
}

func (r NewKeyRequest) check(op string) error {
	switch {
	case !r.Role.Valid():
		return sandbox.Errorf(op, sandbox.KindInvalid, "unknown role %q", r.Role).WithHint("one of owner, admin, developer, viewer")
	case len(r.Name) > maxKeyName:
		return sandbox.Errorf(op, sandbox.KindInvalid, "the name has %d bytes", len(r.Name)).WithHint("at most %d", maxKeyName)
	case !r.Expires.IsZero() && !r.Expires.After(time.Now()):
		return sandbox.Errorf(op, sandbox.KindInvalid, "the key would already have expired")
	}
	for _, s := range r.Scopes {
		if !s.valid() {
			return sandbox.Errorf(op, sandbox.KindInvalid, "unknown scope %q", s)
		}
	}
	return nil
}

// RevokeKey revokes a key of p's tenant: when it returns, no request with the
// key is accepted any more. Again: the same answer. Errors: KindDenied without
// KeyWrite, or for a key that may do what p cannot; KindNotFound.
func (a *Authenticator) RevokeKey(ctx context.Context, p Principal, id string) (store.Key, error) {
	const op = "revoke key"
	if !p.Can(KeyWrite) {
		return store.Key{}, sandbox.Errorf(op, sandbox.KindDenied, "%s lacks the scope %s", p.ID, KeyWrite)
	}
	t := a.st.Tenant(p.Tenant)
	k, err := t.Key(ctx, id)
	if err != nil {
		return store.Key{}, err
	}
	if !p.covers(principal(k)) {
		return store.Key{}, sandbox.Errorf(op, sandbox.KindDenied, "the key is stronger than who revokes it").WithID(id)
	}
	k, err = t.RevokeKey(ctx, id)
	if err != nil {
		return store.Key{}, err
	}
	failpoint.Hit("key.revoke/after-record")
	a.mu.Lock()
	delete(a.keys, id)
	a.gen++
	a.mu.Unlock()
	return k, nil
}

// bootName is the file of the first key and the key's own name.
const bootName = "api-key"

// Bootstrap makes the installation's first key, an owner of the default
// tenant, and writes it to dir/api-key, mode 0600. The caller owns dir
// (store.Lock). It returns the file's path, or "" when there is no such file
// because its owner took it away.
//
// It is idempotent, and atomic under a crash at any moment: the file comes
// first, and a file whose key the store does not know yet completes it. A key
// is made only for an installation that has none, so a revoked first key stays
// revoked. evidence, if not nil, is told before a key begins to work; its error
// prevents that.
//
// Errors: KindDenied when others may read the file; KindInvalid when it holds
// no key; KindConflict when it holds a key of another installation.
func (a *Authenticator) Bootstrap(ctx context.Context, dir string, evidence func(id string) error) (path string, err error) {
	const op = "bootstrap"
	a.boot.Lock()
	defer a.boot.Unlock()
	path = filepath.Join(dir, bootName)
	t := a.st.Tenant(sandbox.DefaultTenant)
	keys, err := t.ListKeys(ctx)
	if err != nil {
		return "", err
	}
	sweepKeyFiles(dir)
	token, err := readKeyFile(op, path)
	switch {
	case err == nil:
	case !errors.Is(err, os.ErrNotExist):
		return "", err
	case len(keys) > 0:
		return "", nil
	default:
		token, _, _ = NewKey()
		if err := writeKeyFile(path, token); err != nil {
			return "", sandbox.Wrap(op, path, err)
		}
	}
	id, secret, err := Parse(token)
	if err != nil {
		return "", sandbox.Errorf(op, sandbox.KindInvalid, "the file holds no API key").WithID(path).
			WithHint("remove it; `firebreak key create` makes a new key")
	}
	for _, k := range keys {
		if k.ID == id && same(k.Hash, Hash(secret)) {
			return path, nil
		}
	}
	if len(keys) > 0 {
		return "", sandbox.Errorf(op, sandbox.KindConflict, "the file holds a key this installation did not make").WithID(path).
			WithHint("remove it; `firebreak key create` makes a new key")
	}
	failpoint.Hit("bootstrap/after-file")
	if evidence != nil {
		if err := evidence(id); err != nil {
			return "", err
		}
	}
	_, err = t.CreateKey(ctx, store.Key{ID: id, Name: bootName, Hash: Hash(secret), Role: string(Owner)})
	if err != nil {
		return "", err
	}
	return path, nil
}

// readKeyFile reads a key that nobody else could have read.
func readKeyFile(op, path string) (string, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return "", sandbox.Wrap(op, path, err)
	}
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 {
		return "", sandbox.Errorf(op, sandbox.KindDenied, "the key file is not a regular file with mode 0600").WithID(path).
			WithHint("others may have read the key: revoke it, then remove the file")
	}
	f, err := os.Open(path)
	if err != nil {
		return "", sandbox.Wrap(op, path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<10))
	return strings.TrimSpace(string(b)), sandbox.Wrap(op, path, err)
}

// sweepKeyFiles removes what a process that died while it wrote the key file
// left beside it: another name for the key, or a key that was never used.
func sweepKeyFiles(dir string) {
	stale, _ := filepath.Glob(filepath.Join(dir, keyFileTemporary))
	for _, f := range stale {
		_ = os.Remove(f) // a file of ours in a directory of ours; else the next start removes it
	}
}

// keyFileTemporary matches a key file that has no name yet.
const keyFileTemporary = ".api-key-*"

// writeKeyFile makes path with the token, whole and durable, or not at all. It
// replaces nothing.
func writeKeyFile(path, token string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), keyFileTemporary) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(token + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	failpoint.Hit("bootstrap/after-temporary")
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	failpoint.Hit("bootstrap/after-link")
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

package broker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Source is where secrets come from; *Broker is one.
type Source interface {
	// Get returns a secret for one use; the caller destroys it. Errors: KindNotFound;
	// KindUnavailable when it is there and cannot be had now, with what to do.
	Get(ctx context.Context, tenant sandbox.TenantID, name string) (*Secret, error)
}

var _ Source = (*Broker)(nil)

// Kept is what is stored of a secret: either what Seal returned, or a Reference.
type Kept struct{ Sealed, Reference string }

// Find looks up what is stored under a name. Errors: KindNotFound.
type Find func(ctx context.Context, tenant sandbox.TenantID, name string) (Kept, error)

// Broker seals secrets for whoever stores them, and opens them again. It is safe for
// concurrent use, and holds neither keys nor secrets between calls.
type Broker struct {
	dir  string
	find Find

	making sync.Mutex // held while key files are made, swept and synced
}

// New returns a Broker whose keys are in dir, in a data directory that the caller
// owns (store.Lock). It does not touch the disk.
func New(dir string, find Find) *Broker { return &Broker{dir: dir, find: find} }

// Seal encrypts s so that it opens as this tenant's secret of that name alone. The
// first call of all makes the key. Errors: KindNoSpace, and those of a key file that
// is not as it should be: KindDenied, KindInvalid.
//
// Cost: half a millisecond (BenchmarkSeal), two flushes of directories among it; what
// is sealed is about 4/3 as long.
func (b *Broker) Seal(tenant sandbox.TenantID, name string, s *Secret) (sealed string, err error) {
	ids, err := b.sealers()
	if err != nil {
		return "", err
	}
	var out strings.Builder
	text := armor.NewWriter(&out)
	w, err := age.Encrypt(text, ids[0].Recipient())
	if err == nil {
		_, err = io.WriteString(w, frame(tenant, name))
	}
	if err == nil {
		s.Use(func(plain []byte) { _, err = w.Write(plain) })
	}
	if err == nil {
		err = errors.Join(w.Close(), text.Close())
	}
	if err != nil {
		return "", sandbox.Wrap("seal secret", name, err)
	}
	return out.String(), nil
}

// sealers are the keys, made if there are none, and durable: what they seal is.
func (b *Broker) sealers() ([]*age.X25519Identity, error) {
	const op = "make key of secrets"
	b.making.Lock()
	defer b.making.Unlock()
	ids, err := keys(b.dir)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		if err := makeKey(b.dir); err != nil {
			return nil, sandbox.Wrap(op, b.dir, err)
		}
		ids, err = keys(b.dir)
	}
	if err == nil {
		err = sandbox.Wrap(op, b.dir, errors.Join(sweepKeys(b.dir), syncKeys(b.dir)))
	}
	return ids, err
}

// frame is what stands before the plaintext: whose it is. No part of it can hold a
// NUL, so that two are never one.
func frame(tenant sandbox.TenantID, name string) string {
	return "firebreak secret 1\x00" + string(tenant) + "\x00" + name + "\x00"
}

// Open is the inverse of Seal. The caller destroys the secret. Errors:
// KindUnavailable, with what an operator can do.
func (b *Broker) Open(tenant sandbox.TenantID, name, sealed string) (*Secret, error) {
	const op = "open secret"
	ids, err := keys(b.dir)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "the key that opens it is not here").WithID(name).WithHint("%s", hintKey)
	}
	if err != nil {
		return nil, err
	}
	openers := make([]age.Identity, len(ids))
	for i, id := range ids {
		openers[i] = id
	}
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(sealed)), openers...)
	var foreign *age.NoIdentityMatchError
	if errors.As(err, &foreign) {
		return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "no key that is here opens it").WithID(name).WithHint("%s", hintKey)
	}
	head := frame(tenant, name)
	plain := make([]byte, len(head)+MaxSecret+1) // grown, it would leave copies
	defer clear(plain)
	n := 0
	for k := 0; err == nil && n < len(plain); n += k {
		k, err = r.Read(plain[n:])
	}
	value, ours := bytes.CutPrefix(plain[:n], []byte(head))
	if !errors.Is(err, io.EOF) || !ours {
		return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "what is stored of it is damaged, or is another's").WithID(name).
			WithHint("set it again: `firebreak secret set %s`", name)
	}
	return NewSecret(bytes.Clone(value)), nil
}

const hintKey = "add the secrets/key of the server it was set on to secrets/key in the data directory, as a line of its own, or set it again"

// Get implements Source: what is sealed is opened, what is a reference is read where
// it points.
func (b *Broker) Get(ctx context.Context, tenant sandbox.TenantID, name string) (*Secret, error) {
	kept, err := b.find(ctx, tenant, name)
	if err != nil {
		return nil, err
	}
	if kept.Reference == "" {
		return b.Open(tenant, name, kept.Sealed)
	}
	r, err := ParseReference(kept.Reference)
	if err != nil {
		return nil, err
	}
	return r.resolve(ctx, name)
}

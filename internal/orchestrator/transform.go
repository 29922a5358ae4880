package orchestrator

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Transform sets headers of the requests to a host that a sandbox's policy lets
// pass, whatever the sandbox says in them. It is never changed.
type Transform struct {
	Host    string            `json:"host"` // a name, or *.NAME for all below it
	Headers []TransformHeader `json:"headers"`
}

// TransformHeader is a header that is set.
type TransformHeader struct {
	Name string `json:"name"`
	// Value refers to secrets of the tenant by their names; empty: it is in Sealed.
	Value string `json:"value,omitempty"`
	// Sealed is a value that refers to none, as whoever seals it keeps it.
	Sealed string `json:"sealed,omitempty"`
}

// SealedName is what values are sealed under, which is no name of a secret's.
const SealedName = "header of a transform"

// Bounds of one sandbox's transforms.
const (
	maxTransforms     = 64
	maxTransformBytes = 256 << 10
)

// checkTransforms refuses more than is kept with a sandbox.
func checkTransforms(op string, list []Transform) error {
	n := 0
	for _, t := range list {
		n += len(t.Host)
		for _, h := range t.Headers {
			n += len(h.Name) + len(h.Value) + len(h.Sealed)
		}
	}
	if len(list) > maxTransforms || n > maxTransformBytes {
		return sandbox.Errorf(op, sandbox.KindTooLarge, "the sandbox's transforms are %d and have %s", len(list), sandbox.FormatSize(int64(n))).
			WithHint("at most %d hosts and %s", maxTransforms, sandbox.FormatSize(maxTransformBytes))
	}
	return nil
}

// Placeholders begin so, and end with so many characters of base 62.
const (
	placeholderPrefix = "fbp_"
	placeholderLength = 40
	base62            = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// newPlaceholder is what stands for a secret in one sandbox and means nothing in
// any other.
func newPlaceholder() string {
	out := []byte(placeholderPrefix)
	for len(out) < len(placeholderPrefix)+placeholderLength {
		var b [64]byte
		_, _ = rand.Read(b[:]) // never fails
		for _, c := range b {
			if c < 248 && len(out) < len(placeholderPrefix)+placeholderLength { // 4 times 62: none is likelier
				out = append(out, base62[c%62])
			}
		}
	}
	return string(out)
}

// Granter is a Network whose wires take other secrets while they are served.
type Granter interface {
	// Grant has an instance's requests use a secret of p's tenant as it is now, from
	// the next one on, if they use it. No connection is closed for it.
	Grant(ctx context.Context, id sandbox.InstanceID, p Egress, secret string) error
}

// Renew has the living sandboxes of a tenant use a secret as it is now, from their next
// request on. Errors: those of Network, of any of them; the others use it.
func (o *Orchestrator) Renew(ctx context.Context, tenant sandbox.TenantID, secret string) error {
	g, ok := o.Network.(Granter)
	if !ok {
		return nil
	}
	o.mu.Lock()
	var all []*live
	for _, l := range o.lives {
		if l.tenant == tenant {
			all = append(all, l)
		}
	}
	o.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, wireWait)
	defer cancel()
	var errs []error
	for _, l := range all {
		errs = append(errs, l.renew(ctx, g, secret))
	}
	return errors.Join(errs...)
}

// renew is Renew for one. A sandbox whose wire is not served yet, or cut off, gets the
// secret when it is.
func (l *live) renew(ctx context.Context, g Granter, secret string) error {
	n := l.network()
	if n == nil || len(n.Bindings)+len(n.Transforms) == 0 {
		return nil
	}
	l.wiring.Lock()
	defer l.wiring.Unlock()
	if n = l.network(); n.Problem != "" || l.dead() {
		return nil
	}
	e := n.egress(l.tenant)
	e.Bindings, _ = l.entitled(ctx, &e)
	err := g.Grant(ctx, l.instance, e, secret)
	if sandbox.KindOf(err) == sandbox.KindNotFound || l.dead() {
		return nil
	}
	return sandbox.Wrap("renew", string(l.id), err)
}

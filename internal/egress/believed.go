//go:build linux

package egress

import (
	"context"
	"crypto/tls"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// vouch is a certificate for a name. Where the rule is about the address the name may
// be any, and there is none for those that no rule has: no program would believe it.
func vouch(i *authority.Issuer, name netaddr.Host) (*tls.Certificate, error) {
	c, err := i.Leaf(name, time.Now())
	if sandbox.KindOf(err) == sandbox.KindDenied {
		return nil, &inspect.Refusal{Reason: policy.ReasonClaim.String(), Text: "the rule is about the address, and the sandbox's authority does not vouch for " + name.String() +
			"; name the host in a rule, or let the address pass with `inspect: none`"}
	}
	return c, err
}

// silence is how soon a program goes away that does not like what it sees: one that
// compares a certificate, or its key, with what it knows does that after the
// handshake. One that only keeps a connection ready holds it longer.
const silence = 5 * time.Second

// hearing is an Asker that knows whether it was asked at all.
type hearing struct {
	inspect.Asker
	any atomic.Bool
}

// Decide implements inspect.Asker.
func (a *hearing) Decide(ctx context.Context, method, path string) *inspect.Refusal {
	a.any.Store(true)
	return a.Asker.Decide(ctx, method, path)
}

// Refused implements inspect.Asker.
func (a *hearing) Refused(method string, no *inspect.Refusal) {
	a.any.Store(true)
	a.Asker.Refused(method, no)
}

// silent reports whether nothing was asked on a connection that was soon over.
func (a *hearing) silent(begun time.Time) bool { return !a.any.Load() && time.Since(begun) < silence }

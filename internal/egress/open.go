//go:build linux

package egress

import (
	"context"
	"net/http"

	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// opened reports whether a binding opens what a policy says so of: no rule lets it
// pass, and none denies it.
func opened(d policy.Decision) bool {
	return !d.Allow && d.Reason != policy.ReasonDenied && d.Reason != policy.ReasonAddress && d.Reason != policy.ReasonInvalid
}

// open lets a connection be read that no rule allows, since a placeholder of the
// sandbox's may be sent on it. Nothing else passes: an opener decides.
func (f *flow) open(p policy.Protocol, claimed netaddr.Host) (g grant, ok bool) {
	w := f.wire
	if p != policy.ProtocolTLS || claimed != f.host || !w.bound.proxy.At(f.host, f.port).Opens {
		return g, false
	}
	g.flow, g.bound = policy.Flow{Host: f.host, Port: f.port, Protocol: p, Claimed: claimed}, true
	for range retries {
		g.table = w.live.Table()
		if g.decision = g.table.Could(g.flow); !opened(g.decision) {
			return g, false
		}
		release, err := w.live.Admit(g.decision.Generation, f)
		if err != nil {
			continue // policy.ErrStale: asked again under the new policy
		}
		f.release = release
		g.decision = policy.Decision{Allow: true, Generation: g.decision.Generation}
		return g, true
	}
	return g, false
}

// opener decides about requests on a connection that a binding alone lets pass:
// those that are not made through it do not.
type opener struct{ visitor }

// Decide implements inspect.Asker.
func (o opener) Decide(_ context.Context, method, path string) *inspect.Refusal {
	e := o.event(method)
	d := o.table.CouldRequest(o.flow, policy.Request{Method: method, Path: path})
	if e.Reason = d.Reason.String(); d.Allow { // what could not be, since it was not opened then
		e.Reason = policy.ReasonNoRule.String()
	}
	e.Hint = "a binding lets requests pass that have its placeholder where its secret goes; others need a rule: " + o.table.Hint(o.flow, d)
	o.wire.deny(e)
	return &inspect.Refusal{Status: http.StatusForbidden, Reason: e.Reason, Text: "without the placeholder of a binding no rule lets this request pass"}
}

package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// Step is what one rule says about a flow.
type Step struct {
	Rule  *Compiled
	About bool   // it names the flow's host, claimed host or address
	Match bool   // it decides about the flow, if nothing before it does
	Why   string // for people
}

// Explanation is a decision and how it came about.
type Explanation struct {
	Flow     Flow
	Request  *Request // nil: it is about the connection
	Decision Decision
	Hint     string // empty when allowed
	Steps    []Step // every rule: deny rules first, then as written
}

// ExplainRequest is Explain for a request on a connection. Where the connection is
// denied, or passes unread, that is the decision.
func (t *Table) ExplainRequest(ctx context.Context, f Flow, r Request) Explanation {
	q := t.asked(r)
	x := t.explain(ctx, f, &q)
	x.Request = &r
	return x
}

// Explain decides, as far as the flow is known, and looks at every rule by
// itself, in the order they were written. It uses none of the indexes that Decide
// does; both agree (package rego, TestAgree).
func (t *Table) Explain(ctx context.Context, f Flow) Explanation { return t.explain(ctx, f, nil) }

func (t *Table) explain(ctx context.Context, f Flow, q *asked) Explanation {
	full := f.Port != 0 && f.Protocol != ProtocolUnknown && f.Addr.IsValid()
	x := Explanation{Flow: f, Decision: t.Could(f)}
	if full {
		x.Decision = t.Decide(ctx, f)
	}
	if !x.Decision.Allow || x.Decision.Opaque() {
		q = nil
	}
	switch {
	case q != nil && full:
		x.Decision = t.DecideRequest(ctx, f, q.Request)
	case q != nil:
		x.Decision = t.CouldRequest(f, q.Request)
	}
	x.Hint = t.Hint(f, x.Decision)
	if f.Host.Addr().IsValid() && !f.Addr.IsValid() {
		f.Addr = f.Host.Addr()
	}
	if f.Addr.IsValid() {
		f.Addr = netaddr.Effective(f.Addr)
	}
	read := q == nil && slices.ContainsFunc(t.rules, func(r *Compiled) bool { // the connection has to be
		_, ok := r.about(f)
		return ok && r.Deny && r.aboutRequests() && r.onPort(f.Port)
	})
	for _, r := range t.rules {
		s := Step{Rule: r}
		what, ok := r.about(f)
		s.About = ok
		switch {
		case !ok:
			s.Why = "it names " + r.names()
		case !r.onPort(f.Port) && f.Port == 0:
			s.Why = fmt.Sprintf("%s, but not on all ports", what)
		case !r.onPort(f.Port):
			s.Why = fmt.Sprintf("%s, but not on port %d", what, f.Port)
		case !r.Deny && f.Protocol != ProtocolUnknown && !r.Protocols.has(f.Protocol):
			s.Why = fmt.Sprintf("%s, but for %s, not for %s", what, r.Protocols, f.Protocol)
		case !r.Deny && read && r.unread(f.Protocol):
			s.Why = fmt.Sprintf("%s, but would pass unread", what)
		case q == nil && r.Deny && r.aboutRequests():
			s.Why = fmt.Sprintf("%s, and denies only requests%s", what, r.requests())
		case q != nil && (r.Deny && !r.forbids(q) || !r.Deny && r.permits(q) != ReasonRule):
			s.Why = fmt.Sprintf("%s, but is only for requests%s", what, r.requests())
		default:
			s.Match, s.Why = true, what
		}
		x.Steps = append(x.Steps, s)
	}
	return x
}

// onPort reports whether a rule is about a port; 0 is one that is not known: some
// port of an allow rule, and all of a deny rule.
func (r *Compiled) onPort(port uint16) bool {
	if port == 0 {
		return !r.Deny || r.Ports[0] == allPorts[0]
	}
	return hasPort(r.Ports, port)
}

// requests is which ones a rule is about, as part of a sentence.
func (r *Compiled) requests() (text string) {
	if len(r.Methods) > 0 {
		text += " with " + short(r.Methods)
	}
	if len(r.Paths) > 0 {
		text += " below " + short(r.Paths)
	}
	return text
}

// about reports whether a rule names the flow's host or address, and how.
func (r *Compiled) about(f Flow) (what string, ok bool) {
	network := func(a netip.Addr) (string, bool) {
		for _, p := range r.Networks {
			if a.IsValid() && p.Contains(a) {
				return fmt.Sprintf("%s is in %s", a, p), true
			}
		}
		return "", false
	}
	hosts := []netaddr.Host{f.Host}
	if r.Deny {
		hosts = append(hosts, f.Claimed)
	}
	for _, h := range hosts {
		for _, p := range r.Hosts {
			switch {
			case h.Name() == "" || !p.matches(h.Name()):
			case p.Stars == 0:
				return fmt.Sprintf("it names %s", h), true
			default:
				return fmt.Sprintf("%s is %s", h, p), true
			}
		}
		if r.Deny && h.Addr().IsValid() {
			if what, ok := network(netaddr.Effective(h.Addr())); ok {
				return what, ok
			}
		}
	}
	if r.Deny || f.Host.Name() == "" {
		return network(f.Addr)
	}
	return "", false
}

// names is what a rule is about, cut short.
func (r *Compiled) names() string {
	var list []string
	for _, h := range r.Hosts {
		list = append(list, h.String())
	}
	for _, p := range r.Networks {
		list = append(list, p.String())
	}
	if len(list) > 3 {
		list = append(list[:3], fmt.Sprintf("%d more", len(list)-3))
	}
	return strings.Join(list, ", ")
}

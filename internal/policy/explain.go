package policy

import (
	"context"
	"fmt"
	"net/netip"
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
	Decision Decision
	Hint     string // empty when allowed
	Steps    []Step // every rule: deny rules first, then as written
}

// Explain decides, as far as the flow is known, and looks at every rule by
// itself, in the order they were written. It uses none of the indexes that Decide
// does; both agree (package rego, TestAgree).
func (t *Table) Explain(ctx context.Context, f Flow) Explanation {
	x := Explanation{Flow: f, Decision: t.Could(f)}
	if f.Port != 0 && f.Protocol != ProtocolUnknown && f.Addr.IsValid() {
		x.Decision = t.Decide(ctx, f)
	}
	x.Hint = t.Hint(f, x.Decision)
	if f.Host.Addr().IsValid() && !f.Addr.IsValid() {
		f.Addr = f.Host.Addr()
	}
	if f.Addr.IsValid() {
		f.Addr = netaddr.Effective(f.Addr)
	}
	for _, r := range t.rules {
		s := Step{Rule: r}
		what, ok := r.about(f)
		s.About = ok
		switch {
		case !ok:
			s.Why = "it names " + r.names()
		case f.Port != 0 && !hasPort(r.Ports, f.Port):
			s.Why = fmt.Sprintf("%s, but not on port %d", what, f.Port)
		case f.Port == 0 && r.Deny && r.Ports[0] != allPorts[0]:
			s.Why = fmt.Sprintf("%s, but not on all ports", what)
		case !r.Deny && f.Protocol != ProtocolUnknown && !r.Protocols.has(f.Protocol):
			s.Why = fmt.Sprintf("%s, but for %s, not for %s", what, r.Protocols, f.Protocol)
		default:
			s.Match, s.Why = true, what
		}
		x.Steps = append(x.Steps, s)
	}
	return x
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

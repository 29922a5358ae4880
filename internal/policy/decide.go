package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// Flow is a connection that a sandbox wants. It has no source: whose it is, is
// known by the wire it came from.
type Flow struct {
	// Host is what the connection is to: the name whose synthetic address was
	// dialled, or the address itself.
	Host netaddr.Host
	Port uint16
	// Addr is the address that will be dialled upstream, pinned; of a Host that is an
	// address that one.
	Addr netip.Addr
	// Protocol is what the first bytes are.
	Protocol Protocol
	// Claimed is the host those bytes name: SNI of TLS, Host of HTTP.
	Claimed netaddr.Host
}

// Reason says why a flow is allowed or not.
type Reason uint8

// The reasons.
const (
	ReasonInvalid    Reason = iota // something of the flow is missing
	ReasonRule                     // an allow rule
	ReasonObserved                 // no rule; the policy only observes
	ReasonDenied                   // a deny rule
	ReasonNoRule                   // no rule is about the host
	ReasonPort                     // rules are about the host, on other ports
	ReasonProtocol                 // rules are about host and port, with another protocol
	ReasonAddress                  // an address that is never dialled
	ReasonPrivate                  // an address that is not public and was not opened
	ReasonClaim                    // the bytes name another host, or none
	ReasonRego                     // a Rego module did not agree
	ReasonRegoFailed               // a Rego module gave no answer
	ReasonBudget                   // the rule's budget is used up
	ReasonMethod                   // rules are about the connection, none about the method
	ReasonPath                     // rules are about connection and method, none about the path
	ReasonInspect                  // it would pass unread, and has to be read
)

var reasonNames = [...]string{"invalid", "rule", "observed", "denied", "no_rule", "port", "protocol", "address", "private", "claim", "rego", "rego_failed", "budget",
	"method", "path", "inspect"}

// String is the reason in records and events.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "unknown"
}

// Decision is what a table says about a flow. The zero Decision denies.
type Decision struct {
	Allow      bool
	Reason     Reason
	Class      netaddr.Class // of Flow.Addr
	Rule       *Compiled     // that decided; nil for none
	Generation uint64        // of the table
	Err        error         // why there was no answer, with ReasonRegoFailed
}

// Opaque reports whether the connection passes unread, as the rule says.
func (d Decision) Opaque() bool { return d.Allow && d.Rule != nil && d.Rule.Opaque }

// Observed reports whether a policy that enforces would have denied.
func (d Decision) Observed() bool { return d.Allow && d.Reason == ReasonObserved }

// Decide decides about a flow of which everything is known; what is missing
// denies. It takes some hundred nanoseconds and allocates nothing, but 48 bytes
// where a wildcard matches. Where the policy has Rego that is asked about what a
// rule allows, within ctx, and takes some hundred microseconds.
//
// Methods and paths of allow rules have no say, since each may be that of a
// request to come, and deny rules that have some are left out: DecideRequest is
// about them. What such a deny rule is about has to be read: no raw TCP passes
// to it, and no rule lets it pass unread.
func (t *Table) Decide(ctx context.Context, f Flow) Decision {
	if f.Port == 0 || f.Protocol == ProtocolUnknown || !f.Addr.IsValid() {
		return Decision{Generation: t.generation}
	}
	d := t.decide(f, nil)
	if t.judge == nil || d.Reason != ReasonRule {
		return d
	}
	return t.judged(ctx, f, nil, d)
}

// judged is d, by which a rule allows, or what Rego makes of it.
func (t *Table) judged(ctx context.Context, f Flow, q *asked, d Decision) Decision {
	ask := Question{Flow: f, Class: d.Class, Rule: d.Rule, Candidates: t.candidates(f, q), Generation: t.generation}
	if q != nil {
		ask.Method, ask.Path, ask.Binding = q.Method, q.meaning(), q.Binding
	}
	agreed, err := t.judge.Agree(ctx, ask)
	switch {
	case err != nil:
		d.Allow, d.Reason, d.Err = false, ReasonRegoFailed, err
	case !agreed:
		d.Allow, d.Reason = false, ReasonRego
	}
	return d
}

// Could decides as far as is known: a missing port, address or protocol is one
// that some rule has. It is for what comes before Decide: answering a DNS query,
// accepting a connection, resolving a name.
func (t *Table) Could(f Flow) Decision { return t.decide(f, nil) }

// decide decides about a connection, or a request on one.
func (t *Table) decide(f Flow, q *asked) Decision {
	d := Decision{Generation: t.generation}
	literal := f.Host.Addr()
	switch {
	case !f.Host.IsValid():
		return d
	case literal.IsValid() && !f.Addr.IsValid():
		f.Addr = literal
	case literal.IsValid() && f.Addr.Unmap() != literal:
		return d
	}
	if f.Addr.IsValid() {
		if d.Class = t.classify(f.Addr); d.Class != netaddr.Public && !d.Class.Openable() {
			d.Reason = ReasonAddress
			return d
		}
		f.Addr = netaddr.Effective(f.Addr)
	}
	if by := t.deny.denied(f, nil); by != nil {
		d.Reason, d.Rule = ReasonDenied, by
		return d
	}
	var read *Compiled // why a connection has to be read
	if t.narrows {
		if read = t.narrow.denied(f, q); read != nil && q != nil {
			d.Reason, d.Rule = ReasonDenied, read
			return d
		}
	}
	if !claims(f) {
		d.Reason = ReasonClaim
		return d
	}
	e, why := t.allowed(f, q, read != nil)
	if e.rule == nil {
		d.Reason = why
		private := d.Class != netaddr.Public && f.Addr.IsValid()
		switch {
		case private && (why < ReasonMethod || !t.opened(f, nil, d.Class)):
			d.Reason = ReasonPrivate // what a rule would have to say first
		case read != nil && (why == ReasonInspect && !t.observe || t.observe && f.Protocol == ProtocolTCP):
			d.Reason, d.Rule = ReasonInspect, read
		case t.observe && !private:
			d.Allow, d.Reason = true, ReasonObserved
		}
		return d
	}
	d.Rule = e.rule
	if d.Class != netaddr.Public && f.Addr.IsValid() && !t.opened(f, q, d.Class) {
		d.Reason = ReasonPrivate
		return d
	}
	d.Allow, d.Reason = true, ReasonRule
	return d
}

// classify is netaddr's, with the addresses of this machine.
func (t *Table) classify(a netip.Addr) netaddr.Class {
	c := netaddr.Classify(a)
	if t.own != nil && c != netaddr.Loopback && (c == netaddr.Public || c.Openable()) && t.own(netaddr.Effective(a)) {
		return netaddr.Own
	}
	return c
}

// denied returns the deny rule for the host, the claimed host or the address, and
// for the request if there is one.
func (m *matcher) denied(f Flow, q *asked) (by *Compiled) {
	if len(m.exact)+m.long+len(m.nets.starts) == 0 {
		return nil
	}
	find := func(es []entry) bool {
		for i := range es {
			if (f.Port != 0 && hasPort(es[i].rule.Ports, f.Port) || f.Port == 0 && es[i].rule.Ports[0] == allPorts[0]) && (q == nil || es[i].rule.forbids(q)) {
				by = es[i].rule
				return true
			}
		}
		return false
	}
	for _, h := range [...]netaddr.Host{f.Host, f.Claimed} {
		if h.Name() != "" && m.byName(h.Name(), find) || h.Addr().IsValid() && m.byAddr(netaddr.Effective(h.Addr()), find) {
			return by
		}
	}
	if f.Addr.IsValid() {
		m.byAddr(f.Addr, find)
	}
	return by
}

// claims reports whether what the bytes name is what the connection is to. To an
// address anything may be claimed: the rule is about the address.
func claims(f Flow) bool {
	switch {
	case f.Host.Name() == "" || f.Protocol == ProtocolUnknown && !f.Claimed.IsValid():
		return true
	case f.Protocol == ProtocolTCP:
		return !f.Claimed.IsValid()
	}
	return f.Claimed == f.Host
}

// unread reports whether what a rule lets pass of a protocol is not read.
func (r *Rule) unread(p Protocol) bool {
	return r.Opaque || p == ProtocolTCP || p == ProtocolUnknown && r.Protocols == 1<<ProtocolTCP
}

// allowed returns the most specific allow rule, or why there is none. If read,
// the connection has to be.
func (t *Table) allowed(f Flow, q *asked, read bool) (found entry, why Reason) {
	why = ReasonNoRule
	find := func(es []entry) bool {
		for i := range es {
			switch r := es[i].rule; {
			case f.Port != 0 && !hasPort(r.Ports, f.Port):
				why = max(why, ReasonPort)
			case f.Protocol != ProtocolUnknown && !r.Protocols.has(f.Protocol):
				why = max(why, ReasonProtocol)
			case read && r.unread(f.Protocol):
				why = max(why, ReasonInspect)
			case q != nil && r.permits(q) != ReasonRule:
				why = max(why, r.permits(q))
			default:
				found = es[i]
				return true
			}
		}
		return false
	}
	if name := f.Host.Name(); name != "" {
		t.allow.byName(name, find)
	} else {
		t.allow.byAddr(f.Addr, find)
	}
	return found, why
}

// candidates are all allow rules for a flow or a request, the most specific first.
func (t *Table) candidates(f Flow, q *asked) (list []*Compiled) {
	read := q == nil && t.narrows && t.narrow.denied(f, nil) != nil
	all := func(es []entry) bool {
		for i := range es {
			if r := es[i].rule; hasPort(r.Ports, f.Port) && r.Protocols.has(f.Protocol) && !(read && r.unread(f.Protocol)) && (q == nil || r.permits(q) == ReasonRule) {
				list = append(list, r)
			}
		}
		return false
	}
	if name := f.Host.Name(); name != "" {
		t.allow.byName(name, all)
	} else {
		t.allow.byAddr(netaddr.Effective(f.Addr), all)
	}
	return list
}

// opened reports whether a rule names the network of an address that is not
// public, with the operator's permission. To a name it is opened by rules for all
// requests only: which of its addresses one goes to is not known before.
func (t *Table) opened(f Flow, q *asked, c netaddr.Class) bool {
	return t.allow.byAddr(f.Addr, func(es []entry) bool {
		for i := range es {
			e := &es[i]
			if (c == netaddr.Own && e.own || c != netaddr.Own && e.private) && (f.Port == 0 || hasPort(e.rule.Ports, f.Port)) &&
				(f.Protocol == ProtocolUnknown || e.rule.Protocols.has(f.Protocol)) && (f.Host.Name() == "" || !e.rule.aboutRequests()) && (q == nil || e.rule.permits(q) == ReasonRule) {
				return true
			}
		}
		return false
	})
}

// Permits reports whether the operator lets rules open an address of a class that
// is not public: for what a sandbox may reach by other grants than rules.
func (t *Table) Permits(a netip.Addr, c netaddr.Class) bool {
	a = netaddr.Effective(a)
	if c == netaddr.Own {
		return slices.Contains(t.private, netip.PrefixFrom(a, a.BitLen()))
	}
	return c.Openable() && slices.ContainsFunc(t.private, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Hint is a sentence that tells a person what would permit a denied flow.
func (t *Table) Hint(f Flow, d Decision) string {
	if d.Allow {
		return ""
	}
	port := ":PORT"
	if f.Port != 0 {
		port = fmt.Sprintf(":%d", f.Port)
	}
	host := f.Host.String()
	if f.Host.Addr().Is6() {
		host = "[" + host + "]"
	}
	addr := f.Addr
	if !addr.IsValid() { // as in Could
		addr = f.Host.Addr()
	}
	switch d.Reason {
	case ReasonNoRule, ReasonPort:
		return "to permit it: --allow " + host + port
	case ReasonProtocol:
		return fmt.Sprintf("to permit it: a rule for %s%s with `protocol: %s`", host, port, f.Protocol)
	case ReasonDenied:
		return fmt.Sprintf("the rule %q denies it; deny rules win over allow rules", d.Rule.ID)
	case ReasonAddress:
		return fmt.Sprintf("no rule can permit it: %s is %s", addr, d.Class)
	case ReasonPrivate:
		return fmt.Sprintf("%s is %s: an allow rule has to name its network with `cidr`, and the operator has to permit that", addr, d.Class)
	case ReasonClaim:
		if !f.Claimed.IsValid() {
			return fmt.Sprintf("the connection to %s does not say whom it is for (SNI, Host)", host)
		}
		return fmt.Sprintf("the connection to %s says that it is for %s", host, f.Claimed)
	case ReasonRego:
		return fmt.Sprintf("the rule %q allows it, and the policy's Rego does not agree", d.Rule.ID)
	case ReasonRegoFailed:
		return "the policy's Rego gave no answer, which denies"
	case ReasonBudget:
		return "the budget of the rule is used up"
	case ReasonMethod:
		return fmt.Sprintf("to permit it: a rule for %s%s with the method in `methods`, or without any; there is %s", host, port, t.said(f, func(r *Rule) []string { return r.Methods }))
	case ReasonPath:
		return fmt.Sprintf("to permit it: a rule for %s%s with the path in `paths`, or without any; there is %s", host, port, t.said(f, func(r *Rule) []string { return r.Paths }))
	case ReasonInspect:
		if d.Rule == nil {
			return fmt.Sprintf("what passes to %s%s has to be read, and cannot be", host, port)
		}
		return fmt.Sprintf("the rule %q denies some requests to %s%s, so that nothing passes unread; its `ports` say where else it need not be", d.Rule.ID, host, port)
	}
	return "host, port, address and protocol have to be known"
}

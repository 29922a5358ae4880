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
)

var reasonNames = [...]string{"invalid", "rule", "observed", "denied", "no_rule", "port", "protocol", "address", "private", "claim", "rego", "rego_failed", "budget"}

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

// Observed reports whether a policy that enforces would have denied.
func (d Decision) Observed() bool { return d.Allow && d.Reason == ReasonObserved }

// Decide decides about a flow of which everything is known; what is missing
// denies. It takes some hundred nanoseconds and allocates nothing, but 48 bytes
// where a wildcard matches. Where the policy has Rego that is asked about what a
// rule allows, within ctx, and takes some hundred microseconds.
func (t *Table) Decide(ctx context.Context, f Flow) Decision {
	if f.Port == 0 || f.Protocol == ProtocolUnknown || !f.Addr.IsValid() {
		return Decision{Generation: t.generation}
	}
	d := t.decide(f)
	if t.judge == nil || d.Reason != ReasonRule {
		return d
	}
	agreed, err := t.judge.Agree(ctx, Question{f, d.Class, d.Rule, t.candidates(f), t.generation})
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
func (t *Table) Could(f Flow) Decision { return t.decide(f) }

func (t *Table) decide(f Flow) Decision {
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
	if r := t.denied(f); r != nil {
		d.Reason, d.Rule = ReasonDenied, r
		return d
	}
	if !claims(f) {
		d.Reason = ReasonClaim
		return d
	}
	e, why := t.allowed(f)
	if e.rule == nil {
		d.Reason = why
		if d.Class != netaddr.Public && f.Addr.IsValid() {
			d.Reason = ReasonPrivate // what a rule would have to say first
		} else if t.observe {
			d.Allow, d.Reason = true, ReasonObserved
		}
		return d
	}
	d.Rule = e.rule
	if d.Class != netaddr.Public && f.Addr.IsValid() && !t.opened(f, d.Class) {
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

// denied returns the deny rule for the host, the claimed host or the address.
func (t *Table) denied(f Flow) (by *Compiled) {
	if len(t.deny.exact)+t.deny.long+len(t.deny.nets.starts) == 0 {
		return nil
	}
	find := func(es []entry) bool {
		for i := range es {
			if f.Port != 0 && hasPort(es[i].rule.Ports, f.Port) || f.Port == 0 && es[i].rule.Ports[0] == allPorts[0] {
				by = es[i].rule
				return true
			}
		}
		return false
	}
	for _, h := range [...]netaddr.Host{f.Host, f.Claimed} {
		if h.Name() != "" && t.deny.byName(h.Name(), find) || h.Addr().IsValid() && t.deny.byAddr(netaddr.Effective(h.Addr()), find) {
			return by
		}
	}
	if f.Addr.IsValid() {
		t.deny.byAddr(f.Addr, find)
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

// allowed returns the most specific allow rule, or why there is none.
func (t *Table) allowed(f Flow) (found entry, why Reason) {
	why = ReasonNoRule
	find := func(es []entry) bool {
		for i := range es {
			switch r := es[i].rule; {
			case f.Port != 0 && !hasPort(r.Ports, f.Port):
				if why == ReasonNoRule {
					why = ReasonPort
				}
			case f.Protocol != ProtocolUnknown && !r.Protocols.has(f.Protocol):
				why = ReasonProtocol
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

// candidates are all allow rules for a flow, the most specific first.
func (t *Table) candidates(f Flow) (list []*Compiled) {
	all := func(es []entry) bool {
		for i := range es {
			if r := es[i].rule; hasPort(r.Ports, f.Port) && r.Protocols.has(f.Protocol) {
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
// public, with the operator's permission.
func (t *Table) opened(f Flow, c netaddr.Class) bool {
	return t.allow.byAddr(f.Addr, func(es []entry) bool {
		for i := range es {
			e := &es[i]
			if (c == netaddr.Own && e.own || c != netaddr.Own && e.private) && (f.Port == 0 || hasPort(e.rule.Ports, f.Port)) &&
				(f.Protocol == ProtocolUnknown || e.rule.Protocols.has(f.Protocol)) {
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
	}
	return "host, port, address and protocol have to be known"
}

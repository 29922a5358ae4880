package policy

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Scope is what a table lets a sandbox reach by TLS that is read: what has to be
// certified for it, and nothing else.
type Scope struct {
	// Names are names, and for wildcards of either kind what is below one, with a dot
	// in front: "example.com", ".example.com". Sorted, none below another.
	Names    []string
	Networks []netip.Prefix // sorted, none within another
	// Any says that names are no bound: what no rule names passes, too, or there are
	// too many of them.
	Any bool
}

// maxScope bounds the names of a Scope, and its networks.
const maxScope = 1024

// Scope returns what the allow rules name of which TLS is read. It says no less
// than they do, and may say more: where they name more than 1024 hosts those are
// bound by their registrable domains, and where these are more, too, not at all;
// more than as many networks are all of them.
func (t *Table) Scope() Scope {
	s := Scope{Any: t.observe}
	names := map[string]bool{}
	networks := map[netip.Prefix]bool{}
	for _, r := range t.rules {
		if r.Deny || r.Opaque || !r.Protocols.has(ProtocolTLS) {
			continue
		}
		for _, h := range r.Hosts {
			if h.Stars > 0 {
				names["."+h.Name] = true
			} else {
				names[h.Name] = true
			}
		}
		for _, p := range r.Networks {
			networks[p] = true
		}
	}
	if names = outermost(names); len(names) > maxScope {
		wide := map[string]bool{}
		for n := range names {
			if domain, err := publicsuffix.EffectiveTLDPlusOne(strings.TrimPrefix(n, ".")); err == nil {
				n = domain
				wide["."+n] = true
			}
			wide[n] = true
		}
		if names = outermost(wide); len(names) > maxScope {
			names, s.Any = nil, true
		}
	}
	for n := range names {
		s.Names = append(s.Names, n)
	}
	slices.Sort(s.Names)
	s.Networks = widest(networks)
	return s
}

// outermost leaves out what is below another name.
func outermost(names map[string]bool) map[string]bool {
	out := map[string]bool{}
	for n := range names {
		covered := false
		for rest := strings.TrimPrefix(n, "."); !covered; {
			i := strings.IndexByte(rest, '.')
			if i < 0 {
				break
			}
			covered = names[rest[i:]]
			rest = rest[i+1:]
		}
		if !covered {
			out[n] = true
		}
	}
	return out
}

// widest leaves out what is within another network.
func widest(all map[netip.Prefix]bool) (list []netip.Prefix) {
	for p := range all {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int { // the wider one first where both begin together
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	last := netip.Prefix{} // what is within another one follows it
	list = slices.DeleteFunc(list, func(p netip.Prefix) bool {
		if last.IsValid() && last.Contains(p.Addr()) {
			return true
		}
		last = p
		return false
	})
	if len(list) > maxScope {
		list = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	return list
}

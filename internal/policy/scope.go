package policy

import (
	"net/netip"
	"slices"
)

// Scope is what a table lets a sandbox reach by TLS that is read: what has to be
// certified for it, and nothing else.
type Scope struct {
	// Names are names, and for wildcards of either kind what is below one, with a dot
	// in front: "example.com", ".example.com". Sorted.
	Names    []string
	Networks []netip.Prefix // sorted
	// Any says that names are no bound: what no rule names passes, too.
	Any bool
}

// Scope returns what the allow rules name of which TLS is read.
func (t *Table) Scope() Scope {
	s := Scope{Any: t.observe}
	for _, r := range t.rules {
		if r.Deny || !r.Protocols.has(ProtocolTLS) {
			continue
		}
		for _, h := range r.Hosts {
			if h.Stars > 0 {
				s.Names = append(s.Names, "."+h.Name)
			} else {
				s.Names = append(s.Names, h.Name)
			}
		}
		s.Networks = append(s.Networks, r.Networks...)
	}
	slices.Sort(s.Names)
	return s
}

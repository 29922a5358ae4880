package policy

import (
	"net/netip"
	"slices"
	"sort"
)

// networks finds the rules for an address: a binary search over the addresses
// at which the most specific prefix changes, then up through the enclosing ones.
type networks struct {
	starts []netip.Addr // sorted; IPv4 before IPv6
	nodes  []*network   // from starts[i] on; nil: none
}

// network is one prefix that rules name.
type network struct {
	prefix  netip.Prefix
	parent  *network // the next wider one that contains it
	entries []entry
}

// find returns the most specific prefix that contains a; nil for none.
func (n *networks) find(a netip.Addr) *network {
	i := sort.Search(len(n.starts), func(i int) bool { return a.Less(n.starts[i]) })
	if i == 0 {
		return nil
	}
	return n.nodes[i-1]
}

// newNetworks sorts prefixes with their rules.
func newNetworks(all map[netip.Prefix][]entry) networks {
	list := make([]*network, 0, len(all))
	for p, e := range all {
		list = append(list, &network{prefix: p, entries: e})
	}
	slices.SortFunc(list, func(a, b *network) int { // the wider one first where both begin together
		if c := a.prefix.Addr().Compare(b.prefix.Addr()); c != 0 {
			return c
		}
		return a.prefix.Bits() - b.prefix.Bits()
	})
	var n networks
	begin := func(at netip.Addr, node *network) {
		if k := len(n.starts); k > 0 && n.starts[k-1] == at { // what begins here replaces what ended
			n.nodes[k-1] = node
			return
		}
		n.starts, n.nodes = append(n.starts, at), append(n.nodes, node)
	}
	var open *network // the innermost prefix that is not over
	end := func() {
		after := lastOf(open.prefix).Next()
		if !after.IsValid() { // the end of its family; IPv6 begins behind IPv4
			if after = netip.IPv6Unspecified(); open.prefix.Addr().Is6() {
				open = open.parent
				return
			}
		}
		begin(after, open.parent)
		open = open.parent
	}
	for _, x := range list {
		for open != nil && !open.prefix.Contains(x.prefix.Addr()) {
			end()
		}
		x.parent = open
		open = x
		begin(x.prefix.Addr(), x)
	}
	for open != nil {
		end()
	}
	return n
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

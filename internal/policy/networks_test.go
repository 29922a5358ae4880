package policy

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// TestNetworks: the search finds the longest prefix, as looking at all does, and
// the chain upwards is every prefix that contains the address.
func TestNetworks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Few distinct bits, so that prefixes nest and touch, also at the ends.
		octets := rapid.SampledFrom([]byte{0, 1, 127, 128, 254, 255})
		addr := func(label string) netip.Addr {
			n := 4
			if rapid.Bool().Draw(t, label+" is IPv6") {
				n = 16
			}
			b := make([]byte, n)
			for i := range b {
				b[i] = octets.Draw(t, label)
			}
			a, _ := netip.AddrFromSlice(b)
			return a
		}
		all := map[netip.Prefix][]entry{}
		for range rapid.IntRange(0, 12).Draw(t, "prefixes") {
			a := addr("prefix")
			p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
			all[p] = append(all[p], entry{})
		}
		n := newNetworks(all)
		check := func(a netip.Addr) {
			seen := map[netip.Prefix]bool{}
			last := 129
			for x := n.find(a); x != nil; x = x.parent {
				if !x.prefix.Contains(a) || x.prefix.Bits() >= last {
					t.Fatalf("%s: %s after /%d", a, x.prefix, last)
				}
				last = x.prefix.Bits()
				seen[x.prefix] = true
			}
			for p := range all {
				if p.Contains(a) != seen[p] {
					t.Fatalf("%s in %s: found %v", a, p, seen[p])
				}
			}
		}
		for p := range all {
			for _, a := range []netip.Addr{p.Addr(), lastOf(p), p.Addr().Prev(), lastOf(p).Next()} {
				if a.IsValid() {
					check(a)
				}
			}
		}
		for range 10 {
			check(addr("address"))
		}
	})
}

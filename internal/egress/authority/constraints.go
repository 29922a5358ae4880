package authority

import (
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// What a certificate has at most: every program in the sandbox reads them for every
// connection, and some refuse to read more.
const (
	maxConstraints = 2000     // names and networks
	maxNames       = 64 << 10 // bytes of all names
)

// nowhere is a name that nobody has (RFC 2606). A certificate that permits it, and
// excludes it again, is for no name; that an empty list would be is not said
// anywhere, and that an empty excluded name is for all of them is not known
// everywhere.
const nowhere = "invalid"

// constrain says in a certificate what its key may vouch for. A permitted name
// stands for itself and all below it (RFC 5280): there is no way that all programs
// understand to say one of both. Where a scope is for anything, or too long to be
// said, nothing is.
func constrain(c *x509.Certificate, s policy.Scope) {
	names, length := subsume(s.Names), 0
	for _, n := range names {
		length += len(n)
	}
	if s.Any || len(names)+len(s.Networks) > maxConstraints || length > maxNames {
		return
	}
	c.PermittedDNSDomainsCritical = true
	c.PermittedDNSDomains = names
	if len(names) == 0 {
		c.PermittedDNSDomains, c.ExcludedDNSDomains = []string{nowhere}, []string{nowhere}
	}
	for _, p := range s.Networks {
		c.PermittedIPRanges = append(c.PermittedIPRanges, network(p))
	}
	if len(s.Networks) == 0 {
		c.ExcludedIPRanges = []*net.IPNet{network(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), network(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
	}
}

// subsume is names without the dots in front, and without those below others.
func subsume(names []string) (out []string) {
	all := map[string]bool{}
	for _, n := range names {
		all[strings.TrimPrefix(n, ".")] = true
	}
next:
	for n := range all {
		for rest := n; ; {
			_, above, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			if all[above] {
				continue next
			}
			rest = above
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// permits reports whether a certificate may vouch for h.
func permits(c *x509.Certificate, h netaddr.Host) bool {
	if name := h.Name(); name != "" {
		below := func(above string) bool { return name == above || strings.HasSuffix(name, "."+above) }
		return !slices.ContainsFunc(c.ExcludedDNSDomains, below) && (len(c.PermittedDNSDomains) == 0 || slices.ContainsFunc(c.PermittedDNSDomains, below))
	}
	in := func(n *net.IPNet) bool { return n.Contains(h.Addr().AsSlice()) }
	return h.IsValid() && !slices.ContainsFunc(c.ExcludedIPRanges, in) && (len(c.PermittedIPRanges) == 0 || slices.ContainsFunc(c.PermittedIPRanges, in))
}

package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// Pattern is what a rule says about names: one, or those below one.
type Pattern struct {
	Name  string // canonical; without the stars
	Stars int    // 0: Name itself; 1: one label in front of it; 2: one or more
}

// String is the pattern as it is written.
func (p Pattern) String() string {
	switch p.Stars {
	case 1:
		return "*." + p.Name
	case 2:
		return "**." + p.Name
	}
	return p.Name
}

// matches is the meaning of a pattern, for Explain; tables look it up.
func (p Pattern) matches(name string) bool {
	if p.Stars == 0 {
		return name == p.Name
	}
	front, ok := strings.CutSuffix(name, p.Name)
	if !ok || len(front) < 2 || !strings.HasSuffix(front, ".") || p.Stars == 1 && strings.Count(front, ".") != 1 {
		return false
	}
	return !crosses(name, len(p.Name))
}

// crosses reports whether a public suffix begins in front of the last n bytes of
// name: what is below it belongs to others than what is above.
func crosses(name string, n int) bool {
	suffix, _ := publicsuffix.PublicSuffix(name)
	return len(suffix) >= n
}

// BindingZone is the domain below which a sandbox's bindings are, which no rule
// opens or closes.
const BindingZone = "binding.internal"

func ofBindings(name string) bool {
	return name == BindingZone || strings.HasSuffix(name, "."+BindingZone)
}

// parseHost reads a pattern, or an address as the prefix of it alone.
func parseHost(s string) (Pattern, netip.Prefix, error) {
	p := Pattern{}
	rest := s
	if r, ok := strings.CutPrefix(s, "**."); ok {
		p.Stars, rest = 2, r
	} else if r, ok := strings.CutPrefix(s, "*."); ok {
		p.Stars, rest = 1, r
	}
	if strings.Contains(rest, "*") {
		return p, netip.Prefix{}, fmt.Errorf("%q: a star stands for whole labels at the front: *.example.com, **.example.com", s)
	}
	if h, port, err := netaddr.ParseHostPort(rest); err == nil && port != 0 {
		return p, netip.Prefix{}, fmt.Errorf("%q: ports belong into `ports` (host: %s, ports: %d)", s, h, port)
	}
	h, err := netaddr.ParseHost(rest)
	if err != nil {
		return p, netip.Prefix{}, err
	}
	p.Name = h.Name()
	switch {
	case ofBindings(p.Name):
		return p, netip.Prefix{}, fmt.Errorf("%q: no rule is about names in %s, which are a sandbox's bindings", s, BindingZone)
	case p.Name == "" && p.Stars > 0:
		return p, netip.Prefix{}, fmt.Errorf("%q: an address has nothing in front of it", s)
	case p.Name == "":
		prefix, err := parsePrefix(h.String())
		return p, prefix, err
	case p.Stars > 0:
		if suffix, _ := publicsuffix.PublicSuffix(p.Name); len(suffix) >= len(p.Name) {
			return p, netip.Prefix{}, fmt.Errorf("%q: anybody can register a name below %s; name the hosts", s, p.Name)
		}
	}
	return p, netip.Prefix{}, nil
}

// parsePrefix reads CIDR notation, or an address.
func parsePrefix(s string) (netip.Prefix, error) {
	var p netip.Prefix
	if strings.Contains(s, "/") {
		var err error
		if p, err = netip.ParsePrefix(s); err != nil {
			return p, fmt.Errorf("%q is not a network: write 192.0.2.0/24 or 2001:db8::/32", s)
		}
	} else {
		h, err := netaddr.ParseHost(s)
		if err != nil || h.Name() != "" {
			return p, fmt.Errorf("%q is neither a network nor an address", s)
		}
		p = netip.PrefixFrom(h.Addr(), h.Addr().BitLen())
	}
	a := p.Addr()
	switch {
	case a.Is4In6():
		return p, fmt.Errorf("%q: write the IPv4 network", s)
	case p != p.Masked():
		return p, fmt.Errorf("%q has bits behind its prefix; write %s", s, p.Masked())
	case netip.MustParsePrefix("64:ff9b::/96").Overlaps(p) && p.Bits() >= 96:
		return p, fmt.Errorf("%q: rules are about the IPv4 addresses inside; write those", s)
	}
	if c := netaddr.Classify(a); p.IsSingleIP() && c != netaddr.Public && !c.Openable() {
		return p, fmt.Errorf("%q is never dialled: %s", s, c)
	}
	return p, nil
}

// PortRange is the ports from Low to High, both included.
type PortRange struct{ Low, High uint16 }

// String is the range as it is written.
func (r PortRange) String() string {
	if r.Low == r.High {
		return strconv.Itoa(int(r.Low))
	}
	return fmt.Sprintf("%d-%d", r.Low, r.High)
}

var allPorts = []PortRange{{1, 65535}}

func parsePorts(s string) (PortRange, error) {
	low, high, ranged := strings.Cut(s, "-")
	if !ranged {
		high = low
	}
	var r [2]uint16
	for i, text := range []string{low, high} {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 || text[0] == '0' || text[0] == '+' {
			return PortRange{}, fmt.Errorf("%q is not a port: write a number from 1 to 65535, or two with a hyphen", s)
		}
		r[i] = uint16(n)
	}
	if r[0] > r[1] {
		return PortRange{}, fmt.Errorf("%q ends before it begins", s)
	}
	return PortRange{r[0], r[1]}, nil
}

func hasPort(ranges []PortRange, port uint16) bool {
	for _, r := range ranges {
		if r.Low <= port && port <= r.High {
			return true
		}
	}
	return false
}

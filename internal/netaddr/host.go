// Package netaddr says what a host is, what an address is, and reaches hosts
// without being led astray. It is the one canonicaliser (of DNS queries, SNI,
// Host headers and rules), the one classifier of addresses and the one dialer
// of what the server fetches.
//
//	h, err := netaddr.ParseHost("API.Example.com.")   // api.example.com
//	netaddr.Classify(netip.MustParseAddr("10.1.2.3")) // Private
//	d := netaddr.Dialer{}                             // public addresses only
//	conn, err := d.DialContext(ctx, "tcp", "example.com:443")
//
// Two spellings of one host are one Host, and whatever two parsers could read
// differently is none.
package netaddr

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Host is a canonical host: a DNS name in lower-case A-labels without a final
// dot, or an address. Hosts are comparable; the zero Host is none.
type Host struct {
	name string     // empty for an address
	addr netip.Addr // of an address; unmapped, without a zone
}

// HostOf is the host with address a: unmapped, its zone forgotten.
func HostOf(a netip.Addr) Host { return Host{addr: a.Unmap().WithZone("")} }

// IsValid reports whether h is a host at all.
func (h Host) IsValid() bool { return h.name != "" || h.addr.IsValid() }

// Name is the DNS name; empty for an address.
func (h Host) Name() string { return h.name }

// Addr is the address; invalid for a name.
func (h Host) Addr() netip.Addr { return h.addr }

// String is the canonical spelling, of IPv6 without brackets.
func (h Host) String() string {
	if h.name != "" || !h.addr.IsValid() {
		return h.name
	}
	return h.addr.String()
}

// WithPort is how h and a port are written together.
func (h Host) WithPort(port uint16) string {
	p := strconv.FormatUint(uint64(port), 10)
	if h.addr.Is6() {
		return "[" + h.addr.String() + "]:" + p
	}
	return h.String() + ":" + p
}

// HostError says why something is not a host.
type HostError struct {
	Host string // as given, cut to 80 bytes
	Why  string
}

// Error implements error.
func (e *HostError) Error() string { return fmt.Sprintf("%q is not a host: %s", e.Host, e.Why) }

func badHost(s, why string) error {
	if len(s) > 80 {
		s = s[:80]
	}
	return &HostError{s, why}
}

// MaxName is the longest name, without a final dot, and maxLabel its longest
// label, in bytes.
const (
	MaxName  = 253
	maxLabel = 63
)

// strict takes what may be registered and maps nothing: what would have to be
// mapped is read differently by those who map and those who do not.
var strict = idna.New(idna.ValidateForRegistration(), idna.CheckHyphens(false))

// ParseHost reads a DNS name or an address. A name is letters, digits and
// hyphens in labels of 1 to 63 bytes, 253 in all; one final dot is taken off,
// ASCII is lowered, letters beyond ASCII become A-labels if IDNA 2008 takes them
// as they are. An address is what netip reads: IPv4 as four decimal numbers
// without leading zeros, IPv6 with or without brackets and without a zone; an
// IPv4 address in IPv6's mapped form is that address.
//
// Refused with a *HostError: everything else, among it ports, user names,
// escapes, underscores, empty labels, control characters, and names whose last
// label is a number, which some resolvers read as an IPv4 address
// (2130706433, 0x7f.1, 0177.0.0.1, 127.1).
//
// It allocates nothing for a canonical name.
func ParseHost(s string) (Host, error) {
	if len(s) > 4*MaxName {
		return Host{}, badHost(s, "it is too long")
	}
	if in, ok := strings.CutPrefix(s, "["); ok {
		if in, ok = strings.CutSuffix(in, "]"); !ok || !strings.Contains(in, ":") {
			return Host{}, badHost(s, "brackets hold an IPv6 address")
		}
		return parseAddr(s, in)
	}
	if strings.Contains(s, ":") {
		return parseAddr(s, s)
	}
	name := strings.TrimSuffix(s, ".")
	if endsInNumber(name) {
		if name != s {
			return Host{}, badHost(s, "an address has no final dot")
		}
		return parseAddr(s, s)
	}
	name, err := canonical(s, name)
	return Host{name: name}, err
}

func parseAddr(s, in string) (Host, error) {
	a, err := netip.ParseAddr(in)
	switch {
	case err != nil && strings.Contains(in, ":"):
		return Host{}, badHost(s, "it is neither an IPv6 address nor a name (a port does not belong here)")
	case err != nil:
		return Host{}, badHost(s, "it looks like a number and is not an IPv4 address of four decimal numbers")
	case a.Zone() != "":
		return Host{}, badHost(s, "a zone means something on one machine only")
	}
	return HostOf(a), nil
}

// endsInNumber reports whether the last label is decimal or begins like a
// hexadecimal number, so that inet_aton and browsers may see an address.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if len(last) >= 2 && last[0] == '0' && last[1]|0x20 == 'x' {
		return strings.Trim(last[2:], "0123456789abcdefABCDEF") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}

// canonical checks name, which is s without a final dot.
func canonical(s, name string) (string, error) {
	upper, ascii, ace := false, true, false
	for i := range len(name) {
		upper = upper || 'A' <= name[i] && name[i] <= 'Z'
		ascii = ascii && name[i] < 0x80
	}
	if upper {
		name = strings.Map(func(r rune) rune {
			if 'A' <= r && r <= 'Z' {
				return r + 'a' - 'A'
			}
			return r
		}, name)
	}
	if !ascii {
		// Dots and slashes that only look like them are mapped characters, and so
		// refused here.
		a, err := strict.ToASCII(name)
		if err != nil {
			return "", badHost(s, "IDNA 2008 does not take it as it is written")
		}
		if name = a; endsInNumber(name) {
			return "", badHost(s, "it looks like a number")
		}
	}
	if name == "" || len(name) > MaxName {
		return "", badHost(s, "a name has 1 to 253 bytes")
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '.' {
			if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return "", badHost(s, "a name is letters, digits and hyphens, with dots between")
			}
			continue
		}
		label := name[start:i]
		switch {
		case label == "" || len(label) > maxLabel:
			return "", badHost(s, "a label has 1 to 63 bytes")
		case label[0] == '-' || label[len(label)-1] == '-':
			return "", badHost(s, "a label neither begins nor ends with a hyphen")
		}
		ace = ace || strings.HasPrefix(label, "xn--")
		start = i + 1
	}
	if ace {
		// Only the A-labels of a name that could have been written with letters.
		u, err := strict.ToUnicode(name)
		back := ""
		if err == nil {
			back, err = strict.ToASCII(u)
		}
		if err != nil || back != name {
			return "", badHost(s, "its xn-- label stands for no name")
		}
	}
	return name, nil
}

// ParseHostPort reads HOST, HOST:PORT, IPv6 or [IPv6]:PORT; port is 0 where
// none is given. Errors: *HostError.
func ParseHostPort(s string) (h Host, port uint16, err error) {
	host, digits := s, ""
	switch i := strings.LastIndexByte(s, ':'); {
	case i < 0, strings.HasSuffix(s, "]"):
	case strings.HasPrefix(s, "["):
		if i == 0 || s[i-1] != ']' {
			return Host{}, 0, badHost(s, "an IPv6 address with a port is written [address]:port")
		}
		host, digits = s[:i], s[i+1:]
	case strings.IndexByte(s, ':') == i:
		host, digits = s[:i], s[i+1:]
	}
	if host != s {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 || digits[0] < '1' || digits[0] > '9' {
			return Host{}, 0, badHost(s, "a port is a number from 1 to 65535")
		}
		port = uint16(n)
	}
	h, err = ParseHost(host)
	return h, port, err
}

package netaddr

import "net/netip"

// Class says what kind of address one is, from where it matters: what may be
// reached through it.
type Class uint8

// The classes. Public is what the Internet routes to somebody; each other one is
// a reason not to go there.
const (
	Invalid       Class = iota // not an address
	Public                     // global unicast
	Own                        // an address of this machine; only Machine says so
	Loopback                   // 127/8, ::1
	Private                    // 10/8, 172.16/12, 192.168/16
	UniqueLocal                // fc00::/7
	Shared                     // 100.64/10, behind a carrier's NAT
	Benchmark                  // 198.18/15, 2001:2::/48
	Documentation              // 192.0.2/24 and its kin, 2001:db8::/32, 3fff::/20
	Metadata                   // where clouds tell secrets to whoever asks
	LinkLocal                  // 169.254/16, fe80::/10
	Multicast                  // 224/4, ff00::/8
	Broadcast                  // 255.255.255.255
	Unspecified                // 0/8, ::
	Reserved                   // nobody's
	Compatible                 // ::/96, IPv4 in IPv6 as it was meant once
	NAT64                      // 64:ff9b::/96 around an address that is not public; 64:ff9b:1::/48
	SixToFour                  // 2002::/16
	Teredo                     // 2001::/32
	ISATAP                     // an IPv4 address in the interface's half
)

var classNames = [...]string{"invalid", "public", "own", "loopback", "private", "unique-local", "shared", "benchmark", "documentation", "metadata",
	"link-local", "multicast", "broadcast", "unspecified", "reserved", "v4-compatible", "nat64", "6to4", "teredo", "isatap"}

// String is the class's name in records and messages.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return "unknown"
}

// Openable reports whether an operator can permit addresses of this class: those
// of this machine and of networks that are somebody's. What is left is nobody's,
// or a way round all rules, and never dialled.
func (c Class) Openable() bool {
	switch c {
	case Own, Loopback, Private, UniqueLocal, Shared, Benchmark, Documentation:
		return true
	}
	return false
}

// metadata4 and metadata6 are where clouds tell secrets to whoever asks,
// beside the link-local addresses: Alibaba; Azure's WireServer; Oracle; and
// in IPv6 Amazon's services, Google, Oracle, Scaleway, Akamai and Alibaba.
var (
	metadata4 = [...][4]byte{{100, 100, 100, 200}, {168, 63, 129, 16}, {192, 0, 0, 192}}
	metadata6 = [...]netip.Prefix{
		netip.MustParsePrefix("fd00:ec2::/32"), netip.MustParsePrefix("fd20:ce::254/128"), netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"),
		netip.MustParsePrefix("fd00:42::42/128"), netip.MustParsePrefix("fd00:a9fe:a9fe::/64"), netip.MustParsePrefix("fd00:100::100:200/128"),
	}
)

// Effective is the address that is reached when a is dialled: the IPv4 address
// inside the mapped form and inside NAT64's well-known prefix, otherwise a; never
// with a zone. Rules are about this one.
func Effective(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if b := a.As16(); nat64(b) {
			return netip.AddrFrom4([4]byte(b[12:]))
		}
	}
	return a
}

// nat64 reports whether b is in 64:ff9b::/96.
func nat64(b [16]byte) bool {
	return b[0] == 0 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b && zero(b[4:12])
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Classify says what a is. The mapped form is the IPv4 address in it. An address
// in NAT64's well-known prefix is public or metadata if what is inside is;
// every other wrapping of an IPv4 address in an IPv6 one is a class of its own,
// whatever is inside. Costs some nanoseconds, no allocation.
func Classify(a netip.Addr) Class {
	a = a.Unmap()
	switch {
	case !a.IsValid():
		return Invalid
	case a.Is4():
		return classify4(a.As4())
	}
	return classify6(a.WithZone(""))
}

func classify4(b [4]byte) Class {
	switch b[0] {
	case 0:
		return Unspecified
	case 10:
		return Private
	case 100:
		if b == metadata4[0] {
			return Metadata
		}
		if b[1]&0xc0 == 64 {
			return Shared
		}
	case 127:
		return Loopback
	case 168:
		if b == metadata4[1] {
			return Metadata
		}
	case 169:
		if b[1] == 254 {
			if b[2] == 169 && b[3] == 254 {
				return Metadata
			}
			return LinkLocal
		}
	case 172:
		if b[1]&0xf0 == 16 {
			return Private
		}
	case 192:
		return classify192(b)
	case 198:
		switch {
		case b[1]&0xfe == 18:
			return Benchmark
		case b[1] == 51 && b[2] == 100:
			return Documentation
		}
	case 203:
		if b[1] == 0 && b[2] == 113 {
			return Documentation
		}
	}
	switch {
	case b == [4]byte{255, 255, 255, 255}:
		return Broadcast
	case b[0] >= 240:
		return Reserved
	case b[0] >= 224:
		return Multicast
	}
	return Public
}

func classify192(b [4]byte) Class {
	switch {
	case b == metadata4[2]:
		return Metadata
	case b[1] == 0 && b[2] == 0: // IETF protocols
		return Reserved
	case b[1] == 0 && b[2] == 2:
		return Documentation
	case b[1] == 88 && b[2] == 99: // relays of 6to4
		return SixToFour
	case b[1] == 168:
		return Private
	}
	return Public
}

func classify6(a netip.Addr) Class {
	b := a.As16()
	switch {
	case b[0] == 0xff:
		return Multicast
	case b[0] == 0xfe && b[1]&0xc0 == 0x80:
		if a == linkLocalMetadata {
			return Metadata
		}
		return LinkLocal
	case b[0]&0xfe == 0xfc:
		for _, p := range metadata6 {
			if p.Contains(a) {
				return Metadata
			}
		}
		return UniqueLocal
	case b[0] == 0:
		return classifyZero(b)
	case b[0]&0xe0 != 0x20: // all the Internet is in 2000::/3
		return Reserved
	case b[0] == 0x20 && b[1] == 0x02:
		return SixToFour
	case b[0] == 0x3f && b[1] == 0xff && b[2]&0xf0 == 0:
		return Documentation
	case b[0] == 0x20 && b[1] == 0x01:
		if c := classify2001(b); c != Public {
			return c
		}
	}
	if b[8]&0xfd == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		return ISATAP
	}
	return Public
}

var linkLocalMetadata = netip.MustParseAddr("fe80::a9fe:a9fe")

// classifyZero classifies what begins with eight zero bits.
func classifyZero(b [16]byte) Class {
	switch {
	case zero(b[:15]) && b[15] <= 1:
		if b[15] == 1 {
			return Loopback
		}
		return Unspecified
	case zero(b[:12]):
		return Compatible
	case nat64(b):
		switch c := classify4([4]byte(b[12:])); c {
		case Public, Metadata:
			return c
		}
		return NAT64
	case b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b: // 64:ff9b:1::/48, and what is not assigned beside it
		return NAT64
	}
	return Reserved
}

// classify2001 classifies 2001::/16.
func classify2001(b [16]byte) Class {
	switch {
	case b[2] == 0 && b[3] == 0:
		return Teredo
	case b[2] == 0 && b[3] == 2 && b[4] == 0 && b[5] == 0:
		return Benchmark
	case b[2] == 0x0d && b[3] == 0xb8:
		return Documentation
	case b[2] < 2: // 2001::/23, IETF protocols
		return Reserved
	}
	return Public
}

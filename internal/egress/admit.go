//go:build linux

package egress

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Every wire has the same addresses, since each has a stack of its own.
const (
	guestMAC   = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x02")
	gatewayMAC = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x01")
	mtu        = 1500
	portDNS    = 53
)

var (
	guestAddr   = netip.AddrFrom4([4]byte{10, 200, 0, 2})
	gatewayAddr = netip.AddrFrom4([4]byte{10, 200, 0, 1})
)

// admission is what becomes of a frame.
type admission uint8

const (
	admitNone admission = iota
	admitTell           // dropped, and told: a packet that programs send
	admitARP            // asks for the gateway
	admitIPv4           // for the stack
)

// admit looks at a frame, which may be anything. The stack gets whole IPv4
// packets without options from the sandbox's one address: TCP, queries to the
// gateway's DNS, echo requests to the gateway. No IPv6, no fragments, nothing
// for groups.
func admit(frame []byte) admission {
	if len(frame) < ethernet {
		return admitNone
	}
	to, kind, b := tcpip.LinkAddress(frame[:6]), binary.BigEndian.Uint16(frame[12:]), frame[ethernet:]
	switch {
	case kind == uint16(header.ARPProtocolNumber):
		if (to == gatewayMAC || to == header.EthernetBroadcastAddress) && asksForGateway(b) {
			return admitARP
		}
		return admitNone
	case kind != uint16(header.IPv4ProtocolNumber), len(b) < header.IPv4MinimumSize:
		return admitNone
	}
	const mayNotFragment, reserved = 0x4000, 0x8000
	size, fragment := int(binary.BigEndian.Uint16(b[2:])), binary.BigEndian.Uint16(b[6:])
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	if b[0] != 0x45 || size < header.IPv4MinimumSize+8 || size > len(b) || fragment&^(mayNotFragment|reserved) != 0 || src != guestAddr || dst == guestAddr {
		return admitNone
	}
	if to != gatewayMAC || dst.As4()[0] == 0 || dst.As4()[0] >= 224 || dst.IsLoopback() {
		return admitTell // to a group, or to nobody
	}
	ports := b[header.IPv4MinimumSize:]
	dstPort := binary.BigEndian.Uint16(ports[2:])
	switch b[9] {
	case unix.IPPROTO_TCP:
		if dstPort != 0 && size >= header.IPv4MinimumSize+header.TCPMinimumSize {
			return admitIPv4
		}
		return admitNone
	case unix.IPPROTO_UDP:
		if dst == gatewayAddr && dstPort == portDNS {
			return admitIPv4
		}
	case unix.IPPROTO_ICMP:
		if dst == gatewayAddr && ports[0] == byte(header.ICMPv4Echo) {
			return admitIPv4
		}
	}
	return admitTell
}

// asksForGateway reports whether b is an ARP request for the gateway's address.
func asksForGateway(b []byte) bool {
	if len(b) < header.ARPSize {
		return false
	}
	a := header.ARP(b[:header.ARPSize])
	return a.IsValid() && a.Op() == header.ARPRequest && netip.AddrFrom4([4]byte(a.ProtocolAddressTarget())) == gatewayAddr
}

// refusalOf names what an IPv4 packet that admit looked at was for.
func refusalOf(frame []byte) refusal {
	b := frame[ethernet:]
	r := refusal{protocol: "ip"}
	port := uint16(0)
	switch b[9] {
	case unix.IPPROTO_TCP:
		r.protocol, port = "tcp", binary.BigEndian.Uint16(b[header.IPv4MinimumSize+2:])
	case unix.IPPROTO_UDP:
		r.protocol, port = "udp", binary.BigEndian.Uint16(b[header.IPv4MinimumSize+2:])
	case unix.IPPROTO_ICMP:
		r.protocol = "icmp"
	}
	r.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), port)
	return r
}

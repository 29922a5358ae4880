//go:build linux

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ip4 is an IPv4 packet of protocol p with a body, between two addresses. The
// checksum of its header is right, so that only the filter can be why it is lost.
func ip4(p byte, from, to [4]byte, body []byte) []byte {
	h := slices.Concat([]byte{0x45, 0}, u16(uint16(20+len(body))), []byte{0, 1, 0x40, 0, 64, p, 0, 0}, from[:], to[:])
	return append(sealed(h), body...)
}

// sealed puts the checksum into an IPv4 header of any length.
func sealed(h []byte) []byte {
	h[10], h[11] = 0, 0
	sum := 0
	for i := 0; i < int(h[0]&15)*4; i += 2 {
		sum += int(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return h
}

func udp(from, to uint16, text string) []byte {
	return append(slices.Concat(u16(from), u16(to), u16(uint16(8+len(text))), u16(0)), text...)
}

func tcp(from, to uint16) []byte {
	return slices.Concat(u16(from), u16(to), make([]byte, 8), []byte{0x50, 2, 0x10, 0}, make([]byte, 4))
}

func ether(to, from net.HardwareAddr, kind uint16, body []byte) []byte {
	return slices.Concat(to, from, u16(kind), body)
}

func arp(op uint16, mac net.HardwareAddr, ip [4]byte, target [4]byte) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4}, u16(op), mac, ip[:], make([]byte, 6), target[:])
}

// changed is b with something written over it.
func changed(b []byte, at int, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], with)
	return b
}

// resealed is changed with the checksum of the IPv4 header made right again.
func resealed(b []byte, at int, with ...byte) []byte {
	b = changed(b, at, with...)
	sealed(b[14:])
	return b
}

var (
	guest, gateway = Guest.As4(), Gateway.As4()
	world          = [4]byte{198, 18, 0, 7}
	stranger       = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	broadcast      = net.HardwareAddr{255, 255, 255, 255, 255, 255}
)

// options is an IPv4 packet with a header of 24 bytes, whose datagram's port is
// not where one without options has it.
func options(port, decoy uint16) []byte {
	h := slices.Concat([]byte{0x46, 0}, u16(24+8), []byte{0, 1, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}, guest[:], world[:], u16(0x0101), u16(decoy))
	return append(sealed(h), udp(1000, port, "")...)
}

// fromGuest are frames that a guest may send, and that it may not.
func fromGuest() (good, bad map[string][]byte) {
	send := func(p byte, body []byte) []byte {
		return ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(p, guest, world, body))
	}
	query, syn := send(unix.IPPROTO_UDP, udp(1000, DNSPort, "query")), send(unix.IPPROTO_TCP, tcp(1000, 443))
	ask := ether(broadcast, GuestMAC, unix.ETH_P_ARP, arp(1, GuestMAC, guest, gateway))
	v6 := slices.Concat([]byte{0x60, 0, 0, 0}, u16(8), []byte{unix.IPPROTO_UDP, 64}, make([]byte, 32), udp(1000, DNSPort, ""))
	tag := func(kind uint16, frame []byte) []byte {
		return slices.Concat(frame[:12], u16(kind), u16(1), frame[12:])
	}
	return map[string][]byte{
			"query":               query,
			"syn":                 syn,
			"syn to the gateway":  ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, guest, gateway, tcp(1, 1))),
			"udp to http/3":       send(unix.IPPROTO_UDP, udp(1000, 443, "x")), // for the router to refuse, and to tell
			"icmp":                send(unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}),
			"fragmentation is ok": resealed(syn, atFragment, 0, 0),
			"arp":                 ask,
			"arp, an answer":      ether(GatewayMAC, GuestMAC, unix.ETH_P_ARP, arp(2, GuestMAC, guest, gateway)),
		}, map[string][]byte{
			"sctp":                             send(132, make([]byte, 16)),
			"gre":                              send(47, make([]byte, 16)),
			"igmp":                             send(2, make([]byte, 8)),
			"ip in ip":                         send(4, syn[14:]),
			"ipv6":                             ether(GatewayMAC, GuestMAC, unix.ETH_P_IPV6, v6),
			"ipv6 called ipv4":                 ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, v6),
			"ipv4 called ipv6":                 changed(syn, atEtherType, 0x86, 0xdd),
			"another source":                   ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, [4]byte{10, 200, 0, 3}, world, tcp(1, 2))),
			"the gateway as source":            ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, gateway, world, tcp(1, 2))),
			"loopback as source":               ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, [4]byte{127, 0, 0, 1}, world, udp(1, DNSPort, ""))),
			"another hardware address":         changed(syn, atSource, stranger...),
			"the gateway's hardware address":   changed(syn, atSource, GatewayMAC...),
			"to another hardware address":      changed(syn, 0, stranger...),
			"to itself":                        changed(syn, 0, GuestMAC...),
			"broadcast":                        changed(syn, 0, broadcast...),
			"multicast":                        changed(query, 0, 1, 0, 0x5e, 0, 0, 0xfb),
			"a first fragment":                 resealed(query, atFragment, 0x20, 0),
			"a later fragment":                 resealed(query, atFragment, 0, 1),
			"a later fragment of tcp":          resealed(syn, atFragment, 0, 1),
			"a reserved bit":                   resealed(syn, atFragment, 0x80, 0),
			"options that hide the port":       ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, options(54, DNSPort)),
			"options":                          ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, options(DNSPort, DNSPort)),
			"a short header":                   changed(query, atVersion, 0x44),
			"version 6 in the header":          changed(query, atVersion, 0x65),
			"vlan":                             tag(unix.ETH_P_8021Q, syn),
			"vlan in vlan":                     tag(unix.ETH_P_8021AD, tag(unix.ETH_P_8021Q, syn)),
			"mpls":                             changed(syn, atEtherType, 0x88, 0x47),
			"pppoe":                            changed(syn, atEtherType, 0x88, 0x64),
			"a length for a type (802.3)":      changed(syn, atEtherType, 0, 40),
			"arp for another":                  ether(broadcast, GuestMAC, unix.ETH_P_ARP, arp(1, GuestMAC, guest, [4]byte{10, 200, 0, 3})),
			"arp about itself":                 ether(broadcast, GuestMAC, unix.ETH_P_ARP, arp(1, GuestMAC, guest, guest)),
			"arp in the gateway's name":        ether(broadcast, GuestMAC, unix.ETH_P_ARP, arp(2, GuestMAC, gateway, gateway)),
			"arp with another's address in it": ether(broadcast, GuestMAC, unix.ETH_P_ARP, arp(2, stranger, guest, gateway)),
			"rarp":                             ether(broadcast, GuestMAC, unix.ETH_P_ARP, arp(3, GuestMAC, guest, gateway)),
			"arp of another protocol":          changed(ask, atARP+2, 0x86, 0xdd),
			"cut off in the ethernet header":   syn[:14],
			"cut off before the source":        syn[:atIPSource],
		}
}

// TestFilterFromGuest sends raw frames as whoever has taken over a guest could,
// three ways, and looks what comes out at the far end.
func TestFilterFromGuest(t *testing.T) {
	l := open(t, wiresIn(t), newID())
	good, bad := fromGuest()
	for _, way := range []struct {
		name   string
		option int
	}{{"queued", 0}, {"past the queue", unix.PACKET_QDISC_BYPASS}, {"with a header", unix.PACKET_VNET_HDR}} {
		t.Run(way.name, func(t *testing.T) {
			var sent func(frame []byte, proto uint16) error
			inside(t, l.Wire, func() (err error) {
				sent, err = packetSocket(t, way.option)
				return err
			})
			marks := uint16(0)
			passes := func(f []byte, proto uint16) bool {
				t.Helper()
				marks++
				mark := ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, guest, gateway, udp(marks, DNSPort, "mark")))
				for _, s := range [][]byte{f, mark} {
					if err := sent(s, proto); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINVAL) {
						t.Fatal(err)
					}
					proto = unix.ETH_P_ALL // so that the kernel looks by itself, past the queue too
				}
				got := false
				for {
					switch next := frame(t, l.Tap); {
					case bytes.Equal(next, mark):
						return got
					case bytes.Equal(next, f):
						got = true
					default:
						t.Errorf("the guest's kernel says % x", next)
					}
				}
			}
			for name, f := range good {
				if !passes(f, unix.ETH_P_ALL) {
					t.Errorf("%s does not pass: % x", name, f)
				}
			}
			for name, f := range bad {
				// What the sender calls it must not matter.
				for _, proto := range []uint16{binary.BigEndian.Uint16(f[atEtherType:]), unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ALL, unix.ETH_P_8021Q} {
					if passes(f, proto) {
						t.Errorf("%s passes (called %#x): % x", name, proto, f)
					}
				}
			}
		})
	}
}

// packetSocket returns what sends a frame on the link of the namespace this thread
// is in.
func packetSocket(t *testing.T, option int) (send func(frame []byte, proto uint16) error, err error) {
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { unix.Close(s) })
	if option != 0 {
		if err := unix.SetsockoptInt(s, unix.SOL_PACKET, option, 1); err != nil {
			return nil, err
		}
	}
	eth, err := net.InterfaceByName(LinkName)
	if err != nil {
		return nil, err
	}
	return func(frame []byte, proto uint16) error {
		if option == unix.PACKET_VNET_HDR {
			frame = append(make([]byte, headerSize), frame...)
		}
		return unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: eth.Index, Protocol: proto<<8 | proto>>8})
	}, nil
}

// TestFilterToGuest writes frames at the far end, as a router that was taken over
// could, and looks what a guest's kernel makes of them.
func TestFilterToGuest(t *testing.T) {
	l := open(t, wiresIn(t), newID())
	raw := map[int]int{} // sockets that get every packet of a protocol, whoever it is for
	inside(t, l.Wire, func() error {
		for _, p := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP} {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, p)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(s) })
			raw[p] = s
		}
		return nil
	})
	marks := uint16(0)
	arrives := func(f []byte) bool {
		t.Helper()
		marks++
		mark := ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, world, guest, udp(DNSPort, marks, "mark")))
		for _, s := range [][]byte{f, mark} {
			if _, err := l.Tap.Write(append(make([]byte, headerSize), s...)); err != nil {
				t.Fatal(err)
			}
		}
		got := false
		received(t, raw[unix.IPPROTO_UDP], true, func(p []byte) bool {
			got = got || bytes.Equal(p, f[14:])
			return bytes.Equal(p, mark[14:])
		})
		for _, p := range []int{unix.IPPROTO_TCP, unix.IPPROTO_ICMP} { // what was before the mark has arrived
			received(t, raw[p], false, func(p []byte) bool {
				got = got || bytes.Equal(p, f[14:])
				return false
			})
		}
		return got
	}
	to := func(p byte, body []byte) []byte {
		return ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(p, world, guest, body))
	}
	answer, ack := to(unix.IPPROTO_UDP, udp(DNSPort, 1000, "answer")), to(unix.IPPROTO_TCP, tcp(443, 1000))
	for name, f := range map[string][]byte{"answer": answer, "ack": ack} {
		if !arrives(f) {
			t.Errorf("%s does not arrive", name)
		}
	}
	for name, f := range map[string][]byte{
		"udp of another port": to(unix.IPPROTO_UDP, udp(54, DNSPort, "x")),
		"icmp":                to(unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}),
		"an icmp error":       to(unix.IPPROTO_ICMP, append([]byte{3, 1, 0xfc, 0xfe, 0, 0, 0, 0}, answer[14:42]...)),
		"to the loopback":     ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, world, [4]byte{127, 0, 0, 1}, udp(DNSPort, 1, ""))),
		"to everybody":        ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, world, [4]byte{255, 255, 255, 255}, udp(DNSPort, 1, ""))),
		"from a stranger":     changed(ack, atSource, stranger...),
		"as broadcast":        changed(ack, 0, broadcast...),
		"a first fragment":    resealed(answer, atFragment, 0x20, 0),
		"with options":        ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, changed(options(1, 1), 0)),
		"vlan":                slices.Concat(ack[:12], u16(unix.ETH_P_8021Q), u16(0), ack[12:]),
	} {
		if arrives(f) {
			t.Errorf("%s arrives", name)
		}
	}
	// ARP is seen by its answer.
	for _, c := range []struct {
		name string
		mac  net.HardwareAddr
		ip   [4]byte
		want bool
	}{{"of a stranger", stranger, gateway, false}, {"for a stranger", GatewayMAC, [4]byte{10, 200, 0, 3}, false}, {"of the gateway", GatewayMAC, gateway, true}} {
		ask := ether(broadcast, c.mac, unix.ETH_P_ARP, arp(1, c.mac, c.ip, guest))
		if _, err := l.Tap.Write(append(make([]byte, headerSize), ask...)); err != nil {
			t.Fatal(err)
		}
		inside(t, l.Wire, func() error { return ping(DNSPort) })
		answered := false
		for {
			f := frame(t, l.Tap)
			if binary.BigEndian.Uint16(f[atEtherType:]) == unix.ETH_P_IP && f[atProtocol] == unix.IPPROTO_UDP {
				break
			}
			answered = answered || binary.BigEndian.Uint16(f[atEtherType:]) == unix.ETH_P_ARP
		}
		if answered != c.want {
			t.Errorf("arp %s is answered: %v", c.name, answered)
		}
	}
}

// received calls f with the packets of a raw socket until it returns true, for
// which it waits; or, without wait, until there are no more.
func received(t *testing.T, s int, wait bool, f func(p []byte) bool) {
	t.Helper()
	buf := make([]byte, 2000)
	for end := time.Now().Add(30 * time.Second); ; {
		n, _, err := unix.Recvfrom(s, buf, unix.MSG_DONTWAIT)
		switch {
		case err == nil && f(buf[:n]):
			return
		case err == nil:
		case !errors.Is(err, unix.EAGAIN) || wait && time.Now().After(end):
			t.Fatal(err)
		case !wait:
			return
		default:
			time.Sleep(time.Millisecond)
		}
	}
}

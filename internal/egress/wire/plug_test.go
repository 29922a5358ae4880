//go:build linux

package wire

import (
	"bytes"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// plugged is a wire with a machine's link on it, unplugged when the test ends.
func plugged(t *testing.T) (l *Link, machine *os.File) {
	t.Helper()
	l = open(t, wiresIn(t), newID())
	machine, err := Machines{}.Plug(l.Wire, "machine", 0)
	if err == nil {
		err = Machines{}.Connect(l.Wire)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		machine.Close()
		unplugged(t, l.Wire)
	})
	return l, machine
}

// unplugged removes what Plug made.
func unplugged(t *testing.T, w sandbox.Wire) {
	t.Helper()
	objects, err := Machines{}.Unplug(w.NetNS)
	if err != nil || len(objects) != 1 || !objects[0].Gone {
		t.Errorf("Unplug: %+v, %v", objects, err)
	}
}

// put writes a frame at one end.
func put(t *testing.T, tap *os.File, frame []byte) error {
	t.Helper()
	_, err := tap.Write(append(make([]byte, headerSize), frame...))
	return err
}

// TestPlugged sends frames as a machine that was taken over could, and as a router
// could: what the filter lets through arrives at the other end as it was, and
// nothing else does.
func TestPlugged(t *testing.T) {
	l, machine := plugged(t)
	fromGood, fromBad := fromGuest()
	to := func(p byte, body []byte) []byte {
		return ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(p, world, guest, body))
	}
	answer, ack := to(unix.IPPROTO_UDP, udp(DNSPort, 1000, "answer")), to(unix.IPPROTO_TCP, tcp(443, 1000))
	toGood := map[string][]byte{"answer": answer, "ack": ack, "arp": ether(broadcast, GatewayMAC, unix.ETH_P_ARP, arp(1, GatewayMAC, gateway, guest))}
	toBad := map[string][]byte{
		"udp of another port": to(unix.IPPROTO_UDP, udp(54, DNSPort, "x")),
		"icmp":                to(unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}),
		"from a stranger":     changed(ack, atSource, stranger...),
		"as broadcast":        changed(ack, 0, broadcast...),
		"to another address":  ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, world, [4]byte{10, 200, 0, 3}, tcp(1, 2))),
		"a first fragment":    resealed(answer, atFragment, 0x20, 0),
		"with options":        ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, changed(options(1, 1), 0)),
		"vlan":                slices.Concat(ack[:12], u16(unix.ETH_P_8021Q), u16(0), ack[12:]),
		"ipv6":                changed(ack, atEtherType, 0x86, 0xdd),
		"arp of a stranger":   ether(broadcast, stranger, unix.ETH_P_ARP, arp(1, stranger, gateway, guest)),
	}
	for _, way := range []struct {
		name      string
		in, out   *os.File
		good, bad map[string][]byte
		mark      []byte
	}{
		{"from the machine", machine, l.Tap, fromGood, fromBad, ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, guest, gateway, udp(1, DNSPort, "mark")))},
		{"to the machine", l.Tap, machine, toGood, toBad, to(unix.IPPROTO_UDP, udp(DNSPort, 1, "mark"))},
	} {
		passes := func(f []byte) bool {
			t.Helper()
			_ = put(t, way.in, f) // the kernel takes no frame without a header
			if err := put(t, way.in, way.mark); err != nil {
				t.Fatal(err)
			}
			got := false
			for {
				switch next := frame(t, way.out); {
				case bytes.Equal(next, way.mark):
					return got
				case bytes.Equal(next, f):
					got = true
				default:
					t.Errorf("%s: there comes % x", way.name, next)
				}
			}
		}
		for name, f := range way.good {
			if !passes(f) {
				t.Errorf("%s: %s does not pass", way.name, name)
			}
		}
		for name, f := range way.bad {
			if passes(f) {
				t.Errorf("%s: %s passes", way.name, name)
			}
		}
	}
	inside(t, l.Wire, func() error {
		links, err := net.Interfaces()
		for _, i := range links {
			if all, _ := i.Addrs(); i.Name != "lo" && len(all) > 0 {
				t.Errorf("%s has the addresses %v", i.Name, all)
			}
		}
		return err
	})
}

// TestPluggedSegments: what is left to the other side, checksums and segments, is
// left to it, whole, in both directions.
func TestPluggedSegments(t *testing.T) {
	l, machine := plugged(t)
	body := append(tcp(1000, 443), bytes.Repeat([]byte("segment "), 5000)...)
	for name, way := range map[string]struct {
		in, out *os.File
		frame   []byte
	}{
		"from": {machine, l.Tap, ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, guest, world, body))},
		"to":   {l.Tap, machine, ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, world, guest, body))},
	} {
		header := []byte{1, 1, 54, 0, 1460 & 255, 1460 >> 8, 34, 0, 16, 0} // a partial checksum; TCP over IPv4 in 1460s
		if _, err := way.in.Write(slices.Concat(header, way.frame)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<17)
		n := 0
		eventually(t, "the segment", func() bool { var err error; n, err = way.out.Read(got); return err == nil })
		if !bytes.Equal(got[headerSize:n], way.frame) || !bytes.Equal(got[:headerSize], header) {
			t.Errorf("%s: %d bytes of %d, header % x", name, n-headerSize, len(way.frame), got[:headerSize])
		}
	}
}

// TestProbeMachines: it works here, and leaves nothing.
func TestProbeMachines(t *testing.T) {
	needWires(t)
	if err := (Machines{}).Probe(); err != nil {
		t.Error(err)
	}
}

//go:build linux

package egress

import (
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// FuzzFrame: whatever a sandbox sends, the stack gets whole packets of its one
// address and nothing else, and goes on.
func FuzzFrame(f *testing.F) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	guest := os.NewFile(uintptr(fds[1]), "guest")
	r := New(Config{Record: func(Event) error { return nil }})
	w, err := newWire(r, Wire{ID: "fuzz", Table: table(f, raw)}, os.NewFile(uintptr(fds[0]), "wire"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { w.end(); guest.Close() })
	good := netip.MustParseAddr("127.0.0.1")
	f.Add(packet(gatewayMAC, guestAddr, stranger, unix.IPPROTO_TCP, syn(guestAddr, stranger, 1, 80)))
	f.Add(packet(gatewayMAC, guestAddr, gatewayAddr, unix.IPPROTO_UDP, datagram(53, "\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x07example\x00\x00\x01\x00\x01")))
	f.Add(packet(gatewayMAC, guestAddr, gatewayAddr, unix.IPPROTO_ICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1}))
	f.Add(packet("\xff\xff\xff\xff\xff\xff", guestAddr, good, unix.IPPROTO_UDP, datagram(53, "")))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x02\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x02\x0a\xc8\x00\x02\x00\x00\x00\x00\x00\x00\x0a\xc8\x00\x01"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > maxFrame-vnetHeader {
			return
		}
		w.link.deliver(append(make([]byte, vnetHeader), frame...))
		switch admit(frame) {
		case admitTell:
			if x := refusalOf(frame); !x.to.Addr().Is4() || x.protocol == "" {
				t.Fatalf("%+v", x)
			}
		case admitIPv4:
			ip := header.IPv4(frame[ethernet:])
			if !ip.IsValid(len(ip)) || ip.More() || ip.FragmentOffset() != 0 || netip.AddrFrom4(ip.SourceAddress().As4()) != guestAddr || ip.HeaderLength() != 20 {
				t.Fatalf("%x", frame)
			}
			dst := netip.AddrFrom4(ip.DestinationAddress().As4())
			if dst.IsMulticast() || dst.IsLoopback() || dst == guestAddr || ip.Protocol() != unix.IPPROTO_TCP && dst != gatewayAddr {
				t.Fatalf("%x", frame)
			}
		}
		for { // what it answers
			var b [1600]byte
			if _, err := unix.Read(fds[1], b[:]); err != nil {
				break
			}
		}
	})
}

// TestLink: a file that is no TAP with the right header is refused, and closed.
func TestLink(t *testing.T) {
	r := New(Config{})
	defer r.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	if err := r.Attach(Wire{ID: "pipe", Table: table(t, raw)}, pr); err == nil {
		t.Error("a pipe is served")
	}
	if _, err := pr.Stat(); err == nil {
		t.Error("it is open")
	}
}

// TestLinkLater: what accepts a connection leaves without its writer, who may hold
// what the answer needs; after shut nothing leaves and nothing is left.
func TestLinkLater(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	guest := os.NewFile(uintptr(fds[1]), "guest")
	defer guest.Close()
	l, err := newLink(os.NewFile(uintptr(fds[0]), "wire"), nil, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	send := func(flags header.TCPFlags) {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: header.TCPMinimumSize})
		defer pkt.DecRef()
		pkt.TransportProtocolNumber = header.TCPProtocolNumber
		header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{Flags: flags, DataOffset: header.TCPMinimumSize})
		var list stack.PacketBufferList
		list.PushBack(pkt)
		if n, err := l.WritePackets(list); n != 1 || err != nil {
			t.Errorf("%v: %d, %v", flags, n, err)
		}
	}
	for _, flags := range []header.TCPFlags{header.TCPFlagSyn | header.TCPFlagAck, header.TCPFlagAck} {
		send(flags)
		var b [100]byte
		if n, err := guest.Read(b[:]); err != nil || n != vnetHeader+header.TCPMinimumSize || header.TCP(b[vnetHeader:]).Flags() != flags {
			t.Errorf("%v arrives as %x, %v", flags, b[:n], err)
		}
	}
	l.shut()
	send(header.TCPFlagSyn | header.TCPFlagAck)
	l.Wait()
	if n, err := guest.Read(make([]byte, 100)); n != 0 {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}

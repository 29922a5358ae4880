//go:build linux

package egress

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// packet is an Ethernet frame with an IPv4 packet in it.
func packet(to tcpip.LinkAddress, src, dst netip.Addr, protocol byte, payload []byte) []byte {
	b := make([]byte, ethernet+header.IPv4MinimumSize+len(payload))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: to, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[ethernet:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b) - ethernet), TTL: 64, Protocol: protocol, SrcAddr: tcpip.AddrFrom4(src.As4()), DstAddr: tcpip.AddrFrom4(dst.As4())})
	ip.SetChecksum(^ip.CalculateChecksum())
	copy(b[ethernet+header.IPv4MinimumSize:], payload)
	return b
}

// syn is a TCP segment that asks for a connection.
func syn(src, dst netip.Addr, from, port uint16) []byte {
	b := make([]byte, header.TCPMinimumSize)
	tcp := header.TCP(b)
	tcp.Encode(&header.TCPFields{SrcPort: from, DstPort: port, SeqNum: rand.Uint32(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFrom4(src.As4()), tcpip.AddrFrom4(dst.As4()), uint16(len(b)))
	tcp.SetChecksum(^tcp.CalculateChecksum(checksum.Checksum(nil, sum)))
	return b
}

func datagram(port uint16, say string) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x30, 0x39}, port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(say)))
	return append(append(b, 0, 0), say...)
}

// inject sends frames from the place as they are.
func (p *place) inject(frames [][]byte) {
	p.Helper()
	p.in(func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			p.Error(err)
			return
		}
		defer unix.Close(fd)
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			p.Error(err)
			return
		}
		for _, f := range frames {
			_ = unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6})
		}
	})
}

// works fails unless a connection through the wire does.
func (p *place) works(to string) {
	p.Helper()
	c := p.mustDial(to)
	defer c.Close()
	_, _ = io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		p.Error(err)
	}
}

var stranger = netip.MustParseAddr("8.8.8.8")

// TestFrames: no frame ends the wire: those for others, to groups, cut short, with
// tags, of other families, in fragments, with options, from other addresses.
func TestFrames(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	_, j := attached(t, p, raw, nil)
	to := p.addr("good.example")
	good := netip.MustParseAddr(to)
	port := s.Addr().(*net.TCPAddr).AddrPort().Port()
	whole := packet(gatewayMAC, guestAddr, good, unix.IPPROTO_TCP, syn(guestAddr, good, 1234, port))
	frames := [][]byte{
		packet("\x02\x00\x00\x00\x00\x77", guestAddr, good, unix.IPPROTO_TCP, syn(guestAddr, good, 1, port)),
		packet("\xff\xff\xff\xff\xff\xff", guestAddr, good, unix.IPPROTO_TCP, syn(guestAddr, good, 2, port)),
		packet(gatewayMAC, netip.MustParseAddr("10.200.0.77"), good, unix.IPPROTO_TCP, syn(netip.MustParseAddr("10.200.0.77"), good, 3, port)),
		packet(gatewayMAC, guestAddr, netip.MustParseAddr("224.0.0.251"), unix.IPPROTO_UDP, datagram(5353, "x")),
		packet(gatewayMAC, guestAddr, stranger, unix.IPPROTO_UDP, datagram(443, "quic")),
		packet(gatewayMAC, guestAddr, stranger, unix.IPPROTO_ICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1, 's', 'e', 'c', 'r', 'e', 't'}),
		packet(gatewayMAC, guestAddr, stranger, unix.IPPROTO_SCTP, make([]byte, 12)),
		packet(gatewayMAC, guestAddr, gatewayAddr, unix.IPPROTO_UDP, datagram(53, "no query")),
		append([]byte(gatewayMAC+guestMAC+"\x86\xdd\x60\x00\x00\x00\x00\x14\x06\x40"), make([]byte, 52)...), // IPv6
		append([]byte(gatewayMAC+guestMAC+"\x81\x00\x00\x01"), whole[12:]...),                               // a VLAN
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		f := append([]byte(nil), whole...)
		for range 1 + random.IntN(6) {
			f[random.IntN(len(f))] = byte(random.Uint32())
		}
		frames = append(frames, f[:14+random.IntN(len(f)-13)])
	}
	p.inject(frames)
	p.works(to + ":" + s.port)
	for _, protocol := range []string{"udp", "icmp", "ip"} {
		if e := j.wait(t, protocol, func(e Event) bool { return e.Protocol == protocol && e.Host == "8.8.8.8" }); e.Decision != Deny || e.Reason != "protocol" {
			t.Errorf("%+v", e)
		}
	}
	denied := map[string]int{} // of what some frames happened to begin, and may, each is told
	for _, e := range j.all() {
		if e.Decision == Deny {
			denied[e.Kind]++
		}
	}
	for kind, n := range denied {
		if n > distinct+1 { // and one for all that are beyond it
			t.Errorf("%d denials of kind %s", n, kind)
		}
	}
}

// TestHalfOpen: connections that are begun and never made hold what they can and
// no more, and end with the wire.
func TestHalfOpen(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	r, _ := attached(t, p, rules(s.port), func(c *Config) { c.Limits.HalfOpen = 32 })
	good := netip.MustParseAddr(p.addr("good.example"))
	p.in(func() { // so that the kernel resets nothing
		h, err := netlink.NewHandle()
		if err != nil {
			t.Error(err)
			return
		}
		defer h.Close()
		eth, err := h.LinkByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		a, _ := netlink.ParseAddr(guestAddr.String() + "/30")
		if err := h.AddrDel(eth, a); err != nil {
			t.Error(err)
		}
	})
	var frames [][]byte
	for i := range 20_000 {
		frames = append(frames, packet(gatewayMAC, guestAddr, good, unix.IPPROTO_TCP, syn(guestAddr, good, uint16(1024+i), s.Addr().(*net.TCPAddr).AddrPort().Port())))
	}
	p.inject(frames)
	eventually(t, "some are begun", func() bool { return r.Stats().Connections == 32 })
	begin := time.Now()
	if _, err := r.Detach("one"); err != nil || time.Since(begin) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
	if s.conns.Load() != 0 {
		t.Error("the server was dialled")
	}
}

// TestFlood: thousands of connections from one sandbox get as many as it can have,
// cost bounded memory and few records, and the wire works afterwards.
func TestFlood(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	const most = 300
	r, j := attached(t, p, raw, func(c *Config) { c.Limits.Connections = most })
	to := p.addr("good.example") + ":" + s.port
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var conns []net.Conn
	refused := 0
	p.in(func() {
		for range 10_000 {
			c, err := net.Dial("tcp4", to)
			switch {
			case err == nil:
				conns = append(conns, c)
			case reset(err):
				refused++
			default:
				t.Error(err)
				return
			}
		}
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if len(conns) != most || refused != 10_000-most || r.Stats().Connections != most {
		t.Errorf("%d connections, %d refused, %+v", len(conns), refused, r.Stats())
	}
	if used := int64(after.HeapInuse) - int64(before.HeapInuse); used > most*100<<10 {
		t.Errorf("%d KiB of heap", used>>10)
	}
	if n := len(j.all()); n > most+20 {
		t.Errorf("%d events", n)
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "they are gone", func() bool { return r.Stats().Connections == 0 })
	p.works(to)
	if _, err := r.Detach("one"); err != nil {
		t.Error(err)
	}
	told := 0
	for _, e := range j.all() {
		if e.Decision == Deny {
			told += e.Count
		}
	}
	if told != refused || r.Stats().Denied != int64(refused) {
		t.Errorf("%d of %d denials were told", told, refused)
	}
}

// TestUnread: connections that the other side fills and the sandbox never reads
// from cost bounded memory.
func TestUnread(t *testing.T) {
	p := newPlace(t)
	much := make([]byte, 8<<20)
	s := serve(t, func(c net.Conn) { _, _ = c.Write(much) })
	r, _ := attached(t, p, raw, nil)
	to := p.addr("good.example") + ":" + s.port
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const many = 300
	for range many {
		p.mustDial(to)
	}
	for last := int64(-1); r.Stats().Download != last; time.Sleep(500 * time.Millisecond) { // until nothing moves
		last = r.Stats().Download
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapInuse) - int64(before.HeapInuse)
	t.Logf("%d KiB for %d connections, %d MiB delivered", used>>10, many, r.Stats().Download>>20)
	if most := int64(generous*(2*lastBuffer+2*chunk) + many*(4*firstBuffer)); used > most {
		t.Errorf("%d KiB of heap, at most %d", used>>10, most>>10)
	}
}

// TestScan: as many different denials as a scan makes are told in few events.
func TestScan(t *testing.T) {
	p := newPlace(t)
	r, j := attached(t, p, "allow: [good.example]", nil)
	p.in(func() {
		for port := range 3000 {
			if c, err := net.Dial("tcp4", net.JoinHostPort("10.1.2.3", strconv.Itoa(port+1))); err == nil {
				c.Close()
				t.Error("it answered")
			}
		}
	})
	if _, err := r.Detach("one"); err != nil {
		t.Error(err)
	}
	told, events := 0, j.all()
	for _, e := range events {
		told += e.Count
	}
	if told != 3000 || len(events) > 3*distinct {
		t.Errorf("%d denials in %d events", told, len(events))
	}
}

// TestMemory: an idle wire costs at most 250 KiB.
func TestMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: network namespaces need root")
	}
	const wires = 40
	r := New(Config{Record: func(Event) error { return nil }})
	defer r.Close()
	var places []*place
	for range wires {
		places = append(places, newPlace(t))
	}
	resident := func() int64 {
		runtime.GC()
		runtime.GC() // what pools held
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before := resident()
	tbl := table(t, "allow: [good.example]")
	for i, p := range places {
		if err := r.Attach(Wire{ID: strconv.Itoa(i), Table: tbl}, p.tap); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for _, p := range places {
		all.Go(func() { p.addr("good.example") })
	}
	all.Wait()
	per := (resident() - before) / wires
	t.Logf("%d KiB per wire, %d goroutines", per>>10, runtime.NumGoroutine())
	if per > 250<<10 {
		t.Errorf("%d KiB per wire", per>>10)
	}
}

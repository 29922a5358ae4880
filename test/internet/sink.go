//go:build linux

package internet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flow is where packets went.
type Flow struct {
	Protocol string // tcp, udp, icmp, or the number
	To       netip.AddrPort
}

// String returns "protocol address:port".
func (f Flow) String() string { return f.Protocol + " " + f.To.String() }

// Count is how much that was. Bytes are those of IP packets, headers included.
type Count struct{ Packets, Bytes int64 }

// Counts is what was sent from the host, by destination.
type Counts map[Flow]Count

// Since is what came in addition to an earlier state.
func (c Counts) Since(before Counts) Counts {
	out := Counts{}
	for f, n := range c {
		b := before[f]
		if n != b {
			out[f] = Count{n.Packets - b.Packets, n.Bytes - b.Bytes}
		}
	}
	return out
}

// Total is all of it.
func (c Counts) Total() (sum Count) {
	for _, n := range c {
		sum.Packets += n.Packets
		sum.Bytes += n.Bytes
	}
	return sum
}

// To is what went to some addresses.
func (c Counts) To(addrs ...netip.Addr) Counts {
	out := Counts{}
	for f, n := range c {
		if slices.Contains(addrs, f.To.Addr()) {
			out[f] = n
		}
	}
	return out
}

// Within is what went to networks.
func (c Counts) Within(prefixes ...netip.Prefix) Counts {
	out := Counts{}
	for f, n := range c {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(f.To.Addr()) }) {
			out[f] = n
		}
	}
	return out
}

// Without is what went elsewhere than to some addresses.
func (c Counts) Without(addrs ...netip.Addr) Counts {
	out := maps.Clone(c)
	maps.DeleteFunc(out, func(f Flow, _ Count) bool { return slices.Contains(addrs, f.To.Addr()) })
	return out
}

// String lists the flows, the same way each time.
func (c Counts) String() string {
	var lines []string
	for f, n := range c {
		lines = append(lines, fmt.Sprintf("%v: %d packets, %d bytes", f, n.Packets, n.Bytes))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

// Sink counts what leaves the host, as it arrives on the far end of its link.
type Sink struct {
	far      *space
	file     *os.File
	done     chan struct{}
	patience time.Duration // with packets that the kernel has counted

	mu     sync.Mutex
	counts Counts // guarded by mu
	seen   int64  // guarded by mu; all frames, those that are not counted too
}

// openSink listens on the link, which need not be up.
func openSink(far *space) (*Sink, error) {
	s := &Sink{far: far, patience: 10 * time.Second, done: make(chan struct{}), counts: Counts{}}
	err := far.in(func() error {
		link, err := netlink.LinkByName(farLink)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.file = os.NewFile(uintptr(fd), "sink")
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) // what does not fit is noticed
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}), Ifindex: link.Attrs().Index})
	})
	if err != nil {
		if s.file != nil {
			s.file.Close()
		}
		return nil, fmt.Errorf("open the sink: %w", err)
	}
	go s.run()
	return s, nil
}

// Stop ends the counting, which costs each packet something: for measuring.
func (s *Sink) Stop() { s.close() }

func (s *Sink) close() {
	s.file.Close()
	<-s.done
}

func (s *Sink) run() {
	defer close(s.done)
	conn, err := s.file.SyscallConn()
	if err != nil {
		return
	}
	head := make([]byte, 64)
	for err == nil {
		err = conn.Read(func(fd uintptr) bool {
			for {
				// The real length, whatever of it fits.
				n, from, err := unix.Recvfrom(int(fd), head, unix.MSG_TRUNC)
				if errors.Is(err, unix.EAGAIN) {
					return false
				}
				if ll, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && ll.Pkttype < unix.PACKET_OUTGOING { // not what this end sends, to itself or out
					s.count(ll.Protocol, head[:min(n, len(head))], n)
				}
			}
		})
	}
}

// count classifies a packet.
func (s *Sink) count(kind uint16, head []byte, size int) {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], kind)
	f, quiet := flowOf(binary.BigEndian.Uint16(b[:]), head)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen++
	if !quiet {
		n := s.counts[f]
		s.counts[f] = Count{n.Packets + 1, n.Bytes + int64(size)}
	}
}

// flowOf reads the headers of a packet. Quiet is what a kernel says by itself when
// a link or a group comes and goes.
func flowOf(ether uint16, b []byte) (f Flow, quiet bool) {
	proto, rest := byte(0), []byte(nil)
	switch {
	case ether == unix.ETH_P_IP && len(b) >= 20:
		f.To = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
		proto, rest = b[9], b[min(len(b), int(b[0]&15)*4):]
		quiet = proto == unix.IPPROTO_IGMP
	case ether == unix.ETH_P_IPV6 && len(b) >= 40:
		f.To = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
		proto, rest = b[6], b[40:]
		if proto == 0 && len(rest) > 8 && rest[0] == unix.IPPROTO_ICMPV6 { // hop by hop, as reports of groups have
			proto, rest = rest[0], rest[8:]
		}
		quiet = proto == unix.IPPROTO_ICMPV6 && len(rest) > 0 && (rest[0] == 143 || rest[0] == 131 || rest[0] == 132)
	default:
		f.Protocol = fmt.Sprintf("ether %#04x", ether)
		return f, false
	}
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		f.Protocol = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[proto]
		if len(rest) >= 4 {
			f.To = netip.AddrPortFrom(f.To.Addr(), binary.BigEndian.Uint16(rest[2:]))
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		f.Protocol = "icmp"
	default:
		f.Protocol = strconv.Itoa(int(proto))
	}
	return f, quiet
}

// Read returns the counts when everything that was sent before is in them. An
// error says that the kernel's counter of the link disagrees: nobody can tell what
// was sent then.
func (s *Sink) Read() (Counts, error) {
	for end := time.Now().Add(s.patience); ; time.Sleep(time.Millisecond) {
		before, err := s.sent()
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		seen, counts := s.seen, maps.Clone(s.counts)
		s.mu.Unlock()
		after, err := s.sent()
		if err != nil {
			return nil, err
		}
		if before == after && seen == after {
			return counts, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the sink saw %d packets, the kernel sent %d", seen, after)
		}
	}
}

// Counts is Read for a test.
func (s *Sink) Counts(t testing.TB) Counts {
	t.Helper()
	c, err := s.Read()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reset forgets what was sent until now.
func (s *Sink) reset() error {
	if _, err := s.Read(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.counts)
	return nil
}

// sent is how many packets the kernel has brought to this end.
func (s *Sink) sent() (n int64, err error) {
	err = s.far.in(func() error {
		link, err := netlink.LinkByName(farLink)
		if err != nil {
			return err
		}
		st := link.Attrs().Statistics
		if st == nil {
			return errors.New("the kernel does not count")
		}
		n = int64(st.RxPackets)
		return nil
	})
	return n, err
}

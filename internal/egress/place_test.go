//go:build linux

package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// The main thread never enters a namespace: it could not leave it by ending.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is a sandbox's network without a sandbox: a namespace with a wire in it,
// and the plain kernel as its guest.
type place struct {
	testing.TB
	work chan func()
	tap  *os.File
}

func newPlace(t testing.TB) *place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: network namespaces need root")
	}
	p := &place{TB: t, work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ready <- err
			return
		}
		tap, err := makeWire()
		p.tap = tap
		ready <- err
		for f := range p.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.tap.Close(); close(p.work) })
	return p
}

func makeWire() (*os.File, error) {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		_ = err // the machine has no IPv6
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r, _ := unix.NewIfreq("eth0")
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, r), unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4))
	tap := os.NewFile(uintptr(fd), "tap")
	h, herr := netlink.NewHandle()
	if err = errors.Join(err, herr); err != nil {
		return tap, err
	}
	defer h.Close()
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return tap, err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return tap, err
	}
	addr, _ := netlink.ParseAddr(guestAddr.String() + "/30")
	return tap, errors.Join(h.LinkSetUp(lo), h.LinkSetHardwareAddr(eth, net.HardwareAddr(guestMAC)), h.AddrAdd(eth, addr), h.LinkSetUp(eth),
		h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.IP(gatewayAddr.AsSlice())}))
}

// in runs f in the namespace.
func (p *place) in(f func()) {
	done := make(chan struct{})
	p.work <- func() { defer close(done); f() }
	<-done
}

// dial connects from the namespace, to an address.
func (p *place) dial(to string) (conn net.Conn, err error) {
	p.in(func() { conn, err = net.DialTimeout("tcp4", to, 20*time.Second) })
	return conn, err
}

func (p *place) mustDial(to string) net.Conn {
	p.Helper()
	conn, err := p.dial(to)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return conn
}

// ask sends a query to the gateway's DNS.
func (p *place) ask(network, name string, kind dnsmessage.Type) (dnsmessage.RCode, []netip.Addr) {
	p.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}}}
	q, err := m.Pack()
	if err != nil {
		p.Fatal(err)
	}
	var conn net.Conn
	p.in(func() { conn, err = net.DialTimeout(network, gatewayAddr.String()+":53", 10*time.Second) })
	if err != nil {
		p.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 1500)
	if network == "tcp4" {
		q = append([]byte{0, byte(len(q))}, q...)
	}
	if _, err := conn.Write(q); err != nil {
		p.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil {
		p.Fatal(name, err)
	}
	if network == "tcp4" {
		buf, n = buf[2:], n-2
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(buf[:n]); err != nil {
		p.Fatal(err)
	}
	var addrs []netip.Addr
	for _, a := range reply.Answers {
		addrs = append(addrs, netip.AddrFrom4(a.Body.(*dnsmessage.AResource).A))
	}
	return reply.RCode, addrs
}

// addr is the synthetic address of an allowed name.
func (p *place) addr(name string) string {
	p.Helper()
	code, addrs := p.ask("udp4", name, dnsmessage.TypeA)
	if code != dnsmessage.RCodeSuccess || len(addrs) != 1 {
		p.Fatalf("%s: %v %v", name, code, addrs)
	}
	return addrs[0].String()
}

// journal keeps what was recorded.
type journal struct {
	mu     sync.Mutex
	events []Event // guarded by mu
	fail   atomic.Bool
}

func (j *journal) record(e Event) error {
	if j.fail.Load() {
		return errors.New("the journal is full")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
	return nil
}

func (j *journal) all() []Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]Event(nil), j.events...)
}

// wait returns the first event that fits, when there is one.
func (j *journal) wait(t testing.TB, what string, fits func(Event) bool) (found Event) {
	t.Helper()
	eventually(t, what, func() bool {
		for _, e := range j.all() {
			if fits(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in 30 s: " + what)
		}
	}
}

// server counts connections and bytes on the loopback of the test.
type server struct {
	net.Listener
	port  string
	conns atomic.Int64
	bytes atomic.Int64
	done  sync.WaitGroup
}

func serve(t testing.TB, handle func(net.Conn)) *server {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l, port: strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}
	s.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.done.Go(func() {
				defer conn.Close()
				handle(&counted{conn, s})
			})
		}
	})
	t.Cleanup(func() { l.Close(); s.done.Wait() })
	return s
}

type counted struct {
	net.Conn
	s *server
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.s.bytes.Add(int64(n))
	return n, err
}

func (c *counted) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// echo sends back what it reads, and an end for an end.
func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// names are what the resolver of the machine would say.
var names = map[string][]netip.Addr{
	"good.example":     {netip.MustParseAddr("127.0.0.1")},
	"other.example":    {netip.MustParseAddr("127.0.0.1")},
	"metadata.example": {netip.MustParseAddr("169.254.169.254")},
	"mixed.example":    {netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.169.254")},
	"two.example":      {netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1")},
	"private.example":  {netip.MustParseAddr("10.9.8.7")},
}

var lookups atomic.Int64

func lookup(_ context.Context, name string) ([]netip.Addr, error) {
	lookups.Add(1)
	if name == "public.good.example" {
		return []netip.Addr{netip.MustParseAddr("1.0.0.1")}, nil // and never dialled
	}
	if strings.HasSuffix(name, ".good.example") {
		name = "good.example"
	}
	if a := names[name]; a != nil {
		return append([]netip.Addr(nil), a...), nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// loopback opens the test's servers to rules, with the ports of all of them.
const loopback = "\n  - {id: net, cidr: 127.0.0.1, ports: 1024-65535, protocol: [tls, http, tcp]}"

func table(t testing.TB, text string) *policy.Table {
	t.Helper()
	d, err := policy.Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, err := policy.Compile(policy.Options{Private: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// attached serves the place's wire.
func attached(t testing.TB, p *place, text string, change func(*Config)) (*Router, *journal) {
	t.Helper()
	j := new(journal)
	c := Config{Logger: slog.New(slog.NewTextHandler(testLog{t}, nil)), Dialer: netaddr.Dialer{Lookup: lookup}, Record: j.record}
	if change != nil {
		change(&c)
	}
	r := New(c)
	t.Cleanup(func() { _ = r.Close() })
	if err := r.Attach(Wire{ID: "one", Table: table(t, text)}, p.tap); err != nil {
		t.Fatal(err)
	}
	return r, j
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	if testing.Verbose() {
		fmt.Print(strings.TrimSpace(string(b)) + "\n")
	}
	return len(b), nil
}

// reset reports whether an error is a connection broken off or refused.
func reset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE)
}

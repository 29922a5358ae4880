//go:build linux

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress"
)

// The main thread never enters a namespace: it could not leave it by ending.
func init() { runtime.LockOSThread() }

const (
	guest   = "10.200.0.2/30"
	gateway = "10.200.0.1"
)

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
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			p.tap, err = makeWire()
		}
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
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0) // where there is IPv6
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
	addr, _ := netlink.ParseAddr(guest)
	return tap, errors.Join(h.LinkSetHardwareAddr(eth, net.HardwareAddr{2, 0, 0, 0, 0, 2}), h.AddrAdd(eth, addr), h.LinkSetUp(eth),
		h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(gateway)}),
		h.NeighAdd(&netlink.Neigh{LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(gateway), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}))
}

// in runs f in the namespace.
func (p *place) in(f func()) {
	done := make(chan struct{})
	p.work <- func() { defer close(done); f() }
	<-done
}

func (p *place) dial(to string, wait time.Duration) (conn net.Conn, err error) {
	p.in(func() { conn, err = net.DialTimeout("tcp4", to, wait) })
	return conn, err
}

// addr is the address of a name, which the gateway's DNS says.
func (p *place) addr(name string, wait time.Duration) (string, error) {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	q, err := m.Pack()
	if err != nil {
		return "", err
	}
	var conn net.Conn
	p.in(func() { conn, err = net.DialTimeout("udp4", gateway+":53", wait) })
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(wait))
	if _, err := conn.Write(q); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		return "", err
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(buf[:n]); err != nil {
		return "", err
	}
	if len(reply.Answers) != 1 {
		return "", fmt.Errorf("%s: %v", name, reply.RCode)
	}
	return netip.AddrFrom4(reply.Answers[0].Body.(*dnsmessage.AResource).A).String(), nil
}

// connect connects to a name, as a program in a sandbox does.
func (p *place) connect(name, port string, wait time.Duration) (net.Conn, error) {
	a, err := p.addr(name, wait)
	if err != nil {
		return nil, err
	}
	conn, err := p.dial(net.JoinHostPort(a, port), wait)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(time.Minute))
	}
	return conn, err
}

// echoes sends text on a connection and reports whether it comes back.
func echoes(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("%q came back as %q", text, b)
	}
	return nil
}

// mustEcho connects to a name and has something echoed.
func (p *place) mustEcho(name, port string) net.Conn {
	p.Helper()
	c, err := p.connect(name, port, 20*time.Second)
	if err == nil {
		err = echoes(c, "hello")
	}
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { c.Close() })
	return c
}

// journal keeps what was recorded.
type journal struct {
	mu     sync.Mutex
	events []egress.Event // guarded by mu
	fail   atomic.Bool
	hold   sync.Mutex // held: nothing is recorded
}

func (j *journal) record(e egress.Event) error {
	if j.fail.Load() {
		return errors.New("the journal is full")
	}
	j.hold.Lock()
	j.hold.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
	return nil
}

func (j *journal) count(fits func(egress.Event) bool) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if fits(e) {
			n++
		}
	}
	return n
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in 60 s: " + what)
		}
	}
}

// sink counts connections and bytes, and echoes, on the loopback of the test.
type sink struct {
	net.Listener
	port         string
	conns, bytes atomic.Int64
	done         sync.WaitGroup
}

func newSink(t testing.TB) *sink {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{Listener: l, port: strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}
	s.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.done.Go(func() {
				defer c.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					s.bytes.Add(int64(n))
					if err != nil {
						return
					}
					_, _ = c.Write(buf[:n])
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); s.done.Wait() })
	return s
}

// hostsFile is a hosts file for tests.
func hostsFile(t testing.TB, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil { // not readable for the router
		t.Fatal(err)
	}
	return f
}

func routerProgram(t testing.TB) []string { return []string{binary(t, "router"), "router"} }

func startKeeper(t testing.TB, change func(*Options)) (*Keeper, *journal) {
	t.Helper()
	j := new(journal)
	o := Options{
		Argv: routerProgram(t), Record: j.record, Private: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Hosts:  hostsFile(t, "127.0.0.1 good.example other.example\n"),
		Logger: slog.New(slog.NewTextHandler(testLog{}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k, j
}

// quiet says nothing.
var quiet = slog.New(slog.DiscardHandler)

type testLog struct{}

func (testLog) Write(b []byte) (int, error) {
	if testing.Verbose() {
		fmt.Print(strings.TrimSpace(string(b)) + "\n")
	}
	return len(b), nil
}

// rules allow good.example on a port, as bytes that are nothing known.
func rules(port, more string) Policies {
	return Policies{Documents: [][]byte{[]byte("allow:\n  - {id: good, host: good.example, ports: " + port + ", protocol: tcp" + more +
		"}\n  - {id: net, cidr: 127.0.0.1, ports: 1024-65535, protocol: [tls, http, tcp]}\n")}}
}

// router is the process id of the keeper's router.
func router(t testing.TB, k *Keeper) int {
	t.Helper()
	s, err := k.session(t.Context(), "test", "")
	if err != nil {
		t.Fatal(err)
	}
	return s.process.os.Pid
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root")
	}
}

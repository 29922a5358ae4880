//go:build linux

package internet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// Internet is the two namespaces and what serves in them. All methods may be
// called at once.
type Internet struct {
	Names     *Names
	Authority *Authority
	Sink      *Sink
	Local     *Local

	dir       string
	host, far *space
	web       *web
	work      sync.WaitGroup
	conns     *connections
	closers   []func()
}

// Open makes an internet. It needs root, and takes some milliseconds.
func Open() (*Internet, error) { return open(NameServers()) }

// open is Open on a machine that has these name servers.
func open(nameServers []netip.Addr) (_ *Internet, err error) {
	n := &Internet{Names: new(Names), conns: &connections{open: map[net.Conn]bool{}}}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.dir, err = os.MkdirTemp("", "internet-"); err != nil {
		return nil, err
	}
	if n.Authority, err = newAuthority(n.dir); err != nil {
		return nil, err
	}
	if n.far, err = newSpace(quietLinks); err != nil {
		return nil, err
	}
	if n.host, err = newSpace(quietLinks); err != nil {
		return nil, err
	}
	if err := join(n.host, n.far, func() (err error) {
		n.Sink, err = openSink(n.far)
		return err
	}); err != nil {
		return nil, err
	}
	if err := n.serve(); err != nil {
		return nil, err
	}
	if n.Local, err = n.openLocal(nameServers); err != nil {
		return nil, err
	}
	return n, n.settle()
}

// settle waits until packets arrive, both ways: a kernel throws some away just
// after a link has come up, and only TCP sends those again. What it sends for that
// is not counted.
func (n *Internet) settle() error {
	query := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1} // for the root's address
	for _, to := range []string{"192.0.2.53:53", "[2001:db8::53]:53"} {
		conn, err := n.dial(context.Background(), "udp", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		for try := 0; ; try++ {
			if _, err := conn.Write(query); err != nil {
				return err
			}
			_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err = conn.Read(make([]byte, 512)); err == nil {
				break
			}
			if try == 60 {
				return fmt.Errorf("no packets come back from %s: %w", to, err)
			}
		}
	}
	n.Names.reset()
	return n.Sink.reset()
}

// New is Open for a test, which ends with it.
func New(t testing.TB) *Internet {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: network namespaces need root")
	}
	n, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// Close ends all servers and waits for them. Programs that were started go on, cut off.
func (n *Internet) Close() {
	for _, f := range n.closers {
		f()
	}
	n.conns.close()
	n.work.Wait()
	if n.Sink != nil {
		n.Sink.close()
	}
	for _, s := range []*space{n.host, n.far} {
		if s != nil {
			s.close()
		}
	}
	os.RemoveAll(n.dir)
}

// Start starts a program on the host. What it starts is there, too. The threads
// of this process are not.
func (n *Internet) Start(cmd *exec.Cmd) error { return n.host.in(cmd.Start) }

// Run is Start, and waits for the end.
func (n *Internet) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// OnHost calls f on a thread that is on the host: sockets that f itself makes are
// the host's.
func (n *Internet) OnHost(f func() error) error { return n.host.in(f) }

// Dial connects from the host, as a plain program there would: any name is looked
// up, any address is dialled.
func (n *Internet) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := n.Lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	return n.dial(ctx, network, net.JoinHostPort(addrs[0].String(), port))
}

// dial connects from the host to an address.
func (n *Internet) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, err // a name would be looked up in another goroutine, elsewhere
	}
	err = n.host.in(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Transport is that of a plain client on the host, which trusts the authority.
func (n *Internet) Transport() *http.Transport {
	return &http.Transport{DialContext: n.Dial, TLSClientConfig: &tls.Config{RootCAs: n.Authority.Pool()}, ForceAttemptHTTP2: true}
}

// listen opens a server's socket in a namespace.
func (n *Internet) listen(s *space, network, address string) (l net.Listener, err error) {
	err = s.in(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", address, err)
	}
	n.closers = append(n.closers, func() { l.Close() })
	return l, nil
}

// Serve has handle serve the connections to a port of every address, at which
// nothing else does.
func (n *Internet) Serve(port uint16, handle func(net.Conn)) error {
	l, err := n.listen(n.far, "tcp", fmt.Sprintf(":%d", port))
	if err == nil {
		n.accept(l, handle)
	}
	return err
}

// accept calls handle for each connection, in a goroutine that Close waits for.
func (n *Internet) accept(l net.Listener, handle func(net.Conn)) {
	n.work.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond) // out of descriptors
				continue
			}
			if !n.conns.add(conn) {
				return
			}
			n.work.Go(func() {
				defer n.conns.remove(conn)
				handle(conn)
			})
		}
	})
}

// connections are those that Close has to end.
type connections struct {
	mu     sync.Mutex
	open   map[net.Conn]bool // guarded by mu
	closed bool              // guarded by mu
}

func (c *connections) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return false
	}
	c.open[conn] = true
	return true
}

func (c *connections) remove(conn net.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		conn.Close()
	}
}

package guest

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// MaxConns is how many connections a guest keeps for a session at once.
const MaxConns = 256

// Conn is a connection to a server in a sandbox. What comes out of it, and when,
// the guest decides. It has no deadlines: close it.
type Conn struct {
	s    *Session
	id   uint32
	c    *call
	port int
	once sync.Once
}

var _ net.Conn = (*Conn)(nil)

// DialPort connects to a TCP port of the sandbox's own loopback, IPv4 or else IPv6.
// The bytes cross the session: the sandbox needs no network device, and no route
// leads from it to here.
//
// Errors: KindNotFound when nothing listens there, KindTimeout when it does not
// answer, KindCapacity beyond MaxConns, KindUnsupported for an agent that is
// older, or the session's. Cost: a round trip; up to DialWindow is held each way.
func (s *Session) DialPort(ctx context.Context, port int) (*Conn, error) {
	if port < 1 || port > 65535 {
		return nil, sandbox.Errorf("dial", sandbox.KindInvalid, "%d is not a port", port).WithHint("1 to 65535")
	}
	c := &call{up: newOutflow(s, TypeFile, DialWindow), both: true}
	id, err := s.start(ctx, OpDial, Call{Dial: &DialCall{Port: port}}, c, func(id uint32) {
		c.up.id, c.in = id, s.newStream(id, TypeFile, DialWindow, 0)
	})
	if err != nil {
		return nil, err
	}
	if _, err := s.await(ctx, OpDial, id, c); err != nil {
		return nil, err
	}
	return &Conn{s: s, id: id, c: c, port: port}, nil
}

// Read implements net.Conn. At the end the server has sent all it will.
func (c *Conn) Read(p []byte) (int, error) { return c.c.in.Read(p) }

// Write implements net.Conn. It waits while the server does not read.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.c.up.write(context.Background(), p)
	if errors.Is(err, errAnswered) {
		err = net.ErrClosed
	}
	return n, err
}

// CloseWrite tells the server that nothing follows.
func (c *Conn) CloseWrite() error {
	c.c.up.stop(net.ErrClosed)
	c.c.up.end()
	return nil
}

// Close ends the connection, both ways, and whatever waits for it. Idempotent;
// always nil.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.c.up.stop(net.ErrClosed)
		c.s.abandon(c.id)
		c.c.in.Close()
	})
	return nil
}

// guestAddr is a port of a sandbox, which means nothing outside of it.
type guestAddr int

// Network implements net.Addr.
func (guestAddr) Network() string { return "sandbox" }

// String implements net.Addr.
func (a guestAddr) String() string { return "sandbox:" + strconv.Itoa(int(a)) }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return guestAddr(0) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return guestAddr(c.port) }

// SetDeadline implements net.Conn: there are none.
func (c *Conn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline implements net.Conn: there are none.
func (c *Conn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline implements net.Conn: there are none.
func (c *Conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

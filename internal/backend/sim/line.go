package sim

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// lineBuffer is how much each direction of a line holds, as a pipe would.
const lineBuffer = 64 << 10

// line is the byte stream between the host and an instance's agent. Like the
// pair of named pipes it models it outlives connections: bytes on their way
// when one ends are met by the next, and resynchronising is the protocol's
// business.
type line struct {
	in, out *queue // as the guest sees them

	mu   sync.Mutex
	live *conn // guarded by mu
}

func newLine() *line { return &line{in: newQueue(), out: newQueue()} }

// dial returns the host's end and invalidates the one before.
func (l *line) dial() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live != nil {
		l.live.Close()
	}
	l.live = newConn(l.out, l.in)
	return l.live
}

// guestEnd returns the agent's end.
func (l *line) guestEnd() net.Conn { return newConn(l.in, l.out) }

// close ends both directions for both sides.
func (l *line) close() {
	l.in.close()
	l.out.close()
}

// queue is one direction: bounded, blocking, and interruptible.
type queue struct {
	mu     sync.Mutex
	buf    []byte        // guarded by mu
	closed bool          // guarded by mu
	moved  chan struct{} // guarded by mu; closed and replaced at each change
}

func newQueue() *queue { return &queue{moved: make(chan struct{})} }

// changed wakes all waiters. Preconditions: q.mu is held.
func (q *queue) changed() {
	close(q.moved)
	q.moved = make(chan struct{})
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		q.changed()
	}
}

func (q *queue) read(p []byte, gone, late <-chan struct{}) (int, error) {
	for {
		if err := interrupted(gone, late); err != nil {
			return 0, err
		}
		q.mu.Lock()
		if len(q.buf) > 0 || len(p) == 0 {
			n := copy(p, q.buf)
			q.buf = q.buf[:copy(q.buf, q.buf[n:])]
			q.changed()
			q.mu.Unlock()
			return n, nil
		}
		closed, moved := q.closed, q.moved
		q.mu.Unlock()
		if closed {
			return 0, io.EOF
		}
		select {
		case <-moved:
		case <-gone:
		case <-late:
		}
	}
}

func (q *queue) write(p []byte, gone, late <-chan struct{}) (int, error) {
	done := 0
	for {
		if err := interrupted(gone, late); err != nil {
			return done, err
		}
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return done, io.ErrClosedPipe
		}
		if n := min(lineBuffer-len(q.buf), len(p)-done); n > 0 {
			q.buf = append(q.buf, p[done:done+n]...)
			done += n
			q.changed()
		}
		moved := q.moved
		q.mu.Unlock()
		if done == len(p) {
			return done, nil
		}
		select {
		case <-moved:
		case <-gone:
		case <-late:
		}
	}
}

func interrupted(gone, late <-chan struct{}) error {
	select {
	case <-gone:
		return net.ErrClosed
	default:
	}
	select {
	case <-late:
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// conn is one end of a line: a net.Conn.
type conn struct {
	from, to *queue
	once     sync.Once
	closed   chan struct{}
	rd, wd   deadline
}

func newConn(from, to *queue) *conn {
	c := &conn{from: from, to: to, closed: make(chan struct{})}
	c.rd.init()
	c.wd.init()
	return c
}

func (c *conn) Read(p []byte) (int, error)  { return c.from.read(p, c.closed, c.rd.wait()) }
func (c *conn) Write(p []byte) (int, error) { return c.to.write(p, c.closed, c.wd.wait()) }

func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.closed)
		c.rd.set(time.Time{})
		c.wd.set(time.Time{})
		err = nil
	})
	return err
}

func (c *conn) LocalAddr() net.Addr  { return addr{} }
func (c *conn) RemoteAddr() net.Addr { return addr{} }

func (c *conn) SetDeadline(t time.Time) error {
	c.rd.set(t)
	c.wd.set(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error  { c.rd.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.wd.set(t); return nil }

type addr struct{}

func (addr) Network() string { return "sim" }
func (addr) String() string  { return "sim" }

// deadline is a channel that closes when a time has come.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer   // guarded by mu
	late  chan struct{} // guarded by mu
}

func (d *deadline) init() { d.late = make(chan struct{}) }

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.late
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.late // the timer has fired: wait for it, then start afresh
	}
	d.timer = nil
	select {
	case <-d.late:
		d.late = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	late := d.late
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(late) })
	} else {
		close(late)
	}
}

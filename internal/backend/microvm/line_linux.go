package microvm

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// maxEarly bounds what is kept of an agent's words while its machine is saved: more
// than what can be on its way. settlePatience bounds the wait for it: a guest's kernel
// that was taken over may count what it likes.
const (
	maxEarly       = 8 << 20
	settlePatience = 5 * time.Second
)

// line is a stream to an agent over connections of which all are cut when its machine
// is saved. For who saves it, it is held: what is on its way is waited for, nothing is
// sent, and it goes on over another connection. To who reads and writes it the machine
// stood still for a moment.
type line struct {
	dial func(context.Context) (net.Conn, error)
	turn sync.Mutex // of who writes

	mu      sync.Mutex
	changed *sync.Cond
	conn    net.Conn  // guarded by mu, as all below
	busy    int       // calls of conn in progress
	held    bool      // conn is the holder's
	settled bool      // nothing is on its way
	pumping bool      // the holder reads
	closed  bool      // for good
	sent    int64     // over conn
	got     int64     // over conn
	early   []byte    // what came while the line was held
	reads   time.Time // deadlines
	writes  time.Time
}

var _ net.Conn = (*line)(nil)

func newLine(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*line, error) {
	c, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &line{dial: dial, conn: c}
	l.changed = sync.NewCond(&l.mu)
	return l, nil
}

var past = time.Unix(1, 0)

// use calls call with the connection. again: somebody held the line, or holds it now
// and has interrupted the call. l.mu is held.
func (l *line) use(call func(net.Conn) (int, error)) (n int, again bool, err error) {
	switch {
	case l.closed:
		return 0, false, net.ErrClosed
	case l.held:
		l.changed.Wait()
		return 0, true, nil
	}
	c := l.conn
	l.busy++
	l.mu.Unlock()
	n, err = call(c)
	l.mu.Lock()
	l.busy--
	l.changed.Broadcast()
	return n, err != nil && l.held, err
}

func (l *line) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if len(l.early) > 0 {
			n := copy(b, l.early)
			l.early = l.early[n:]
			return n, nil
		}
		n, again, err := l.use(func(c net.Conn) (int, error) { return c.Read(b) })
		if l.got += int64(n); n > 0 || !again {
			return n, err
		}
	}
}

func (l *line) Write(b []byte) (total int, err error) {
	l.turn.Lock()
	defer l.turn.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		n, again, err := l.use(func(c net.Conn) (int, error) { return c.Write(b[total:]) })
		l.sent, total = l.sent+int64(n), total+n
		if total == len(b) || !again {
			return total, err
		}
	}
}

// hold takes the connection, and returns how many bytes were sent over it. What the
// agent says is read on. Of no line: nil.
func (l *line) hold() (sent *int64) {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.held {
		return nil
	}
	l.held, l.settled, l.pumping = true, false, true
	l.conn.SetDeadline(past)
	for l.busy > 0 {
		l.changed.Wait()
	}
	l.conn.SetDeadline(time.Time{})
	go l.pump(l.conn)
	n := l.sent
	return &n
}

// pump reads what comes until it is interrupted.
func (l *line) pump(c net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		l.mu.Lock()
		l.got, l.early = l.got+int64(n), append(l.early, buf[:n]...)
		l.pumping = err == nil && len(l.early) < maxEarly
		more := l.pumping
		l.changed.Broadcast()
		l.mu.Unlock()
		if !more {
			return
		}
	}
}

// settle waits for all that the agent has said, which is want bytes; of a line that is
// held.
func (l *line) settle(ctx context.Context, want int64) {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held {
		return
	}
	c := l.conn // which release replaces: a late call must not reach the next one
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	defer stop()
	for l.pumping && l.got < want {
		l.changed.Wait()
	}
	l.settled = l.got == want
	l.stopLocked()
}

// stopLocked ends the pump. l.mu is held.
func (l *line) stopLocked() {
	l.conn.SetDeadline(past)
	for l.pumping {
		l.changed.Wait()
	}
}

// drop ends a line that is held and does not settle, so that nobody waits for it.
func (l *line) drop() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held && !l.settled {
		l.closed = true
		l.conn.Close()
	}
}

// release has a line that was held go on, over another connection. It ends when
// something was lost, or nobody answers: who uses it begins anew.
func (l *line) release(ctx context.Context) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held {
		return
	}
	l.stopLocked()
	l.conn.Close()
	if l.settled && !l.closed {
		l.mu.Unlock()
		c, err := l.dial(ctx)
		l.mu.Lock()
		switch {
		case err == nil && l.closed:
			c.Close()
		case err == nil:
			l.conn, l.sent, l.got = c, 0, 0
			errReads, errWrites := c.SetReadDeadline(l.reads), c.SetWriteDeadline(l.writes)
			l.closed = errors.Join(errReads, errWrites) != nil
		default:
			l.closed = true
		}
	} else {
		l.closed = true
	}
	l.held = false
	l.changed.Broadcast()
}

// Close ends the line. Reads and writes return.
func (l *line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed.Broadcast()
	return l.conn.Close()
}

func (l *line) SetDeadline(t time.Time) error {
	return errors.Join(l.SetReadDeadline(t), l.SetWriteDeadline(t))
}

func (l *line) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads = t; l.held {
		return nil
	}
	return l.conn.SetReadDeadline(t)
}

func (l *line) SetWriteDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writes = t; l.held {
		return nil
	}
	return l.conn.SetWriteDeadline(t)
}

func (l *line) LocalAddr() net.Addr  { return lineAddr{} }
func (l *line) RemoteAddr() net.Addr { return lineAddr{} }

type lineAddr struct{}

func (lineAddr) Network() string { return "vsock" }
func (lineAddr) String() string  { return "machine" }

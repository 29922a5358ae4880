package server

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// crowd is the connections of one listener, which are bounded in number. What
// counts as a request under way keeps its connection; any other one is only
// waiting: for the rest of a header, or for the next request. When there is no
// room, one that has waited long, of the source that has most, makes it. So a
// slow-loris cannot lock anybody out: a caller that means it sends its header at
// once, and has few connections.
type crowd struct {
	max, perSource int

	mu      sync.Mutex
	changed sync.Cond               // room may have come up; over mu
	closed  bool                    // guarded by mu
	n       int                     // guarded by mu; connections
	sources map[string]int          // guarded by mu; connections by where they come from
	waiting list.List               // guarded by mu; of *conn, longest first
	places  map[*conn]*list.Element // guarded by mu; in waiting
	cut     int64                   // guarded by mu; connections that made room
}

func newCrowd(limit, perSource int) *crowd {
	c := &crowd{max: limit, perSource: perSource, sources: map[string]int{}, places: map[*conn]*list.Element{}}
	c.changed.L = &c.mu
	return c
}

// join counts c as waiting once there is room for it: as long as all others are
// busy, it waits. It reports false when c's source has too many connections that
// are all busy, and once the listener is closed.
func (d *crowd) join(c *conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.source != "" && d.sources[c.source] >= d.perSource && !d.evict(c.source) {
		return false
	}
	for d.n >= d.max && !d.closed {
		if !d.evict("") {
			d.changed.Wait()
		}
	}
	if d.closed {
		return false
	}
	d.n++
	d.sources[c.source]++
	d.places[c] = d.waiting.PushBack(c)
	return true
}

// lookedAt is how many of those that have waited longest are compared.
const lookedAt = 64

// evict closes a connection that waits, of one source or, if that is empty, of
// any: among those that have waited longest one of the source that has most. It
// reports false when none waits. Preconditions: d.mu is held; it is let go of
// meanwhile.
func (d *crowd) evict(source string) bool {
	var victim *conn
	seen := 0
	for e := d.waiting.Front(); e != nil && seen < lookedAt; e = e.Next() {
		c := e.Value.(*conn)
		if source != "" && c.source != source {
			continue
		}
		seen++
		if victim == nil || d.sources[c.source] > d.sources[victim.source] {
			victim = c
		}
	}
	if victim == nil {
		return false
	}
	d.cut++
	d.remove(victim)
	d.mu.Unlock()
	victim.Conn.Close() // whoever serves it notices
	d.mu.Lock()
	return true
}

// leave forgets c. It is idempotent.
func (d *crowd) leave(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remove(c)
	d.changed.Broadcast()
}

// remove is leave. Preconditions: d.mu is held.
func (d *crowd) remove(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	d.n--
	if d.sources[c.source]--; d.sources[c.source] == 0 {
		delete(d.sources, c.source)
	}
	d.settle(c)
}

// settle takes c out of those that wait. Preconditions: d.mu is held.
func (d *crowd) settle(c *conn) {
	if e := d.places[c]; e != nil {
		d.waiting.Remove(e)
		delete(d.places, c)
	}
}

// close wakes whoever waits for room.
func (d *crowd) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.changed.Broadcast()
}

// connState notes whether c has a request under way. It is an http.Server's
// ConnState.
func connState(nc net.Conn, st http.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	d := c.crowd
	d.mu.Lock()
	defer d.mu.Unlock()
	switch st {
	case http.StateActive:
		d.settle(c)
	case http.StateIdle:
		if d.places[c] == nil && !c.gone {
			d.places[c] = d.waiting.PushBack(c)
			d.changed.Broadcast()
		}
	}
}

// conn is an accepted connection.
type conn struct {
	net.Conn
	crowd  *crowd
	peer   *peer  // nil over TCP
	source string // empty on a unix socket, where all are one
	gone   bool   // guarded by crowd.mu; it counts no more

	in    frames // used by whoever reads
	http2 atomic.Bool
	out   resets // used by whoever writes
}

// CloseWrite says that nothing follows, and goes on listening.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.crowd.leave(c)
	return c.Conn.Close()
}

// errFlood ends a connection whose frames are nothing but work.
var errFlood = errors.New("server: flood of HTTP/2 control frames")

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.in.pass(p[:n]) {
		return 0, errFlood
	}
	if c.in.state == inFrames && !c.http2.Load() {
		c.http2.Store(true)
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.http2.Load() && !c.out.pass(p) {
		return 0, errFlood
	}
	return c.Conn.Write(p)
}

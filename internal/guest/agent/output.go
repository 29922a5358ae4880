package agent

import (
	"io"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// output is one output channel of a program. It keeps what the host has not
// acknowledged, at most a window, and makes the program wait beyond that. The
// pump is its producer, the flusher sends; both work without a host.
type output struct {
	id      uint32
	channel guest.Type

	mu       sync.Mutex
	cond     sync.Cond  // on mu: space, or the flusher has stopped
	ring     guest.Ring // guarded by mu; what is not acknowledged
	acked    uint64     // guarded by mu; offset where ring begins
	sent     uint64     // guarded by mu; given to link
	eof      bool       // guarded by mu; nothing more will be produced
	endSent  bool       // guarded by mu
	flushing bool       // guarded by mu; a flusher is at work
	dropped  bool       // guarded by mu; nobody will want it
	link     *link      // guarded by mu; nil without a host that follows
	waiting  bool       // guarded by mu; link has not said go
	waste    []byte     // the pump's, for what is dropped
}

func (o *output) init(id uint32, channel guest.Type, l *link) {
	o.id, o.channel, o.link = id, channel, l
	o.cond.L = &o.mu
}

const (
	pumpMin = 4 << 10
	pumpMax = 64 << 10
)

// pump moves what src yields into the ring until it ends.
func (o *output) pump(src io.ReadCloser) {
	defer src.Close()
	size := pumpMin
	for {
		p := o.space(size)
		n, err := src.Read(p)
		o.mu.Lock()
		if !o.dropped {
			o.ring.Commit(n)
		}
		o.eof = err != nil
		o.mu.Unlock()
		o.flush()
		if err != nil {
			return
		}
		if n == len(p) && size < pumpMax {
			size *= 2
		}
	}
}

// space waits until something fits into the ring and returns up to n bytes of
// it. What is dropped goes nowhere.
func (o *output) space(n int) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.dropped && o.ring.Len() >= guest.DefaultWindow {
		o.cond.Wait()
	}
	if o.dropped {
		o.ring.Reset()
		if o.waste == nil {
			o.waste = make([]byte, pumpMin)
		}
		return o.waste
	}
	n = min(n, guest.DefaultWindow-o.ring.Len())
	o.ring.Grow(n)
	a, _ := o.ring.Free(n)
	return a
}

// flush sends what may be sent. One flusher works at a time; it does not stop
// while there is something to do.
func (o *output) flush() {
	o.mu.Lock()
	if o.flushing {
		o.mu.Unlock()
		return
	}
	o.flushing = true
	for o.link != nil && !o.waiting {
		l, at := o.link, o.sent
		pos := int(at - o.acked)
		n := min(o.ring.Len(), l.window) - pos
		n = min(n, guest.MaxData)
		var err error
		switch {
		case n > 0:
			a, b := o.ring.Data(pos, n)
			o.sent += uint64(n)
			o.mu.Unlock()
			err = l.data(o.channel, o.id, at, a, b)
		case o.eof && !o.endSent && pos == o.ring.Len():
			o.endSent = true
			o.mu.Unlock()
			err = l.mark(guest.TypeEnd, o.id, o.channel, at)
		default:
			o.flushing = false
			o.cond.Broadcast()
			o.mu.Unlock()
			return
		}
		o.mu.Lock()
		if err != nil && o.link == l {
			o.link = nil
		}
	}
	o.flushing = false
	o.cond.Broadcast()
	o.mu.Unlock()
}

// acknowledge drops what the host has, and reports whether there is more that
// may be sent now.
func (o *output) acknowledge(l *link, at uint64) (more bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link != l || o.dropped {
		return false, nil
	}
	if at > o.sent {
		return false, guest.Violation("channel %#x of %d: acknowledged %d, sent %d", byte(o.channel), o.id, at, o.sent)
	}
	if at > o.acked {
		o.ring.Consume(int(at - o.acked))
		o.acked = at
		o.cond.Broadcast()
	}
	more = o.waiting || !o.flushing && o.sent < o.acked+uint64(o.ring.Len())
	o.waiting = false
	return more, nil
}

// attach makes l the host that follows, from offset at on, once it says go.
// A negative at means from whatever is kept. It returns the offset.
func (o *output) attach(l *link, at int64) (int64, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// The flusher of the previous host reads bytes that we are about to free.
	o.link = nil
	for o.flushing {
		o.cond.Wait()
	}
	from := max(o.acked, uint64(max(at, 0)))
	if from > o.acked+uint64(o.ring.Len()) {
		return 0, false
	}
	o.ring.Consume(int(from - o.acked))
	o.acked, o.sent = from, from
	o.link, o.waiting, o.endSent = l, true, false
	o.cond.Broadcast()
	return int64(from), true
}

// detach makes nobody follow. Output is kept from then on.
func (o *output) detach(l *link) {
	o.mu.Lock()
	if o.link == l {
		o.link = nil
	}
	o.mu.Unlock()
}

// drop discards the output, now and in future.
func (o *output) drop() {
	o.mu.Lock()
	o.dropped, o.link = true, nil
	o.cond.Broadcast()
	o.mu.Unlock()
}

// credit is what a download may still send.
type credit struct {
	wake  chan struct{} // capacity 1
	mu    sync.Mutex
	size  uint64 // the window
	sent  uint64 // guarded by mu
	limit uint64 // guarded by mu
}

func newCredit(window uint64) *credit {
	return &credit{wake: make(chan struct{}, 1), size: window, limit: window}
}

// grant handles a window frame.
func (c *credit) grant(consumed uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if consumed > c.sent {
		return guest.Violation("acknowledged %d bytes of a file, sent %d", consumed, c.sent)
	}
	c.limit = max(c.limit, consumed+c.size)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// take waits for credit and takes up to n bytes of it.
func (c *credit) take(done <-chan struct{}, n int) (offset uint64, got int) {
	for {
		c.mu.Lock()
		if free := c.limit - c.sent; free > 0 {
			offset, got = c.sent, int(min(uint64(n), free))
			c.sent += uint64(got)
			c.mu.Unlock()
			return offset, got
		}
		c.mu.Unlock()
		select {
		case <-c.wake:
		case <-done:
			return 0, 0
		}
	}
}

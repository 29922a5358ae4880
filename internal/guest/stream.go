package guest

import (
	"context"
	"io"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
)

// Stream is one channel of bytes from the other end, mostly the guest. It holds
// at most its window, and grants the sender more only for what has been read: a byte is acknowledged
// when Read is called again after having returned it, or when the writer given
// to WriteTo has taken it. Until then the guest keeps it for a Reattach.
//
// One goroutine may read a Stream.
type Stream struct {
	id      uint32
	channel Type
	window  uint64
	mark    func(at uint64) // tells the sender what is consumed
	wake    chan struct{}   // capacity 1
	onEnd   func()          // called once, without the lock, when all has been consumed

	mu    sync.Mutex
	ring  Ring
	recv  uint64 // guarded by mu; offset of the next byte to arrive
	acked uint64 // guarded by mu; what the guest has been told
	end   uint64 // guarded by mu; where the channel ends; noEnd
	err   error  // guarded by mu; sticky, after the buffered bytes
	shut  bool   // guarded by mu; closed by the reader
	over  bool   // guarded by mu; onEnd has been called
}

const noEnd = 1<<64 - 1

// NewStream returns the receiving end of a channel whose next byte is at. mark
// is called, under the stream's lock, to acknowledge all before an offset.
func NewStream(id uint32, channel Type, window int, at uint64, mark func(at uint64)) *Stream {
	return &Stream{id: id, channel: channel, window: uint64(window), mark: mark,
		wake: make(chan struct{}, 1), recv: at, acked: at, end: noEnd}
}

func (s *Session) newStream(id uint32, channel Type, window int, at uint64) *Stream {
	return NewStream(id, channel, window, at, func(at uint64) { s.out.mark(TypeWindow, id, channel, at) })
}

// Receive reads a data frame's payload. Called by the connection's reader only.
func (st *Stream) Receive(d *Decoder, h Header) error {
	st.mu.Lock()
	n := uint64(h.Length)
	switch {
	case h.Offset != st.recv:
		st.mu.Unlock()
		return violation("channel %#x of %d: bytes at %d, expected %d", byte(st.channel), st.id, h.Offset, st.recv)
	case st.recv+n > st.acked+st.window || st.recv+n > st.end:
		st.mu.Unlock()
		return violation("channel %#x of %d: %d bytes over its window or end", byte(st.channel), st.id, n)
	}
	if st.shut { // nobody will read it
		st.recv += n
		st.credit() // in steps: a mark for each byte would be the guest's to make us store
		st.mu.Unlock()
		if err := d.Skip(); err != nil {
			return err
		}
		return d.Verify()
	}
	st.ring.Grow(h.Length)
	a, b := st.ring.Free(h.Length)
	st.mu.Unlock()
	// Without the lock: only this goroutine touches free space.
	if err := d.Read(a); err != nil {
		return err
	}
	if err := d.Read(b); err != nil {
		return err
	}
	if err := d.Verify(); err != nil {
		return err
	}
	st.mu.Lock()
	st.recv += n
	if st.shut {
		st.credit()
	} else {
		st.ring.Commit(h.Length)
	}
	paused := st.recv == st.acked+st.window
	st.mu.Unlock()
	if paused { // the reader is slow: the sender has no credit left
		failpoint.Hit("guest.stream/exhausted")
	}
	signal(st.wake)
	return nil
}

// Finish handles an end frame that follows all data. Called by the
// connection's reader only.
func (st *Stream) Finish(at uint64) error {
	st.mu.Lock()
	recv := st.recv
	st.mu.Unlock()
	if at != recv {
		return violation("channel %#x of %d ends at %d, %d bytes came", byte(st.channel), st.id, at, recv)
	}
	return st.EndAt(at)
}

// EndAt handles an end frame that may have overtaken data, as those of a host
// do. Called by the connection's reader only.
func (st *Stream) EndAt(at uint64) error {
	st.mu.Lock()
	if st.end == at { // a sender that starts again cannot know that it arrived
		st.mu.Unlock()
		return nil
	}
	if st.end != noEnd || at < st.recv {
		st.mu.Unlock()
		return violation("channel %#x of %d ends at %d, %d bytes came", byte(st.channel), st.id, at, st.recv)
	}
	st.end = at
	st.unlock()
	signal(st.wake)
	return nil
}

// unlock releases mu, and tells whoever waits for it that the channel has ended
// and nothing of it is left to read.
func (st *Stream) unlock() {
	over := !st.over && st.recv == st.end && st.ring.Len() == 0
	st.over = st.over || over
	st.mu.Unlock()
	if over && st.onEnd != nil {
		st.onEnd()
	}
}

// Resume is for a sender that starts again: it returns the offset of the next
// byte and forgets an end that lies beyond.
func (st *Stream) Resume() (at, acked uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.end > st.recv {
		st.end = noEnd
	}
	return st.recv, st.acked
}

// Fail makes reads return err once the buffered bytes are gone.
func (st *Stream) Fail(err error) {
	st.mu.Lock()
	if st.err == nil {
		st.err = err
	}
	st.mu.Unlock()
	signal(st.wake)
}

// ackLocked tells the guest that all before at is consumed. Preconditions:
// st.mu is held.
func (st *Stream) ackLocked(at uint64) {
	if at == st.acked {
		return
	}
	if st.recv == st.acked+st.window {
		failpoint.Hit("guest.stream/before-credit")
	}
	st.acked = at
	st.mark(at)
}

// credit acknowledges consumed bytes, in steps that keep the guest busy
// without a frame for every read. Preconditions: st.mu is held.
func (st *Stream) credit() {
	at := st.recv - uint64(st.ring.Len())
	if at-st.acked >= st.window/4 || at == st.end {
		st.ackLocked(at)
	}
}

// ready waits for bytes and returns what there is, in two pieces; none at the
// end. Bytes handed out before count as consumed.
func (st *Stream) ready() (a, b []byte, err error) {
	for {
		st.mu.Lock()
		st.credit()
		switch {
		case st.shut:
			err = io.ErrClosedPipe
		case st.ring.Len() > 0:
			a, b = st.ring.Data(0, st.ring.Len())
		case st.end == st.recv:
			err = io.EOF
		default:
			err = st.err
		}
		st.unlock()
		if err != nil || a != nil {
			return a, b, err
		}
		<-st.wake
	}
}

// Read implements io.Reader. It returns io.EOF at the end of the channel, the
// session's error when that ended first, and io.ErrClosedPipe after Close.
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	a, b, err := st.ready()
	if err != nil {
		return 0, err
	}
	n := copy(p, a)
	n += copy(p[n:], b)
	st.mu.Lock()
	if !st.shut {
		st.ring.Consume(n)
	}
	st.mu.Unlock()
	return n, nil
}

// Peek waits until more than seen bytes are there and returns a copy of them all,
// up to limit, without consuming any: Discard does. At the end of the channel, or
// when the session has ended, it returns what is left together with the error
// that Read would return behind it.
func (st *Stream) Peek(seen, limit int) ([]byte, error) {
	for {
		st.mu.Lock()
		st.credit()
		var err error
		switch {
		case st.shut:
			err = io.ErrClosedPipe
		case st.ring.Len() > seen:
		case st.end == st.recv:
			err = io.EOF
		default:
			err = st.err
		}
		var p []byte
		if n := min(st.ring.Len(), limit); n > seen || err != nil && n > 0 {
			a, b := st.ring.Data(0, n)
			p = append(append(make([]byte, 0, n), a...), b...)
		}
		st.unlock()
		if err != nil || len(p) > seen {
			return p, err
		}
		<-st.wake
	}
}

// Discard consumes the next n bytes, which Peek has returned. What the caller
// has made of them must be safe: the guest may forget them now.
func (st *Stream) Discard(n int) {
	st.mu.Lock()
	if !st.shut {
		st.ring.Consume(n)
		st.credit()
	}
	st.unlock()
}

// WriteTo implements io.WriterTo: it copies to w until the end without another
// buffer. Bytes w did not take are not acknowledged.
func (st *Stream) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		a, b, err := st.ready()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		for _, p := range [][]byte{a, b} {
			for len(p) > 0 {
				piece := p[:min(len(p), int(st.window/4))]
				n, err := w.Write(piece)
				total += int64(n)
				st.mu.Lock()
				if !st.shut {
					st.ring.Consume(n)
					st.credit()
				}
				st.mu.Unlock()
				if err != nil {
					return total, err
				}
				if n < len(piece) {
					return total, io.ErrShortWrite
				}
				p = p[n:]
			}
		}
	}
}

// Offset is the channel's offset of the next byte Read returns.
func (st *Stream) Offset() int64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	return int64(st.recv - uint64(st.ring.Len()))
}

// Close makes further bytes vanish: the guest can go on, nobody has to read.
// Idempotent; always nil.
func (st *Stream) Close() error {
	st.mu.Lock()
	if !st.shut {
		st.shut = true
		st.ring.Consume(st.ring.Len()) // the memory goes with the Stream: Receive may be filling it
		st.ackLocked(st.recv)
	}
	st.unlock()
	signal(st.wake)
	return nil
}

// outflow is one channel of bytes towards the guest.
type outflow struct {
	s       *Session
	id      uint32
	channel Type
	wake    chan struct{} // capacity 1: more credit, or the end

	mu    sync.Mutex
	sent  uint64 // guarded by mu
	limit uint64 // guarded by mu
	size  uint64 // guarded by mu; the window
	err   error  // guarded by mu; why nothing more may be sent
}

func newOutflow(s *Session, channel Type, window int) *outflow {
	return &outflow{s: s, channel: channel, wake: make(chan struct{}, 1), size: uint64(window), limit: uint64(window)}
}

// granted handles a window frame.
func (o *outflow) granted(consumed uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if consumed > o.sent {
		return violation("acknowledged %d bytes, %d were sent", consumed, o.sent)
	}
	o.limit = max(o.limit, consumed+o.size)
	signal(o.wake)
	return nil
}

// stop makes send fail with err.
func (o *outflow) stop(err error) {
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.mu.Unlock()
	signal(o.wake)
}

// reserve waits for credit and takes up to n bytes of it.
func (o *outflow) reserve(ctx context.Context, n int) (offset uint64, got int, err error) {
	for {
		o.mu.Lock()
		if err := o.err; err != nil {
			o.mu.Unlock()
			signal(o.wake) // for the next one waiting
			return 0, 0, err
		}
		if free := o.limit - o.sent; free > 0 {
			offset, got = o.sent, int(min(uint64(n), free))
			o.sent += uint64(got)
			o.mu.Unlock()
			return offset, got, nil
		}
		o.mu.Unlock()
		select {
		case <-o.wake:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-o.s.done:
			return 0, 0, o.s.Err()
		}
	}
}

// write sends p, copying it.
func (o *outflow) write(ctx context.Context, p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		offset, n, err := o.reserve(ctx, min(len(p), MaxData))
		if err != nil {
			return total, err
		}
		if n > smallData || !o.s.out.data(o.channel, o.id, offset, p[:n]) {
			if err := o.s.out.slot(ctx, o.s.done); err != nil {
				o.stop(err) // the reserved bytes are a hole now
				return total, err
			}
			buf := bulkPool.Get().(*bulkBuf)
			o.s.out.send(o.channel, o.id, offset, buf, copy(buf.data(), p[:n]))
		}
		p, total = p[n:], total+n
	}
	return total, nil
}

// end says that nothing follows.
func (o *outflow) end() {
	o.mu.Lock()
	at := o.sent
	o.mu.Unlock()
	o.s.out.mark(TypeEnd, o.id, o.channel, at)
}

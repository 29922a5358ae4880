package guest

import (
	"context"
	"net"
	"sync"
)

// outbox is the queue to a session's writer. Small frames are gathered and go
// out in one write; bulk data is handed over, buffer and all.
//
// Memory is bounded: calls wait for room, marks are limited by the data they
// acknowledge, bulk by its slots.
type outbox struct {
	wake  chan struct{} // capacity 1: there is work
	space chan struct{} // capacity 1: small was emptied
	slots chan struct{} // tokens for bulk

	mu    sync.Mutex
	small []byte // guarded by mu
	bulk  []bulk // guarded by mu
}

// bulk is one large data frame; buf goes back to the pool after the write.
type bulk struct {
	frame []byte
	buf   *bulkBuf
}

// bulkBuf has room for a data frame, so that it goes out in one write: each wakes
// the guest.
type bulkBuf [DataHeader + MaxData]byte

// data is where the raw bytes go.
func (b *bulkBuf) data() []byte { return b[DataHeader:] }

const (
	bulkSlots = 4
	smallRoom = 64 << 10
	// smallData is up to where copying beats a buffer of its own.
	smallData = 4 << 10
)

var bulkPool = sync.Pool{New: func() any { return new(bulkBuf) }}

func (o *outbox) init() {
	o.wake = make(chan struct{}, 1)
	o.space = make(chan struct{}, 1)
	o.slots = make(chan struct{}, bulkSlots)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// frame queues a control frame. It never blocks.
func (o *outbox) frame(t Type, stream uint32, payload []byte) {
	o.mu.Lock()
	o.small = AppendFrame(o.small, t, stream, payload)
	o.mu.Unlock()
	signal(o.wake)
}

// mark queues a window or end frame. It never blocks.
func (o *outbox) mark(t Type, stream uint32, channel Type, offset uint64) {
	o.mu.Lock()
	o.small = AppendMark(o.small, t, stream, channel, offset)
	o.mu.Unlock()
	signal(o.wake)
}

// data queues a small data frame behind all bulk of the same stream. It
// reports false when bulk is waiting, which must not be overtaken, or when
// enough small frames are.
func (o *outbox) data(t Type, stream uint32, offset uint64, p []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.bulk) > 0 || len(o.small) > smallRoom {
		return false
	}
	var h [DataHeader]byte
	PutData(&h, t, stream, offset, p)
	o.small = append(append(o.small, h[:]...), p...)
	signal(o.wake)
	return true
}

// send queues the first n bytes of buf's data as bulk. Preconditions: the caller
// holds a slot.
func (o *outbox) send(t Type, stream uint32, offset uint64, buf *bulkBuf, n int) {
	b := bulk{frame: buf[:DataHeader+n], buf: buf}
	PutData((*[DataHeader]byte)(buf[:]), t, stream, offset, buf.data()[:n])
	o.mu.Lock()
	o.bulk = append(o.bulk, b)
	o.mu.Unlock()
	signal(o.wake)
}

// room waits until a call of n bytes may be queued.
func (o *outbox) room(ctx context.Context, done <-chan struct{}, n int) error {
	for {
		o.mu.Lock()
		ok := len(o.small) == 0 || len(o.small)+n <= smallRoom
		o.mu.Unlock()
		if ok {
			signal(o.space) // for the next one waiting
			return nil
		}
		select {
		case <-o.space:
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
			return net.ErrClosed
		}
	}
}

// slot waits for permission to send bulk.
func (o *outbox) slot(ctx context.Context, done <-chan struct{}) error {
	select {
	case o.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-done:
		return net.ErrClosed
	}
}

// run is the writer. It ends when done is closed or a write fails.
func (o *outbox) run(conn net.Conn, done <-chan struct{}) error {
	var spare []byte
	for {
		o.mu.Lock()
		if len(o.small) == 0 && len(o.bulk) == 0 {
			o.mu.Unlock()
			select {
			case <-o.wake:
				continue
			case <-done:
				return nil
			}
		}
		small := o.small
		o.small = spare[:0]
		var b bulk
		if len(o.bulk) > 0 {
			b = o.bulk[0]
			o.bulk[0] = bulk{}
			if o.bulk = o.bulk[1:]; len(o.bulk) == 0 {
				o.bulk = nil
			}
		}
		o.mu.Unlock()
		if err := write(conn, small, &b); err != nil {
			return err
		}
		signal(o.space)
		if b.buf != nil {
			bulkPool.Put(b.buf)
			<-o.slots
		}
		if spare = small; cap(spare) > smallRoom/4 {
			spare = nil // an idle session keeps little
		}
	}
}

func write(conn net.Conn, small []byte, b *bulk) error {
	for _, p := range [][]byte{small, b.frame} {
		if len(p) == 0 {
			continue
		}
		if _, err := conn.Write(p); err != nil {
			return err
		}
	}
	return nil
}

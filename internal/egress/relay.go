//go:build linux

package egress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/firebreak-dev/firebreak/internal/policy"
)

// chunk is the most that is taken from one side at once, and charged to a budget
// before the other side gets any of it. It goes to the sandbox as one frame: full
// segments, as many as the stack puts into one.
const (
	fullSegment = mtu - header.IPv4MinimumSize - header.TCPMinimumSize - 12 // with its timestamp
	chunk       = (maxSegment - header.TCPTotalHeaderMaximumSize - 1) / fullSegment * fullSegment
	smallChunk  = 8 << 10
)

// lastWords is how long a sandbox has to read what the other side said before it
// took no more.
const lastWords = 15 * time.Second

// chunks are buffers for one chunk each. They are held while there is one, so
// that an idle connection has none.
var (
	chunks      = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}
	smallChunks = sync.Pool{New: func() any { b := make([]byte, smallChunk); return &b }}
)

func (f *flow) chunks() *sync.Pool {
	if f.small {
		return &smallChunks
	}
	return &chunks
}

var (
	errWait  = errors.New("there is nothing to read yet")
	errReset = errors.New("the connection was reset")
)

// readInto reads what the sandbox has sent. Errors: errWait, io.EOF, errReset.
// Nothing is done with the bytes while the endpoint is held, since that may take
// as long as the other side likes.
func readInto(ep tcpip.Endpoint, b []byte) (int, error) {
	into := tcpip.SliceWriter(b)
	res, err := ep.Read(&into, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		ep.ModerateRecvBuf(res.Count)
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, errWait
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, errReset
}

// relay carries bytes both ways until both sides have said all, one of them
// breaks off, a budget is used up, or nothing is said for long.
func (f *flow) relay(ctx context.Context) {
	f.active.Store(time.Now().UnixNano())
	f.watch(f.wire.router.config.Limits.Idle)
	defer f.unwatch()
	var other sync.WaitGroup
	other.Go(func() { f.download(ctx) })
	f.upload(ctx)
	other.Wait()
}

// watch stops the connection when nothing is said for the time of idle.
func (f *flow) watch(idle time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = time.AfterFunc(idle, func() {
		left := idle - time.Since(time.Unix(0, f.active.Load()))
		if left <= 0 {
			f.stop(ReasonIdle, nil)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.idle != nil {
			f.idle.Reset(left)
		}
	})
}

func (f *flow) unwatch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle.Stop()
	f.idle = nil
}

// upload carries what the sandbox says. Once the other side takes nothing any
// more, the rest is thrown away while the sandbox reads what it still got.
func (f *flow) upload(ctx context.Context) {
	entry, more := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	pool := f.chunks()
	taken := f.send(f.first)
	f.first = nil
	for last := (*time.Timer)(nil); ; {
		if !taken && last == nil {
			last = time.AfterFunc(lastWords, func() { f.stop(ReasonReset, nil) })
			defer last.Stop()
		}
		buf := pool.Get().(*[]byte)
		n, err := readInto(f.endpoint, *buf)
		if err == nil && taken {
			taken = f.send((*buf)[:n])
		}
		pool.Put(buf)
		switch err {
		case nil:
		case errWait:
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		case io.EOF:
			_ = f.conn.CloseWrite() // fails if the other side is gone, which download sees
			return
		default:
			f.stop(ReasonReset, nil)
			return
		}
	}
}

// send charges b and sends it to the other side. Not ok: that takes no more.
func (f *flow) send(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if f.meter != nil {
		if err := f.meter.Upload(len(b)); err != nil {
			f.stop(policy.ReasonBudget.String(), err)
			return false
		}
	}
	n, err := f.conn.Write(b)
	f.uploaded.Add(int64(n))
	f.wire.router.total.upload.Add(int64(n))
	f.active.Store(time.Now().UnixNano())
	return err == nil
}

// download carries what the other side says.
func (f *flow) download(ctx context.Context) {
	raw, err := f.conn.SyscallConn()
	if err != nil {
		f.stop(ReasonReset, err)
		return
	}
	entry, room := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	pool := f.chunks()
	for {
		buf, n, err := readChunk(raw, pool)
		ok := err == nil && n > 0 && f.deliver(ctx, (*buf)[:n], room)
		if buf != nil {
			pool.Put(buf)
		}
		switch {
		case ok:
		case err != nil:
			f.stop(ReasonReset, err)
			return
		case n == 0:
			_ = f.endpoint.Shutdown(tcpip.ShutdownWrite) // fails if the sandbox is gone, which upload sees
			return
		default:
			return
		}
	}
}

// readChunk waits for bytes and only then takes a buffer, which is the caller's.
func readChunk(raw syscall.RawConn, pool *sync.Pool) (buf *[]byte, n int, err error) {
	rerr := raw.Read(func(fd uintptr) bool {
		buf = pool.Get().(*[]byte)
		for {
			if n, err = unix.Read(int(fd), *buf); err != unix.EINTR {
				break
			}
		}
		if err != unix.EAGAIN {
			return true
		}
		pool.Put(buf)
		buf = nil
		return false
	})
	if rerr != nil {
		err = rerr
	}
	return buf, n, err
}

// deliver charges b and hands it to the sandbox, when there is room for it.
func (f *flow) deliver(ctx context.Context, b []byte, room <-chan struct{}) bool {
	if f.meter != nil {
		if err := f.meter.Download(len(b)); err != nil {
			f.stop(policy.ReasonBudget.String(), err)
			return false
		}
	}
	for len(b) > 0 {
		// Again from what it took: it may have read more than it keeps.
		n, err := f.endpoint.Write(bytes.NewReader(b), tcpip.WriteOptions{})
		b = b[n:]
		f.downloaded.Add(n)
		f.wire.router.total.download.Add(n)
		f.active.Store(time.Now().UnixNano())
		switch err.(type) {
		case nil:
			continue
		case *tcpip.ErrWouldBlock:
		default:
			f.stop(ReasonReset, nil)
			return false
		}
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

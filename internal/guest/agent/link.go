package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// errDetached is what writing to a host that has been replaced gives.
var errDetached = errors.New("the host has detached")

// wire serialises writes to a stream. A write may block for as long as the
// host does not read, even for ever if it died; the next one drains the stream.
type wire struct {
	mu   sync.Mutex
	conn net.Conn
}

func (w *wire) send(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.conn.Write(b)
	return err
}

// link is the attachment of one host: what dies with it.
type link struct {
	s      *Server
	w      *wire
	window int
	dead   atomic.Bool
	ctx    context.Context // of the calls in progress; ends with the link
	cancel context.CancelFunc

	mu      sync.Mutex
	calls   map[uint32]*transfer // guarded by mu; in progress
	running int                  // guarded by mu; len(calls) without execs, watches and connections
	// watching and conns are how many of calls are watches and connections.
	watching, conns int // guarded by mu
}

// transfer is a call in progress that can be cancelled and may carry data.
type transfer struct {
	ctx    context.Context
	cancel context.CancelFunc
	up     *guest.Stream // write, dial
	down   *credit       // read, list, watch, dial
}

func newLink(s *Server, w *wire, window int) *link {
	if window < guest.MinWindow || window > guest.FileWindow {
		window = guest.DefaultWindow
	}
	l := &link{s: s, w: w, window: window, calls: map[uint32]*transfer{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// end makes everything of this attachment stop. Frames not yet written are
// abandoned.
func (l *link) end() {
	l.dead.Store(true)
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.calls {
		if t.up != nil {
			t.up.Fail(errDetached)
		}
	}
}

// send writes a whole frame unless the host has been replaced.
func (l *link) send(frame []byte) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if l.dead.Load() {
		return errDetached
	}
	_, err := l.w.conn.Write(frame)
	return err
}

// data writes a data frame.
func (l *link) data(t guest.Type, id uint32, offset uint64, a, b []byte) error {
	var h [guest.DataHeader]byte
	guest.PutData(&h, t, id, offset, a, b)
	if len(a)+len(b) <= 4<<10 {
		return l.send(append(append(append(make([]byte, 0, 4<<10+guest.DataHeader), h[:]...), a...), b...))
	}
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if l.dead.Load() {
		return errDetached
	}
	bufs := net.Buffers{h[:], a, b}
	if len(b) == 0 {
		bufs = bufs[:2]
	}
	_, err := bufs.WriteTo(l.w.conn)
	return err
}

func (l *link) mark(t guest.Type, id uint32, channel guest.Type, at uint64) error {
	return l.send(guest.AppendMark(nil, t, id, channel, at))
}

func (l *link) json(t guest.Type, id uint32, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > guest.MaxControl {
		return errors.New("answer too long")
	}
	return l.send(guest.AppendFrame(nil, t, id, body))
}

// reply answers a call. A link that has ended swallows it.
func (l *link) reply(id uint32, r guest.Reply) {
	if err := l.json(guest.TypeReply, id, r); err != nil && !l.dead.Load() {
		_ = l.json(guest.TypeReply, id, guest.Reply{Error: guest.ErrorOnWire(
			sandbox.Errorf("reply", sandbox.KindTooLarge, "the answer does not fit"))})
	}
}

func (l *link) fail(id uint32, op guest.Op, err error) {
	l.reply(id, guest.Reply{Error: guest.ErrorOnWire(sandbox.Wrap(string(op), "", err))})
}

// serve reads frames until the host is replaced or the stream fails. It waits
// for nobody but the stream.
func (l *link) serve(d *guest.Decoder) (reset []byte, err error) {
	for {
		h, err := d.Next()
		if err != nil {
			return nil, err
		}
		switch h.Type {
		case guest.TypeStdin, guest.TypeFile:
			err = l.onData(d, h)
		default:
			var p []byte
			if p, err = d.Payload(h); err == nil {
				if h.Type == guest.TypeReset {
					return p, nil
				}
				err = l.onControl(h, p)
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

func (l *link) call(id uint32) *transfer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls[id]
}

func (l *link) onData(d *guest.Decoder, h guest.Header) error {
	var st *guest.Stream
	if h.Type == guest.TypeFile {
		if t := l.call(h.Stream); t != nil {
			st = t.up
		}
	} else if p := l.s.proc(h.Stream); p != nil {
		st = p.input()
	}
	if st != nil {
		err := st.Receive(d, h)
		runtime.Gosched() // to whoever waits for it, before asking for more
		return err
	}
	if err := d.Skip(); err != nil { // for something that has just ended
		return err
	}
	return d.Verify()
}

func (l *link) onControl(h guest.Header, p []byte) error {
	switch h.Type {
	case guest.TypeCall:
		return l.onCall(h.Stream, p)
	case guest.TypeCancel:
		l.onCancel(h.Stream)
		return nil
	case guest.TypeExitAck:
		if p := l.s.proc(h.Stream); p != nil && p.reported() {
			l.s.forget(p)
		}
		return nil
	case guest.TypeWindow, guest.TypeEnd:
		channel, at, err := guest.ParseMark(p)
		if err != nil {
			return err
		}
		if h.Type == guest.TypeWindow {
			return l.onWindow(h.Stream, channel, at)
		}
		return l.onEnd(h.Stream, channel, at)
	}
	return guest.Violation("frame type %#x in a running session", byte(h.Type))
}

func (l *link) onWindow(id uint32, channel guest.Type, at uint64) error {
	if channel == guest.TypeFile {
		if t := l.call(id); t != nil && t.down != nil {
			return t.down.grant(at)
		}
		return nil
	}
	if p := l.s.proc(id); p != nil {
		if o := p.output(channel); o != nil {
			return p.acknowledged(l, o, at)
		}
	}
	return nil
}

func (l *link) onEnd(id uint32, channel guest.Type, at uint64) error {
	switch channel {
	case guest.TypeFile:
		if t := l.call(id); t != nil && t.up != nil {
			return t.up.EndAt(at)
		}
	case guest.TypeStdin:
		if p := l.s.proc(id); p != nil && p.input() != nil {
			return p.input().EndAt(at)
		}
	}
	return nil
}

func (l *link) onCancel(id uint32) {
	if t := l.call(id); t != nil {
		t.cancel()
		if t.up != nil {
			t.up.Fail(context.Canceled)
		}
	}
}

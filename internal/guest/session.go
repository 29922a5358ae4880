package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Config is what Open tells the guest, and how patient the host is.
type Config struct {
	User   string // who runs code by default; "" is DefaultUser
	PIDs   int    // tasks user code may hold at once; 0: unlimited
	Memory int64  // bytes user code may use; 0: unlimited
	Window int    // unacknowledged bytes of each output channel; 0: DefaultWindow

	// Liveness is how long the agent may be silent while something is asked of
	// it or runs. Then the session ends with KindTimeout. 0: 15 s.
	Liveness time.Duration
}

const (
	defaultLiveness = 15 * time.Second
	// resetRetry is how long a resetAck may take before the host assumes that
	// the guest waits for the rest of a half frame.
	resetRetry = 50 * time.Millisecond
)

// Agent describes the other end, as it describes itself.
type Agent struct {
	Version      string
	Capabilities []string
}

// Session is a connection to the agent in one sandbox. It is safe for
// concurrent use. An idle one costs two goroutines and about 10 KiB.
type Session struct {
	conn     net.Conn
	agent    Agent
	window   int
	liveness time.Duration
	out      outbox
	done     chan struct{}
	wg       sync.WaitGroup // reader and writer
	heard    atomic.Int64   // when the last frame came, by steady

	mu        sync.Mutex
	err       error               // guarded by mu; why done is closed
	nextID    uint32              // guarded by mu
	calls     map[uint32]*call    // guarded by mu
	procs     map[uint32]*Process // guarded by mu
	allowance int                 // guarded by mu; bytes of stray frames still forgiven
	lent      int                 // guarded by mu; downloads that are open with a FileWindow
	watching  *time.Timer         // guarded by mu; nil when nothing is pending
	pinged    bool                // guarded by mu
	due       time.Time           // guarded by mu; of the next check
}

// call is one outstanding call.
type call struct {
	reply chan Reply // capacity 1
	in    *Stream    // read, list and watch
	up    *outflow   // write
	both  bool       // in and up go on beside each other: dial
	open  bool       // a reply has come, in is still to end; guarded by Session.mu
}

// Open attaches to the agent at the other end of conn, which the Session owns
// from now on: if Open fails, conn is closed.
//
// It returns once the agent has answered. Whatever an earlier connection left
// in the stream is discarded, and its calls in flight are dropped; running
// processes go on, see Reattach.
//
// Errors: KindTimeout when the agent does not answer before ctx ends (give it a
// deadline), KindCanceled, KindProtocol, KindUnavailable when the stream fails,
// KindUnsupported for an agent of another protocol version.
func Open(ctx context.Context, conn net.Conn, cfg Config) (*Session, error) {
	if cfg.Window == 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.Liveness == 0 {
		cfg.Liveness = defaultLiveness
	}
	if cfg.Window < MinWindow || cfg.Window > FileWindow {
		conn.Close()
		return nil, sandbox.Errorf("open", sandbox.KindInvalid, "window %d is out of range", cfg.Window)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	d := NewDecoder(conn, Host)
	hello, err := shakeHands(conn, d, cfg)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		conn.Close()
		if ctx.Err() != nil {
			return nil, &sandbox.Error{Op: "open", Kind: sandbox.KindOf(ctx.Err()), Err: errors.New("the agent did not answer in time")}
		}
		return nil, sessionError("open", err)
	}
	s := &Session{
		conn: conn, window: cfg.Window, liveness: cfg.Liveness,
		agent:  Agent{Version: clean(hello.Version, 64)},
		nextID: max(hello.NextID, 1),
		done:   make(chan struct{}),
		calls:  map[uint32]*call{}, procs: map[uint32]*Process{},
		allowance: baseAllowance,
	}
	for i, c := range hello.Capabilities {
		if i < 64 {
			s.agent.Capabilities = append(s.agent.Capabilities, clean(c, 64))
		}
	}
	s.heard.Store(int64(steady()))
	s.out.init()
	s.wg.Add(2)
	go func() { defer s.wg.Done(); s.fail(s.readLoop(d)) }()
	go func() { defer s.wg.Done(); s.fail(s.out.run(conn, s.done)) }()
	return s, nil
}

// baseAllowance forgives frames that were under way when a call was abandoned.
const baseAllowance = 64 << 10

// sessionError types what ended a stream.
func sessionError(op string, err error) error {
	var e *sandbox.Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, ErrProtocol):
		return lying(op, "%w", err)
	}
	return &sandbox.Error{Op: op, Kind: sandbox.KindUnavailable, Err: fmt.Errorf("the stream to the agent failed: %w", err)}
}

// lying is the error for an agent that does what no agent does.
func lying(op, format string, args ...any) error {
	return sandbox.Errorf(op, sandbox.KindProtocol, format, args...).WithHint("the agent in the sandbox was tampered with: trust nothing from it, and destroy it")
}

// can reports whether the agent has said that it has a capability.
func (s *Session) can(capability string) bool {
	return slices.Contains(s.agent.Capabilities, capability)
}

// Agent describes the other end.
func (s *Session) Agent() Agent { return s.agent }

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why Done is closed: KindCanceled after Close, KindProtocol,
// KindTimeout or KindUnavailable. Nil while the session lives.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session and waits for its goroutines. Processes go on running
// and can be reattached to by another session. Idempotent; always nil.
func (s *Session) Close() error {
	s.fail(sandbox.Errorf("session", sandbox.KindCanceled, "the session was closed"))
	s.wg.Wait()
	return nil
}

// fail ends the session once; later calls do nothing.
func (s *Session) fail(err error) {
	err = sessionError("session", err)
	s.mu.Lock()
	if s.err != nil || err == nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	if s.watching != nil {
		s.watching.Stop()
	}
	calls, procs := s.calls, s.procs
	s.calls, s.procs = map[uint32]*call{}, map[uint32]*Process{}
	close(s.done)
	s.mu.Unlock()
	s.conn.Close()
	for _, c := range calls {
		if c.in != nil {
			c.in.Fail(err)
		}
	}
	for _, p := range procs {
		p.fail(err)
	}
}

// newID returns a fresh id. Preconditions: s.mu is held.
func (s *Session) newID() (uint32, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.nextID == 1<<32-1 {
		return 0, sandbox.Errorf("session", sandbox.KindUnavailable, "out of ids; open a new sandbox")
	}
	s.nextID++
	s.watch()
	return s.nextID - 1, nil
}

// start registers c and sends m. The id is the call's.
func (s *Session) start(ctx context.Context, op Op, m Call, c *call, register func(id uint32)) (uint32, error) {
	m.Op = op
	body, err := json.Marshal(m)
	if err != nil {
		return 0, sandbox.Errorf(string(op), sandbox.KindInvalid, "%w", err)
	}
	if len(body) > MaxCall {
		return 0, sandbox.Errorf(string(op), sandbox.KindTooLarge, "the call takes %d bytes, at most %d fit", len(body), MaxCall).
			WithHint("put large arguments into a file")
	}
	if err := s.out.room(ctx, s.done, len(body)); err != nil {
		return 0, s.ended(ctx, op)
	}
	c.reply = make(chan Reply, 1)
	s.mu.Lock()
	id, err := s.newID()
	if err != nil {
		s.mu.Unlock()
		return 0, err
	}
	s.calls[id] = c
	if register != nil {
		register(id)
	}
	// Queued under mu so that ids reach the guest in order.
	s.out.frame(TypeCall, id, body)
	s.mu.Unlock()
	return id, nil
}

// await waits for the first reply to the call id.
func (s *Session) await(ctx context.Context, op Op, id uint32, c *call) (Reply, error) {
	select {
	case r := <-c.reply:
		return r, unwireReply(op, r)
	case <-ctx.Done():
		s.abandon(id)
		return Reply{}, s.ended(ctx, op)
	case <-s.done:
		select { // what was answered before the end counts, however late it is looked at
		case r := <-c.reply:
			return r, unwireReply(op, r)
		default:
		}
		return Reply{}, s.ended(ctx, op)
	}
}

// unwireReply is the error that r carries.
func unwireReply(op Op, r Reply) error {
	if r.Error == nil {
		return nil
	}
	return unwire(string(op), r.Error)
}

// do makes a call that is one question and one answer.
func (s *Session) do(ctx context.Context, op Op, m Call) (Reply, error) {
	c := &call{}
	id, err := s.start(ctx, op, m, c, nil)
	if err != nil {
		return Reply{}, err
	}
	return s.await(ctx, op, id, c)
}

// ended is the error of a call that got no answer.
func (s *Session) ended(ctx context.Context, op Op) error {
	if err := s.Err(); err != nil {
		var e *sandbox.Error
		errors.As(err, &e)
		return &sandbox.Error{Op: string(op), Kind: e.Kind, Hint: e.Hint, Err: e.Err}
	}
	return sandbox.Wrap(string(op), "", ctx.Err())
}

// abandon forgets a call and tells the guest so.
func (s *Session) abandon(id uint32) {
	s.mu.Lock()
	c := s.calls[id]
	if c != nil && s.err == nil {
		delete(s.calls, id)
		s.allowance += baseAllowance
		if c.in != nil {
			s.allowance += int(c.in.window)
		}
		s.out.frame(TypeCancel, id, nil)
	}
	s.mu.Unlock()
}

// watch arms the liveness timer. Preconditions: s.mu is held.
func (s *Session) watch() {
	if s.watching == nil {
		s.pinged = false
		s.heard.Store(int64(steady()))
		s.due = time.Now().Add(s.liveness / 2)
		s.watching = time.AfterFunc(s.liveness/2, s.checkAlive)
	}
}

// begun is when steady began.
var begun = time.Now()

// steady is a clock that nobody sets.
func steady() time.Duration { return time.Since(begun) }

// checkAlive runs every half liveness while something is pending.
func (s *Session) checkAlive() {
	silent := steady() - time.Duration(s.heard.Load())
	s.mu.Lock()
	now := time.Now()
	late := now.Sub(s.due)
	s.due = now.Add(s.liveness / 2)
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	if len(s.calls) == 0 && len(s.procs) == 0 {
		s.watching = nil
		s.mu.Unlock()
		return
	}
	defer s.watching.Reset(s.liveness / 2)
	// When this check itself comes late, it was us who did not run: what the
	// agent said meanwhile lies there unread, and it is asked anew.
	if silent >= s.liveness && s.pinged && late < s.liveness/4 {
		s.mu.Unlock()
		s.fail(sandbox.Errorf("session", sandbox.KindTimeout, "the agent has been silent for %s", silent.Round(time.Millisecond)).
			WithHint("the sandbox is stuck, by its own doing or because the machine is overloaded; try again, or destroy it"))
		return
	}
	s.pinged = silent >= s.liveness/2 && s.nextID < 1<<32-1
	if s.pinged {
		body, _ := json.Marshal(Call{Op: OpPing}) // cannot fail
		id := s.nextID                            // no newID: it would arm a second timer
		s.nextID++
		s.allowance += 1 << 10 // the answer to it is a stray frame
		s.out.frame(TypeCall, id, body)
	}
	s.mu.Unlock()
}

// Ping asks the agent for a sign of life. It fails like any call does.
func (s *Session) Ping(ctx context.Context) error {
	_, err := s.do(ctx, OpPing, Call{})
	return err
}

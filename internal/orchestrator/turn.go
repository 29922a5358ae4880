package orchestrator

import (
	"context"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest/driver"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// EvalRequest is a turn: code for a context.
type EvalRequest struct {
	Code     string
	Context  string            // an id; empty, or default: the language's own, which is made when it is first used
	Language string            // of that one; default the sandbox's, else python
	Env      map[string]string // during the turn only
	Timeout  *time.Duration    // of the turn, from when it begins; nil: the default of an exec; 0: none
}

// TurnSink takes what a turn produces, as Sink does for a process. Its methods
// are called from the goroutine that called Eval. One that is slow slows the
// context; one that fails interrupts the turn.
type TurnSink interface {
	Begun(context string, turn, pid int, id uint64) error
	Stdout(data []byte, id uint64) error
	Stderr(data []byte, id uint64) error
	Result(r *driver.Result, id uint64) error
	Failed(e *driver.Error, id uint64) error
}

// TurnEnd is how a turn ended.
type TurnEnd struct {
	Context string
	Turn    int
	// Reason is done, also for code that raised an exception; operator when it
	// was interrupted, timeout, or why the interpreter ended.
	Reason   sandbox.Reason
	Detail   string
	Count    int  // of the context's turns, as notebooks number them
	Alive    bool // the context takes further turns
	Duration time.Duration
	Error    *driver.Error
	Event    uint64 // the id of its event; 0 if there is none
}

// turn is one that runs.
type turn struct {
	n     int
	limit time.Duration
	begun time.Time
	items chan func(TurnSink) error
	gone  chan struct{} // closed when nobody listens
	over  chan struct{} // closed when end is set
	end   TurnEnd

	// The rest is guarded by the context's mu.
	left    bool // gone is closed
	ends    [2]bool
	count   int
	failed  *driver.Error
	reason  sandbox.Reason // why it was interrupted
	detail  string
	timer   *time.Timer
	remains time.Duration // of its limit, while its sandbox stands still
	stood   time.Duration // how long it has stood still so far

	again int // interrupts that were sent again; guarded by the context's signals
}

func newTurn(n int, begun time.Time) *turn {
	return &turn{n: n, begun: begun, items: make(chan func(TurnSink) error), gone: make(chan struct{}), over: make(chan struct{})}
}

// leave says that nobody listens any more. Preconditions: nobody else has t, or
// the context's mu is held.
func (t *turn) leave() {
	if !t.left {
		t.left = true
		close(t.gone)
	}
}

// give hands something to whoever listens to t.
func (t *turn) give(item func(TurnSink) error) {
	select {
	case t.items <- item:
	case <-t.gone:
	}
}

// Eval runs code in a context and returns how that ended, also by a limit or by
// the end of the interpreter. Turns of one context run in order of arrival. When
// ctx ends, or the sink fails, the turn is interrupted, and the context stays.
// When ctx ends because this server stops, or this server is killed, the turn
// runs on; its output, its results and its end are among the sandbox's events.
//
// Errors: KindNotFound, KindGone when the sandbox or the context has ended,
// KindCapacity when too many turns wait, KindTooLarge, KindInvalid, ctx's, the
// sink's, and those of CreateContext for a default one.
//
// Cost: one disk flush (the evidence), and a round trip to the interpreter.
func (o *Orchestrator) Eval(ctx context.Context, who Caller, ref string, req EvalRequest, sink TurnSink) (TurnEnd, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return TurnEnd{}, err
	}
	defer done()
	if err := req.check(); err != nil {
		return TurnEnd{}, sandbox.Wrap("eval", string(l.id), err)
	}
	w, err := l.contextFor(ctx, who, req)
	if err != nil {
		return TurnEnd{}, err
	}
	return w.eval(ctx, who, req, sink)
}

func (req *EvalRequest) check() error {
	if len(req.Code) > maxCode {
		return sandbox.Errorf("eval", sandbox.KindTooLarge, "the code has %s", sandbox.FormatSize(int64(len(req.Code)))).
			WithHint("at most %s; write it to a file and run that", sandbox.FormatSize(maxCode))
	}
	if req.Timeout != nil && (*req.Timeout < 0 || *req.Timeout > maxTimeout) {
		return sandbox.Errorf("eval", sandbox.KindInvalid, "timeout %s is out of range", *req.Timeout).WithHint("between 0 (none) and 10 years")
	}
	return checkEnv(req.Env)
}

// contextFor finds the context of a turn. The default ones are called what their
// language is, and made when they are first used.
func (l *live) contextFor(ctx context.Context, who Caller, req EvalRequest) (*warm, error) {
	if req.Context == "default" {
		req.Context = ""
	}
	id := req.Context
	if id == "" {
		l.mu.Lock()
		id = pick(req.Language, pick(l.sb.Details.Pack, template.Python))
		l.mu.Unlock()
	}
	for {
		w, err := l.warmed(id)
		if err != nil && runners[id].warm != nil {
			if w, err = l.warmUp(ctx, who, ContextRequest{Language: id}, id, nil); sandbox.KindOf(err) == sandbox.KindExists {
				continue
			}
		} else if err != nil && req.Context == "" {
			return nil, sandbox.Errorf("eval", sandbox.KindUnsupported, "there are no contexts for %q", clip(id)).WithID(string(l.id)).WithHint("python or node; run it with exec")
		}
		if err != nil {
			return nil, err
		}
		if req.Context != "" && req.Language != "" && req.Language != w.entry.Language {
			return nil, sandbox.Errorf("eval", sandbox.KindInvalid, "the context %q speaks %s", clip(id), w.entry.Language).WithID(string(l.id)).
				WithHint("leave the language out, or name another context")
		}
		return w, nil
	}
}

// eval waits for the turn's turn and runs it.
func (w *warm) eval(ctx context.Context, who Caller, req EvalRequest, sink TurnSink) (TurnEnd, error) {
	if err := w.enter(ctx); err != nil {
		return TurnEnd{}, err
	}
	limit := given(req.Timeout, w.l.o.Defaults.ExecTimeout)
	err := w.l.record(ctx, who, sandbox.Record{Action: "context.eval", Outcome: sandbox.OutcomeAllowed, Object: clip(w.entry.ID), Digest: digestOf([]byte(req.Code)),
		Detail: map[string]string{"bytes": strconv.Itoa(len(req.Code)), "timeout": limit.String(), "env": strconv.Itoa(len(req.Env))}})
	if err != nil {
		w.queue.leave()
		return TurnEnd{}, err
	}
	failpoint.Hit("eval/after-evidence")
	t, id, err := w.begin(req, limit)
	if err != nil {
		return TurnEnd{}, err
	}
	failpoint.Hit("eval/after-begin")
	err = sink.Begun(w.entry.ID, t.n, w.x.entry.PID, id)
	for err == nil {
		select {
		case give := <-t.items:
			err = give(sink)
			continue
		case <-t.over:
			return t.end, nil
		case <-w.dead:
			select {
			case <-t.over:
				return t.end, nil
			default:
				return TurnEnd{}, w.gone() // left to the next server
			}
		case <-ctx.Done():
			err = sandbox.Wrap("eval", string(w.l.id), ctx.Err())
		}
	}
	w.mu.Lock()
	t.leave()
	w.mu.Unlock()
	if !w.x.leaving(ctx) {
		w.l.o.work.Go(func() { w.interrupt(t, sandbox.ReasonOperator, "nobody waits for it any more") }) // the caller is at work
	}
	return TurnEnd{}, err
}

// enter waits until w is ready and it is the caller's turn, which ends when the
// turn does. Errors: KindCapacity, KindGone, ctx's.
func (w *warm) enter(ctx context.Context) error {
	switch err := w.queue.enter(ctx, w.ready, w.dead); err {
	case nil:
		return nil
	case errQueueFull:
		return full("eval", time.Second, "%d turns wait for the context %q", maxTurns, clip(w.entry.ID)).WithHint("wait for them, interrupt, or use another context")
	case errQueueDead:
		return w.gone()
	default:
		return sandbox.Wrap("eval", string(w.l.id), err)
	}
}

// begin gives the code to the interpreter. Preconditions: it is the
// caller's turn, which is over on an error.
func (w *warm) begin(req EvalRequest, limit time.Duration) (*turn, uint64, error) {
	w.signals.Lock() // one that is under way is for the turn before
	defer w.signals.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.exit != nil || w.isDead() {
		w.queue.leave()
		w.mu.Unlock()
		defer w.mu.Lock()
		return nil, 0, w.gone()
	}
	now := time.Now()
	t := newTurn(w.turns+1, now)
	t.limit = limit
	c := driver.Turn{Turn: t.n, Env: req.Env, Code: req.Code}
	if limit > 0 {
		c.Until, c.Limit = now.Add(limit).UnixMilli(), max(1, limit.Milliseconds())
	}
	id := w.l.o.publishJSON(w.l.id, event.Turn, w.x.process(), TurnEvent{Context: w.entry.ID, Turn: t.n}, false)
	if err := w.in.append(c.Line()); err != nil {
		w.queue.leave()
		if sandbox.KindOf(err) == sandbox.KindTooLarge {
			err = sandbox.Errorf("eval", sandbox.KindTooLarge, "a context takes at most %s of code in its life", sandbox.FormatSize(maxInput)).
				WithHint("restart it, or write large data to files")
		}
		return nil, 0, sandbox.Wrap("eval", string(w.l.id), err)
	}
	w.turns, w.turn = t.n, t
	if limit > 0 {
		w.watch(t, limit)
	}
	return t, id, nil
}

// watch interrupts t after d, and ends the interpreter if that does not help.
// Preconditions: nobody else has w, or w.mu is held.
func (w *warm) watch(t *turn, d time.Duration) {
	t.timer = time.AfterFunc(d, func() {
		if w.l.o.begin() != nil {
			return
		}
		defer w.l.o.work.Done()
		detail := "limit " + short(t.limit)
		w.interrupt(t, sandbox.ReasonTimeout, detail)
		wait := time.NewTimer(turnGrace)
		defer wait.Stop()
		select {
		case <-t.over:
		case <-w.dead:
		case <-w.l.o.ctx.Done():
		case <-wait.C:
			w.mu.Lock()
			runs := w.turn == t
			w.mu.Unlock()
			if runs {
				w.end(sandbox.ReasonTimeout, detail)
			}
		}
	})
}

// interrupt sends SIGINT to the interpreter while t runs, and reports whether it
// did.
func (w *warm) interrupt(t *turn, reason sandbox.Reason, detail string) bool {
	w.signals.Lock()
	defer w.signals.Unlock()
	w.mu.Lock()
	runs := w.turn == t
	if runs && t.reason == "" {
		t.reason, t.detail = reason, detail
	}
	w.mu.Unlock()
	if !runs {
		return false
	}
	ctx, cancel := context.WithTimeout(w.l.o.ctx, openWait)
	defer cancel()
	s, err := w.l.sessionLater(ctx)
	if err == nil {
		err = s.Signal(ctx, w.x.entry.ID, sigInterrupt)
	}
	if err != nil && !w.isDead() {
		w.l.o.Log.Warn("a turn could not be interrupted", "sandbox", w.l.id, "context", w.entry.ID, "error", err)
	}
	if runners[w.entry.Language].forgets && t.again < maxAgain {
		t.again++
		time.AfterFunc(againWait, func() {
			if w.l.o.begin() == nil {
				defer w.l.o.work.Done()
				w.interrupt(t, reason, detail)
			}
		})
	}
	return err == nil
}

// An interpreter that forgets interrupts gets them again while the turn runs, not
// soon: one that comes while it deals with the one before can end it.
const (
	againWait = time.Second
	maxAgain  = 20
)

const sigInterrupt = 2

// finish makes the end of t known: to the evidence, to whoever watches, to
// whoever waits.
func (w *warm) finish(t *turn, reason sandbox.Reason, detail string, alive bool) {
	if t.timer != nil {
		t.timer.Stop()
	}
	t.end = TurnEnd{Context: w.entry.ID, Turn: t.n, Reason: reason, Detail: detail, Count: t.count, Alive: alive, Duration: time.Since(t.begun), Error: t.failed}
	e := &t.end
	failpoint.Hit("eval/before-end")
	err := w.l.record(context.WithoutCancel(w.l.o.ctx), w.who, sandbox.Record{Class: sandbox.Flow, Action: "context.eval", Outcome: sandbox.OutcomeDone, Object: clip(w.entry.ID), Reason: reason,
		Detail: map[string]string{"turn": strconv.Itoa(t.n), "error": strconv.FormatBool(t.failed != nil), "duration": e.Duration.Round(time.Microsecond).String()}})
	if err != nil {
		w.l.o.Log.Error("the end of a turn could not be recorded", "sandbox", w.l.id, "error", err)
	}
	e.Event = w.l.o.publishJSON(w.l.id, event.TurnEnd, w.x.process(), TurnEvent{Context: e.Context, Turn: e.Turn, Reason: reason, Detail: clip(detail),
		Count: e.Count, Duration: float64(e.Duration) / float64(time.Millisecond), Alive: alive}, false)
	close(t.over)
}

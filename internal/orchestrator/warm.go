package orchestrator

import (
	"context"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest/driver"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What contexts may come to.
const (
	maxContexts = 16        // that live in one sandbox
	maxDead     = 64        // that are remembered of it
	maxMessages = 256 << 20 // bytes of what drivers are saying, of all together
	turnGrace   = 5 * time.Second
)

// contextEntry is what the journal has of a context beside its process. Its token,
// its environment and its turns are the first and the other lines of its standard
// input.
type contextEntry struct {
	ID       string        `json:"id"`
	Language string        `json:"language"`
	Dir      string        `json:"dir,omitempty"`
	Idle     time.Duration `json:"idle,omitempty"`
}

// warm is a context: one interpreter from its start to its end, and what is
// remembered after that.
type warm struct {
	l       *live
	who     Caller // who made it
	req     ContextRequest
	entry   contextEntry
	created time.Time
	token   driver.Token
	in      *input
	x       *execution         // set before anybody else has w, or by adopt
	parts   [2]driver.Assembly // each the pump's of its channel
	queue   *queue             // of the turns
	started chan struct{}      // closed once there is a process
	ready   chan struct{}      // closed once the driver takes commands
	dead    chan struct{}      // closed once the interpreter has ended, or is left to the next server
	signals sync.Mutex         // held while one is sent, and while a turn begins
	set     sync.Once          // closes ready
	late    *time.Timer        // set by start; ends what does not become ready

	mu     sync.Mutex
	exit   *ExecExit   // guarded by mu; set before dead is closed, nil where it is left
	turns  int         // guarded by mu; the number of the last one
	sync   int         // guarded by mu; if not 0, the number of the command that ends what an earlier server began
	synced [2]bool     // guarded by mu
	turn   *turn       // guarded by mu; the one that runs
	used   time.Time   // guarded by mu
	timer  *time.Timer // guarded by mu; fires when it may have been idle for too long
}

// messages bounds what all assemblies hold.
type messages struct{ left atomic.Int64 }

// Take implements driver.Budget.
func (b *messages) Take(n int) bool {
	if b.left.Add(-int64(n)) >= 0 {
		return true
	}
	b.left.Add(int64(n))
	return false
}

// Give implements driver.Budget.
func (b *messages) Give(n int) { b.left.Add(int64(n)) }

func (l *live) newWarm(who Caller, req ContextRequest, e contextEntry) *warm {
	w := &warm{l: l, who: who, req: req, entry: e, created: time.Now(), used: time.Now(),
		queue: newQueue(), started: make(chan struct{}), ready: make(chan struct{}), dead: make(chan struct{})}
	for c := range w.parts {
		w.parts[c].Budget = &l.o.messages
	}
	return w
}

// warmUp starts the context id, in place of old where that is not nil. Errors: as
// CreateContext; KindExists where there is another with that id meanwhile.
func (l *live) warmUp(ctx context.Context, who Caller, req ContextRequest, id string, old *warm) (*warm, error) {
	d := l.o.Defaults
	idle, life := given(req.IdleTimeout, d.ContextIdle), given(req.MaxLife, d.ContextLife)
	if idle < 0 || idle > maxTimeout || life < 0 || life > maxTimeout {
		return nil, sandbox.Errorf("context", sandbox.KindInvalid, "a timeout is out of range").WithHint("between 0 (none) and 10 years")
	}
	l.mu.Lock()
	language := pick(req.Language, pick(l.sb.Details.Pack, template.Python))
	l.mu.Unlock()
	req.Env = maps.Clone(req.Env)
	w := l.newWarm(who, req, contextEntry{ID: id, Language: language, Dir: req.Dir, Idle: idle})
	if err := l.reserve(w, old); err != nil {
		return nil, err
	}
	if err := w.start(ctx, life); err != nil {
		l.mu.Lock()
		if l.contexts[id] == w {
			delete(l.contexts, id)
			if old != nil { // what was there stays known
				l.contexts[id] = old
			}
		}
		l.mu.Unlock()
		w.over(ExecExit{Reason: sandbox.ReasonCrashed, Detail: "it could not be started"}, nil)
		return nil, err
	}
	return w, nil
}

// reserve enters w among the contexts. Errors: KindCapacity, KindExists.
func (l *live) reserve(w, old *warm) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.contexts[w.entry.ID] != old {
		return sandbox.Errorf("context", sandbox.KindExists, "the context %q is being started", clip(w.entry.ID)).WithID(string(l.id)).WithHint("use that one")
	}
	alive := 0
	var oldest *warm
	for _, c := range l.contexts {
		if !c.isDead() {
			alive++
		} else if oldest == nil || c.created.Before(oldest.created) {
			oldest = c
		}
	}
	if alive >= maxContexts {
		return sandbox.Errorf("context", sandbox.KindCapacity, "the sandbox has %d contexts", alive).WithID(string(l.id)).
			WithHint("delete one, or use one again")
	}
	if oldest != nil && len(l.contexts)-alive >= maxDead {
		delete(l.contexts, oldest.entry.ID)
	}
	l.contexts[w.entry.ID] = w
	return nil
}

func (w *warm) isDead() bool {
	select {
	case <-w.dead:
		return true
	default:
		return false
	}
}

// start starts the interpreter. On an error nothing of it is left.
func (w *warm) start(ctx context.Context, life time.Duration) error {
	l := w.l
	free, err := l.o.admitExec(l.tenant, false)
	if err != nil {
		return err
	}
	w.token = driver.NewToken()
	if w.in, err = l.o.journal.input(l.id); err != nil {
		free()
		return sandbox.Wrap("context", string(l.id), err)
	}
	x := l.execution(w.who, w, &entry{Tag: "context:" + w.entry.ID, Background: true, Context: &w.entry})
	x.warm, w.x = w, x
	if err = w.in.append(w.token.Hello(w.req.Env)); err == nil {
		err = l.prepare(ctx, ExecRequest{driver: true, Pack: w.entry.Language, Dir: w.req.Dir, Env: w.req.Env, User: w.req.User, Stdin: w.in, Timeout: &life}, x)
	}
	if err != nil {
		l.o.journal.drop(w.in)
		free()
		return err
	}
	close(w.started)
	w.late = time.AfterFunc(l.o.Defaults.CreateTimeout, w.overdue)
	if err := x.announce(); err != nil { // the sink is our own
		l.o.Log.Error("context", "sandbox", l.id, "error", err)
	}
	l.o.work.Go(func() { // whoever calls is at work
		defer free()
		w.over(x.run(l.o.ctx))
	})
	return nil
}

// overdue ends an interpreter that did not get as far as taking commands.
func (w *warm) overdue() {
	select {
	case <-w.ready:
		return
	default:
	}
	if w.l.o.begin() == nil {
		defer w.l.o.work.Done()
		w.end(sandbox.ReasonTimeout, "it did not start within "+short(w.l.o.Defaults.CreateTimeout))
	}
}

// await waits until the interpreter takes commands. Errors: KindGone, ctx's.
func (w *warm) await(ctx context.Context) error {
	select {
	case <-w.ready:
		return nil
	case <-w.dead:
		return w.gone()
	case <-ctx.Done():
		return sandbox.Wrap("context", string(w.l.id), ctx.Err())
	}
}

// made is await for whoever has made w, and shows it. Without him nobody knows of
// it, and it is ended.
func (w *warm) made(ctx context.Context) (Context, error) {
	err := w.await(ctx)
	if err != nil && !w.x.leaving(ctx) {
		w.end(sandbox.ReasonOperator, "nobody waited for its start")
	}
	return w.show(), err
}

// gone says why a context that is dead cannot be used.
func (w *warm) gone() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.exit == nil {
		return stopping("context").WithID(string(w.l.id))
	}
	text := string(w.exit.Reason)
	if w.exit.Detail != "" {
		text += " (" + w.exit.Detail + ")"
	}
	return sandbox.Errorf("context", sandbox.KindGone, "the context %q has ended: %s", clip(w.entry.ID), text).WithID(string(w.l.id)).
		WithHint("restart it, which begins with empty state, or create another one")
}

// end kills the interpreter for that reason. It waits for the kill to be sent,
// not for the end.
func (w *warm) end(reason sandbox.Reason, detail string) {
	ctx, cancel := context.WithTimeout(w.l.o.ctx, openWait)
	defer cancel()
	w.l.mu.Lock()
	if w.x.verdict == nil {
		w.x.verdict = &ExecExit{Reason: reason, Detail: detail}
	}
	w.l.mu.Unlock()
	if w.isDead() {
		return
	}
	s, err := w.l.sessionLater(ctx)
	if err == nil {
		err = s.Signal(ctx, w.x.entry.ID, sigKill)
	}
	if err != nil && sandbox.KindOf(err) != sandbox.KindNotFound && !w.isDead() {
		w.l.o.Log.Warn("a context could not be killed", "sandbox", w.l.id, "context", w.entry.ID, "error", err)
	}
}

// stop records the action, ends w and waits for that.
func (w *warm) stop(ctx context.Context, who Caller, action, why string) error {
	if err := w.l.record(ctx, who, sandbox.Record{Action: action, Outcome: sandbox.OutcomeAllowed, Object: clip(w.entry.ID)}); err != nil {
		return err
	}
	select { // before that there may be no process to kill
	case <-w.started:
	case <-w.dead:
	case <-ctx.Done():
		return sandbox.Wrap("context", string(w.l.id), ctx.Err())
	}
	w.end(sandbox.ReasonOperator, why)
	select {
	case <-w.dead:
		return nil
	case <-ctx.Done():
		return sandbox.Wrap("context", string(w.l.id), ctx.Err())
	}
}

// over makes the end of the interpreter known to whoever waits for it.
func (w *warm) over(exit ExecExit, err error) {
	w.mu.Lock()
	for _, timer := range []*time.Timer{w.timer, w.late} {
		if timer != nil {
			timer.Stop()
		}
	}
	t := w.turn
	w.turn = nil
	left := err != nil && w.x.leaving(w.l.o.ctx)
	if !left {
		if err != nil && exit.Reason == "" {
			exit = ExecExit{Code: exitKilled, Reason: sandbox.ReasonLost, Detail: clip(err.Error())}
		}
		exit.Detail = pick(exit.Detail, "the interpreter ended with exit code "+strconv.Itoa(exit.Code))
		w.exit = &exit
	}
	w.mu.Unlock()
	for c := range w.parts {
		w.parts[c].Reset()
	}
	if t != nil && !left {
		reason := exit.Reason
		if reason == sandbox.ReasonDone { // the interpreter, not the turn
			reason = sandbox.ReasonCrashed
		}
		w.finish(t, reason, exit.Detail, false)
	}
	close(w.dead)
}

// rest notes that a turn has ended, and sets the clock for the next. Preconditions:
// w.mu is held.
func (w *warm) rest() {
	w.used = time.Now()
	if w.entry.Idle == 0 || w.isDead() {
		return
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(w.entry.Idle, w.idle)
	} else {
		w.timer.Reset(w.entry.Idle)
	}
}

// idle ends the context if it has had no turn for long enough.
func (w *warm) idle() {
	if w.l.o.begin() != nil {
		return
	}
	defer w.l.o.work.Done()
	w.mu.Lock()
	left := w.entry.Idle - time.Since(w.used)
	if w.turn != nil || w.queue.length() > 0 {
		left = w.entry.Idle
	}
	if left > 0 {
		w.timer.Reset(left)
	}
	w.mu.Unlock()
	if left <= 0 {
		w.end(sandbox.ReasonIdle, "without a turn for "+short(w.entry.Idle))
	}
}

// adoptContext takes over a context that an earlier server began. Whatever turn
// it is in goes on; a command that is answered once that is over tells when the
// next may begin.
func (l *live) adoptContext(x *execution) *warm {
	e := x.entry
	w := l.newWarm(x.who, ContextRequest{Language: e.Context.Language, Dir: e.Context.Dir, User: e.User, IdleTimeout: &e.Context.Idle, MaxLife: &e.Timeout}, *e.Context)
	w.created, w.x, w.token = e.Begun, x, driver.NewToken() // one that nobody has
	w.in, _ = x.stdin.(*input)
	x.warm, x.sink = w, w
	close(w.started)
	l.mu.Lock()
	l.contexts[w.entry.ID] = w
	l.mu.Unlock()
	if w.in == nil {
		return w // attaching to it says that its input is lost
	}
	lines, err := w.in.lines()
	if err != nil {
		l.o.Log.Error("commands of a context", "sandbox", l.id, "context", w.entry.ID, "error", err)
		return w
	}
	token, env, ok := driver.ParseHello(lines.first)
	if !ok {
		return w
	}
	w.token, w.req.Env = token, env
	last := driver.ParseTurn(lines.last)
	w.turns = last.Turn
	w.queue.hold() // until it has answered
	if last.Turn > 0 && !last.Sync {
		w.turn = newTurn(last.Turn, time.Now())
		w.turn.leave()
		if last.Until > 0 {
			w.turn.limit = time.Duration(last.Limit) * time.Millisecond
			w.watch(w.turn, max(time.Until(time.UnixMilli(last.Until)), time.Millisecond))
		}
	}
	w.turns++
	w.sync = w.turns
	err = w.in.append(driver.Turn{Turn: w.sync, Sync: true, Fresh: e.Forked}.Line())
	if err == nil && e.Forked {
		err = x.amend(func(e *entry) { e.Forked = false })
	}
	if err != nil {
		l.o.Log.Error("commands of a context", "sandbox", l.id, "context", w.entry.ID, "error", err)
	}
	return w
}

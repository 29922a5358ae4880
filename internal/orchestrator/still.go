package orchestrator

import (
	"context"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// standstill is a sandbox while it is saved, and after that until it runs again.
// Programs and turns in it go on afterwards as if no time had passed: sessions are
// not looked for meanwhile, and no deadline of theirs comes closer.
type standstill struct {
	since time.Time
	over  chan struct{} // closed when it runs again
	// image is what it is restored from; nil while its boundary lives.
	image *PauseState
}

// alone waits until nobody else pauses, resumes, saves or ends the sandbox, and
// keeps others from it until done is called. Errors: KindGone, ctx's.
func (l *live) alone(ctx context.Context) (done func(), err error) {
	select {
	case <-l.booted:
	case <-ctx.Done():
		return nil, sandbox.Wrap("wait for boot", string(l.id), ctx.Err())
	}
	select {
	case l.changing <- struct{}{}:
		return func() { <-l.changing }, nil
	case <-l.dying:
		return nil, l.gone()
	case <-ctx.Done():
		return nil, sandbox.Wrap("wait", string(l.id), ctx.Err())
	}
}

// whileAlive is ctx, ended early by the sandbox's end.
func (l *live) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-l.dying:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// stand lets go of the agent and keeps everybody from it until move is called.
// Nothing starts in the sandbox that anybody learns of. Preconditions: the caller
// is alone. Errors: KindGone, ctx's.
func (l *live) stand(ctx context.Context) (*standstill, error) {
	st := &standstill{since: time.Now(), over: make(chan struct{})}
	for {
		l.mu.Lock()
		if l.ending != nil {
			defer l.mu.Unlock()
			return nil, l.goneLocked()
		}
		if l.opening == nil {
			break
		}
		opening := l.opening
		l.mu.Unlock()
		select {
		case <-opening:
		case <-ctx.Done():
			return nil, sandbox.Wrap("wait", string(l.id), ctx.Err())
		}
	}
	l.still = st
	s, inst := l.sess, l.inst
	l.sess = nil
	l.mu.Unlock()
	for _, w := range l.warms() {
		w.stand()
	}
	if err := l.lift(ctx, s, inst); err != nil {
		l.clocks(st)
		l.move(st)
		return nil, err
	}
	return st, nil
}

// lift takes the deadlines off what runs, for as long as nobody follows it, ends the
// interpreter that waits for a program, and ends the session. The guest's clock goes on while it is saved, and would end all of it
// at once when it is restored.
func (l *live) lift(ctx context.Context, s *guest.Session, inst sandbox.Instance) (err error) {
	l.starting.Lock() // what is starting has started, or its caller is told that it has not
	defer l.starting.Unlock()
	if s == nil || s.Err() != nil {
		if s, err = l.open(ctx, inst); err != nil {
			return err
		}
	}
	defer s.Close()
	if err := s.StandDown(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	var limited []uint32
	for id, x := range l.execs {
		if x.entry.Timeout > 0 {
			limited = append(limited, id)
		}
	}
	l.mu.Unlock()
	for _, id := range limited {
		if err := s.Limit(ctx, id, 0); err != nil && !knownEnd(err) {
			return err
		}
	}
	return nil
}

// clocks moves the deadlines of what runs in the sandbox by as long as it has
// stood still.
func (l *live) clocks(st *standstill) {
	stood := time.Since(st.since)
	l.mu.Lock()
	execs := make([]*execution, 0, len(l.execs))
	for _, x := range l.execs {
		execs = append(execs, x)
	}
	l.mu.Unlock()
	for _, x := range execs {
		if x.entry.Timeout == 0 {
			continue
		}
		if err := x.amend(func(e *entry) { e.Stood += stood }); err != nil {
			l.o.Log.Warn("a process keeps its old deadline", "sandbox", l.id, "pid", x.entry.PID, "error", err)
		}
	}
}

// move ends a standstill. Preconditions: the caller is alone, and clocks has been
// called.
func (l *live) move(st *standstill) {
	stood := time.Since(st.since)
	for _, w := range l.warms() {
		w.move(stood)
	}
	l.mu.Lock()
	l.still = nil
	l.used = time.Now()
	close(st.over)
	l.arm()
	l.mu.Unlock()
}

// ends is when a process with a limit has reached it.
func (x *execution) ends() time.Time {
	x.l.mu.Lock()
	defer x.l.mu.Unlock()
	return x.entry.Begun.Add(x.entry.Timeout + x.entry.Stood)
}

// knownEnd reports whether a deadline could not be moved for a reason that is no
// trouble.
func knownEnd(err error) bool {
	k := sandbox.KindOf(err)
	return k == sandbox.KindNotFound || k == sandbox.KindUnsupported
}

// warms are the contexts that are known.
func (l *live) warms() (all []*warm) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.contexts {
		all = append(all, w)
	}
	return all
}

// awake waits until the sandbox does not stand still. It does not resume it.
// Errors: KindGone, KindUnavailable when this server stops, ctx's.
func (l *live) awake(ctx context.Context) error {
	for {
		l.mu.Lock()
		st := l.still
		if l.ending != nil {
			defer l.mu.Unlock()
			return l.goneLocked()
		}
		l.mu.Unlock()
		if st == nil {
			return nil
		}
		select {
		case <-st.over:
		case <-l.dying:
		case <-l.o.ctx.Done():
			return stopping("connect").WithID(string(l.id))
		case <-ctx.Done():
			return sandbox.Wrap("connect", string(l.id), ctx.Err())
		}
	}
}

// wake is awake for whoever wants something of the sandbox now: it resumes one that
// is paused. Errors: also those of Resume.
func (l *live) wake(ctx context.Context) error {
	l.mu.Lock()
	still := l.still != nil
	l.mu.Unlock()
	if !still {
		return nil
	}
	done, err := l.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	if !l.paused() {
		return nil
	}
	if l.snapshotWithEnv().Details.Wake == WakeResume {
		return l.asleep()
	}
	return l.resume(system(l.tenant), ResumeRequest{}, "access")
}

// image is what a paused sandbox is restored from; nil if it is not.
func (l *live) image() *PauseState {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.still == nil {
		return nil
	}
	return l.still.image
}

// paused reports whether there is no boundary, only what it is restored from.
func (l *live) paused() bool {
	return l.image() != nil
}

// stand stops the clocks of a context: the limit of its turn, and how long it may
// be idle.
func (w *warm) stand() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	if t := w.turn; t != nil && t.timer != nil && t.timer.Stop() {
		t.remains = max(time.Millisecond, t.limit-time.Since(t.begun)+t.stood)
	}
}

// move starts them again.
func (w *warm) move(stood time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch t := w.turn; {
	case t == nil:
		if !w.used.IsZero() {
			w.rest()
		}
	default:
		t.stood += stood
		if t.remains > 0 {
			w.watch(t, t.remains)
			t.remains = 0
		}
	}
}

package orchestrator

import (
	"context"
	"errors"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// openWait bounds one attempt to meet an agent that is already up.
const openWait = 10 * time.Second

// reopenDelays are the waits before each attempt to reach an agent whose
// session broke; the last is repeated for as long as patience lasts.
var reopenDelays = []time.Duration{0, 100 * time.Millisecond, time.Second, 3 * time.Second}

// maxRefusals is how many attempts may fail because the agent does answer, but
// not as agents do. It will not learn it.
const maxRefusals = 3

// open dials the agent and makes a session of it.
func (l *live) open(ctx context.Context, inst sandbox.Instance) (*guest.Session, error) {
	conn, err := inst.Dial(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	limits := l.sb.Limits
	l.mu.Unlock()
	return guest.Open(ctx, conn, guest.Config{PIDs: limits.PIDs, Memory: limits.Memory})
}

// session returns the live session, making a new one if the old one broke, and
// resuming the sandbox if it is paused. Errors: KindGone when the sandbox has
// ended, also because its agent could not be reached any more; KindUnavailable when
// this server stops; those of Resume; ctx's.
func (l *live) session(ctx context.Context) (*guest.Session, error) { return l.reach(ctx, l.wake) }

// sessionLater is session for what goes on in the sandbox by itself: while that is
// paused, it waits.
func (l *live) sessionLater(ctx context.Context) (*guest.Session, error) {
	return l.reach(ctx, l.awake)
}

func (l *live) reach(ctx context.Context, wait func(context.Context) error) (*guest.Session, error) {
	for {
		if err := wait(ctx); err != nil {
			return nil, err
		}
		l.mu.Lock()
		if l.ending != nil {
			defer l.mu.Unlock()
			return nil, l.goneLocked()
		}
		if l.still != nil {
			l.mu.Unlock()
			continue
		}
		if l.o.ctx.Err() != nil {
			l.mu.Unlock()
			return nil, stopping("connect").WithID(string(l.id))
		}
		if s := l.sess; s != nil && s.Err() == nil {
			l.mu.Unlock()
			return s, nil
		}
		if l.opening == nil {
			l.opening = make(chan struct{})
			l.o.work.Add(1) // never from zero: the caller holds the sandbox
			inst := l.inst
			go func() {
				defer l.o.work.Done()
				l.reopen(inst)
			}()
		}
		opening := l.opening
		l.mu.Unlock()
		select {
		case <-opening:
		case <-ctx.Done():
			return nil, sandbox.Wrap("connect", string(l.id), ctx.Err())
		}
	}
}

// reopen replaces a broken session, or ends the sandbox.
func (l *live) reopen(inst sandbox.Instance) {
	s, err := l.redial(inst)
	if err == nil && l.o.ctx.Err() != nil {
		s.Close()
		err = l.o.ctx.Err()
	}
	if err != nil && l.o.ctx.Err() == nil {
		l.lost(inst, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.sess = s
	}
	close(l.opening)
	l.opening = nil
}

// redial tries to reach the agent while the boundary lives, and kills what runs
// there and nobody follows: whoever began it has been told that it is over, or
// was never told that it began.
func (l *live) redial(inst sandbox.Instance) (s *guest.Session, err error) {
	begun, refused := time.Now(), 0
	for try := 0; ; try++ {
		d := reopenDelays[min(try, len(reopenDelays)-1)]
		if err != nil && time.Since(begun)+d >= l.o.Patience {
			return nil, err
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-l.dying:
			t.Stop()
			return nil, l.gone()
		case <-l.o.ctx.Done():
			t.Stop()
			return nil, l.o.ctx.Err()
		}
		ctx, cancel := context.WithTimeout(l.o.ctx, openWait)
		if s, err = l.open(ctx, inst); err == nil {
			if err = l.killStrays(ctx, s); err != nil {
				s.Close()
			} else {
				l.trustAgain(ctx, s)
			}
		}
		cancel()
		switch sandbox.KindOf(err) {
		case "", sandbox.KindGone, sandbox.KindUnsupported:
			return s, err
		case sandbox.KindProtocol:
			if refused++; refused == maxRefusals {
				return nil, err
			}
		}
	}
}

// killStrays ends every program that no execution follows.
func (l *live) killStrays(ctx context.Context, s *guest.Session) error {
	l.starting.Lock() // what is starting over a broken session is over
	defer l.starting.Unlock()
	procs, err := s.Processes(ctx)
	if err != nil {
		return err
	}
	for _, p := range procs {
		l.mu.Lock()
		followed := l.execs[p.ID] != nil
		l.mu.Unlock()
		if p.Exit != nil || followed {
			continue
		}
		if err := s.Signal(ctx, p.ID, sigKill); err != nil && sandbox.KindOf(err) != sandbox.KindNotFound {
			return err
		}
	}
	return nil
}

const sigKill = 9 // the guest is Linux, whatever the host is

// lost ends a sandbox whose agent does not answer, for the reason the boundary
// gives if it has one.
func (l *live) lost(inst sandbox.Instance, cause error) {
	ctx, cancel := context.WithTimeout(l.o.ctx, openWait)
	defer cancel()
	st, err := inst.Status(ctx)
	switch {
	case err == nil && !st.Alive:
		l.end(system(l.tenant), st.Exit.Reason, st.Exit.Detail, &st.Exit)
		return
	case err == nil && st.Usage.OOMKills > 0: // it thrashes at its limit
		l.mu.Lock()
		detail := limitDetail(sandbox.ReasonMemory, l.sb.Limits)
		l.mu.Unlock()
		l.end(system(l.tenant), sandbox.ReasonMemory, detail, nil)
		return
	}
	l.end(system(l.tenant), sandbox.ReasonCrashed, "the agent does not answer: "+clip(cause.Error()), nil)
}

// settleWait is how long after its session broke a sandbox may take to be seen
// dead.
const settleWait = 3 * time.Second

// settle interprets err, which an operation over session s met. When the
// session broke because the sandbox died, the error says so and why.
func (l *live) settle(s *guest.Session, err error) error {
	if err == nil || s.Err() == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if sandbox.KindOf(s.Err()) == sandbox.KindCanceled && l.o.ctx.Err() == nil && !l.dead() { // by us
		e := sandbox.Errorf("use", sandbox.KindUnavailable, "the sandbox was paused or saved meanwhile").WithID(string(l.id)).
			WithHint("look how far it came, and repeat it")
		e.RetryAfter = time.Second
		return e
	}
	t := time.NewTimer(settleWait)
	defer t.Stop()
	select {
	case <-l.dying:
		return l.gone()
	case <-l.o.ctx.Done():
		return err
	case <-t.C:
		return err
	}
}

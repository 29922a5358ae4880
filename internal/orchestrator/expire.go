package orchestrator

import (
	"cmp"
	"context"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ExpireAction is what happens to a sandbox whose time is over.
type ExpireAction string

// The actions. The zero value is ExpireDestroy.
const (
	ExpireDestroy ExpireAction = "destroy"
	// ExpirePause pauses it instead, and so ends it only when nobody has wanted it
	// back for as long as snapshots are kept.
	ExpirePause ExpireAction = "pause"
)

// Wake is what makes a paused sandbox go on.
type Wake string

// The choices. The zero value is WakeUse.
const (
	WakeUse    Wake = "use"    // whoever wants something of it
	WakeResume Wake = "resume" // who resumes it by name, and nobody else
)

// leastLife is what a sandbox is given that goes on without anybody saying for how
// long: its last time may have been a moment.
const leastLife = 5 * time.Minute

// A sandbox that could not be paused at the end of its time is tried again for about a
// minute, then it is ended: its time is over.
const (
	expireTries = 6
	expireRetry = 10 * time.Second
	pauseWait   = 5 * time.Minute // for one of them
)

// lasts sets when a sandbox ends: d from now; 0: never.
func lasts(rec *store.Sandbox, now time.Time, d time.Duration) {
	rec.ExpiresAt, rec.MaxLife = time.Time{}, 0
	if d > 0 {
		rec.ExpiresAt = now.Add(d).UTC()
		rec.MaxLife = max(d, rec.ExpiresAt.Sub(rec.Created))
	}
}

// life is how long the sandbox has to live, from its beginning; of one that is kept for
// a time while it is paused, once it goes on.
func (s *Sandbox) life() *time.Duration {
	if p := s.Details.Pause; p != nil && p.Life != nil {
		return p.Life
	}
	return &s.MaxLife
}

// keeps is how long a sandbox stays paused, or nil if its life goes on meanwhile.
func (l *live) keeps(asked *time.Duration) *time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if asked == nil && l.sb.Details.ExpireAction == ExpirePause {
		return &l.o.Defaults.SnapshotTTL
	}
	return asked
}

// park stops the life of a sandbox that is kept for a time while it is paused.
func (d *Details) park(rec *store.Sandbox, now time.Time, keep *time.Duration) {
	if keep == nil {
		return
	}
	life := cmp.Or(d.Life, rec.MaxLife)
	d.Pause.Life = &life
	lasts(rec, now, *keep)
}

// unpark gives it a life again: what was asked for, or what it was given last. One
// whose life went on is not ended earlier.
func (d *Details) unpark(rec *store.Sandbox, now time.Time, asked *time.Duration) {
	p := d.Pause
	switch {
	case p.Life == nil && asked == nil:
		return
	case p.Life == nil && *asked > 0 && (rec.ExpiresAt.IsZero() || now.Add(*asked).Before(rec.ExpiresAt)):
		return
	case asked != nil:
		d.Life = *asked
	default:
		if d.Life = *p.Life; d.Life > 0 {
			d.Life = max(d.Life, leastLife)
		}
	}
	lasts(rec, now, d.Life)
}

// pauseExpired pauses a sandbox whose time is over. What keeps failing ends it.
// Preconditions: l.parking is set, by the caller.
func (l *live) pauseExpired() {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.parking = false
		l.arm()
	}()
	for try := 1; ; try++ {
		over, err := l.pauseOverdue()
		if over {
			return
		}
		l.o.Log.Warn("a sandbox could not be paused at the end of its time", "sandbox", l.id, "try", try, "error", err)
		k := sandbox.KindOf(err)
		if try == expireTries || k == sandbox.KindUnsupported || k == sandbox.KindConflict {
			l.end(system(l.tenant), sandbox.ReasonTimeout, "it could not be paused: "+clip(err.Error()), nil)
			return
		}
		select {
		case <-time.After(expireRetry):
		case <-l.dying:
			return
		case <-l.o.ctx.Done(): // the next server's business
			return
		}
	}
}

// pauseOverdue pauses the sandbox unless there is no reason to any more, which is over,
// too.
func (l *live) pauseOverdue() (over bool, err error) {
	ctx, cancel := context.WithTimeout(l.o.ctx, pauseWait)
	defer cancel()
	done, err := l.alone(ctx)
	if err != nil {
		return l.dead() || l.o.ctx.Err() != nil, err
	}
	defer done()
	l.mu.Lock()
	at := l.deadline()
	l.mu.Unlock()
	if l.paused() || at.IsZero() || time.Now().Before(at) {
		return true, nil
	}
	err = l.pause(ctx, system(l.tenant), PauseRequest{}, "timeout")
	return err == nil || l.paused() || l.dead() || l.o.ctx.Err() != nil, err
}

// Asleep reports whether a sandbox is paused, and whether whoever wants something of it
// wakes it.
func (o *Orchestrator) Asleep(id sandbox.ID) (paused, wakes bool) {
	o.mu.Lock()
	l := o.lives[id]
	o.mu.Unlock()
	if l == nil || !l.paused() {
		return false, false
	}
	return true, l.snapshotWithEnv().Details.Wake != WakeResume
}

// asleep is the answer to a use that may not wake a paused sandbox.
func (l *live) asleep() error {
	return sandbox.Errorf("use", sandbox.KindConflict, "the sandbox is paused").WithID(string(l.id)).
		WithHint("resume it; it was created with wake resume, so use alone does not")
}

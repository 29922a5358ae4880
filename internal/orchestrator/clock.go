package orchestrator

import (
	"context"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
)

// Deadlines are stored by the wall clock, the only one that means something to
// callers and to the next process, and kept by the steady one: when somebody
// sets the wall clock, no sandbox ends for that, and none becomes immortal.

// stepped is a difference between the clocks that somebody made.
const stepped = 2 * time.Second

// credible is the wall clock for deciding what is old enough to be forgotten:
// no later than the steady clock has it, so that a clock which jumps ahead
// forgets nothing.
func (o *Orchestrator) credible() time.Time {
	wall, steady := o.Clock(), o.born.Add(time.Since(o.began))
	if steady.Before(wall) {
		return steady
	}
	return wall
}

// deadline is when the sandbox's life is over, by the steady clock; zero:
// never. Preconditions: l.mu is held.
func (l *live) deadline() time.Time {
	if stored := l.sb.ExpiresAt; !stored.Equal(l.stored) {
		l.stored, l.expires = stored, time.Time{}
		if !stored.IsZero() {
			left := stored.Sub(l.o.Clock())
			if life := l.sb.MaxLife; life > 0 {
				left = min(left, life) // the clock was set back while nobody kept the time
			}
			l.expires = time.Now().Add(left)
		}
	}
	return l.expires
}

// follow corrects the stored deadline after the wall clock was set, for callers
// and for the next process. What it cannot store it tries again.
func (l *live) follow(ctx context.Context) error {
	l.mu.Lock()
	at := l.deadline()
	if at.IsZero() || l.ending != nil {
		l.mu.Unlock()
		return nil
	}
	was, is := l.stored, l.o.Clock().Add(time.Until(at)).Round(0).UTC()
	l.mu.Unlock()
	if d := is.Sub(was); d.Abs() < stepped {
		return nil
	}
	rec, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		if rec.ExpiresAt.Equal(was) { // else it was moved just now
			rec.ExpiresAt = is
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stored.Equal(was) && l.sb.ExpiresAt.Equal(was) && rec.ExpiresAt.Equal(is) {
		l.sb.ExpiresAt, l.sb.Version, l.stored = rec.ExpiresAt, rec.Version, rec.ExpiresAt
	}
	return nil
}

// followAll is follow for every sandbox.
func (o *Orchestrator) followAll(ctx context.Context) error {
	o.mu.Lock()
	lives := make([]*live, 0, len(o.lives))
	for _, l := range o.lives {
		lives = append(lives, l)
	}
	o.mu.Unlock()
	var err error
	for _, l := range lives {
		if e := l.follow(ctx); e != nil {
			err = e
		}
	}
	return err
}

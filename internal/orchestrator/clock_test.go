package orchestrator

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// wallClock is a wall clock that somebody sets, beside the steady one.
type wallClock struct{ off atomic.Int64 }

func (c *wallClock) now() time.Time {
	return time.Now().Round(0).Add(time.Duration(c.off.Load()))
}

func (c *wallClock) step(d time.Duration) { c.off.Add(int64(d)) }

// clockBubble is bubble with a wall clock to set.
func clockBubble(t *testing.T, f func(w *world, o *Orchestrator, c *wallClock)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, c := newWorld(t), &wallClock{}
		w.cfg = func(cfg *Config) { cfg.Clock = c.now; cfg.DestroyOnClose = false }
		f(w, w.start(), c)
	})
}

// TestClockIsSet: whoever sets the wall clock neither ends a sandbox nor keeps
// one alive, in this process and across a restart.
func TestClockIsSet(t *testing.T) {
	for name, step := range map[string]time.Duration{
		"ahead": time.Hour, "back": -time.Hour, "years ahead": 30 * 365 * 24 * time.Hour, "years back": -30 * 365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			clockBubble(t, func(w *world, o *Orchestrator, c *wallClock) {
				life, idle := 30*time.Minute, 20*time.Minute
				sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &life})
				busy := mustCreate(w.t, o, alice, CreateRequest{IdleTimeout: &idle})
				sleep(10 * time.Minute)
				c.step(step)
				sleep(9 * time.Minute)
				for _, id := range []sandbox.ID{sb.ID, busy.ID} {
					if got, dead := ended(w.t, o, id); dead {
						w.t.Fatalf("11 minutes early: %+v", got)
					}
				}
				// What callers see, and the next process finds, is right again.
				got, _ := ended(w.t, o, sb.ID)
				if left := got.ExpiresAt.Sub(c.now()); (left - 11*time.Minute).Abs() > 5*time.Second {
					w.t.Errorf("it says that %s are left, want 11m", left)
				}
				w.abandon(o)
				o = w.start()
				sleep(10 * time.Minute)
				if got, dead := ended(w.t, o, sb.ID); dead {
					w.t.Fatalf("a minute early, after a restart: %+v", got)
				}
				sleep(2 * time.Minute)
				if got, dead := ended(w.t, o, sb.ID); !dead || got.Reason != sandbox.ReasonTimeout || got.Detail != "limit 30m0s" {
					w.t.Errorf("not ended in time: %+v", got)
				}
				sleep(10 * time.Minute) // its idle time began anew with the restart
				if got, dead := ended(w.t, o, busy.ID); !dead || got.Reason != sandbox.ReasonIdle {
					w.t.Errorf("not idle in time: %+v", got)
				}
			})
		})
	}
}

// TestClockIsSetWhileDown: nobody kept the time then, but no life becomes
// longer than it ever was to be.
func TestClockIsSetWhileDown(t *testing.T) {
	clockBubble(t, func(w *world, o *Orchestrator, c *wallClock) {
		life := 30 * time.Minute
		sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &life})
		w.abandon(o)
		c.step(-365 * 24 * time.Hour)
		o = w.start()
		sleep(29 * time.Minute)
		if got, dead := ended(w.t, o, sb.ID); dead {
			w.t.Fatalf("too early: %+v", got)
		}
		sleep(2 * time.Minute)
		if got, dead := ended(w.t, o, sb.ID); !dead || got.Reason != sandbox.ReasonTimeout {
			w.t.Errorf("not ended: %+v", got)
		}
	})
}

// TestSetTimeoutAfterAStep: a new timeout counts from now, whatever the clock
// was before, and extend_only compares what is left.
func TestSetTimeoutAfterAStep(t *testing.T) {
	for name, step := range map[string]time.Duration{"ahead": 5 * time.Hour, "back": -5 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			clockBubble(t, func(w *world, o *Orchestrator, c *wallClock) {
				life := time.Hour
				sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &life})
				c.step(step)
				if _, err := o.SetTimeout(w.t.Context(), alice, string(sb.ID), 30*time.Minute, true); err != nil {
					w.t.Fatal(err)
				}
				sleep(59 * time.Minute)
				if got, dead := ended(w.t, o, sb.ID); dead {
					w.t.Fatalf("extend_only moved the end closer: %+v", got)
				}
				if _, err := o.SetTimeout(w.t.Context(), alice, string(sb.ID), 10*time.Minute, false); err != nil {
					w.t.Fatal(err)
				}
				sleep(9 * time.Minute)
				if got, dead := ended(w.t, o, sb.ID); dead {
					w.t.Fatalf("too early: %+v", got)
				}
				sleep(2 * time.Minute)
				if got, dead := ended(w.t, o, sb.ID); !dead {
					w.t.Errorf("not ended: %+v", got)
				}
				if _, err := o.Destroy(w.t.Context(), alice, string(sb.ID)); err != nil {
					w.t.Error(err)
				}
			})
		})
	}
}

// TestClockAheadForgetsNothing: records are kept for as long as promised, also
// when the clock is suddenly years ahead.
func TestClockAheadForgetsNothing(t *testing.T) {
	clockBubble(t, func(w *world, o *Orchestrator, c *wallClock) {
		sb := mustCreate(w.t, o, alice, CreateRequest{})
		if _, err := o.Destroy(w.t.Context(), alice, string(sb.ID)); err != nil {
			w.t.Fatal(err)
		}
		c.step(365 * 24 * time.Hour)
		sleep(3 * time.Hour)
		if got, err := o.Get(w.t.Context(), alice.Tenant, string(sb.ID)); err != nil || got.State != store.Ended {
			w.t.Fatalf("its record is gone: %v", err)
		}
		c.step(-2 * 365 * 24 * time.Hour)
		sleep(o.Retain - 4*time.Hour)
		if _, err := o.Get(w.t.Context(), alice.Tenant, string(sb.ID)); err != nil {
			w.t.Fatalf("its record is gone: %v", err)
		}
	})
}

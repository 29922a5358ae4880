package orchestrator

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// saves is what saving comes to; nil: it works.
type saves = atomic.Pointer[sandbox.Error]

// keeping is the model backend as if it saved instances: when a sandbox is saved, and
// for how long, does not depend on what is in it.
type keeping struct {
	*sim.Backend
	fail *saves // of every save
}

func (b keeping) Info(ctx context.Context) (sandbox.Info, error) {
	i, err := b.Backend.Info(ctx)
	i.Capabilities.Snapshot, i.Capabilities.Pause = true, true
	return i, err
}

func (b keeping) Create(ctx context.Context, s sandbox.Spec) (sandbox.Instance, error) {
	i, err := b.Backend.Create(ctx, s)
	return b.kept(i, err)
}

func (b keeping) Attach(ctx context.Context, id sandbox.InstanceID) (sandbox.Instance, error) {
	i, err := b.Backend.Attach(ctx, id)
	return b.kept(i, err)
}

func (b keeping) Restore(ctx context.Context, s sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	if _, err := os.Stat(filepath.Join(from.Dir, "file")); err != nil {
		return nil, err
	}
	return b.Create(ctx, s)
}

func (b keeping) kept(i sandbox.Instance, err error) (sandbox.Instance, error) {
	if err != nil {
		return nil, err
	}
	return keptInstance{i, b.fail}, nil
}

type keptInstance struct {
	sandbox.Instance
	fail *saves
}

func (i keptInstance) Snapshot(_ context.Context, dir string) (sandbox.Snapshot, error) {
	if err := i.fail.Load(); err != nil {
		return sandbox.Snapshot{}, err
	}
	err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	return sandbox.Snapshot{Dir: dir, Digest: "sha256:0", Size: 1, Created: time.Now()}, err
}

// keepingBubble is bubble with a backend that saves; fail is what saving comes to.
func keepingBubble(t *testing.T, f func(w *world, o *Orchestrator, fail *saves)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, fail := newWorld(t), new(saves)
		w.cfg = func(c *Config) { c.Backends = []sandbox.Backend{keeping{w.sim, fail}} }
		f(w, w.start(), fail)
	})
}

// stands reports the sandbox once everything has come to rest.
func stands(t *testing.T, o *Orchestrator, id sandbox.ID, state store.State, left time.Duration) Sandbox {
	t.Helper()
	sb, _ := ended(t, o, id)
	if is := time.Until(sb.ExpiresAt); sb.State != state || (is-left).Abs() > 2*time.Second && !(left == 0 && sb.ExpiresAt.IsZero()) {
		t.Fatalf("it is %s (%s) for %s, not %s for %s", sb.State, sb.Detail, is, state, left)
	}
	return sb
}

const month = 30 * 24 * time.Hour

// TestExpirePause: a sandbox that is to be paused at its end is, time and again, has its
// time anew each time, and ends when nobody has wanted it back for a month.
func TestExpirePause(t *testing.T) {
	keepingBubble(t, func(w *world, o *Orchestrator, _ *saves) {
		hour := time.Hour
		sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &hour, ExpireAction: ExpirePause})
		for range 3 {
			stands(w.t, o, sb.ID, store.Running, hour)
			sleep(hour + time.Second)
			stands(w.t, o, sb.ID, store.Paused, month)
			sleep(10 * 24 * time.Hour)
			mustExec(w.t, o, alice, sb.ID, sh("true")) // wakes it
		}
		w.audit.mu.Lock()
		var why []string
		for _, r := range w.audit.records {
			if r.Action == "sandbox.pause" && r.Outcome == sandbox.OutcomeAllowed {
				why = append(why, r.Principal+" "+r.Detail["why"]+" "+r.Detail["keep"])
			}
		}
		w.audit.mu.Unlock()
		if !slices.Equal(why, slices.Repeat([]string{"system timeout 720h0m0s"}, 3)) {
			w.t.Errorf("on record: %q", why)
		}
		// Moved, and paused by hand: the last time it was given counts.
		if _, err := o.SetTimeout(w.t.Context(), alice, string(sb.ID), time.Minute, false); err != nil {
			w.t.Fatal(err)
		}
		if _, err := o.Pause(w.t.Context(), alice, string(sb.ID), PauseRequest{}); err != nil {
			w.t.Fatal(err)
		}
		stands(w.t, o, sb.ID, store.Paused, month)
		mustExec(w.t, o, alice, sb.ID, sh("true"))
		stands(w.t, o, sb.ID, store.Running, leastLife)
		sleep(leastLife + time.Second)
		stands(w.t, o, sb.ID, store.Paused, month)
		if _, err := o.Resume(w.t.Context(), alice, string(sb.ID), ResumeRequest{Timeout: &hour}); err != nil {
			w.t.Fatal(err)
		}
		stands(w.t, o, sb.ID, store.Running, hour)
		sleep(hour + time.Second)
		sleep(month + time.Second)
		end, dead := ended(w.t, o, sb.ID)
		if !dead || end.Reason != sandbox.ReasonTimeout || !strings.HasPrefix(end.Detail, "kept paused for 720h") || !end.Receipt.Clean {
			w.t.Errorf("%+v", end)
		}
	})
}

// TestPauseKeeps: the time of a sandbox that is to be kept stands still; that of another
// goes on, and is not cut short by going on.
func TestPauseKeeps(t *testing.T) {
	keepingBubble(t, func(w *world, o *Orchestrator, _ *saves) {
		ctx, hour, day, never, long := w.t.Context(), time.Hour, 24*time.Hour, time.Duration(0), maxTimeout+1
		sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &hour})
		id := string(sb.ID)
		_, err := o.Pause(ctx, alice, id, PauseRequest{Keep: &long})
		wantKind(w.t, err, sandbox.KindInvalid)
		pause := func(keep *time.Duration) {
			w.t.Helper()
			if _, err := o.Pause(ctx, alice, id, PauseRequest{Keep: keep}); err != nil {
				w.t.Fatal(err)
			}
		}
		resume := func(timeout *time.Duration) {
			w.t.Helper()
			if _, err := o.Resume(ctx, alice, id, ResumeRequest{Timeout: timeout}); err != nil {
				w.t.Fatal(err)
			}
		}
		pause(nil)
		stands(w.t, o, sb.ID, store.Paused, hour)
		minute := time.Minute
		resume(&minute)
		stands(w.t, o, sb.ID, store.Running, hour)
		pause(&day)
		sleep(10 * hour)
		stands(w.t, o, sb.ID, store.Paused, 14*hour)
		resume(nil)
		stands(w.t, o, sb.ID, store.Running, hour)
		pause(&never)
		sleep(1000 * hour)
		stands(w.t, o, sb.ID, store.Paused, 0)
		resume(&never)
		pause(&day)
		resume(nil)
		stands(w.t, o, sb.ID, store.Running, 0)
		pause(&day)
		sleep(day + time.Second)
		if end, dead := ended(w.t, o, sb.ID); !dead || end.Reason != sandbox.ReasonTimeout || end.Detail != "kept paused for 24h0m0s" {
			w.t.Errorf("%+v", end)
		}
	})
}

// TestExpireWhileDown: what a server that is gone could not pause at its end, the next
// one does, as it ends what was kept for long enough.
func TestExpireWhileDown(t *testing.T) {
	keepingBubble(t, func(w *world, o *Orchestrator, _ *saves) {
		hour := time.Hour
		kept := mustCreate(w.t, o, alice, CreateRequest{Timeout: &hour, ExpireAction: ExpirePause})
		over := mustCreate(w.t, o, alice, CreateRequest{Timeout: &hour, ExpireAction: ExpirePause})
		if _, err := o.Pause(w.t.Context(), alice, string(over.ID), PauseRequest{Keep: &hour}); err != nil {
			w.t.Fatal(err)
		}
		w.abandon(o)
		sleep(2 * hour)
		o = w.start()
		stands(w.t, o, kept.ID, store.Paused, month)
		if end, dead := ended(w.t, o, over.ID); !dead || end.Reason != sandbox.ReasonTimeout || !end.Receipt.Clean {
			w.t.Errorf("%+v", end)
		}
		mustExec(w.t, o, alice, kept.ID, sh("true"))
		stands(w.t, o, kept.ID, store.Running, hour)
	})
}

// TestExpireUnsaved: what cannot be saved at its end is tried again, lives on if somebody
// gives it time meanwhile, and ends soon otherwise: no guest can put its end off.
func TestExpireUnsaved(t *testing.T) {
	keepingBubble(t, func(w *world, o *Orchestrator, fail *saves) {
		hour := time.Hour
		create := func() Sandbox {
			return mustCreate(w.t, o, alice, CreateRequest{Timeout: &hour, ExpireAction: ExpirePause})
		}
		fail.Store(sandbox.Errorf("save", sandbox.KindNoSpace, "the disk is full"))
		sb := create()
		sleep(hour + 2*time.Second)
		if _, err := o.SetTimeout(w.t.Context(), alice, string(sb.ID), hour, false); err != nil {
			w.t.Fatal(err)
		}
		sleep(time.Minute)
		stands(w.t, o, sb.ID, store.Running, hour-time.Minute)
		sleep(hour - time.Minute + 2*time.Second)
		fail.Store(nil)
		sleep(expireRetry)
		stands(w.t, o, sb.ID, store.Paused, month)

		fail.Store(sandbox.Errorf("save", sandbox.KindNoSpace, "the disk is full"))
		sb = create()
		sleep(hour + expireTries*expireRetry)
		if end, dead := ended(w.t, o, sb.ID); !dead || end.Reason != sandbox.ReasonTimeout || !strings.Contains(end.Detail, "could not be paused") || !end.Receipt.Clean {
			w.t.Errorf("%+v", end)
		}
		fail.Store(sandbox.Errorf("save", sandbox.KindUnsupported, "not this one"))
		sb = create()
		sleep(hour + time.Second)
		if end, dead := ended(w.t, o, sb.ID); !dead || !strings.Contains(end.Detail, "not this one") {
			w.t.Errorf("%+v", end)
		}
	})
}

// TestWake: a sandbox that only a resume wakes says so to whoever uses it, and sleeps on.
func TestWake(t *testing.T) {
	keepingBubble(t, func(w *world, o *Orchestrator, _ *saves) {
		for _, bad := range []CreateRequest{{ExpireAction: "sleep"}, {Wake: "never"}} {
			_, err := o.Create(w.t.Context(), alice, bad)
			wantKind(w.t, err, sandbox.KindInvalid)
		}
		sb := mustCreate(w.t, o, alice, CreateRequest{Wake: WakeResume})
		if paused, _ := o.Asleep(sb.ID); paused {
			w.t.Error("it runs")
		}
		if _, err := o.Pause(w.t.Context(), alice, string(sb.ID), PauseRequest{}); err != nil {
			w.t.Fatal(err)
		}
		if paused, wakes := o.Asleep(sb.ID); !paused || wakes {
			w.t.Errorf("paused %v, wakes %v", paused, wakes)
		}
		_, err := o.Exec(w.t.Context(), alice, string(sb.ID), sh("true"), &collect{})
		wantKind(w.t, err, sandbox.KindConflict)
		if got, _ := ended(w.t, o, sb.ID); got.State != store.Paused {
			w.t.Errorf("woken: %+v", got)
		}
		if _, err := o.Resume(w.t.Context(), alice, string(sb.ID), ResumeRequest{}); err != nil {
			w.t.Fatal(err)
		}
		mustExec(w.t, o, alice, sb.ID, sh("true"))
	})
}

package orchestrator

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// bubble runs f over a world whose clock is false, and closes everything before
// the bubble ends.
func bubble(t *testing.T, f func(w *world, o *Orchestrator)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f(w, w.start())
	})
}

// ended reports how the sandbox ended, once every goroutine has come to rest.
func ended(t *testing.T, o *Orchestrator, id sandbox.ID) (Sandbox, bool) {
	t.Helper()
	synctest.Wait()
	sb, err := o.Get(t.Context(), alice.Tenant, string(id))
	if err != nil {
		t.Fatal(err)
	}
	return sb, sb.State == store.Ended
}

// sleep lets false time pass, and real work it causes finish.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestMaximumLife(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		hour := time.Hour
		sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &hour})
		sleep(time.Hour - time.Second)
		if sb, dead := ended(w.t, o, sb.ID); dead {
			w.t.Fatalf("too early: %+v", sb)
		}
		sleep(3 * time.Second)
		sb, dead := ended(w.t, o, sb.ID)
		if !dead || sb.Reason != sandbox.ReasonTimeout || sb.Detail != "limit 1h0m0s" || !sb.Receipt.Clean {
			w.t.Errorf("%+v", sb)
		}
	})
}

func TestSetTimeout(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		sb := mustCreate(w.t, o, alice, CreateRequest{})
		set := func(d time.Duration, extend bool) Sandbox {
			got, err := o.SetTimeout(w.t.Context(), alice, string(sb.ID), d, extend)
			if err != nil {
				w.t.Fatal(err)
			}
			return got
		}
		before := sb.ExpiresAt
		if got := set(time.Minute, true); !got.ExpiresAt.Equal(before) {
			w.t.Errorf("extend_only moved the end closer: %s", got.ExpiresAt)
		}
		if got := set(2*time.Hour, true); !got.ExpiresAt.After(before) {
			w.t.Errorf("not extended: %s", got.ExpiresAt)
		}
		if got := set(0, true); !got.ExpiresAt.IsZero() || got.MaxLife != 0 {
			w.t.Errorf("not for ever: %s", got.ExpiresAt)
		}
		sleep(100 * time.Hour)
		if _, dead := ended(w.t, o, sb.ID); dead {
			w.t.Fatal("it was to live for ever")
		}
		set(time.Minute, true)
		sleep(time.Hour)
		if _, dead := ended(w.t, o, sb.ID); dead {
			w.t.Fatal("extend_only ended what lives for ever")
		}
		set(time.Minute, false)
		sleep(2 * time.Minute)
		if sb, dead := ended(w.t, o, sb.ID); !dead || sb.Reason != sandbox.ReasonTimeout {
			w.t.Errorf("%+v", sb)
		}
	})
}

func TestIdle(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		minute, never := time.Minute, time.Duration(0)
		sb := mustCreate(w.t, o, alice, CreateRequest{IdleTimeout: &minute, Timeout: &never})
		for range 5 { // used, again and again
			sleep(50 * time.Second)
			mustExec(w.t, o, alice, sb.ID, sh("true"))
		}
		for range 5 { // or its files
			sleep(50 * time.Second)
			if _, err := o.WriteFile(w.t.Context(), alice, string(sb.ID), "f", guest.WriteOptions{}, strings.NewReader("x")); err != nil {
				w.t.Fatal(err)
			}
		}
		// An exec longer than the idle time is use all along.
		if exit, _ := mustExec(w.t, o, alice, sb.ID, verb("sleep", "200s")); exit.Code != 0 || exit.Duration < 200*time.Second {
			w.t.Errorf("%+v", exit)
		}
		sleep(59 * time.Second)
		if sb, dead := ended(w.t, o, sb.ID); dead {
			w.t.Fatalf("too early: %+v", sb)
		}
		for range 3 { // looking is not using
			if _, err := o.Get(w.t.Context(), alice.Tenant, string(sb.ID)); err != nil {
				w.t.Fatal(err)
			}
		}
		sleep(3 * time.Second)
		if sb, dead := ended(w.t, o, sb.ID); !dead || sb.Reason != sandbox.ReasonIdle || sb.Detail != "unused for 1m0s" {
			w.t.Errorf("%+v", sb)
		}
	})
}

func TestExecDefaultTimeout(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		never := time.Duration(0)
		sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &never})
		exit, _ := mustExec(w.t, o, alice, sb.ID, verb("sleep", "3600s"))
		if exit.Code != 124 || exit.Reason != sandbox.ReasonTimeout || exit.Detail != "limit 5m0s" {
			w.t.Errorf("left out: %+v", exit)
		}
		exit, _ = mustExec(w.t, o, alice, sb.ID, within(verb("sleep", "3600s"), 0))
		if exit.Code != 0 || exit.Reason != sandbox.ReasonDone {
			w.t.Errorf("none: %+v", exit)
		}
	})
}

func TestOrphansAreSwept(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		orphan, err := w.sim.Create(w.t.Context(), sandbox.Spec{Instance: sandbox.NewInstanceID()})
		if err != nil {
			w.t.Fatal(err)
		}
		sb := mustCreate(w.t, o, alice, CreateRequest{})
		sleep(sweepEvery + time.Second)
		list, err := w.sim.List(w.t.Context())
		if err != nil || len(list) != 1 || list[0].Instance != sb.Instance {
			w.t.Errorf("after a sweep: %v, %v", list, err)
		}
		w.audit.mu.Lock()
		defer w.audit.mu.Unlock()
		found := false
		for _, r := range w.audit.records {
			found = found || r.Action == "sandbox.orphan" && r.Instance == orphan.ID()
		}
		if !found {
			w.t.Error("no evidence of it")
		}
	})
}

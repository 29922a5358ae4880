package orchestrator

import (
	"slices"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestMetrics: whatever a sandbox's age, its use is told in a bounded number of
// moments, evenly spread from its beginning to now, and also after its end.
func TestMetrics(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		never := time.Duration(0)
		sb := mustCreate(w.t, o, alice, CreateRequest{Timeout: &never})
		began := time.Now()
		for _, age := range []time.Duration{4 * time.Second, time.Minute, time.Hour, 26 * time.Hour} {
			sleep(age - time.Since(began))
			_, s, err := o.Metrics(w.t.Context(), alice.Tenant, string(sb.ID))
			if err != nil {
				w.t.Fatal(err)
			}
			n := len(s.Samples)
			if n == 0 || n > maxSamples+1 || age > time.Hour && n < maxSamples/2-1 {
				w.t.Fatalf("%s: %d samples", age, n)
			}
			if last := s.Samples[n-1].At; time.Since(last) > time.Second {
				w.t.Errorf("%s: the last sample is %s old", age, time.Since(last))
			}
			if s.Samples[0].At.Sub(began) > measureEvery {
				w.t.Errorf("%s: the first sample is %s late", age, s.Samples[0].At.Sub(began))
			}
			for i := 1; i < n-1; i++ {
				if d := s.Samples[i].At.Sub(s.Samples[i-1].At); d < s.Every-measureEvery || d > s.Every+measureEvery {
					w.t.Fatalf("%s: %s between two samples, every %s", age, d, s.Every)
				}
			}
		}
		if _, _, err := o.Metrics(w.t.Context(), bob.Tenant, string(sb.ID)); sandbox.KindOf(err) != sandbox.KindNotFound {
			w.t.Errorf("a stranger: %v", err)
		}
		_, before, _ := o.Metrics(w.t.Context(), alice.Tenant, string(sb.ID))
		if _, err := o.Destroy(w.t.Context(), alice, string(sb.ID)); err != nil {
			w.t.Fatal(err)
		}
		dead, s, err := o.Metrics(w.t.Context(), alice.Tenant, string(sb.ID))
		if err != nil || dead.State != store.Ended {
			w.t.Fatalf("%v, %s", err, dead.State)
		}
		n := len(s.Samples)
		if n < keptSamples/2 || n > keptSamples {
			w.t.Errorf("%d samples are kept", n)
		}
		if !s.Samples[0].At.Equal(before.Samples[0].At.Truncate(time.Millisecond)) {
			w.t.Errorf("the first kept is of %s, it was of %s", s.Samples[0].At, before.Samples[0].At)
		}
		if size := len(dead.Details.Series); size > keptSamples*20 {
			w.t.Errorf("%d bytes are kept", size)
		}
	})
}

// TestSeriesIsKept: what pack makes, unpackSeries reads, to the millisecond; a
// damaged one is shorter, never wrong or a crash.
func TestSeriesIsKept(t *testing.T) {
	r := series{every: 7 * time.Second}
	at := time.UnixMilli(1_700_000_000_123).UTC()
	for i := range 50 {
		r.list = append(r.list, Sample{At: at.Add(time.Duration(i) * r.every), CPU: time.Duration(i*i) * time.Microsecond,
			Memory: int64(100-i) << 20, Disk: int64(i%3) << 30, PIDs: 50 - i})
	}
	b := r.pack()
	got := unpackSeries(b)
	if got.Every != r.every || !slices.Equal(got.Samples, r.list) {
		t.Fatalf("%+v", got)
	}
	for n := range b {
		if got := unpackSeries(b[:n]).Samples; len(got) > len(r.list) || !slices.Equal(got, r.list[:len(got)]) {
			t.Fatalf("the first %d bytes: %+v", n, got)
		}
	}
	if (series{}).pack() != nil {
		t.Error("nothing is something")
	}
}

// TestIdleAction: a sandbox that only says that it is idle lives on, says so
// once each time, and is ended by its deadline as any other.
func TestIdleAction(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		minute, hour, none := time.Minute, time.Hour, time.Duration(0)
		for _, c := range []struct {
			req  CreateRequest
			kind sandbox.Kind
		}{
			{CreateRequest{IdleTimeout: &minute, IdleAction: IdlePause}, sandbox.KindUnsupported},
			{CreateRequest{IdleTimeout: &minute, IdleAction: "sleep"}, sandbox.KindInvalid},
			{CreateRequest{IdleTimeout: &none, IdleAction: IdleEvent}, sandbox.KindInvalid},
		} {
			if _, err := o.Create(w.t.Context(), alice, c.req); sandbox.KindOf(err) != c.kind {
				w.t.Errorf("%s: %v", c.req.IdleAction, err)
			}
		}
		sb := mustCreate(w.t, o, alice, CreateRequest{IdleTimeout: &minute, IdleAction: IdleEvent, Timeout: &hour})
		idle := func() (n int) {
			for _, e := range w.told.of(sb.ID) {
				if e.Type == event.StateChange && slices.Contains([]string{`{"state":"running","reason":"idle","detail":"unused for 1m0s"}`}, string(e.Data)) {
					n++
				}
			}
			return n
		}
		sleep(10 * time.Minute)
		if _, dead := ended(w.t, o, sb.ID); dead || idle() != 1 {
			w.t.Fatalf("dead %v, told %d times", dead, idle())
		}
		if _, err := o.StatFile(w.t.Context(), alice, string(sb.ID), "/", ""); err != nil {
			w.t.Fatal(err)
		}
		sleep(10 * time.Minute)
		if _, dead := ended(w.t, o, sb.ID); dead || idle() != 2 {
			w.t.Fatalf("dead %v, told %d times", dead, idle())
		}
		sleep(45 * time.Minute)
		if got, dead := ended(w.t, o, sb.ID); !dead || got.Reason != sandbox.ReasonTimeout {
			w.t.Errorf("%+v", got)
		}
	})
}

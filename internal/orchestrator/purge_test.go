package orchestrator

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Expire implements Events; what it does is event's to test.
func (h *told) Expire(context.Context, time.Time, event.Known) (bool, error) { return false, nil }

// leftovers is a data directory with an ended sandbox and run that are old, the
// same that are young, and files that lost their records.
type leftovers struct {
	old, young, orphan sandbox.RunID
	oldBox, youngBox   sandbox.ID
	lost               sandbox.ID // only events
}

func (w *world) leftovers(hub *event.Hub) (l leftovers) {
	w.t.Helper()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	l = leftovers{sandbox.NewRunID(), sandbox.NewRunID(), sandbox.NewRunID(), sandbox.NewID(), sandbox.NewID(), sandbox.NewID()}
	past := time.Now().Add(-2 * time.Hour)
	tn := w.store.Tenant("acme")
	for id, at := range map[sandbox.ID]time.Time{l.oldBox: past, l.youngBox: time.Now()} {
		_, err := tn.CreateSandbox(w.t.Context(), store.Sandbox{ID: id, State: store.Ended, Ended: at}, store.Quota{})
		must(err)
	}
	for id, at := range map[sandbox.RunID]time.Time{l.old: past, l.young: time.Now()} {
		_, err := tn.CreateRun(w.t.Context(), store.Run{ID: id, State: store.RunEnded, Ended: at})
		must(err)
	}
	for _, id := range []sandbox.RunID{l.old, l.young, l.orphan} {
		dir := filepath.Join(w.dir, "runs", string(id))
		must(os.MkdirAll(filepath.Join(dir, "artifacts", "d"), 0o700))
		must(os.WriteFile(filepath.Join(dir, "stdout"), []byte("out"), 0o600))
		must(os.Chtimes(dir, past, past))
	}
	must(os.MkdirAll(filepath.Join(w.dir, "runs", "not-a-run"), 0o700))
	must(os.Chtimes(filepath.Join(w.dir, "runs", "not-a-run"), past, past))
	for _, id := range []sandbox.ID{l.oldBox, l.youngBox, l.lost} {
		_, err := hub.Publish(id, event.Event{Type: event.StateChange, Final: id != l.lost})
		must(err)
	}
	for _, id := range []sandbox.ID{l.oldBox, l.lost} {
		must(os.Chtimes(filepath.Join(w.dir, "events", string(id)+".events"), past, past))
	}
	return l
}

// check reports what is wrong after purging.
func (l leftovers) check(w *world) {
	w.t.Helper()
	left := func(dir string, names ...string) {
		w.t.Helper()
		want := map[string]bool{}
		for _, n := range names {
			want[n] = true
		}
		entries, err := os.ReadDir(filepath.Join(w.dir, dir))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			if !want[e.Name()] {
				w.t.Errorf("%s/%s is left", dir, e.Name())
			}
			delete(want, e.Name())
		}
		for n := range want {
			w.t.Errorf("%s/%s is gone", dir, n)
		}
	}
	left("runs", string(l.young), "not-a-run")
	left("events", string(l.youngBox)+".events")
	sbs, _, err := w.store.Tenant("acme").ListSandboxes(w.t.Context(), store.Filter{}, store.Page{})
	if err != nil || len(sbs) != 1 || sbs[0].ID != l.youngBox {
		w.t.Errorf("sandboxes %+v, %v", sbs, err)
	}
	runs, _, err := w.store.Tenant("acme").ListRuns(w.t.Context(), store.Page{})
	if err != nil || len(runs) != 1 || runs[0].ID != l.young {
		w.t.Errorf("runs %+v, %v", runs, err)
	}
}

// TestPurge: records, events and files of what ended long ago go together, and
// so does what has no record; wherever a purge stops, the next finishes it.
func TestPurge(t *testing.T) {
	prepare := func(t *testing.T) (*world, *Orchestrator, leftovers) {
		w := newWorld(t)
		hub, err := event.Open(filepath.Join(w.dir, "events"), event.Options{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hub.Close() })
		w.cfg = func(c *Config) { c.Retain, c.Events = time.Hour, hub }
		o := w.stopped()
		return w, o, w.leftovers(hub)
	}
	var points int
	t.Run("whole", func(t *testing.T) {
		w, o, l := prepare(t)
		restore := failpoint.Intercept(func(name string) {
			if strings.HasPrefix(name, "purge/") {
				points++
			}
		})
		defer restore()
		if more, err := o.purge(t.Context()); more || err != nil {
			t.Fatal(more, err)
		}
		l.check(w)
	})
	if points < 7 {
		t.Fatalf("%d points were hit", points)
	}
	for i := range points {
		w, o, l := prepare(t)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			n := 0
			restore := failpoint.Intercept(func(name string) {
				if !strings.HasPrefix(name, "purge/") {
					return
				}
				if n++; n == i+1 {
					runtime.Goexit() // nothing after the point is done
				}
			})
			defer restore()
			_, _ = o.purge(context.Background())
			t.Errorf("point %d was not reached", i+1)
		}()
		<-ended
		for range 2 {
			if more, err := o.purge(t.Context()); more || err != nil {
				t.Fatal(more, err)
			}
			l.check(w)
		}
	}
}

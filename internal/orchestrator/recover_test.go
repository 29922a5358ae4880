package orchestrator

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// abandon makes an Orchestrator stop as a killed process would: it writes and
// ends nothing any more, its connections break and its leases are void.
func (w *world) abandon(o *Orchestrator) {
	o.mu.Lock()
	o.closed = true
	lives := make([]*live, 0, len(o.lives))
	for _, l := range o.lives {
		lives = append(lives, l)
	}
	o.lives, o.names, o.runs, o.instances = map[sandbox.ID]*live{}, map[nameKey]*live{}, map[sandbox.RunID]*run{}, map[sandbox.InstanceID]*live{}
	o.silent = true
	o.mu.Unlock()
	o.stop()
	for _, l := range lives {
		l.detach()
	}
	w.roots = &roots{}
}

// crashAt runs f, and stops the goroutine that hits point for the nth time: as
// far as it is concerned, the process died there. It reports whether that
// happened.
func crashAt(point string, f func()) bool {
	hit := make(chan struct{})
	var once sync.Once
	restore := failpoint.Intercept(func(name string) {
		if name == point {
			once.Do(func() { close(hit) })
			runtime.Goexit()
		}
	})
	defer restore()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-hit:
		return true
	case <-done:
		select {
		case <-hit:
			return true
		default:
			return false
		}
	}
}

func (w *world) keep(c *Config) { c.DestroyOnClose = false }

func TestRestartAdopts(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	first := w.start()
	sb := mustCreate(t, first, alice, CreateRequest{Name: "web", Env: map[string]string{"A": "kept"}})
	if _, err := first.WriteFile(t.Context(), alice, "web", "f", guest.WriteOptions{}, strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	// A process that nobody was told about must not live on.
	s, err := first.find(alice.Tenant, "web").session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exec(t.Context(), guest.Command{Argv: []string{"/.firebreak/firebreak-guest", "probe", "sleep", "3600s"}}); err != nil {
		t.Fatal(err)
	}
	w.abandon(first)

	w.cfg = nil
	o := w.start()
	exit, c := mustExec(t, o, alice, sb.ID, sh("echo $A; cat f"))
	if c.out.String() != "kept\ncontent" || exit.Code != 0 {
		t.Errorf("%+v, %q", exit, c.out.String())
	}
	if got, err := o.Get(t.Context(), alice.Tenant, "web"); err != nil || got.ID != sb.ID || got.State != store.Running || got.Details.Boot != sb.Details.Boot {
		t.Errorf("%+v, %v", got, err)
	}
	if s, err = o.find(alice.Tenant, "web").session(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stray is dead", func() bool {
		procs, err := s.Processes(t.Context())
		return err == nil && !slices.ContainsFunc(procs, func(p guest.ProcessInfo) bool { return p.Exit == nil })
	})
	if o.ledger.committed == 0 {
		t.Error("its memory is not counted")
	}
	if dead, err := o.Destroy(t.Context(), alice, "web"); err != nil || !dead.Receipt.Clean {
		t.Errorf("%+v, %v", dead, err)
	}
}

func TestRestartBuries(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	first := w.start()
	gone, killed, kept := mustCreate(t, first, alice, CreateRequest{}), mustCreate(t, first, alice, CreateRequest{}), mustCreate(t, first, alice, CreateRequest{})
	w.abandon(first)
	inst, err := w.sim.Attach(t.Context(), gone.Instance)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	orphan, err := w.sim.Create(t.Context(), sandbox.Spec{Instance: sandbox.NewInstanceID()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Tenant(alice.Tenant).EditSandbox(t.Context(), killed.ID, func(rec *store.Sandbox) error {
		rec.State, rec.Reason, rec.Detail = store.Stopping, sandbox.ReasonIdle, "as journalled"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	o := w.start()
	for id, want := range map[sandbox.ID]sandbox.Reason{gone.ID: sandbox.ReasonLost, killed.ID: sandbox.ReasonIdle, kept.ID: ""} {
		sb, err := o.Get(t.Context(), alice.Tenant, string(id))
		if err != nil || sb.Reason != want || want != "" && (sb.State != store.Ended || !sb.Receipt.Clean || sb.Detail == "") {
			t.Errorf("%s: %+v, %v", want, sb, err)
		}
	}
	list, err := w.sim.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Instance != kept.Instance {
		t.Errorf("instances: %v, %v; the orphan was %s", list, err, orphan.ID())
	}
	if _, err := o.Destroy(t.Context(), alice, string(kept.ID)); err != nil {
		t.Fatal(err)
	}
}

// What belonged to a process that died is ended by whoever finds it, and not
// asked anything: its agent may be hostile.
func TestRestartEndsTheAbandoned(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	first := w.start()
	sb := mustCreate(t, first, alice, CreateRequest{})
	w.abandon(first)
	w.cfg = func(c *Config) { c.Abandoned = true }
	o := w.start()
	got, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	if err != nil || got.State != store.Ended || got.Reason != sandbox.ReasonLost || !got.Receipt.Clean {
		t.Errorf("%+v, %v", got, err)
	}
	if list, err := w.sim.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("instances: %v, %v", list, err)
	}
}

// Deadlines do not stop while nobody watches.
func TestRestartEnforcesWhatPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg = w.keep
		first := w.start()
		hour := time.Hour
		sb := mustCreate(t, first, alice, CreateRequest{Timeout: &hour})
		long := mustCreate(t, first, alice, CreateRequest{Timeout: new(time.Duration)})
		w.abandon(first)
		time.Sleep(2 * time.Hour)
		w.cfg = nil
		o := w.start()
		if sb, dead := ended(t, o, sb.ID); !dead || sb.Reason != sandbox.ReasonTimeout {
			t.Errorf("%+v", sb)
		}
		if sb, dead := ended(t, o, long.ID); dead {
			t.Errorf("%+v", sb)
		}
	})
}

// points is every crash point of this package that a create and a destroy pass,
// in order.
var points = []string{"create/before-intent", "create/after-intent", "create/after-boot", "create/after-session", "create/after-trust", "create/after-running",
	"create/before-answer", "end/before-intent", "end/after-intent", "end/after-destroy", "end/after-evidence", "end/after-record", "end/before-answer"}

func TestPointsAreComplete(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	var mu sync.Mutex
	var hits []string
	defer failpoint.Intercept(func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(name, "create/") || strings.HasPrefix(name, "end/") {
			hits = append(hits, name)
		}
	})()
	sb := mustCreate(t, o, alice, CreateRequest{})
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(hits, points) {
		t.Errorf("passed %q, the test visits %q", hits, points)
	}
}

// After a crash at any step, a sandbox is whole or gone, nothing of it is left
// on the host, and a second recovery changes nothing.
func TestCrashAnywhere(t *testing.T) {
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.cfg = w.keep
			first := w.start()
			id := sandbox.NewID()
			if !crashAt(point, func() {
				if _, err := first.Create(context.Background(), alice, CreateRequest{ID: id, Name: "web"}); err != nil {
					t.Errorf("create: %v", err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond) // it never answers
				defer cancel()
				_, _ = first.Destroy(ctx, alice, string(id))
			}) {
				t.Fatal("the point was not hit")
			}
			w.abandon(first)
			for range 2 {
				o := w.start()
				sb, err := o.Get(t.Context(), alice.Tenant, string(id))
				list, listErr := w.sim.List(t.Context())
				state := fmt.Sprintf("%s %s, %d instances", sb.State, sb.Reason, len(list))
				if listErr != nil {
					t.Fatal(listErr)
				}
				switch point {
				case "create/before-intent":
					wantKind(t, err, sandbox.KindNotFound)
					state = strings.TrimSpace(state)
				case "create/after-running", "create/before-answer", "end/before-intent":
					if state != "running , 1 instances" {
						t.Errorf("%s: %s", point, state)
					}
					mustExec(t, o, alice, id, sh("true"))
				default:
					if err != nil || sb.State != store.Ended || len(list) != 0 || sb.Receipt == nil || !sb.Receipt.Clean {
						t.Errorf("%s: %s, %v", point, state, err)
					}
					want := sandbox.ReasonOperator
					if strings.HasPrefix(point, "create/") {
						want = sandbox.ReasonLost
					}
					if sb.Reason != want {
						t.Errorf("%s: reason %s, want %s", point, sb.Reason, want)
					}
				}
				w.abandon(o)
			}
			w.cfg = nil
			o := w.start()
			if sb, err := o.Get(t.Context(), alice.Tenant, string(id)); err == nil && sb.State != store.Ended {
				if _, err := o.Destroy(t.Context(), alice, string(id)); err != nil {
					t.Error(err)
				}
			}
			mustCreate(t, o, alice, CreateRequest{Name: "web"}) // the name is not stuck either
		})
	}
}

func TestCrashInRecovery(t *testing.T) {
	for _, point := range []string{"recover/after-records", "recover/after-orphans", "end/after-destroy"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.cfg = w.keep
			first := w.start()
			id := sandbox.NewID()
			crashAt("create/after-boot", func() { _, _ = first.Create(context.Background(), alice, CreateRequest{ID: id}) })
			if _, err := w.sim.Create(t.Context(), sandbox.Spec{Instance: sandbox.NewInstanceID()}); err != nil {
				t.Fatal(err)
			}
			w.abandon(first)
			second := w.stopped()
			if !crashAt(point, func() {
				if point == "end/after-destroy" { // the end's goroutine dies, and Start with it
					go func() { _ = second.Start(context.Background()) }()
					time.Sleep(100 * time.Millisecond)
					return
				}
				_ = second.Start(context.Background())
			}) {
				t.Fatal("the point was not hit")
			}
			var ending []*live
			for _, l := range second.lives {
				if point == "end/after-destroy" {
					ending = append(ending, l)
				}
			}
			w.abandon(second)
			o := w.start()
			sb, err := o.Get(t.Context(), alice.Tenant, string(id))
			if list, _ := w.sim.List(t.Context()); err != nil || sb.State != store.Ended || sb.Reason != sandbox.ReasonLost || len(list) != 0 {
				t.Errorf("%+v, %v, %v", sb, err, list)
			}
			for _, l := range ending { // let the goroutines of the second one go
				close(l.ending.done)
			}
		})
	}
}

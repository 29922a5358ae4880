package orchestrator

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ready is an Orchestrator that has sandboxes ready.
type ready struct {
	*Orchestrator
	pool *pool.Pool
	dead atomic.Bool // makes nothing any more
}

// ready starts one that keeps size sandboxes.
func (w *world) ready(size int) *ready {
	w.t.Helper()
	r := &ready{}
	r.pool = pool.New(unclosed{w.sim}, pool.Options{Size: size, Max: 2 * size, Log: slog.New(slog.NewTextHandler(testLog{w.t}, nil)), Stock: func(ctx context.Context, s pool.Shape) (pool.Stock, error) {
		if r.dead.Load() {
			return pool.Stock{}, context.Canceled
		}
		return r.Stock(ctx, s)
	}})
	w.t.Cleanup(func() {
		if err := r.pool.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.cfg = func(c *Config) { c.DestroyOnClose, c.Backends = false, []sandbox.Backend{r.pool} }
	r.Orchestrator = w.start()
	r.warm(w.t)
	return r
}

// unclosed is a backend that outlives whoever uses it.
type unclosed struct{ sandbox.Backend }

func (unclosed) Close() error { return nil }

// warm waits until there is something to claim.
func (r *ready) warm(t *testing.T) {
	t.Helper()
	s, err := r.Shape(t.Context(), alice.Tenant, CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r.pool.Pin(s, true)
	eventually(t, "a sandbox is ready", func() bool {
		return slices.ContainsFunc(r.pool.Stats(), func(st pool.Stat) bool { return st.Shape == s && st.Ready > 0 })
	})
}

func (r *ready) hits() (n int) {
	for _, st := range r.pool.Stats() {
		n += st.Hits
	}
	return n
}

// destroy ends a sandbox.
func (r *ready) destroy(t *testing.T, id sandbox.ID) {
	t.Helper()
	if _, err := r.Destroy(t.Context(), alice, string(id)); err != nil {
		t.Error(err)
	}
}

func TestReadySandbox(t *testing.T) {
	w := newWorld(t)
	o := w.ready(2)
	sb := mustCreate(t, o.Orchestrator, alice, CreateRequest{Name: "web", Env: map[string]string{"A": "b"}})
	if o.hits() != 1 {
		t.Fatalf("it was not one that was ready: %+v", o.pool.Stats())
	}
	if sb.State != store.Running || sb.Tenant != alice.Tenant || sb.Details.Hostname != string(sb.ID) || sb.Started.IsZero() {
		t.Errorf("%+v", sb)
	}
	exit, c := mustExec(t, o.Orchestrator, alice, sb.ID, sh("hostname; env"))
	if exit.Code != 0 || c.out.String() == "" {
		t.Errorf("%+v, %q", exit, c.out.String())
	}
	if got := c.out.String(); got[:len(sb.ID)] != string(sb.ID) {
		t.Errorf("its name is %q", got)
	}
	o.destroy(t, sb.ID)
	want := []string{"sandbox.create allowed", "sandbox.create done"}
	if got := w.audit.actions(sb.ID); len(got) < 2 || !slices.Equal(got[:2], want) {
		t.Errorf("evidence: %q", got)
	}
	// What brings a name of its own, or its rules, is made for it.
	id := sandbox.NewID()
	for _, req := range []CreateRequest{{ID: id}, {Hostname: "own"}, {Limits: sandbox.Limits{Memory: 32 << 20}}} {
		o.warm(t)
		hits := o.hits()
		sb := mustCreate(t, o.Orchestrator, alice, req)
		if o.hits() != hits {
			t.Errorf("%+v was served from what was ready", req)
		}
		o.destroy(t, sb.ID)
	}
}

// One that has died is noticed before anything is recorded of it, and another made.
func TestReadySandboxDied(t *testing.T) {
	w := newWorld(t)
	o := w.ready(1)
	list, err := w.sim.List(t.Context())
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	inst, err := w.sim.Attach(t.Context(), list[0].Instance)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	sb := mustCreate(t, o.Orchestrator, alice, CreateRequest{})
	if exit, _ := mustExec(t, o.Orchestrator, alice, sb.ID, sh("true")); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	o.destroy(t, sb.ID)
}

// Without evidence, or without room, what was ready is nobody's and is gone.
func TestReadySandboxRefused(t *testing.T) {
	w := newWorld(t)
	o := w.ready(1)
	w.audit.set(sandbox.Errorf("record", sandbox.KindUnavailable, "the disk is full"))
	if sb, err := o.Create(t.Context(), alice, CreateRequest{}); err == nil {
		t.Errorf("made without evidence: %+v", sb)
	}
	w.audit.set(nil)
	o.warm(t)
	first := mustCreate(t, o.Orchestrator, alice, CreateRequest{Name: "same"})
	o.warm(t)
	_, err := o.Create(t.Context(), alice, CreateRequest{Name: "same"})
	wantKind(t, err, sandbox.KindExists)
	o.destroy(t, first.ID)
	list, _, err := o.List(t.Context(), alice.Tenant, store.Filter{}, store.Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range list {
		if sb.State != store.Ended {
			t.Errorf("left is %+v", sb)
		}
	}
}

// Killed anywhere, a claimed sandbox is whole or gone, and what was ready is gone.
func TestReadySandboxCrash(t *testing.T) {
	for _, point := range []string{"create/before-intent", "create/after-running", "create/before-answer"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			o := w.ready(2)
			if !crashAt(point, func() { _, _ = o.Create(context.Background(), alice, CreateRequest{Name: "x"}) }) {
				t.Fatal("it did not come there")
			}
			o.dead.Store(true)
			w.abandon(o.Orchestrator)
			w.cfg = w.keep
			next := w.start()
			list, err := w.sim.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			sb, err := next.Get(t.Context(), alice.Tenant, "x")
			if point == "create/before-intent" {
				if sandbox.KindOf(err) != sandbox.KindNotFound || len(list) != 0 {
					t.Errorf("%+v, %v; %v", sb, err, list)
				}
				return
			}
			if err != nil || sb.State != store.Running || len(list) != 1 || list[0].Instance != sb.Instance {
				t.Fatalf("%+v, %v; %v", sb, err, list)
			}
			if exit, _ := mustExec(t, next, alice, sb.ID, sh("true")); exit.Code != 0 {
				t.Errorf("%+v", exit)
			}
			if _, err := next.Destroy(t.Context(), alice, "x"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A sandbox whose id has to be known before, as that of a key or a run, is one that
// was ready, too; one that is not made of it is the next one's.
func TestReadySandboxKnownBefore(t *testing.T) {
	w := newWorld(t)
	o := w.ready(1)
	var req CreateRequest
	giveBack := o.Reserve(t.Context(), alice, &req)
	first := req.ID
	giveBack()
	if sb := mustCreate(t, o.Orchestrator, alice, CreateRequest{}); sb.ID != first {
		t.Errorf("what was given back was %s, the next is %s", first, sb.ID)
	} else {
		o.destroy(t, sb.ID)
	}
	o.warm(t)
	req, hits := CreateRequest{}, o.hits()
	defer o.Reserve(t.Context(), alice, &req)()
	if o.hits() != hits+1 {
		t.Fatalf("nothing was reserved: %+v", o.pool.Stats())
	}
	sb := mustCreate(t, o.Orchestrator, alice, req)
	if sb.ID != req.ID || sb.Details.Hostname != string(req.ID) {
		t.Errorf("reserved was %s, made is %+v", req.ID, sb)
	}
	if exit, _ := mustExec(t, o.Orchestrator, alice, sb.ID, sh("true")); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	o.destroy(t, sb.ID)
	// Nothing that is ready fits any more: the id is another sandbox's, and it is gone.
	o.warm(t)
	var other CreateRequest
	defer o.Reserve(t.Context(), alice, &other)()
	other.ReadonlyRoot = true
	sb = mustCreate(t, o.Orchestrator, alice, other)
	if sb.ID != other.ID {
		t.Errorf("reserved was %s, made is %s", other.ID, sb.ID)
	}
	o.destroy(t, sb.ID)
	o.warm(t)
	sb = mustCreate(t, o.Orchestrator, alice, CreateRequest{})
	if sb.ID == other.ID {
		t.Error("one id for two sandboxes")
	}
	o.destroy(t, sb.ID)
}

// One that dies while it is reserved is made anew, with the id that was promised.
func TestReservedSandboxDied(t *testing.T) {
	w := newWorld(t)
	o := w.ready(1)
	var req CreateRequest
	defer o.Reserve(t.Context(), alice, &req)()
	inst, err := w.sim.Attach(t.Context(), req.reserved.claimed.Instance)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	sb := mustCreate(t, o.Orchestrator, alice, req)
	if sb.ID != req.ID || sb.Instance == inst.ID() {
		t.Errorf("%+v", sb)
	}
	o.destroy(t, sb.ID)
}

// A run takes what is ready.
func TestReadyRun(t *testing.T) {
	w := newWorld(t)
	o := w.ready(1)
	r, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: sh("hostname")})
	if err != nil {
		t.Fatal(err)
	}
	if o.hits() != 1 {
		t.Errorf("it was not one that was ready: %+v", o.pool.Stats())
	}
	eventually(t, "it has ended", func() bool {
		r, err = o.GetRun(t.Context(), alice.Tenant, string(r.ID), 0)
		return err == nil && r.State == store.RunEnded
	})
	if r.Report.Receipt == nil || !r.Report.Receipt.Clean || r.Report.Exit == nil || r.Report.Exit.Code != 0 {
		t.Errorf("%+v", r)
	}
}

// What is ready waits for nobody's boot; what is not, for its turn, and what it had
// promised is given back.
func TestReadyWaitsForNobody(t *testing.T) {
	w := newWorld(t)
	o := w.ready(1)
	var held []*ticket
	for {
		tk, err := o.gate.queue("greedy")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, tk)
		o.gate.mu.Lock()
		free := o.gate.free
		o.gate.mu.Unlock()
		if free == 0 {
			break
		}
	}
	sb := mustCreate(t, o.Orchestrator, alice, CreateRequest{})
	if o.hits() != 1 {
		t.Errorf("%+v", o.pool.Stats())
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if sb, err := o.Create(soon, alice, CreateRequest{Hostname: "own"}); err == nil {
		t.Errorf("booted without a turn: %+v", sb)
	}
	if n := o.gate.places("greedy"); n != len(held) {
		t.Errorf("%d places are held, of %d", n, len(held))
	}
	for _, tk := range held {
		tk.leave()
	}
	o.destroy(t, sb.ID)
	sb = mustCreate(t, o.Orchestrator, alice, CreateRequest{Hostname: "own"})
	o.destroy(t, sb.ID)
	if n, _ := o.gate.waiting(); n != 0 || o.gate.places(alice.Tenant) != 0 {
		t.Errorf("%d wait, %d places are held", n, o.gate.places(alice.Tenant))
	}
	o.ledger.mu.Lock()
	defer o.ledger.mu.Unlock()
	if o.ledger.sandboxes != 0 {
		t.Errorf("%d sandboxes are promised", o.ledger.sandboxes)
	}
}

package orchestrator

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	alice = Caller{Tenant: "default", Principal: "alice"}
	bob   = Caller{Tenant: "other", Principal: "bob"}
)

// ledgerOf is a Recorder that keeps what it is given, or refuses.
type evidence struct {
	mu      sync.Mutex
	records []sandbox.Record
	refuse  error
}

func (e *evidence) Record(ctx context.Context, r sandbox.Record) (sandbox.Position, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refuse != nil {
		return 0, e.refuse
	}
	e.records = append(e.records, r)
	return sandbox.Position(len(e.records)), nil
}

func (e *evidence) set(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refuse = err
}

// Err says why nothing is kept.
func (e *evidence) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.refuse
}

// actions lists "action outcome" of all records about a sandbox.
func (e *evidence) actions(id sandbox.ID) (out []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.records {
		if r.Sandbox == id {
			out = append(out, r.Action+" "+string(r.Outcome))
		}
	}
	return out
}

// told is where events go.
type told struct {
	mu     sync.Mutex
	events map[sandbox.ID][]event.Event
}

func (h *told) Publish(id sandbox.ID, e event.Event) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.events == nil {
		h.events = map[sandbox.ID][]event.Event{}
	}
	h.events[id] = append(h.events[id], e)
	return uint64(len(h.events[id])), nil
}

func (h *told) Size(id sandbox.ID) (n int64) {
	for _, e := range h.of(id) {
		n += int64(len(e.Data))
	}
	return n
}

func (h *told) Retain() time.Duration { return 24 * time.Hour }

func (h *told) Printed(id sandbox.ID, process string) (p event.Printed, err error) {
	for _, e := range h.of(id) {
		if e.Process != process {
			continue
		}
		p.Known = true
		switch end := int64(e.Offset) + int64(len(e.Data)); e.Type {
		case event.Started:
			p = event.Printed{Known: true}
		case event.Stdout, event.PTY:
			p.Stdout = end
		case event.Stderr:
			p.Stderr = end
		case event.Exit:
			p.Ended = true
		}
	}
	return p, nil
}

func (h *told) of(id sandbox.ID) []event.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]event.Event(nil), h.events[id]...)
}

// roots is a Templates with one template, whose leases are counted.
type roots struct {
	mu      sync.Mutex
	users   int
	damaged error
}

var hostTemplate = template.Template{Name: "host", Digest: "sha256:" + string(bytes.Repeat([]byte("a"), 64)),
	Root:  sandbox.Root{Digest: "sha256:" + string(bytes.Repeat([]byte("a"), 64))},
	Packs: []string{"python", "shell"}, Default: "python", Env: map[string]string{"LANG": "C.UTF-8"}}

func (r *roots) Resolve(ctx context.Context, name string) (template.Template, error) {
	if name != "host" && name != hostTemplate.Digest {
		return template.Template{}, sandbox.Errorf("template resolve", sandbox.KindNotFound, "no template called %q", name).WithHint("build it")
	}
	return hostTemplate, nil
}

func (r *roots) Choose(ctx context.Context, language string) (template.Template, error) {
	return template.Template{}, sandbox.Errorf("template resolve", sandbox.KindNotFound, "no template for %q", language).WithHint("build it")
}

func (r *roots) Check(context.Context, string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.damaged
}

func (r *roots) Acquire(digest string) (func(), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.users--
	}), nil
}

// world is everything around an Orchestrator that outlives it.
type world struct {
	t     *testing.T
	dir   string
	store *store.Store
	audit *evidence
	told  *told
	roots *roots
	sim   *sim.Backend
	log   *bytes.Buffer
	cfg   func(*Config)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), audit: &evidence{}, told: &told{}, roots: &roots{}}
	w.sim = sim.New(sim.Config{})
	var err error
	w.store, err = store.Open(t.Context(), filepath.Join(w.dir, "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if list, err := w.sim.List(context.Background()); err != nil || len(list) != 0 {
			t.Errorf("left behind: %v %v", list, err)
		}
		if err := w.sim.Close(); err != nil {
			t.Error(err)
		}
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
		if w.roots.users != 0 {
			t.Errorf("%d template leases left", w.roots.users)
		}
	})
	return w
}

// start returns a started Orchestrator over the world, closed at the end of the
// test.
func (w *world) start() *Orchestrator {
	w.t.Helper()
	o := w.stopped()
	if err := o.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) stopped() *Orchestrator {
	w.t.Helper()
	cfg := Config{Backends: []sandbox.Backend{w.sim}, Store: w.store, Recorder: w.audit, Events: w.told, Templates: w.roots,
		Runs: filepath.Join(w.dir, "runs"), Defaults: Defaults{Backend: "sim"}, DestroyOnClose: true,
		Memory: func() (int64, int64) { return 64 << 30, 48 << 30 }, Patience: 2 * time.Second, Log: slog.New(slog.NewTextHandler(testLog{w.t}, nil))}
	if w.cfg != nil {
		w.cfg(&cfg)
	}
	o, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.close(o) })
	return o
}

func (w *world) close(o *Orchestrator) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := o.Close(ctx); err != nil {
		w.t.Errorf("close: %v", err)
	}
}

// testLog shows log lines where a test fails.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

// collect is a Sink that keeps everything.
type collect struct {
	pid      int
	out, err bytes.Buffer
	each     func([]byte) error
}

func (c *collect) Started(pid int, _ uint64) error { c.pid = pid; return nil }
func (c *collect) Stdout(b []byte, _ uint64) error {
	c.out.Write(b)
	if c.each != nil {
		return c.each(b)
	}
	return nil
}
func (c *collect) Stderr(b []byte, _ uint64) error { c.err.Write(b); return nil }

func mustCreate(t *testing.T, o *Orchestrator, who Caller, req CreateRequest) Sandbox {
	t.Helper()
	sb, err := o.Create(t.Context(), who, req)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return sb
}

// sh makes an exec request of a shell script.
func sh(script string) ExecRequest { return ExecRequest{Code: &script, Pack: "shell"} }

func verb(args ...string) ExecRequest {
	cmd := "/.firebreak/firebreak-guest"
	return ExecRequest{Command: &cmd, Args: append([]string{"probe"}, args...)}
}

func mustExec(t *testing.T, o *Orchestrator, who Caller, id sandbox.ID, req ExecRequest) (ExecExit, *collect) {
	t.Helper()
	c := &collect{}
	exit, err := o.Exec(t.Context(), who, string(id), req, c)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return exit, c
}

func wantKind(t *testing.T, err error, kind sandbox.Kind) *sandbox.Error {
	t.Helper()
	if sandbox.KindOf(err) != kind {
		t.Fatalf("error %v is %q, want %q", err, sandbox.KindOf(err), kind)
	}
	var e *sandbox.Error
	errors.As(err, &e)
	return e
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

// simWithout is a model that does not enforce those limits.
func simWithout(l sandbox.LimitSet) *sim.Backend { return sim.New(sim.Config{Unenforced: l}) }

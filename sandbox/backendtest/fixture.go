package backendtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// suite is what the tests of one Run share.
type suite struct {
	Config
	b    sandbox.Backend
	dir  string
	info sandbox.Info
	base *residue.Baseline
	root string // name of the test that Run was called from

	mu   sync.Mutex
	boot time.Duration // guarded by mu; of the first instance
}

func newSuite(t *testing.T, cfg Config) *suite {
	s := &suite{Config: cfg, dir: cfg.Dir(t), root: t.Name() + "/Suite/"}
	s.b = cfg.New(t, s.dir)
	info, err := s.b.Info(deadline(t))
	if err != nil {
		t.Fatalf("Info: %v", err)
	}
	if !info.Available {
		s.b.Close()
		t.Skipf("not run: backend %s does not work here: %s (%s)", info.Name, info.Reason, info.Hint)
	}
	s.info = info
	if s.base, err = residue.Take(cfg.Scope(s.dir)); err != nil {
		t.Fatal(err)
	}
	return s
}

// skip ends a test that Config.Skip names.
func (s *suite) skip(t *testing.T) {
	t.Helper()
	if why, ok := s.Skip[strings.TrimPrefix(t.Name(), s.root)]; ok {
		t.Skipf("not run: %s", why)
	}
}

// asked reports whether a subtest of t is one of Config.Tests.
func (s *suite) asked(t *testing.T, name string) bool {
	return len(s.Tests) == 0 || slices.Contains(s.Tests, strings.TrimPrefix(t.Name()+"/"+name, s.root))
}

// sub runs a subtest, unless it is to be skipped.
func (s *suite) sub(t *testing.T, name string, f func(t *testing.T)) {
	if !s.asked(t, name) {
		return
	}
	t.Run(name, func(t *testing.T) {
		s.skip(t)
		f(t)
	})
}

// par is sub for tests that may run beside others.
func (s *suite) par(t *testing.T, name string, f func(t *testing.T)) {
	if !s.asked(t, name) {
		return
	}
	t.Run(name, func(t *testing.T) {
		s.skip(t)
		t.Parallel()
		f(t)
	})
}

// enforces ends the test unless the backend enforces all of set.
func (s *suite) enforces(t *testing.T, set sandbox.LimitSet) {
	t.Helper()
	if miss := set &^ s.info.Capabilities.Limits; miss != 0 {
		t.Skipf("not run: backend %s does not enforce %s here", s.info.Name, miss)
	}
}

// deadline is the test's context, ended after patience.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// spec is the specification of an ordinary instance.
func (s *suite) spec(t *testing.T) sandbox.Spec {
	return sandbox.Spec{
		Instance: sandbox.NewInstanceID(), Sandbox: sandbox.NewID(), Tenant: sandbox.DefaultTenant,
		Root:   s.Root(t),
		Limits: sandbox.Limits{Memory: 192 << 20, PIDs: 64, Disk: 64 << 20},
	}
}

// box is a live instance with a session on it.
type box struct {
	*testing.T
	s    *suite
	b    sandbox.Backend
	inst sandbox.Instance
	*guest.Session
	spec sandbox.Spec
}

// open boots an instance and destroys it, receipt and residue checked, when
// the test ends.
func (s *suite) open(t *testing.T, change ...func(*sandbox.Spec)) *box {
	t.Helper()
	spec := s.spec(t)
	for _, c := range change {
		c(&spec)
	}
	began := time.Now()
	inst, err := s.b.Create(deadline(t), spec)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	s.mu.Lock()
	if s.boot == 0 {
		s.boot = time.Since(began)
	}
	s.mu.Unlock()
	x := &box{T: t, s: s, b: s.b, inst: inst, spec: spec}
	t.Cleanup(func() { x.destroy(t) })
	if inst.ID() != spec.Instance {
		t.Fatalf("ID() = %s, want %s", inst.ID(), spec.Instance)
	}
	x.Session = x.dial()
	return x
}

// bootTime is how long an instance takes.
func (s *suite) bootTime(t *testing.T) time.Duration {
	t.Helper()
	s.open(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boot
}

// dial opens a session that lives until the test ends.
func (x *box) dial() *guest.Session {
	x.Helper()
	conn, err := x.inst.Dial(deadline(x.T))
	if err != nil {
		x.Fatalf("Dial: %v", err)
	}
	sess, err := guest.Open(deadline(x.T), conn, guest.Config{PIDs: x.spec.Limits.PIDs, Memory: x.spec.Limits.Memory})
	if err != nil {
		x.Fatalf("open a session: %v", err)
	}
	x.Cleanup(func() { sess.Close() })
	return sess
}

// destroy destroys x's instance and holds the receipt against the host.
func (x *box) destroy(t *testing.T) {
	t.Helper()
	checkDestroy(t, x.s, x.inst)
}

func checkDestroy(t *testing.T, s *suite, inst sandbox.Instance) sandbox.Receipt {
	t.Helper()
	r, err := inst.Destroy(deadline(t))
	if err != nil {
		t.Errorf("Destroy: %v", err)
	}
	checkReceipt(t, inst.ID(), r)
	s.checkGone(t, inst.ID())
	return r
}

// checkReceipt asserts that r is sealed, clean and about id.
func checkReceipt(t *testing.T, id sandbox.InstanceID, r sandbox.Receipt) {
	t.Helper()
	if r.Instance != id {
		t.Errorf("receipt is for %q, want %q", r.Instance, id)
	}
	if len(r.Objects) == 0 {
		t.Error("receipt lists no object: it proves nothing")
	}
	if r.Time.IsZero() {
		t.Error("receipt is not sealed")
	}
	if want := r.Seal().Clean; r.Clean != want {
		t.Errorf("receipt says clean=%v, its objects say %v", r.Clean, want)
	}
	for _, o := range r.Objects {
		if o.Kind == "" || o.Name == "" {
			t.Errorf("receipt object %+v cannot be looked up", o)
		}
		if o.Check == "" || o.Checked.IsZero() || o.Checked.After(r.Time) {
			t.Errorf("receipt: %s %s does not say how and when it was looked for (%q, %s)", o.Kind, o.Name, o.Check, o.Checked)
		}
		if !o.Gone {
			t.Errorf("receipt: %s %s is still there: %s", o.Kind, o.Name, o.Detail)
		}
	}
}

// checkGone asserts that neither the host nor the backend knows id.
func (s *suite) checkGone(t *testing.T, id sandbox.InstanceID) {
	t.Helper()
	for _, f := range residue.Of(s.Scope(s.dir), string(id)) {
		t.Errorf("left of %s: %s", id, f)
	}
	if s.listed(t, id) {
		t.Errorf("%s is still listed", id)
	}
	if _, err := s.b.Attach(deadline(t), id); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("Attach to what is gone: %v, want kind %s", err, sandbox.KindNotFound)
	}
}

// listed reports whether List shows id.
func (s *suite) listed(t *testing.T, id sandbox.InstanceID) bool {
	t.Helper()
	all, err := s.b.List(deadline(t))
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	for _, st := range all {
		if st.Instance == id {
			return true
		}
	}
	return false
}

// wantKind asserts err's kind and that it is a *sandbox.Error fit to show.
func wantKind(t *testing.T, what string, err error, kinds ...sandbox.Kind) {
	t.Helper()
	if err == nil {
		t.Errorf("%s succeeded, want kind %v", what, kinds)
		return
	}
	var e *sandbox.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %v (%T) is no *sandbox.Error", what, err, err)
		return
	}
	for _, k := range kinds {
		if e.Kind == k {
			return
		}
	}
	t.Errorf("%s: %v has kind %s, want %v", what, err, e.Kind, kinds)
}

// outcome is an exec that has ended.
type outcome struct {
	guest.Exit
	out, errs string
	took      time.Duration
}

// probe runs a verb to its end.
func (x *box) probe(verb ...string) outcome {
	x.Helper()
	return x.exec(guest.Command{Argv: x.argv(verb...)}, "")
}

func (x *box) argv(verb ...string) []string {
	return append([]string{x.s.Probe, "probe"}, verb...)
}

// exec runs c to its end with input, which sets c.Stdin when not empty.
func (x *box) exec(c guest.Command, input string) outcome {
	x.Helper()
	o, err := x.try(c, input)
	if err != nil {
		x.Fatalf("exec %q: %v", c.Argv, err)
	}
	return o
}

// try is exec for commands that may fail to start or to be followed.
func (x *box) try(c guest.Command, input string) (outcome, error) {
	ctx := deadline(x.T)
	began := time.Now()
	c.Stdin = c.Stdin || input != ""
	p, err := x.Exec(ctx, c)
	if err != nil {
		return outcome{}, err
	}
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	var wg sync.WaitGroup
	var out, errs bytes.Buffer
	var inErr, outErr, errsErr error
	wg.Go(func() { _, outErr = io.Copy(&out, p.Stdout()) })
	wg.Go(func() { _, errsErr = io.Copy(&errs, p.Stderr()) })
	if c.Stdin {
		wg.Go(func() {
			_, inErr = io.WriteString(p.Stdin(), input)
			p.Stdin().Close()
		})
	}
	exit, err := p.Wait(ctx)
	took := time.Since(began)
	wg.Wait()
	if err == nil {
		err = errors.Join(outErr, errsErr)
	}
	if err == nil && inErr != nil && sandbox.KindOf(inErr) != sandbox.KindGone {
		err = inErr // a program need not read all of its input
	}
	return outcome{exit, out.String(), errs.String(), took}, err
}

// start starts a verb and leaves it running.
func (x *box) start(verb ...string) *guest.Process {
	x.Helper()
	p, err := x.Exec(deadline(x.T), guest.Command{Argv: x.argv(verb...), Stdin: true})
	if err != nil {
		x.Fatalf("start %q: %v", verb, err)
	}
	return p
}

// until waits for the program to have written text to standard output, so that
// what follows cannot race its start.
func until(t *testing.T, p *guest.Process, text string) {
	t.Helper()
	stop := context.AfterFunc(deadline(t), func() { p.Close() })
	defer stop()
	var seen strings.Builder
	buf := make([]byte, 256)
	for !strings.Contains(seen.String(), text) {
		n, err := p.Stdout().Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("waiting for %q: got %q, then %v", text, seen.String(), err)
		}
	}
}

// wait waits for p's end.
func (x *box) wait(p *guest.Process) guest.Exit {
	x.Helper()
	e, err := p.Wait(deadline(x.T))
	if err != nil {
		x.Fatalf("wait: %v", err)
	}
	return e
}

// kill ends p and waits until it has ended.
func (x *box) kill(p *guest.Process) {
	x.Helper()
	p.Stdout().Close()
	p.Stderr().Close()
	if err := p.Signal(deadline(x.T), 9); err != nil {
		x.Errorf("kill: %v", err)
	}
	if e := x.wait(p); e.Signal != 9 || e.Reason != sandbox.ReasonDone {
		x.Errorf("a killed program ended with %+v", e)
	}
}

// decode runs a verb that prints JSON and decodes that into v.
func (x *box) decode(v any, verb ...string) {
	x.Helper()
	o := x.probe(verb...)
	if err := json.Unmarshal([]byte(o.out), v); err != nil || o.Code != 0 {
		x.Fatalf("%q: %v; %+v", verb, err, o)
	}
}

// settled waits until at most want processes are seen, and returns how many are
// seen at last. A killed group is dead when its leader's end is told; a kernel
// takes its members away one after another.
func (x *box) settled(want int) (n int) {
	x.Helper()
	for end := time.Now().Add(patience / 4); ; time.Sleep(10 * time.Millisecond) {
		if n = x.processes(); n <= want || time.Now().After(end) {
			return n
		}
	}
}

// processes is how many processes a program inside can see.
func (x *box) processes() int {
	x.Helper()
	var n struct{ Processes int }
	x.decode(&n, "tasks")
	return n.Processes
}

// alive asserts that the instance serves.
func (x *box) alive() {
	x.Helper()
	if o := x.probe("echo", "alive"); o.Code != 0 || o.out != "alive\n" {
		x.Errorf("the instance does not serve: %+v", o)
	}
}

// status returns Status, which must not fail.
func (x *box) status() sandbox.Status {
	x.Helper()
	st, err := x.inst.Status(deadline(x.T))
	if err != nil {
		x.Fatalf("Status: %v", err)
	}
	return st
}

// within asserts that took is no more than want, give or take a loaded
// machine.
func within(t *testing.T, what string, took, want time.Duration) {
	t.Helper()
	if took > want+slack {
		t.Errorf("%s took %s, want at most %s", what, took.Round(time.Millisecond), want)
	}
}

// slack is what a loaded machine may add to anything.
const slack = 3 * time.Second

// eventually asks ok again and again until it is true or patience ends.
func eventually(t *testing.T, ok func() bool) bool {
	t.Helper()
	ctx := deadline(t)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if ok() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

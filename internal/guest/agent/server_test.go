package agent_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// machine is a System in memory: its programs do what their name says, and it
// uses what a test says it does.
type machine struct {
	mu      sync.Mutex
	sample  agent.Sample
	running map[*task]bool
	killed  int
}

type task struct {
	m      *machine
	out    *io.PipeReader
	outW   *io.PipeWriter
	errs   *io.PipeReader
	status chan agent.Status
	once   sync.Once
	size   int
}

func (m *machine) Start(p agent.Program) (agent.Process, error) {
	if p.Argv[0] == "missing" {
		return nil, sandbox.Errorf("exec", sandbox.KindNotFound, "no such program")
	}
	t := &task{m: m, status: make(chan agent.Status, 1), size: len(p.Argv)}
	t.out, t.outW = io.Pipe()
	errs, w := io.Pipe()
	w.Close()
	t.errs = errs
	m.mu.Lock()
	m.running[t] = true
	m.mu.Unlock()
	if p.Argv[0] == "done" {
		go func() {
			t.outW.Write([]byte("done\n"))
			t.end(agent.Status{})
		}()
	}
	return t, nil
}

func (t *task) end(st agent.Status) {
	t.once.Do(func() {
		t.m.mu.Lock()
		delete(t.m.running, t)
		t.m.mu.Unlock()
		t.outW.Close()
		t.status <- st
	})
}

func (t *task) PID() int                                              { return 7 }
func (t *task) Stdio() (io.WriteCloser, io.ReadCloser, io.ReadCloser) { return nil, t.out, t.errs }
func (t *task) Signal(sig int) error                                  { t.end(agent.Status{Code: 128 + sig, Signal: sig}); return nil }
func (t *task) Resize(guest.Size) error                               { return nil }
func (t *task) Kill() error                                           { return t.Signal(9) }
func (t *task) Wait() agent.Status                                    { return <-t.status }

func (m *machine) Files(string) (agent.Files, error) { return nil, errors.New("no files") }

func (m *machine) Dial(context.Context, int) (agent.Conn, error) { return nil, errors.New("no ports") }

func (m *machine) Sample() (agent.Sample, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sample, nil
}

func (m *machine) set(tasks int, memory int64) {
	m.mu.Lock()
	m.sample = agent.Sample{Tasks: tasks, Memory: memory}
	m.mu.Unlock()
}

func (m *machine) KillAll() error {
	m.mu.Lock()
	all := m.running
	m.killed++
	m.running = map[*task]bool{}
	m.mu.Unlock()
	for t := range all {
		t.Kill()
	}
	return nil
}

func (m *machine) KillLargest(running []agent.Process) (agent.Process, error) {
	var largest *task
	for _, p := range running {
		if t := p.(*task); largest == nil || t.size > largest.size {
			largest = t
		}
	}
	m.set(0, 0)
	return largest, largest.Kill()
}

// connect serves srv on a pipe and opens it.
func connect(t *testing.T, srv *agent.Server, cfg guest.Config) (*guest.Session, chan error) {
	t.Helper()
	host, conn := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), conn) }()
	s, err := guest.Open(ctx(t), host, cfg)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s, served
}

func start(t *testing.T, s *guest.Session, argv ...string) *guest.Process {
	t.Helper()
	p, err := s.Exec(ctx(t), guest.Command{Argv: argv})
	must(t, err)
	return p
}

// TestThresholds: exactly the limit is fine, for as long as one likes; more is
// not, once it is seen twice.
func TestThresholds(t *testing.T) {
	m := &machine{running: map[*task]bool{}}
	srv := agent.New(m, "test")
	defer srv.Close()
	s, _ := connect(t, srv, guest.Config{PIDs: 10, Memory: 100})
	p, q := start(t, s, "small"), start(t, s, "large", "x")
	m.set(10, 100)
	time.Sleep(150 * time.Millisecond)
	if m.killed != 0 || len(m.running) != 2 {
		t.Fatal("killed at the limit")
	}
	m.set(10, 101)
	_, _, e := finish(t, q)
	if e.Reason != sandbox.ReasonMemory || e.Code != 137 || e.Detail != "limit 100 B" {
		t.Errorf("memory: %+v", e)
	}
	if len(m.running) != 1 {
		t.Errorf("the small one went too")
	}
	m.set(11, 0)
	_, _, e = finish(t, p)
	if e.Reason != sandbox.ReasonPIDs || e.Detail != "limit 10" {
		t.Errorf("pids: %+v", e)
	}
	if out, _, e := finish(t, start(t, s, "done")); out != "done\n" || e.Reason != sandbox.ReasonDone {
		t.Errorf("afterwards: %q %+v", out, e)
	}
}

// TestTakeover: a new connection ends the old one and takes its programs up.
func TestTakeover(t *testing.T) {
	m := &machine{running: map[*task]bool{}}
	srv := agent.New(m, "test")
	defer srv.Close()
	first, served := connect(t, srv, guest.Config{})
	id := start(t, first, "waits").ID()
	second, _ := connect(t, srv, guest.Config{})
	if err := <-served; err == nil {
		t.Error("the old connection ended without an error")
	}
	<-first.Done()
	p, err := second.Reattach(ctx(t), id, guest.Position{})
	must(t, err)
	must(t, p.Signal(ctx(t), 15))
	if _, _, e := finish(t, p); e.Code != 143 {
		t.Errorf("%+v", e)
	}
}

// TestErrors: what the agent cannot do, it says so, typed.
func TestErrors(t *testing.T) {
	srv := agent.New(&machine{running: map[*task]bool{}}, "test")
	defer srv.Close()
	s, _ := connect(t, srv, guest.Config{})
	_, err := s.Exec(ctx(t), guest.Command{Argv: []string{"missing"}})
	if sandbox.KindOf(err) != sandbox.KindNotFound || err.Error() != "exec: no such program" {
		t.Errorf("%v", err)
	}
	_, err = s.Exec(ctx(t), guest.Command{Argv: []string{"x", strings.Repeat("y", 300<<10)}})
	if sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Errorf("%v", err)
	}
	for _, c := range []guest.Command{{}, {Argv: []string{"a\x00b"}}, {Argv: []string{"a"}, Env: []string{"X"}}, {Argv: []string{"a"}, Timeout: -1}} {
		if _, err := s.Exec(ctx(t), c); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := s.Stat(ctx(t), "x", ""); sandbox.KindOf(err) != sandbox.KindInternal {
		t.Errorf("%v", err)
	}
}

// TestNothingIsLeft: no goroutine outlives Close.
func TestNothingIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 5 {
		srv := agent.New(&machine{running: map[*task]bool{}}, "test")
		s, served := connect(t, srv, guest.Config{PIDs: 5})
		start(t, s, "waits")
		finish(t, start(t, s, "done"))
		srv.Close()
		<-served
		<-s.Done()
		s.Close()
	}
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

// finish reads all output and waits.
func finish(t testing.TB, p *guest.Process) (stdout, stderr string, e guest.Exit) {
	t.Helper()
	var errs []byte
	done := make(chan struct{})
	go func() { defer close(done); errs, _ = io.ReadAll(p.Stderr()) }()
	out, err := io.ReadAll(p.Stdout())
	must(t, err)
	<-done
	e, err = p.Wait(ctx(t))
	must(t, err)
	return string(out), string(errs), e
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package orchestrator

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest/probe"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// printed is what a sandbox's events say that its processes printed, and how
// they ended.
func (w *world) printed(id sandbox.ID) (stdout string, exits []ExitEvent) {
	var b bytes.Buffer
	for _, e := range w.told.of(id) {
		switch e.Type {
		case event.Stdout:
			b.Write(e.Data)
		case event.Exit:
			var x ExitEvent
			if err := json.Unmarshal(e.Data, &x); err != nil {
				w.t.Error(err)
			}
			exits = append(exits, x)
		}
	}
	return b.String(), exits
}

func (w *world) exited(id sandbox.ID, n int) []ExitEvent {
	w.t.Helper()
	eventually(w.t, "the processes have ended", func() bool {
		_, exits := w.printed(id)
		return len(exits) >= n
	})
	_, exits := w.printed(id)
	if len(exits) > n {
		w.t.Errorf("%d ends of %d processes: %+v", len(exits), n, exits)
	}
	return exits
}

func pattern(n int) string {
	b := make([]byte, n)
	probe.Pattern(0, b, true)
	return string(b)
}

// journalled is how many files the journal has, but for what it remembers of
// processes that have ended.
func (w *world) journalled() (n int) {
	files := w.journal()
	for _, f := range files {
		var e entry
		// What is not an entry, or is gone since, is no end either.
		if b, err := os.ReadFile(filepath.Join(w.dir, "processes", f)); err != nil || json.Unmarshal(b, &e) != nil || e.End == nil {
			n++
		}
	}
	return n
}

// journal are the files in it.
func (w *world) journal() (names []string) {
	files, err := os.ReadDir(w.dir + "/processes")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

// A connection that breaks, and breaks again, loses nothing and repeats
// nothing, in either direction, and the process never knows.
func TestBrokenConnection(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	l := o.find(alice.Tenant, string(sb.ID))
	broken := 0
	breaking := func(every int) func([]byte) error {
		left := every
		return func(b []byte) error {
			if left -= len(b); left <= 0 {
				left = every/2 + rand.IntN(every)
				s, err := l.session(t.Context())
				if err != nil {
					return err
				}
				broken++
				s.Close()
			}
			return nil
		}
	}
	const size = 8_000_000
	stdin := func() ExecRequest {
		cat := "cat"
		return ExecRequest{Command: &cat, Stdin: strings.NewReader(pattern(size))}
	}
	for name, req := range map[string]ExecRequest{"output": verb("out", "8000000"), "input": stdin()} {
		broken = 0
		c := &collect{each: breaking(300_000)}
		exit, err := o.Exec(t.Context(), alice, string(sb.ID), req, c)
		if err != nil || exit.Code != 0 || exit.Reason != sandbox.ReasonDone {
			t.Errorf("%s: %+v, %v", name, exit, err)
		}
		if c.out.String() != pattern(size) {
			t.Errorf("%s: %d bytes came, of %d, or others", name, c.out.Len(), size)
		}
		if broken < 5 {
			t.Errorf("%s: the connection broke only %d times", name, broken)
		}
	}
	if all, _ := w.printed(sb.ID); all != pattern(size)+pattern(size) {
		t.Errorf("%d bytes in events, of %d, or others", len(all), 2*size)
	}
	// One whose input cannot be read again is ended, and says so.
	r, wr := io.Pipe()
	defer wr.Close()
	cat := "cat"
	c := &collect{each: func([]byte) error { s, _ := l.session(t.Context()); s.Close(); return nil }}
	go io.WriteString(wr, "once")
	exit, err := o.Exec(t.Context(), alice, string(sb.ID), ExecRequest{Command: &cat, Stdin: r}, c)
	if err != nil || exit.Reason != sandbox.ReasonCrashed || !strings.Contains(exit.Detail, "standard input") {
		t.Errorf("%+v, %v", exit, err)
	}
	if exit, c := mustExec(t, o, alice, sb.ID, sh("echo on")); c.out.String() != "on\n" {
		t.Errorf("%+v %q", exit, c.out.String())
	}
	if n := w.journalled(); n != 0 || len(l.execs) != 0 {
		t.Errorf("%d files, %d executions are left", n, len(l.execs))
	}
}

// A connection that breaks when the end of the process has been heard of, but
// not yet all that it printed.
func TestBrokenAfterTheEnd(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	l := o.find(alice.Tenant, string(sb.ID))
	for range 60 {
		left := 300_000
		c := &collect{each: func(b []byte) error {
			if left -= len(b); left > 0 && left < 3*chunk {
				s, err := l.session(t.Context())
				if err != nil {
					return err
				}
				s.Close()
			}
			return nil
		}}
		exit, err := o.Exec(t.Context(), alice, string(sb.ID), verb("out", "300000"), c)
		if err != nil || exit.Code != 0 || exit.Reason != sandbox.ReasonDone || c.out.String() != pattern(300_000) {
			t.Fatalf("%+v, %v, %d bytes", exit, err, c.out.Len())
		}
	}
}

// Processes run on while there is no server, and the next one follows them from
// the first byte that is not among the events, as often as it takes.
func TestRestartFollowsProcesses(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	const size = 6_000_000
	cat := "cat"
	var wg sync.WaitGroup
	begin := func(req ExecRequest) {
		started := make(chan struct{})
		sink := &signalSink{started: started}
		wg.Go(func() { _, _ = o.Exec(t.Context(), alice, string(sb.ID), req, sink) })
		<-started
	}
	begin(ExecRequest{Command: &cat, Stdin: strings.NewReader(pattern(size))})
	for range 6 {
		before, _ := w.printed(sb.ID)
		eventually(t, "it goes on", func() bool {
			now, exits := w.printed(sb.ID)
			return len(now) > len(before)+size/20 || len(exits) > 0
		})
		w.abandon(o)
		wg.Wait()
		o.work.Wait() // a killed process publishes nothing any more
		o = w.start()
	}
	exits := w.exited(sb.ID, 1)
	if all, _ := w.printed(sb.ID); all != pattern(size) || exits[0].Code != 0 || exits[0].Reason != sandbox.ReasonDone {
		t.Errorf("%d bytes of %d, or others; %+v", len(all), size, exits)
	}

	// Those that end meanwhile: by themselves, with a result, by their deadline.
	begin(sh("sleep 0.3; echo done; exit 3"))
	begin(within(verb("sleep", "60s"), 500*time.Millisecond))
	w.abandon(o)
	wg.Wait()
	time.Sleep(time.Second)
	if n := w.journalled(); n != 2 {
		t.Errorf("%d files in the journal", n)
	}
	w.cfg = nil
	o = w.start()
	exits = w.exited(sb.ID, 3)
	codes := map[int]ExitEvent{}
	for _, e := range exits {
		codes[e.Code] = e
	}
	if e := codes[3]; e.Reason != sandbox.ReasonDone || e.Duration < 200 || e.Duration > 900 {
		t.Errorf("%+v", exits)
	}
	if codes[124].Reason != sandbox.ReasonTimeout {
		t.Errorf("%+v", exits)
	}
	if all, _ := w.printed(sb.ID); all != pattern(size)+"done\n" {
		t.Errorf("%d bytes", len(all))
	}
	eventually(t, "the journal is empty", func() bool { return w.journalled() == 0 })
	kills := 0
	for _, a := range w.audit.actions(sb.ID) {
		if a == "process.kill done" {
			kills++
		}
	}
	if kills != 1 {
		t.Errorf("%d kills in the evidence", kills)
	}
}

// A process whose sandbox dies while there is no server, or is ended by the
// next one, has its end among the events, before that of the sandbox.
func TestRestartLosesProcesses(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	minute := time.Minute
	dead, live := mustCreate(t, o, alice, CreateRequest{}), mustCreate(t, o, alice, CreateRequest{Timeout: &minute})
	var wg sync.WaitGroup
	r, wr := io.Pipe()
	for _, c := range []struct {
		id    sandbox.ID
		stdin io.Reader
	}{{dead.ID, nil}, {live.ID, r}} {
		req := within(verb("sleep", "3600s"), 0)
		req.Stdin = c.stdin
		started := make(chan struct{})
		sink := &signalSink{started: started}
		wg.Go(func() { _, _ = o.Exec(t.Context(), alice, string(c.id), req, sink) })
		<-started
	}
	w.abandon(o)
	wg.Wait()
	wr.Close()
	inst, err := w.sim.Attach(t.Context(), dead.Instance)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.cfg = nil
	o = w.start()
	if e := w.exited(dead.ID, 1)[0]; e.Code != 137 || e.Reason != sandbox.ReasonLost {
		t.Errorf("%+v", e)
	}
	if all := w.told.of(dead.ID); !all[len(all)-1].Final || all[len(all)-1].Type != event.StateChange {
		t.Errorf("the last event is %+v", all[len(all)-1])
	}
	if e := w.exited(live.ID, 1)[0]; e.Code != 137 || e.Reason != sandbox.ReasonLost || !strings.Contains(e.Detail, "input") {
		t.Errorf("%+v", e)
	}
	mustExec(t, o, alice, live.ID, sh("true"))
	if n := w.journalled(); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// Crashes between any two steps of a process's life: what it printed and how it
// ended is told once.
func TestCrashAnywhereInExec(t *testing.T) {
	for point, want := range map[string]int{"exec/after-evidence": 0, "exec/after-start": 0, "exec/after-journal": 1, "exec/after-started": 1,
		"exec/after-exit": 1, "exec/after-exit-evidence": 1, "exec/after-report": 1, "exec/after-end": 1} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.cfg = w.keep
			o := w.start()
			sb := mustCreate(t, o, alice, CreateRequest{})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			if !crashAt(point, func() {
				go func() {
					defer close(done)
					_, _ = o.Exec(ctx, alice, string(sb.ID), verb("out", "100000"), &collect{})
				}()
				select {
				case <-done:
				case <-time.After(300 * time.Millisecond): // a pump died, and the rest waits for it
				}
			}) {
				t.Fatal("the point was not hit")
			}
			w.abandon(o)
			cancel()
			w.cfg = nil
			o = w.start()
			if want == 0 {
				s, err := o.find(alice.Tenant, string(sb.ID)).session(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "nothing runs", func() bool {
					procs, err := s.Processes(t.Context())
					for _, p := range procs {
						if p.Exit == nil {
							return false
						}
					}
					return err == nil
				})
			}
			exits := w.exited(sb.ID, want)
			all, _ := w.printed(sb.ID)
			if want == 1 && (all != pattern(100000) || exits[0].Reason != sandbox.ReasonDone || exits[0].Code != 0) || want == 0 && all != "" {
				t.Errorf("%d bytes, %+v", len(all), exits)
			}
			eventually(t, "the journal is empty", func() bool { return w.journalled() == 0 })
		})
	}
}

// A run goes on where a killed server left it, and ends with its result.
func TestRestartGoesOnWithRuns(t *testing.T) {
	for _, point := range []string{"exec/after-exit", "exec/after-exit-evidence", "exec/after-report", "run/after-exec", "run/after-artifacts"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.cfg = w.keep
			o := w.start()
			made := make(chan Run, 1)
			if !crashAt(point, func() {
				r, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: sh("echo kept > a; echo out; echo err >&2; exit 4"), Artifacts: []string{"a"}})
				if err != nil {
					t.Error(err)
				}
				made <- r
				time.Sleep(500 * time.Millisecond)
			}) {
				t.Fatal("the point was not hit")
			}
			o.mu.Lock()
			for _, r := range o.runs { // what goes on of it must not end it
				r.mu.Lock()
				r.left = true
				r.mu.Unlock()
			}
			o.mu.Unlock()
			w.abandon(o)
			w.cfg = nil
			o = w.start()
			r := finished(t, o, (<-made).ID)
			if r.ExitCode != 4 || r.Reason != sandbox.ReasonDone || r.Report.Error != nil || len(r.Artifacts) != 1 || r.Artifacts[0].Size != 5 ||
				r.Report.Receipt == nil || !r.Report.Receipt.Clean || r.Timings["execute"] <= 0 || r.Timings["create"] <= 0 {
				t.Errorf("%+v", r)
			}
			stdout, stderr, err := o.RunOutput(r.ID)
			if err != nil || string(stdout) != "out\n" || string(stderr) != "err\n" {
				t.Errorf("%q, %q, %v", stdout, stderr, err)
			}
			if all, exits := w.printed(r.Sandbox); all != "out\n" || len(exits) != 1 {
				t.Errorf("%q, %+v", all, exits)
			}
			if sb, err := o.Get(t.Context(), alice.Tenant, string(r.Sandbox)); err != nil || sb.State != store.Ended || sb.Reason != sandbox.ReasonDone {
				t.Errorf("%+v, %v", sb, err)
			}
			if n := w.journalled(); n != 0 {
				t.Errorf("%d files are left", n)
			}
		})
	}
}

// A server that is stopped leaves runs and processes to the next one, as one
// that is killed does.
func TestStopLeavesProcesses(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	ctx, stop := context.WithCancelCause(t.Context())
	started := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := o.Exec(ctx, alice, string(sb.ID), sh("sleep 0.5; echo still"), &signalSink{started: started})
		ended <- err
	}()
	<-started
	r, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: sh("sleep 0.5; echo run")})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run runs", func() bool { return len(o.runs[r.ID].snapshot().Report.Phase) > 0 && w.journalled() == 2 })
	stop(stopping("call")) // what the server does to requests that do not end in time
	wantKind(t, <-ended, sandbox.KindUnavailable)
	w.close(o)
	if n := w.journalled(); n != 2 {
		t.Errorf("%d files in the journal", n)
	}
	w.cfg = nil
	o = w.start()
	if e := w.exited(sb.ID, 1)[0]; e.Code != 0 {
		t.Errorf("%+v", e)
	}
	if all, _ := w.printed(sb.ID); all != "still\n" {
		t.Errorf("%q", all)
	}
	if r := finished(t, o, r.ID); r.ExitCode != 0 || r.Reason != sandbox.ReasonDone {
		t.Errorf("%+v", r)
	}
}

// The time without a server counts as unused, too.
func TestRestartEnforcesIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg = w.keep
		o := w.start()
		hour := time.Hour
		never := time.Duration(0)
		old := mustCreate(t, o, alice, CreateRequest{IdleTimeout: &hour, Timeout: &never})
		fresh := mustCreate(t, o, alice, CreateRequest{IdleTimeout: &hour, Timeout: &never})
		time.Sleep(50 * time.Minute)
		mustExec(t, o, alice, fresh.ID, sh("true"))
		w.abandon(o)
		time.Sleep(20 * time.Minute)
		w.cfg = nil
		o = w.start()
		if sb, dead := ended(t, o, old.ID); !dead || sb.Reason != sandbox.ReasonIdle {
			t.Errorf("%+v", sb)
		}
		if sb, dead := ended(t, o, fresh.ID); dead {
			t.Errorf("%+v", sb)
		}
		time.Sleep(41 * time.Minute)
		if sb, dead := ended(t, o, fresh.ID); !dead || sb.Reason != sandbox.ReasonIdle {
			t.Errorf("%+v", sb)
		}
	})
}

//go:build linux

package chaos

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ticks prints a line each half second.
func ticks(n int) string {
	return fmt.Sprintf(`{"code":"import time\nfor i in range(%d):\n  print(i, flush=True)\n  time.sleep(.5)"}`, n)
}

func counted(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// begin does something that takes long, and returns where its answer will come.
func begin(do func() answer) <-chan answer {
	c := make(chan answer, 1)
	go func() { c <- do() }()
	return c
}

// stopped stops a process until resume, or the end of the test.
func stopped(t *testing.T, pid int) (resume func()) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = func() { syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(resume)
	return resume
}

// instanceOf finds the directory of a sandbox.
func (w *world) instanceOf(id string) string {
	w.t.Helper()
	dirs, _ := filepath.Glob(filepath.Join(w.data, "instances", "in*"))
	for _, d := range dirs {
		if sandbox, _ := victims(d); sandbox == id {
			w.see(filepath.Base(d))
			return d
		}
	}
	w.t.Fatalf("there is no instance of %s", id)
	return ""
}

// TestStoppedServer stops the server with SIGSTOP for longer than any of its
// patience. It finds everything as it left it: nobody is declared dead for the
// server's own absence, and deadlines that passed meanwhile are kept at once.
func TestStoppedServer(t *testing.T) {
	pause := 17 * time.Second
	if long() {
		pause = time.Minute
	}
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	s := w.serve("", "--stop-sandboxes")
	s.http.Timeout = 3 * time.Minute
	id := s.create()
	busy := begin(func() answer { return s.send("POST", "/v1/sandboxes/"+id+"/exec", ticks(20)) })
	short := s.send("POST", "/v1/sandboxes", `{"timeout_ms":6000}`)
	if short.status != http.StatusCreated {
		t.Fatal(short)
	}
	time.Sleep(time.Second)
	resume := stopped(t, s.cmd.Process.Pid)
	late := begin(func() answer { return s.send("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"print(6*7)"}`) })
	time.Sleep(pause)
	resume()
	begun := time.Now()
	if a := <-busy; a.reply.Stdout != counted(20) || a.reply.Reason != "done" {
		t.Errorf("the exec that ran on: %v", a)
	}
	if a := <-late; a.reply.Stdout != "42\n" {
		t.Errorf("the exec that was asked for meanwhile: %v", a)
	}
	soon(t, "the deadline that passed", 10*time.Second, func() error {
		a := s.send("GET", "/v1/sandboxes/"+short.reply.ID, "")
		if a.reply.State != "ended" || a.reply.Reason != "timeout" {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	t.Logf("all over %s after %s of absence", time.Since(begun).Round(time.Millisecond), pause)
	if err := s.works(); err != nil {
		t.Error(err)
	}
	s.destroy(id)
	s.stop()
}

// TestStoppedSandbox stops a sentry, and in another sandbox the process that
// executes the agent. They freeze and go on; nobody else notices.
func TestStoppedSandbox(t *testing.T) {
	pause := 24 * time.Second
	if long() {
		pause = time.Minute
	}
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	s := w.serve("", "--stop-sandboxes")
	s.http.Timeout = 3 * time.Minute
	type frozen struct {
		role, id string
		busy     <-chan answer
	}
	var all []frozen
	var resume []func()
	for _, role := range []string{"sentry", "agent"} {
		f := frozen{role: role, id: s.create()}
		f.busy = begin(func() answer { return s.send("POST", "/v1/sandboxes/"+f.id+"/exec", ticks(8)) })
		time.Sleep(1500 * time.Millisecond)
		_, pids := victims(w.instanceOf(f.id))
		if pids[role] == 0 {
			t.Fatalf("no %s in %v", role, pids)
		}
		resume = append(resume, stopped(t, pids[role]))
		all = append(all, f)
	}
	begun := time.Now()
	for n := 0; time.Since(begun) < pause; n++ {
		at := time.Now()
		if err := s.works(); err != nil {
			t.Errorf("a neighbour, %s into it: %v", time.Since(begun).Round(time.Second), err)
		}
		if took := time.Since(at); took > 10*time.Second {
			t.Errorf("a neighbour took %s", took)
		}
		time.Sleep(2 * time.Second)
	}
	for _, r := range resume {
		r()
	}
	for _, f := range all {
		a := <-f.busy
		switch {
		case a.status == http.StatusOK && a.reply.Reason == "done" && a.reply.Stdout == counted(8):
			t.Logf("%s: the exec went on", f.role)
		default:
			t.Errorf("%s: the exec that was frozen: %v", f.role, a)
		}
		s.execs(f.id)
		s.destroy(f.id)
	}
	s.stop()
}

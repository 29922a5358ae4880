//go:build linux

package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
)

// diskOp is an operation that meets a full disk, on a living sandbox that has
// the file "kept".
type diskOp struct {
	name string
	do   func(s *server, id string) answer
	must bool // works all the same
}

var diskOps = []diskOp{
	{name: "create", do: func(s *server, _ string) answer { return s.send("POST", "/v1/sandboxes", `{}`) }},
	{name: "exec", do: func(s *server, id string) answer {
		a := s.send("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"for i in range(4000): print('%08d'%i+'x'*91)"}`)
		if want := 4000 * 100; a.status == http.StatusOK && len(a.reply.Stdout) != want {
			return answer{err: fmt.Errorf("%d bytes of output instead of %d", len(a.reply.Stdout), want)}
		}
		return a
	}},
	{name: "write", do: func(s *server, id string) answer {
		body := strings.Repeat("b", 1<<20)
		a := s.send("PUT", "/v1/sandboxes/"+id+"/files?path=big", body)
		if a.status != http.StatusOK {
			return a
		}
		if got := s.send("GET", "/v1/sandboxes/"+id+"/files?path=big", ""); got.status == http.StatusOK && string(got.body) != body {
			return answer{err: fmt.Errorf("an acknowledged file reads as %d bytes", len(got.body))}
		}
		return a
	}},
	{name: "read", do: func(s *server, id string) answer {
		return s.send("GET", "/v1/sandboxes/"+id+"/files?path=kept", "")
	}},
	{name: "run", do: func(s *server, _ string) answer {
		a := s.send("POST", "/v1/runs", `{"program":{"code":"open('a','w').write('x'*300000)"},"artifacts":["a"]}`)
		if a.status != http.StatusCreated {
			return a
		}
		a = s.send("GET", "/v1/runs/"+a.reply.ID+"?wait_ms=20000", "")
		var run struct {
			State, Reason string
			Error         *struct{ Kind, Hint string }
			Artifacts     []struct {
				Size  int64
				Error string
			}
		}
		switch err := json.Unmarshal(a.body, &run); {
		case err != nil || run.State != "ended":
			return answer{err: fmt.Errorf("the run is not over: %v %v", err, a)}
		case run.Error != nil && run.Error.Kind == "no_space" && run.Error.Hint != "": // it says so itself
		case run.Reason == "disk":
		case run.Error != nil || len(run.Artifacts) != 1 || run.Artifacts[0].Size != 300000 && run.Artifacts[0].Error == "":
			return answer{err: fmt.Errorf("the run is neither whole nor explained: %v", a)}
		}
		return a
	}},
	{name: "template", do: func(s *server, _ string) answer { return s.send("POST", "/v1/templates", `{"name":"shell"}`) }},
	{name: "key", do: func(s *server, _ string) answer { return s.send("POST", "/v1/keys", `{"name":"k","role":"viewer"}`) }},
	{name: "get", do: func(s *server, id string) answer { return s.send("GET", "/v1/sandboxes/"+id, "") }, must: true},
	{name: "list", do: func(s *server, _ string) answer { return s.send("GET", "/v1/sandboxes", "") }, must: true},
	{name: "destroy", do: func(s *server, id string) answer {
		a := s.send("DELETE", "/v1/sandboxes/"+id, "")
		if a.status == http.StatusOK && (a.reply.Receipt == nil || !a.reply.Receipt.Clean) {
			return answer{err: fmt.Errorf("no clean receipt: %s", a.body)}
		}
		return a
	}, must: true},
}

// TestDiskFullDuringEach fills the disk of the data directory before and in the
// middle of every operation. Each one works or is refused with a reason and a
// hint; ends work; nothing acknowledged is lost; with space again everything
// works without a restart, and the evidence is whole.
func TestDiskFullDuringEach(t *testing.T) {
	w := newWorld(t, mounted(t, "chaos", "tmpfs", "size=108m,mode=700,nosuid,nodev"))
	w.tidy()
	s := w.serve("")
	for _, how := range []string{"before", "during"} {
		for _, op := range diskOps {
			if how == "during" && (op.must && op.name != "destroy" || op.name == "template") {
				continue // nothing to write; or, with luck, a template that takes its time
			}
			t.Run(op.name+"/"+how, func(t *testing.T) { s.meetsFullDisk(t, op, how) })
		}
	}
	t.Run("recovery", func(t *testing.T) {
		// A server that cannot start for want of space says so; one that can,
		// with the disk full, works as far as the disk goes. Both lose nothing.
		id := s.create()
		s.cmd.Process.Kill()
		s.wait()
		ballast := filepath.Join(w.data, "ballast")
		fill(t, ballast)
		out, err := w.startOnFullDisk()
		t.Logf("serve on a full disk: %v, %.300s", err, out)
		if !strings.Contains(out, "no space") && !strings.Contains(out, "full") && !strings.Contains(out, "http://") {
			t.Errorf("it neither started nor said why: %s", out)
		}
		os.Remove(ballast)
		s = w.serve("", "--stop-sandboxes")
		s.execs(id)
		s.destroy(id)
	})
	s.stop()
	if _, err := audit.Verify(filepath.Join(w.data, "audit", "server")); err != nil {
		t.Error(err)
	}
}

// startOnFullDisk starts a server and kills it once it has said what it has to.
func (w *world) startOnFullDisk() (string, error) {
	cmd, out := w.command("serve", "--listen", "127.0.0.1:0"), &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			return out.String(), err
		default:
		}
		if strings.Contains(out.String(), "http://") {
			break
		}
	}
	cmd.Process.Kill()
	return out.String(), <-ended
}

func (s *server) meetsFullDisk(t *testing.T, op diskOp, how string) {
	id := s.create()
	const kept = "what was acknowledged before"
	if a := s.send("PUT", "/v1/sandboxes/"+id+"/files?path=kept", kept); a.status != http.StatusOK {
		t.Fatal(a)
	}
	ballast := filepath.Join(s.data, "ballast")
	stop := func() { os.Remove(ballast) }
	if how == "before" {
		fill(t, ballast)
	} else {
		stop = churn(ballast)
	}
	defer stop()
	outcome := map[int]int{}
	for range 3 {
		a := op.do(s, id)
		s.see(string(a.body))
		outcome[a.status]++
		if a.status/100 == 2 {
			continue
		}
		if a.refused(t, op.name, "no_space"); op.must {
			t.Errorf("%s must work on a full disk: %v", op.name, a)
		}
		if how == "during" {
			time.Sleep(50 * time.Millisecond)
		}
	}
	stop()
	t.Log(outcome)
	soon(t, "with space again", 20*time.Second, s.works)
	if op.name != "destroy" {
		if a := s.send("GET", "/v1/sandboxes/"+id+"/files?path=kept", ""); string(a.body) != kept {
			t.Errorf("an acknowledged file, afterwards: %v", a)
		}
		s.destroy(id)
	}
}

// TestNoInodes uses up the inodes of the data directory's disk. It is a full
// disk like any other.
func TestNoInodes(t *testing.T) {
	w := newWorld(t, mounted(t, image(t, 512<<20, "-N", "4096"), "ext4", "loop,nosuid,nodev"))
	w.tidy()
	s := w.serve("", "--stop-sandboxes")
	id, doomed := s.create(), s.create()
	dir := filepath.Join(w.data, "ballast")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	for n := 0; err == nil && n < 10000; n++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk does not run out of inodes: %v", err)
	}
	time.Sleep(1100 * time.Millisecond) // what the server knows of its disk may be a second old
	for what, a := range map[string]answer{
		"create":   s.send("POST", "/v1/sandboxes", `{}`),
		"run":      s.send("POST", "/v1/runs", `{"program":{"code":"1"}}`),
		"template": s.send("POST", "/v1/templates", `{"name":"shell"}`),
	} {
		if a.status == http.StatusCreated {
			continue // it was not needed, or the kernel had one left
		}
		a.refused(t, what, "no_space")
	}
	s.execs(id) // needs none, or says so
	s.destroy(doomed)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	soon(t, "with inodes again", 20*time.Second, s.works)
	s.execs(id)
	s.destroy(id)
	s.stop()
	w.verified()
}

// inject makes system calls of a running server fail or slow, until stop.
func (s *server) inject(what string) (stop func()) {
	s.t.Helper()
	cmd, out := exec.Command("strace", "-f", "-p", strconv.Itoa(s.cmd.Process.Pid), "-o", "/dev/null",
		"-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:"+what), &output{}
	cmd.Stderr = out
	if err := cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		s.t.Skip("not run: needs strace")
	} else if err != nil {
		s.t.Fatal(err)
	}
	soon(s.t, "strace", 10*time.Second, func() error {
		if !strings.Contains(out.String(), "attached") {
			return errors.New(out.String())
		}
		return nil
	})
	stop = sync.OnceFunc(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() })
	s.t.Cleanup(stop)
	return stop
}

// TestSlowDisk makes every flush take a fifth of a second. Things take longer,
// callers share flushes, and nothing fails.
func TestSlowDisk(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	s := w.serve("", "--stop-sandboxes")
	id := s.create()
	const flush, callers = 200 * time.Millisecond, 16
	stop := s.inject(fmt.Sprintf("delay_enter=%d", flush.Microseconds()))
	begun := time.Now()
	for i, a := range crowd(callers, func(i int) answer {
		return s.send("POST", "/v1/sandboxes/"+id+"/exec", fmt.Sprintf(`{"code":"print(%d)"}`, i))
	}) {
		if a.reply.Stdout != fmt.Sprintln(i) {
			t.Errorf("exec %d: %v", i, a)
		}
	}
	took := time.Since(begun)
	t.Logf("%d execs in %s", callers, took.Round(time.Millisecond))
	if a := s.send("PUT", "/v1/sandboxes/"+id+"/files?path=f", "slow"); a.status != http.StatusOK {
		t.Error(a)
	}
	if a := s.send("GET", "/v1/sandboxes/"+id, ""); a.status != http.StatusOK {
		t.Error(a)
	}
	stop()
	s.execs(id)
	s.destroy(id)
	s.stop()
	w.verified()
}

// TestFailedFlush lets a flush fail. What it was about is not known to be on
// disk, so nothing is done on the strength of it; the server says so and ends,
// for its service manager to start it again, which finds everything.
func TestFailedFlush(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	s := w.serve("")
	id := s.create()
	if a := s.send("PUT", "/v1/sandboxes/"+id+"/files?path=f", "acknowledged"); a.status != http.StatusOK {
		t.Fatal(a)
	}
	stop := s.inject("error=EIO")
	a := s.send("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"open('ran','w')"}`)
	if a.refused(t, "exec", "unavailable"); strings.Contains(string(a.body), w.data) {
		t.Errorf("a caller reads of the host's files: %v", a)
	}
	if a := s.send("POST", "/v1/sandboxes", `{}`); a.status != 0 {
		a.refused(t, "create", "unavailable")
	}
	soon(t, "the server ends", 20*time.Second, func() error {
		select {
		case <-s.dead:
			return nil
		default:
			return errors.New("it is still there")
		}
	})
	if err := s.wait(); err == nil || !strings.Contains(s.log.String(), "nothing can be promised") {
		t.Errorf("it ended with %v:\n%s", err, s.log)
	}
	stop()
	s = w.serve("", "--stop-sandboxes")
	if a := s.send("GET", "/v1/sandboxes/"+id+"/files?path=f", ""); string(a.body) != "acknowledged" {
		t.Errorf("an acknowledged file: %v", a)
	}
	if a := s.send("GET", "/v1/sandboxes/"+id+"/files?path=ran", ""); a.status != http.StatusNotFound {
		t.Errorf("the exec that was refused: %v", a)
	}
	if err := s.works(); err != nil {
		t.Error(err)
	}
	s.destroy(id)
	s.stop()
	w.verified()
}

//go:build linux

package chaos

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
)

// long reports whether the soak tests are to take their time (`make soak`).
func long() bool { return os.Getenv("FIREBREAK_SOAK") != "" }

// vitals is what a server must not accumulate.
type vitals struct {
	rss, db                 int64 // bytes
	fds, threads, goroutine int
	zombies, children       int
}

// String returns it for a person.
func (v vitals) String() string {
	return fmt.Sprintf("RSS %.1f MiB, %d descriptors, %d goroutines, %d threads, %d children (%d zombies), state.db %.1f MiB",
		float64(v.rss)/(1<<20), v.fds, v.goroutine, v.threads, v.children, v.zombies, float64(v.db)/(1<<20))
}

// vitals measures a server at rest.
func (s *server) vitals() (v vitals) {
	s.t.Helper()
	s.http.CloseIdleConnections()
	pid := s.cmd.Process.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			v.rss = n << 10
		case "Threads":
			v.threads = int(n)
		}
	}
	v.fds = descriptors(s.t, pid)
	metrics := s.send("GET", "/metrics", "")
	for line := range strings.Lines(string(metrics.body)) {
		if n, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			v.goroutine, _ = strconv.Atoi(strings.TrimSpace(n))
		}
	}
	for _, name := range []string{"state.db", "state.db-wal", "state.db-redo"} {
		if fi, err := os.Stat(filepath.Join(s.data, name)); err == nil {
			v.db += fi.Size()
		}
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, child := range strings.Fields(string(b)) {
			v.children++
			st, _ := os.ReadFile("/proc/" + child + "/stat")
			if i := strings.LastIndexByte(string(st), ')'); i > 0 && strings.HasPrefix(string(st[i:]), ") Z") {
				v.zombies++
			}
		}
	}
	return v
}

// flat checks, for a while, that a server at rest has what it had before.
func (s *server) flat(before vitals) {
	s.t.Helper()
	var now vitals
	soon(s.t, "as much as before", 30*time.Second, func() error {
		now = s.vitals()
		switch {
		case now.fds > before.fds+6, now.goroutine > before.goroutine+12, now.children > before.children, now.zombies > 0,
			now.threads > before.threads+24, now.rss > before.rss+before.rss/2+24<<20, now.db > before.db+32<<20:
			return fmt.Errorf("%v; before: %v", now, before)
		}
		return nil
	})
	s.t.Logf("before: %v", before)
	s.t.Logf("after:  %v", now)
}

// verified checks that the evidence is whole.
func (w *world) verified() {
	w.t.Helper()
	head, err := audit.Verify(filepath.Join(w.data, "audit", "server"))
	if err != nil {
		w.t.Error(err)
	}
	w.t.Logf("%d audit records verified", head.Position)
}

// TestCycles makes, uses and ends sandboxes, eight at a time: every one works,
// and nothing of them stays.
func TestCycles(t *testing.T) {
	n, workers := 60, 8
	if long() {
		n = 500
	}
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	s := w.serve("", "--stop-sandboxes")
	var next atomic.Int64
	var busy atomic.Int64
	cycle := func() error {
		i := next.Add(1)
		for {
			a := s.send("POST", "/v1/sandboxes", `{}`)
			if a.reply.Error.Kind == "capacity" { // the machine is busy: it says so, and nothing was made
				busy.Add(1)
				time.Sleep(time.Second)
				continue
			}
			if a.status != http.StatusCreated {
				return fmt.Errorf("cycle %d: create: %v", i, a)
			}
			id := a.reply.ID
			a = s.send("POST", "/v1/sandboxes/"+id+"/exec", fmt.Sprintf(`{"code":"print(%d, 'x'*1000)"}`, i))
			if want := fmt.Sprintln(i, strings.Repeat("x", 1000)); a.reply.Stdout != want {
				return fmt.Errorf("cycle %d: exec: %v\n%v\n%s", i, a, s.send("GET", "/v1/sandboxes/"+id, ""), s.log)
			}
			a = s.send("DELETE", "/v1/sandboxes/"+id, "")
			if a.status != http.StatusOK || a.reply.Receipt == nil || !a.reply.Receipt.Clean {
				return fmt.Errorf("cycle %d: destroy: %v", i, a)
			}
			return nil
		}
	}
	round := func(n int) (failed int) {
		errs := make(chan error, n)
		left := int64(n)
		crowd(workers, func(int) answer {
			for atomic.AddInt64(&left, -1) >= 0 {
				if err := cycle(); err != nil {
					errs <- err
				}
			}
			return answer{}
		})
		close(errs)
		for err := range errs {
			failed++
			t.Error(err)
		}
		return failed
	}
	failed := round(workers) // what is made once is made now
	before := s.vitals()
	begun := time.Now()
	failed += round(n)
	took := time.Since(begun)
	s.flat(before)
	if left := w.seeDirs(filepath.Join(w.data, "instances")); left > 0 {
		t.Errorf("%d instances are left", left)
	}
	t.Logf("%d cycles at %d in %s (%.1f/s), %d failed, %d times told to come back", n, workers, took.Round(time.Millisecond),
		float64(n)/took.Seconds(), failed, busy.Load())
	s.stop()
	w.verified()
}

// follow reads a sandbox's events for a while and checks their order.
func (s *server) follow(id string, d time.Duration) answer {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/v1/sandboxes/"+id+"/events", nil)
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Accept", "text/event-stream")
	late := time.AfterFunc(time.Minute, cancel)
	defer late.Stop()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	late.Reset(d) // of what there is to read
	a := answer{status: resp.StatusCode}
	last := 0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			id, err := strconv.Atoi(n)
			if err != nil || id <= last {
				return answer{err: fmt.Errorf("event %q after %d", n, last)}
			}
			last = id
		}
	}
	return a
}

package chaos

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestServerKilled kills the server at crash points of every operation. The
// next server finds each sandbox whole, and it works, or ends it and leaves
// nothing.
func TestServerKilled(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	for _, c := range []struct {
		point string
		op    string
		state string // of the sandbox, once the next server is ready
	}{
		{"create/after-intent", "create", "ended"},
		{"gvisor.create/after-intent", "create", "ended"},
		{"gvisor.create/after-start", "create", "ended"},
		{"gvisor.create/after-created", "create", "ended"},
		{"create/after-session", "create", "ended"},
		{"create/after-running", "create", "running"},
		{"exec/after-evidence", "exec", "running"},
		{"end/after-intent", "destroy", "ended"},
		{"gvisor.destroy/after-kill", "destroy", "ended"},
		{"end/after-destroy", "destroy", "ended"},
		{"end/after-record", "destroy", "ended"},
	} {
		t.Run(strings.ReplaceAll(c.point, "/", "-"), func(t *testing.T) {
			w := *w
			w.t = t
			begun := time.Now()
			s := w.serve(c.point)
			var id string
			if c.op != "create" {
				id = s.create()
			}
			var status int
			switch c.op {
			case "create":
				status, _ = s.do("POST", "/v1/sandboxes", `{"name":"only"}`)
			case "exec":
				status, _ = s.do("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"open('/home/user/ran','w')"}`)
			case "destroy":
				status, _ = s.do("DELETE", "/v1/sandboxes/"+id, "")
			}
			if status != 0 {
				t.Errorf("the killed server answered %d", status)
			}
			s.crashed()
			w.seeDirs(filepath.Join(w.data, "instances"))

			s = w.serve("")
			sb := s.newest(begun)
			if id != "" && sb.ID != id || sb.State != c.state {
				t.Errorf("afterwards the sandbox is %+v, want %q in state %s", sb, id, c.state)
			}
			if c.state == "running" {
				s.execs(sb.ID)
			}
			if c.op == "exec" { // recorded, and not done: never the other way round
				if st, r := s.do("GET", "/v1/sandboxes/"+sb.ID+"/files/stat?path=/home/user/ran", ""); st != 404 {
					t.Errorf("the program of the killed exec ran: %d %+v", st, r)
				}
			}
			s.destroy(sb.ID) // of one that has ended it returns the receipt
			if n := w.seeDirs(filepath.Join(w.data, "instances")); n != 0 {
				t.Errorf("%d instances are left", n)
			}
			s.stop()
		})
	}
}

// newest is the one sandbox made since begun.
func (s *server) newest(begun time.Time) reply {
	s.t.Helper()
	var found reply
	for _, state := range []string{"running", "ended", "stopping", "creating"} {
		_, r := s.do("GET", "/v1/sandboxes?state="+state, "")
		for _, sb := range r.Sandboxes {
			if sb.Created.After(begun) {
				if found.ID != "" {
					s.t.Errorf("two sandboxes: %+v and %+v", found, sb)
				}
				found = sb
			}
		}
	}
	if found.ID == "" {
		s.t.Fatal("the sandbox is not on record")
	}
	return found
}

// TestRunKilled kills `firebreak run` while its program runs. The next run
// removes what is left, whatever it does itself.
func TestRunKilled(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	victim := w.command("run", "-c", "import time\nprint('up', flush=True)\ntime.sleep(60)")
	out := &output{}
	victim.Stdout, victim.Stderr = out, out
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), "up"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the program did not start:\n%s", out)
		}
	}
	victim.Process.Kill()
	victim.Wait()
	runs, err := filepath.Glob(filepath.Join(w.data, "run", "*", "instances", "in*"))
	if err != nil || len(runs) != 1 {
		t.Fatalf("the killed run left %v, %v; one instance was expected", runs, err)
	}
	w.see(filepath.Base(runs[0]))

	// A child of the killed process may hold its lock for a moment longer: then
	// it counts as alive, and the one after the next finds it dead.
	for try := 0; try < 5; try++ {
		next := w.command("run", "-c", "print(6*7)")
		if b, err := next.CombinedOutput(); err != nil || string(b) != "42\n" {
			t.Fatalf("the next run: %v, %q", err, b)
		}
		if left, err := os.ReadDir(filepath.Join(w.data, "run")); err != nil || len(left) == 0 {
			break
		}
	}
	if left, err := os.ReadDir(filepath.Join(w.data, "run")); err != nil || len(left) != 0 {
		t.Errorf("left of the killed run: %v, %v", left, err)
	}
	// Its evidence stays, and says what became of it.
	logs, err := filepath.Glob(filepath.Join(w.data, "audit", "run-*", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for _, l := range logs {
		dir := filepath.Dir(l)
		if _, err := audit.Verify(dir); err != nil {
			t.Error(err)
		}
		for e, err := range audit.Scan(dir, 1) {
			if err != nil {
				t.Fatal(err)
			}
			if r := e.Record; string(r.Instance) == filepath.Base(runs[0]) && r.Action == "sandbox.receipt" {
				if lost++; r.Reason != sandbox.ReasonLost || r.Outcome != sandbox.OutcomeDone {
					t.Errorf("the killed run's receipt is %+v", r)
				}
			}
		}
	}
	if lost != 1 {
		t.Errorf("%d receipts for the killed run in %v, want 1", lost, logs)
	}
}

package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// failed is a call that is refused; it returns the kind.
func (s *server) failed(t testing.TB, method, path, body string) (kind, text string) {
	t.Helper()
	status, answer, _ := s.do(method, path, body)
	var e struct {
		Error struct{ Kind, Message, Hint string }
	}
	if status/100 == 2 || json.Unmarshal([]byte(answer), &e) != nil || e.Error.Kind == "" {
		t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	return e.Error.Kind, answer
}

// TestPausedAcrossServers: what is paused stays so over stops and kills of the
// server, and goes on with whichever comes after.
func TestPausedAcrossServers(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve("--stop-sandboxes=false")
	id := s.made(t, "/v1/sandboxes", "{}")
	pid := s.furnish(t, id)
	s.furnished(t, id, pid, 1)
	for n, kill := range []bool{true, false} {
		s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
		if kill {
			s.cmd.Process.Kill()
			s.cmd.Wait()
		} else {
			s.stop()
		}
		s = w.serve("--stop-sandboxes=false")
		if st := s.state(t, id); st.State != "paused" || len(w.instances(t)) != 0 {
			t.Fatalf("%+v, instances %v", st, w.instances(t))
		}
		s.furnished(t, id, pid, n+2)
	}
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
}

// TestPauseUnderExec: an exec and a turn that are under way wait, and go on; none of
// their limits is used up meanwhile.
func TestPauseUnderExec(t *testing.T) {
	enforcing(t)
	s := newWorld(t).serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	s.eval(t, id, "python", "import time")
	exec, turn := make(chan string, 1), make(chan string, 1)
	const script = "import time,sys\nfor i in range(40):\n  print(i, flush=True)\n  open('/tmp/at','w').write(str(i))\n  time.sleep(0.1)\n"
	code, _ := json.Marshal(map[string]any{"code": script, "language_pack": "python", "timeout_ms": 30_000})
	go func() {
		_, answer, _ := s.do("POST", "/v1/sandboxes/"+id+"/exec", string(code))
		exec <- answer
	}()
	go func() {
		_, answer, _ := s.do("POST", "/v1/sandboxes/"+id+"/contexts/python/eval", `{"code":"open('/tmp/turn','w').close()\nfor _ in range(40): time.sleep(0.1)\n'over'","timeout_ms":30000}`)
		turn <- answer
	}()
	for _, file := range []string{"/tmp/at", "/tmp/turn"} {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			if status, _, _ := s.do("GET", "/v1/sandboxes/"+id+"/files/stat?path="+file, ""); status == http.StatusOK {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s never came", file)
			}
		}
	}
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	time.Sleep(32 * time.Second) // longer than either may take
	if st := s.state(t, id); st.State != "paused" {
		t.Errorf("what is under way woke it: %+v", st)
	}
	s.must(t, "POST", "/v1/sandboxes/"+id+"/resume", "{}")
	var r struct {
		Stdout, Reason string
		Code           int `json:"exit_code"`
	}
	var want strings.Builder
	for i := range 40 {
		want.WriteString(jsonNumber(i) + "\n")
	}
	if answer := <-exec; json.Unmarshal([]byte(answer), &r) != nil || r.Reason != "done" || r.Stdout != want.String() {
		t.Errorf("exec: %s", answer)
	}
	var e evaluated
	if answer := <-turn; json.Unmarshal([]byte(answer), &e) != nil || e.text() != "'over'" {
		t.Errorf("turn: %s", answer)
	}
}

func jsonNumber(i int) string {
	b, _ := json.Marshal(i)
	return string(b)
}

// TestPausedEnds: a sandbox ends in its time, paused or not, and one that is idle is
// paused if that was asked for.
func TestPausedEnds(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", `{"timeout_ms":3000}`)
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	idle := s.made(t, "/v1/sandboxes", `{"idle_timeout_ms":300,"idle_action":"pause"}`)
	await := func(id, state string) sandboxState {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if st := s.state(t, id); st.State == state {
				return st
			} else if time.Now().After(deadline) {
				t.Fatalf("%s is %+v, not %s", id, st, state)
			}
		}
	}
	for range 2 {
		await(idle, "paused")
		if out := s.stdout(t, idle, "print(6*7)"); out != "42\n" {
			t.Errorf("%q", out)
		}
	}
	if st := await(id, "ended"); !st.Receipt.Clean {
		t.Errorf("%+v", st)
	}
	if kind, _ := s.failed(t, "POST", "/v1/sandboxes/"+id+"/resume", "{}"); kind != "gone" {
		t.Errorf("resume of one that has ended: %s", kind)
	}
}

// TestPauseRefused: what cannot be saved says why, and runs on; what was changed on
// disk is not used, and stays paused.
func TestPauseRefused(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_TENANT_SNAPSHOTS=96MiB")
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	s.stdout(t, id, "open('kept','w').write('kept')")
	for _, bad := range []string{`{"snapshot":"no"}`, `{"snapshot":"sn234567abcdefghijkl"}`} {
		if kind, text := s.failed(t, "POST", "/v1/sandboxes", bad); kind != "not_found" {
			t.Errorf("%s: %s", bad, text)
		}
	}
	s.must(t, "POST", "/v1/sandboxes/"+id+"/snapshots", `{"name":"first"}`)
	for _, bad := range []string{`{"snapshot":"first","limits":{"memory_bytes":536870912}}`, `{"snapshot":"first","template":"other"}`, `{"snapshot":"first","backend":"sim"}`} {
		if kind, text := s.failed(t, "POST", "/v1/sandboxes", bad); kind != "invalid" {
			t.Errorf("%s: %s", bad, text)
		}
	}
	s.stdout(t, id, "import os\nopen('/home/user/large','wb').write(os.urandom(100<<20))")
	if kind, text := s.failed(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}"); kind != "capacity" || !strings.Contains(text, "snapshots") {
		t.Errorf("beyond the quota: %s", text)
	}
	s.stdout(t, id, "import os\nos.remove('/home/user/large')")
	s.must(t, "DELETE", "/v1/snapshots/first", "")

	small := s.made(t, "/v1/sandboxes", "{}")
	s.stdout(t, small, "open('kept','w').write('kept')")
	s.must(t, "POST", "/v1/sandboxes/"+small+"/pause", "{}")
	pages, _ := filepath.Glob(filepath.Join(w.dir, "data", "snapshots", "in*", "image", "pages.img"))
	if len(pages) != 1 {
		t.Fatalf("images %v", pages)
	}
	flip := func() {
		t.Helper()
		b, err := os.ReadFile(pages[0])
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(pages[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flip()
	for _, call := range [][2]string{{"/resume", "{}"}, {"/exec", `{"code":"print(1)"}`}, {"/snapshots", "{}"}} {
		if call[0] == "/snapshots" { // shares what is there, which is refused when it is used
			s.must(t, "POST", "/v1/sandboxes/"+small+call[0], `{"name":"bad"}`)
			if kind, text := s.failed(t, "POST", "/v1/sandboxes", `{"snapshot":"bad"}`); kind != "conflict" {
				t.Errorf("made of what was changed: %s", text)
			}
			s.must(t, "DELETE", "/v1/snapshots/bad", "")
			continue
		}
		if kind, text := s.failed(t, "POST", "/v1/sandboxes/"+small+call[0], call[1]); kind != "conflict" || !strings.Contains(text, "not what was written") {
			t.Errorf("%s of what was changed: %s", call[0], text)
		}
	}
	if st := s.state(t, small); st.State != "paused" || len(w.instances(t)) != 1 { // id's
		t.Errorf("%+v, %v", st, w.instances(t))
	}
	flip()
	if out := s.stdout(t, small, "print(open('kept').read())"); out != "kept\n" {
		t.Errorf("as it was: %q", out)
	}
}

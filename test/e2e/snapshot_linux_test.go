package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/image"
)

// pausedCycles is how often one sandbox is paused and goes on.
const pausedCycles = 50

// sandboxState is what the API shows of a sandbox, as far as it matters here.
type sandboxState struct {
	State, Snapshot string
	Bytes           int64 `json:"paused_bytes"`
	Usage           struct {
		Memory int64   `json:"memory_bytes"`
		CPU    float64 `json:"cpu_ms"`
	}
	Receipt struct {
		Clean   bool
		Objects []struct{ Kind, Name string }
	}
}

func (s *server) state(t testing.TB, id string) (st sandboxState) {
	t.Helper()
	status, body, _ := s.do("GET", "/v1/sandboxes/"+id, "")
	if err := json.Unmarshal([]byte(body), &st); status != http.StatusOK || err != nil {
		t.Fatalf("%d %s %v", status, body, err)
	}
	return st
}

// must is a call that succeeds.
func (s *server) must(t testing.TB, method, path, body string) string {
	t.Helper()
	status, answer, _ := s.do(method, path, body)
	if status/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	return answer
}

// stdout is what code prints.
func (s *server) stdout(t testing.TB, id, code string) string {
	t.Helper()
	b, _ := json.Marshal(map[string]string{"code": code, "language_pack": "python"})
	var r struct {
		Stdout, Stderr string
		Code           int `json:"exit_code"`
	}
	answer := s.must(t, "POST", "/v1/sandboxes/"+id+"/exec", string(b))
	if err := json.Unmarshal([]byte(answer), &r); err != nil || r.Code != 0 {
		t.Fatalf("exec %q: %s", code, answer)
	}
	return r.Stdout
}

// furnish puts a file, a variable and a program that counts into a sandbox, and
// returns the program's pid.
func (s *server) furnish(t testing.TB, id string) string {
	t.Helper()
	s.stdout(t, id, "open('/home/user/kept','w').write('kept'); open('/dev/shm/kept','w').write('shm')")
	s.eval(t, id, "python", "n = 0\nimport secrets")
	answer := s.must(t, "POST", "/v1/sandboxes/"+id+"/processes", `{"code":"import time\ni=0\nwhile True:\n  open('/tmp/count','w').write(str(i)); i+=1; time.sleep(0.01)","language_pack":"python"}`)
	var p struct{ PID any }
	if err := json.Unmarshal([]byte(answer), &p); err != nil {
		t.Fatal(answer)
	}
	return fmt.Sprint(p.PID)
}

// furnished checks that what furnish made is there and goes on, n turns later.
func (s *server) furnished(t testing.TB, id, pid string, n int) {
	t.Helper()
	if e := s.eval(t, id, "python", "n += 1\nn"); e.text() != strconv.Itoa(n) {
		t.Fatalf("turn %d: the variable is %q, %+v", n, e.text(), e.Error)
	}
	const look = "import time\ndef read():\n  try: return int(open('/tmp/count').read() or 0)\n  except FileNotFoundError: return 0  # it is about to begin\na = read()\nfor _ in range(3000):\n  time.sleep(0.01)\n  if read() > a: break\nelse: print('stands still')\n" +
		"print(open('/home/user/kept').read(), open('/dev/shm/kept').read(), time.time())"
	f := strings.Fields(s.stdout(t, id, look))
	if len(f) != 3 || f[0] != "kept" || f[1] != "shm" {
		t.Fatalf("turn %d: %q", n, f)
	}
	if at, err := strconv.ParseFloat(f[2], 64); err != nil || time.Since(time.UnixMilli(int64(at*1000))).Abs() > 30*time.Second {
		t.Errorf("turn %d: the clock says %s, it is %s", n, f[2], time.Now())
	}
	var p struct {
		Exit any `json:"exit"`
		Tag  string
	}
	if answer := s.must(t, "GET", "/v1/sandboxes/"+id+"/processes/"+pid, ""); json.Unmarshal([]byte(answer), &p) != nil || p.Exit != nil {
		t.Fatalf("turn %d: the program is %s", n, answer)
	}
}

// images are what is saved in a world, once what is not wanted any more is gone: it is
// removed behind the answer.
func (w *world) images() (left []string) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left, _ = filepath.Glob(filepath.Join(w.dir, "data", "snapshots", "*")) // the pattern is good
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// instances are the boundaries of a world's sandboxes, without those that wait for a
// guest.
func (w *world) instances(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.dir, "data", "instances", "in*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(found, func(dir string) bool {
		intent, _ := os.ReadFile(filepath.Join(dir, "instance.json"))
		running, err := os.ReadFile(filepath.Join(dir, "processes"))
		return strings.Contains(string(running), `"blank":true`) || err != nil && strings.Contains(string(intent), `"ahead":true`)
	})
}

// TestPausedHoldsNothing: where no places are made ahead, a paused sandbox has no
// boundary at all, each time; and what was saved goes on.
func TestPausedHoldsNothing(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_PLACES_MAX=0")
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	for n := range 3 {
		s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
		left, err := filepath.Glob(filepath.Join(w.dir, "data", "instances", "*"))
		if err != nil || len(left) != 0 || s.state(t, id).State != "paused" {
			t.Fatalf("cycle %d: %v, %v", n, left, err)
		}
		if out := s.stdout(t, id, "print(6*7)"); out != "42\n" {
			t.Fatalf("cycle %d: %q", n, out)
		}
	}
}

// TestPlacesAreShown: the boundary that a pause has made ahead is told of by `firebreak
// pool`, with what it uses and without whom it is for, and drained by it.
func TestPlacesAreShown(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	var pool struct {
		Enabled bool
		Places  []struct {
			Backend               string
			Ready, Making, Wanted int
			Used                  int64 `json:"used_bytes"`
		}
	}
	for give := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		body := s.must(t, "GET", "/v1/pool", "")
		if err := json.Unmarshal([]byte(body), &pool); err != nil || strings.Contains(body, id) {
			t.Fatalf("%v: %s", err, body)
		}
		if len(pool.Places) == 1 && pool.Places[0].Ready == 1 {
			break
		}
		if time.Now().After(give) {
			t.Fatalf("%s", body)
		}
	}
	if p := pool.Places[0]; pool.Enabled || p.Backend != "gvisor" || p.Wanted != 1 || p.Used < 1<<20 || p.Used > 256<<20 {
		t.Errorf("%+v", pool)
	}
	if r := w.run("", "pool"); r.code != 0 || !strings.Contains(r.stdout, "PLACES FOR") || !strings.Contains(r.stdout, "gvisor") {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "pool", "drain"); r.code != 0 || r.stdout != "1\n" {
		t.Errorf("%+v", r)
	}
	if body := s.must(t, "GET", "/v1/pool", ""); strings.Contains(body, `"ready":1`) {
		t.Errorf("%s", body)
	}
	if out := s.stdout(t, id, "print(6*7)"); out != "42\n" {
		t.Errorf("%q", out)
	}
}

// TestPauseResume pauses a sandbox again and again: files, programs, interpreters
// and their variables go on each time, whoever wakes it.
func TestPauseResume(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", `{"name":"box"}`)
	pid := s.furnish(t, id)
	s.furnished(t, id, pid, 1)
	s.eval(t, id, "python", ticking)
	used := 0.0
	for n := range pausedCycles {
		s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
		paused := time.Now()
		st := s.state(t, id)
		if st.State != "paused" || st.Bytes < 1<<20 || len(w.instances(t)) != 0 {
			t.Fatalf("cycle %d: %+v, instances %v", n, st, w.instances(t))
		}
		if st.Usage.Memory != 0 || st.Usage.CPU <= used {
			t.Errorf("cycle %d: it uses %d bytes, and has used %v ms, %v before", n, st.Usage.Memory, st.Usage.CPU, used)
		}
		used = st.Usage.CPU
		resumed := time.Now()
		switch n % 3 {
		case 0:
			s.must(t, "POST", "/v1/sandboxes/"+id+"/resume", "{}")
		case 1: // nothing: who looks at the clock wakes it
		case 2:
			if r := w.run("", "resume", "box"); r.code != 0 {
				t.Fatalf("%+v", r)
			}
		}
		s.clockRight(t, id, paused, resumed)
		s.furnished(t, id, pid, n+2)
		if left := w.images(); len(left) != 0 {
			t.Fatalf("cycle %d: left %v", n, left)
		}
	}
	// An end does not wake it, and takes what was saved along.
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
	st := s.state(t, id)
	if st.State != "ended" || !st.Receipt.Clean || len(st.Receipt.Objects) != 1 || st.Receipt.Objects[0].Kind != "directory" {
		t.Errorf("%+v", st)
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "data", "snapshots", "*")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestSnapshotForks makes two sandboxes of a snapshot; they and the first go on,
// each for itself, also after the snapshot and the first are gone.
func TestSnapshotForks(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	pid := s.furnish(t, id)
	s.furnished(t, id, pid, 1)
	s.eval(t, id, "python", "import random\nrandom.seed(7)")
	r := w.run("", "snapshot", id, "--name", "warm", "--ttl", "1h")
	if r.code != 0 || !strings.HasPrefix(r.stdout, "sn") {
		t.Fatalf("%+v", r)
	}
	seen := map[string]bool{"'" + s.eval(t, id, "python", "random.random()").text() + "'": true}
	s.furnished(t, id, pid, 2)
	if r := w.run("", "snapshot", id, "--name", "warm"); r.code == 0 || !strings.Contains(r.stderr, "there is a snapshot called") {
		t.Errorf("a name twice: %+v", r)
	}
	a := strings.TrimSpace(w.run("", "create", "--from", "warm").stdout)
	b := s.made(t, "/v1/sandboxes", `{"snapshot":"`+strings.TrimSpace(r.stdout)+`"}`)
	for _, box := range []string{a, b} {
		s.furnished(t, box, pid, 2)
		s.furnished(t, box, pid, 3)
		if n := "'" + s.eval(t, box, "python", "random.random()").text() + "'"; seen[n] {
			t.Errorf("%s draws %s, as another did", box, n)
		} else {
			seen[n] = true
		}
	}
	s.furnished(t, id, pid, 3)
	if st := s.state(t, b); st.Snapshot != strings.TrimSpace(r.stdout) {
		t.Errorf("%+v", st)
	}
	if l := w.run("", "snapshot", "ls"); l.code != 0 || !strings.Contains(l.stdout, "warm") || !strings.Contains(l.stdout, "in 59m") {
		t.Errorf("%+v", l)
	}
	if l := w.run("", "snapshot", "rm", "warm"); l.code != 0 {
		t.Errorf("%+v", l)
	}
	if l := w.run("", "create", "--from", "warm"); l.code == 0 || !strings.Contains(l.stderr, "no such snapshot") {
		t.Errorf("of a snapshot that is gone: %+v", l)
	}
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
	s.furnished(t, a, pid, 4)
	s.must(t, "POST", "/v1/sandboxes/"+b+"/pause", "{}")
	s.furnished(t, b, pid, 4)
	if left := w.images(); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestMemoryImage: a sandbox's memory can be searched, with a network and without;
// and it goes on.
func TestMemoryImage(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	for _, body := range []string{"{}", `{"network":{"allow":["example.com"]}}`} {
		id := s.made(t, "/v1/sandboxes", body)
		s.eval(t, id, "python", "canary = 'canary of' + ' the memory'\nopen('/home/user/file', 'w').write('a file' + ' in it')\nNone")
		all := w.instances(t)
		if len(all) != 1 {
			t.Fatalf("instances %v", all)
		}
		dir := filepath.Join(t.TempDir(), "image")
		if err := image.Take(t.Context(), filepath.Join(w.dir, "data"), filepath.Base(all[0]), dir); err != nil {
			t.Fatal(err)
		}
		found, size, err := image.Search(dir, []byte("canary of the memory"), []byte("a file in it"), []byte(t.TempDir()+"nowhere"))
		if err != nil || found[0] == 0 || found[1] == 0 || found[2] != 0 {
			t.Errorf("with %s: found %v in %d bytes, %v", body, found, size, err)
		}
		if e := s.eval(t, id, "python", "canary[:6]"); e.text() != "'canary'" {
			t.Errorf("it does not go on: %+v", e)
		}
		s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
	}
}

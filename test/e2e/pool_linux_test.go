package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// shelf is what GET /v1/pool says of one shape.
type shelf struct{ Ready, Making, Wanted, Hits, Misses, Failed int }

func (s *server) shelves(t *testing.T) []shelf {
	t.Helper()
	code, body, _ := s.do("GET", "/v1/pool", "")
	var r struct {
		Enabled bool
		Shelves []shelf
	}
	if err := json.Unmarshal([]byte(body), &r); err != nil || code != 200 || !r.Enabled {
		t.Fatalf("%d %s", code, body)
	}
	return r.Shelves
}

// warm waits until a sandbox is ready.
func (s *server) warm(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if x := s.shelves(t); len(x) > 0 && x[0].Ready > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nothing gets ready: %+v\n%s", s.shelves(t), s.logText())
		}
	}
}

// executed is the answer to an exec.
type executed struct {
	Stdout, Stderr, Reason string
	ExitCode               int `json:"exit_code"`
}

func (s *server) exec(t *testing.T, id string, body map[string]any) executed {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	code, answer, _ := s.do("POST", "/v1/sandboxes/"+id+"/exec", string(b))
	var x executed
	if err := json.Unmarshal([]byte(answer), &x); err != nil || code != 200 {
		t.Fatalf("exec %v: %d %s", body, code, answer)
	}
	return x
}

// TestPool: a create takes what is ready, whole, and its own.
func TestPool(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_POOL_SIZE=1")
	s := w.serve()
	seen := map[string]bool{}
	for i := range 3 {
		s.warm(t)
		id := s.made(t, "/v1/sandboxes", "{}")
		if seen[id] {
			t.Fatalf("%s was given twice", id)
		}
		seen[id] = true
		if hits := s.shelves(t)[0].Hits; hits != i+1 {
			t.Fatalf("%d of %d were ready", hits, i+1)
		}
		x := s.exec(t, id, map[string]any{"code": "import os, socket\nprint(socket.gethostname(), os.listdir('.'), os.getcwd())\nopen('mine', 'w').close()"})
		if want := fmt.Sprintf("%s [] /home/user\n", id); x.Stdout != want {
			t.Errorf("%q, want %q; %+v", x.Stdout, want, x)
		}
		if code, body, _ := s.do("DELETE", "/v1/sandboxes/"+id, ""); code != 200 || !strings.Contains(body, `"clean":true`) {
			t.Errorf("destroy: %d %s", code, body)
		}
	}
	if r := s.run("", "pool"); r.code != 0 || !strings.Contains(r.stdout, "HITS") {
		t.Errorf("firebreak pool: %+v", r)
	}
}

// TestPoolForAll: runs, and creates that are to happen once, take what is ready; what
// is ready is ended, and made, when somebody says so.
func TestPoolForAll(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_POOL_SIZE=1", "FIREBREAK_POOL_MEMORY=2GiB", "FIREBREAK_POOL_SHARE=90")
	s := w.serve()
	s.warm(t)
	hits := func() int { return s.shelves(t)[0].Hits }
	if r := s.run("", "run", "-c", "print(6*7)"); r.code != 0 || r.stdout != "42\n" || hits() != 1 {
		t.Errorf("%+v, %d hits", r, hits())
	}
	s.warm(t)
	once := func() string {
		code, body, _ := s.do("POST", "/v1/sandboxes", "{}", "Idempotency-Key", "k")
		var r struct{ ID string }
		if err := json.Unmarshal([]byte(body), &r); err != nil || code != 201 {
			t.Fatalf("%d %s", code, body)
		}
		return r.ID
	}
	id := once()
	if n := hits(); n != 2 {
		t.Errorf("%d hits: it was booted", n)
	}
	s.warm(t)
	if again := once(); again != id {
		t.Errorf("once is %s, and then %s", id, again)
	}
	if x := s.shelves(t)[0]; x.Ready != 1 || x.Hits != 2 {
		t.Errorf("what was not needed was used up: %+v", x)
	}
	s.do("DELETE", "/v1/sandboxes/"+id, "")
	if r := s.run("", "pool", "drain"); r.code != 0 || r.stdout != "1\n" {
		t.Errorf("firebreak pool drain: %+v", r)
	}
	if x := s.shelves(t); len(x) > 0 && x[0].Ready+x[0].Making+x[0].Wanted > 0 {
		t.Errorf("after it: %+v", x)
	}
	if r := s.run("", "pool", "prewarm", "--count", "2"); r.code != 0 {
		t.Errorf("firebreak pool prewarm: %+v", r)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		x := s.shelves(t)
		if len(x) > 0 && x[0].Ready == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not make them: %+v", x)
		}
	}
}

// TestPoolSurvivesNobody: what was ready when a server was killed is gone once the
// next has started.
func TestPoolSurvivesNobody(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_POOL_SIZE=2")
	s := w.serve()
	s.warm(t)
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait() // killed
	w.env = append(w.env, "FIREBREAK_POOL_SIZE=0")
	w.serve() // and newWorld checks that nothing is left
}

// TestStandby: a program cannot tell that its interpreter was there before it.
func TestStandby(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_POOL_SIZE=1")
	s := w.serve()
	cold := s.made(t, "/v1/sandboxes", `{"hostname":"same"}`) // has a name, so it is made for it
	for _, c := range []map[string]any{
		{"code": "print(6*7)"},
		{"code": "import sys\nprint(sys.argv, sys.path, sys.flags, sorted(sys.modules), sorted(globals()))", "args": []string{"a", "b c"}},
		{"code": "import os\nprint({k: v for k, v in os.environ.items() if k != 'FIREBREAK_RESULT'})", "env": map[string]string{"A": "b", "USER": "x"}},
		{"code": "import subprocess\nprint(subprocess.run(['env'], capture_output=True, text=True).stdout.count('ZZ=1'))", "env": map[string]string{"ZZ": "1"}},
		{"code": "import sys\nprint(repr(sys.stdin.read()))", "stdin": "typed"},
		{"code": "import sys\nprint(repr(sys.stdin.read()))"},
		{"code": "def f():\n    raise KeyError('x')\nf()"},
		{"code": "def f(:\n"},
		{"code": "raise SystemExit('bye')"},
		{"code": "import sys\nsys.exit(3)"},
		{"code": "raise KeyboardInterrupt"},
		{"code": "import os\nos.kill(os.getpid(), 11)"},
		{"code": "import os\nos._exit(9)"},
		{"code": "import time\ntime.sleep(60)", "timeout_ms": 700},
		{"code": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\ntime.sleep(60)", "timeout_ms": 700},
		{"code": "import firebreak\nfirebreak.result({'ok': 1})"},
		{"code": "print(open('/proc/self/stat').read().split()[4:6][0] != '0', __import__('os').getpgid(0) == __import__('os').getpid())"},
		{"code": "print(1)", "env": map[string]string{"PYTHONOPTIMIZE": "2"}},
		{"code": "import sys\nprint(sys.flags.optimize)", "env": map[string]string{"PYTHONOPTIMIZE": "2"}},
		{"code": "import os\nprint(os.getcwd())", "cwd": "/tmp"},
		{"code": "print(sorted(__import__('os').listdir('/proc/self/fd')))"},
	} {
		s.warm(t)
		hot := s.made(t, "/v1/sandboxes", "{}")
		got, want := s.exec(t, hot, c), s.exec(t, cold, c)
		if got != want {
			t.Errorf("%v:\n got  %+v\n want %+v", c, got, want)
		}
		s.do("DELETE", "/v1/sandboxes/"+hot, "")
	}
}

// TestStandbyIsFresh: nothing of one program is seen by the next, and what a program
// changed for those after it they do see.
func TestStandbyIsFresh(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_POOL_SIZE=1")
	s := w.serve()
	s.warm(t)
	id := s.made(t, "/v1/sandboxes", "{}")
	s.exec(t, id, map[string]any{"code": "import builtins, sys, os\nbuiltins.left = sys.left = 1\nos.environ['LEFT'] = '1'\nx = 1"})
	time.Sleep(1500 * time.Millisecond) // in which another interpreter waits
	for range 2 {
		x := s.exec(t, id, map[string]any{"code": "import builtins, sys, os\nprint('x' in globals(), hasattr(builtins, 'left'), hasattr(sys, 'left'), 'LEFT' in os.environ)"})
		if x.Stdout != "False False False False\n" {
			t.Errorf("%+v", x)
		}
	}
	// Python reads these when it starts.
	time.Sleep(1500 * time.Millisecond)
	s.exec(t, id, map[string]any{"command": "sh", "args": []string{"-c", "d=$(python3 -m site --user-site); mkdir -p $d; echo 'import builtins; builtins.site = 7' > $d/usercustomize.py; echo \"$HOME/lib\" > $d/own.pth; mkdir -p ~/lib; echo 'v = 8' > ~/lib/own.py"}})
	if x := s.exec(t, id, map[string]any{"code": "import own\nprint(site, own.v)"}); x.Stdout != "7 8\n" {
		t.Errorf("right after: %+v", x)
	}
	time.Sleep(1500 * time.Millisecond)
	if x := s.exec(t, id, map[string]any{"code": "import own\nprint(site, own.v)"}); x.Stdout != "7 8\n" {
		t.Errorf("later: %+v", x)
	}
	// Files that callers write, too.
	time.Sleep(1500 * time.Millisecond)
	where := strings.TrimSpace(s.exec(t, id, map[string]any{"command": "python3", "args": []string{"-m", "site", "--user-site"}}).Stdout)
	time.Sleep(1500 * time.Millisecond)
	if code, body, _ := s.do("PUT", "/v1/sandboxes/"+id+"/files?path="+where+"/usercustomize.py", "import builtins; builtins.site = 9"); code/100 != 2 {
		t.Fatalf("%d %s", code, body)
	}
	if x := s.exec(t, id, map[string]any{"code": "print(site)"}); x.Stdout != "9\n" {
		t.Errorf("after an upload: %+v", x)
	}
	// Two at once are two.
	done := make(chan executed)
	for i := range 3 {
		go func() {
			done <- s.exec(t, id, map[string]any{"code": fmt.Sprintf("import time\ntime.sleep(0.3)\nprint(%d)", i)})
		}()
	}
	got := map[string]bool{}
	for range 3 {
		got[(<-done).Stdout] = true
	}
	if len(got) != 3 {
		t.Errorf("%v", got)
	}
}

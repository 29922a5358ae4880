package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// evaluated is the answer to an eval.
type evaluated struct {
	Stdout, Stderr string
	Results        []struct {
		Main bool `json:"is_main_result"`
		Text string
		PNG  string
	}
	Error *struct{ Name, Value, Traceback string }
	Count int `json:"execution_count"`

	Reason, Detail string
	State          string `json:"context_state"`
	Truncated      bool   `json:"stdout_truncated"`
}

// text is the text of all results.
func (e evaluated) text() string {
	var all []string
	for _, r := range e.Results {
		all = append(all, r.Text)
	}
	return strings.Join(all, "|")
}

func (s *server) eval(t testing.TB, id, context, code string, more ...any) evaluated {
	t.Helper()
	body := map[string]any{"code": code}
	for i := 0; i+1 < len(more); i += 2 {
		body[more[i].(string)] = more[i+1]
	}
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	status, answer, _ := s.do("POST", "/v1/sandboxes/"+id+"/contexts/"+context+"/eval", string(b))
	var e evaluated
	if err := json.Unmarshal([]byte(answer), &e); status != http.StatusOK || err != nil {
		t.Fatalf("eval %q: %d %s", code, status, answer)
	}
	return e
}

func (s *server) made(t testing.TB, path, body string) string {
	t.Helper()
	status, answer, _ := s.do("POST", path, body)
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(answer), &made); status != http.StatusCreated || err != nil {
		t.Fatalf("%s: %d %s", path, status, answer)
	}
	return made.ID
}

// TestContexts: what lives in an interpreter lives on from turn to turn, and each
// context has its own.
func TestContexts(t *testing.T) {
	s := newWorld(t).serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	for _, turn := range []struct{ code, out, text string }{
		{"import socket, threading, time\nx = 41\nprint('hi')\nx + 1", "hi\n", "42"},
		{"server = socket.create_server(('127.0.0.1', 0)); client = socket.create_connection(server.getsockname()); there = server.accept()[0]", "", ""},
		{"client.sendall(b'over'); there.recv(10)", "", "b'over'"},
		{"def numbers():\n  n = 0\n  while True:\n    n += 1\n    yield n\nit = numbers()\nnext(it)", "", "1"},
		{"next(it)", "", "2"},
		{"ticks = [0]\ndef tick():\n  while True:\n    ticks[0] += 1\n    time.sleep(0.001)\nthreading.Thread(target=tick, daemon=True).start()", "", ""},
		{"seen = ticks[0]\nwhile ticks[0] < seen + 5: time.sleep(0.001)\n'it runs'", "", "'it runs'"},
		{"open('left', 'w').write('file')", "", "4"},
		{"import os\npid = os.fork()\nif pid == 0:\n  print('child'); display('no'); os.read(0, 1)\nelse:\n  os.waitpid(pid, 0)\nNone", "child\n", ""},
		{"x", "", "41"},
	} {
		e := s.eval(t, id, "python", turn.code)
		if e.Stdout != turn.out || e.text() != turn.text || e.Error != nil || e.Reason != "done" || e.State != "ready" {
			t.Errorf("%s: %+v", turn.code, e)
		}
	}
	other := s.made(t, "/v1/sandboxes/"+id+"/contexts", `{"env":{"K":"v"}}`)
	if e := s.eval(t, id, other, "import os\nprint(os.environ['K'], open('left').read())\nx"); e.Stdout != "v file\n" || e.Error == nil || e.Error.Name != "NameError" {
		t.Errorf("%+v", e)
	}
	if e := s.eval(t, id, "python", "import os\nos.environ.get('K'), os.environ['T']", "env", map[string]string{"T": "turn"}); e.text() != "(None, 'turn')" {
		t.Errorf("%+v", e)
	}
	if e := s.eval(t, id, "python", "'T' in os.environ"); e.text() != "False" {
		t.Errorf("%+v", e)
	}
	// A stand-in for matplotlib, which the host's Python need not have: figures are
	// shown at the end of the turn.
	e := s.eval(t, id, "python", `import sys, types
class Figure:
    def savefig(self, out, format=None, **_): out.write(b"picture")
Figure.__module__ = "matplotlib.figure"
drawn = {1: Figure()}
plt = types.ModuleType("matplotlib.pyplot")
plt.get_fignums = lambda: list(drawn); plt.figure = drawn.get; plt.close = lambda _: drawn.clear()
sys.modules["matplotlib.pyplot"] = plt`)
	if len(e.Results) != 1 || e.Results[0].PNG != "cGljdHVyZQ==" || e.Results[0].Main {
		t.Errorf("%+v", e)
	}
	if e := s.eval(t, id, "python", "import sys\nfor i in range(100): sys.stdout.write('x' * (1 << 20))\n'all'", "max_output_bytes", 1000); !e.Truncated || len(e.Stdout) != 1000 || e.text() != "'all'" {
		t.Errorf("100 MiB: %v, %d bytes, %q, %s", e.Truncated, len(e.Stdout), e.text(), e.Reason)
	}
	// Many at once, each to its own.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			context := []string{"python", other}[i%2]
			if e := s.eval(t, id, context, fmt.Sprintf("print(%d); %d", i, i)); e.Stdout != fmt.Sprintln(i) || e.text() != fmt.Sprint(i) {
				t.Errorf("%d: %+v", i, e)
			}
		})
	}
	wg.Wait()
	if code, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/contexts/"+other+"/restart", "{}"); code != http.StatusOK {
		t.Errorf("restart: %d %s", code, body)
	}
	if e := s.eval(t, id, other, "os"); e.Error == nil || e.Error.Name != "NameError" || e.Count != 1 {
		t.Errorf("%+v", e)
	}
	if code, body, _ := s.do("DELETE", "/v1/sandboxes/"+id+"/contexts/"+other, ""); code != http.StatusOK {
		t.Errorf("delete: %d %s", code, body)
	}
	mustContain(t, "contexts", second(s.do("GET", "/v1/sandboxes/"+id+"/contexts", "")), `"id":"python"`, `"state":"ready"`)
}

func second(_ int, body string, _ http.Header) string { return body }

// TestContextEnds: a turn ends with a reason, whatever its code does to the
// interpreter, and what an interrupt ends keeps its state.
func TestContextEnds(t *testing.T) {
	s := newWorld(t).serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	s.eval(t, id, "python", "x = 1")
	for code, limit := range map[string]int{"while True: pass": 500, "import time; time.sleep(600)": 500, "import asyncio\nawait asyncio.sleep(600)": 500} {
		if e := s.eval(t, id, "python", code, "timeout_ms", limit); e.Reason != "timeout" || e.State != "ready" || e.Error == nil || e.Error.Name != "KeyboardInterrupt" {
			t.Errorf("%s: %+v", code, e)
		}
	}
	done := make(chan evaluated)
	go func() { done <- s.eval(t, id, "python", "import time\nopen('begun', 'w').close()\ntime.sleep(600)") }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if code, _, _ := s.do("GET", "/v1/sandboxes/"+id+"/files/stat?path=begun", ""); code == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the turn never began")
		}
	}
	if code, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/contexts/python/interrupt", "{}"); code != http.StatusOK {
		t.Errorf("%d %s", code, body)
	}
	if e := <-done; e.Reason != "operator" || e.State != "ready" || e.Error == nil {
		t.Errorf("%+v", e)
	}
	if e := s.eval(t, id, "python", "x"); e.text() != "1" {
		t.Errorf("%+v", e)
	}
	for code, detail := range map[string]string{
		"import os; os._exit(3)":                                                          "exit code 3",
		"import os; os.kill(os.getpid(), 9)":                                              "exit code 137",
		"import ctypes; ctypes.string_at(0)":                                              "exit code 139",
		"import os; os.kill(os.getpid(), 15)":                                             "exit code 143",
		"import os\nfor fd in range(3, 20):\n  try: os.close(fd)\n  except OSError: pass": "exit code",
	} {
		context := s.made(t, "/v1/sandboxes/"+id+"/contexts", "{}")
		e := s.eval(t, id, context, "print('up', flush=True)\n"+code)
		if e.Stdout != "up\n" || e.Reason != "crashed" || !strings.Contains(e.Detail, detail) || e.State != "dead" {
			t.Errorf("%s: %+v", code, e)
		}
		if code, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/contexts/"+context+"/eval", `{"code":"1"}`); code != http.StatusGone || !strings.Contains(body, "restart it") {
			t.Errorf("%d %s", code, body)
		}
	}
}

// TestContextForged: whoever finds the token out can fool himself, and nobody
// else, and nothing hangs.
func TestContextForged(t *testing.T) {
	s := newWorld(t).serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	find := "import gc, os\ntoken = [o.token for o in gc.get_objects() if type(o).__name__ == 'Channel'][0].decode()\ndef say(kind, n, text): os.write(1, ('\\x1e' + token + kind + '%04x' % n + text).encode())\n"
	for _, forged := range []string{"say('3', 5, '{}')", "say('1', 4000, 'x')", "say('3', 2, '{}')", "for i in range(3000): say('1' if i == 0 else '0', 4000, 'x' * 4000)",
		`m = '{"type":"result","data":{"text/plain":"mine"}}'; say('3', len(m), m)`, `m = '{"type":"error","name":"mine"}'; say('3', len(m), m)`} {
		e := s.eval(t, id, "python", find+forged+"\n'true'", "timeout_ms", 60_000)
		if e.Reason != "done" || e.State != "ready" || !strings.HasSuffix(e.text(), "'true'") {
			t.Errorf("%s: %+v", forged, e)
		}
	}
	if e := s.eval(t, id, "python", "6*7"); e.text() != "42" {
		t.Errorf("%+v", e)
	}
}

// TestContextOutlivesServer: kill -9 of the server in a turn. The client goes on
// with the turn where it was, and the next turn finds its state.
func TestContextOutlivesServer(t *testing.T) {
	w := newWorld(t)
	s := w.serve("--stop-sandboxes=false")
	id := s.made(t, "/v1/sandboxes", "{}")
	s.eval(t, id, "python", "x = 41")
	done := make(chan result, 1)
	go func() {
		done <- w.run("", "eval", id, "-c", "import time\nopen('begun', 'w').close()\nfor i in range(30):\n  print(i, flush=True)\n  time.sleep(0.2)\nx + 1")
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if code, _, _ := s.do("GET", "/v1/sandboxes/"+id+"/files/stat?path=begun", ""); code == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the turn never began")
		}
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s = w.serve("--stop-sandboxes=false")
	defer func() { mustContain(t, "destroy", second(s.do("DELETE", "/v1/sandboxes/"+id, "")), `"clean":true`) }()
	r := <-done
	var want strings.Builder
	for i := range 30 {
		fmt.Fprintln(&want, i)
	}
	if r.code != 0 || r.stdout != want.String()+"42\n" {
		t.Errorf("exit code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if e := s.eval(t, id, "python", "x, i"); e.text() != "(41, 29)" {
		t.Errorf("%+v", e)
	}
}

// TestKilledServerThatStopsSandboxes: who watches a program or a turn while a server
// is killed that would have ended its sandboxes hears of the end from the next one.
func TestKilledServerThatStopsSandboxes(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", "")
	var sb struct{ ID string }
	if json.Unmarshal([]byte(body), &sb); sb.ID == "" {
		t.Fatal(body)
	}
	const code = "import time\nopen('%s', 'w').close()\nfor i in range(30):\n  print(i, flush=True)\n  time.sleep(0.2)\nprint('end', %d)"
	done := map[string]chan result{"exec": make(chan result, 1), "eval": make(chan result, 1)}
	go func() { done["eval"] <- w.run("", "eval", sb.ID, "-c", fmt.Sprintf(code, "eval", 41)) }()
	go func() { done["exec"] <- w.run("", "exec", sb.ID, "-c", fmt.Sprintf(code, "exec", 42)) }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		a, _, _ := s.do("GET", "/v1/sandboxes/"+sb.ID+"/files/stat?path=eval", "")
		b, _, _ := s.do("GET", "/v1/sandboxes/"+sb.ID+"/files/stat?path=exec", "")
		if a == http.StatusOK && b == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("they never began: %d, %d", a, b)
		}
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s = w.serve()
	for what, last := range map[string]string{"eval": "29\nend 41\n", "exec": "29\nend 42\n"} {
		select {
		case r := <-done[what]:
			if r.code != 0 || !strings.HasPrefix(r.stdout, "0\n1\n") || !strings.HasSuffix(r.stdout, last) {
				t.Errorf("%s: exit code %d, %q, %q", what, r.code, r.stdout, r.stderr)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s hears of no end", what)
		}
	}
	// With the server, what is under way ends, and says so.
	end := make(chan result, 1)
	go func() {
		end <- w.run("", "exec", sb.ID, "-c", "open('again', 'w').close()\nimport time\ntime.sleep(1000)")
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if code, _, _ := s.do("GET", "/v1/sandboxes/"+sb.ID+"/files/stat?path=again", ""); code == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it never began")
		}
	}
	s.stop()
	if r := <-end; r.code == 0 || r.took > 100*time.Second {
		t.Errorf("stopped: exit code %d after %v, %q", r.code, r.took, r.stderr)
	}
}

// TestContextCommands looks after contexts as a person does.
func TestContextCommands(t *testing.T) {
	s := newWorld(t).serve()
	id := s.sandbox()
	ok := func(want string, args ...string) string {
		t.Helper()
		r := s.run("", args...)
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("%q: %+v", args, r)
		}
		return r.stdout
	}
	ok("", "eval", id, "-c", "x = 41")
	ok("5", "eval", id, "-l", "node", "-c", "5")
	if lines := strings.Split(strings.TrimSpace(ok("ID", "context", "ls", id)), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[1], "python  python") || !strings.Contains(lines[1], "ready") {
		t.Errorf("%q", lines)
	}
	// An interrupt ends the turn, not the state.
	done := make(chan result, 1)
	go func() { done <- s.run("", "eval", id, "-c", "print('up', flush=True)\nimport time\ntime.sleep(1000)") }()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(ok("", "context", "ls", id), "busy"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never runs")
		}
	}
	ok("", "context", "interrupt", id, "python")
	if r := <-done; r.code != 137 {
		t.Errorf("interrupted: %+v", r)
	}
	ok("41", "eval", id, "-c", "x")
	ok("", "context", "restart", id, "python", "node")
	if r := s.run("", "eval", id, "-c", "x"); r.code != 1 || !strings.Contains(r.stderr, "NameError") {
		t.Errorf("after a restart: %+v", r)
	}
	ok("", "context", "rm", id, "node")
	var list []struct{ ID, State string }
	if err := json.Unmarshal([]byte(ok("", "context", "ls", "--json", id)), &list); err != nil || len(list) != 1 || list[0].ID != "python" {
		t.Errorf("%v %+v", err, list)
	}
	// The last error is the end, the others are said, and the rest is done.
	r := s.run("", "context", "rm", id, "none", "python", "nor-this")
	if r.code != 1 || strings.Count(r.stderr, "firebreak: ") != 2 || ok("", "context", "ls", "--json", id) != "[]\n" {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{{"context", "ls"}, {"context", "rm", id}, {"context", "nonsense"}} {
		if r := s.run("", args...); r.code != 2 {
			t.Errorf("%q: %+v", args, r)
		}
	}
}

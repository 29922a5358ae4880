package runtime

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest/driver"
)

// said is what a turn came to.
type said struct {
	out     string
	results []*driver.Result
	failed  *driver.Error
	end     driver.Message
}

// kept is a driver under test, on this machine.
type kept struct {
	t     *testing.T
	cmd   *exec.Cmd
	token driver.Token
	in    io.Writer
	out   *bufio.Reader
	parts driver.Assembly
	held  []byte
	n     int
	errs  noted
}

func keep(t *testing.T, program string, argv ...string) *kept {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("not run: no %s", program)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, Files); err != nil {
		t.Fatal(err)
	}
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], "DIR", dir)
	}
	k := &kept{t: t, token: driver.NewToken(), cmd: exec.Command(argv[0], argv[1:]...)}
	k.cmd.Dir = t.TempDir()
	k.cmd.Env = append(os.Environ(), "PYTHONPATH="+dir+"/python")
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := k.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	k.in, k.out, k.cmd.Stderr = in, bufio.NewReader(out), &k.errs
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = syscall.Kill(-k.cmd.Process.Pid, syscall.SIGKILL)
		_ = k.cmd.Wait()
	})
	k.write(k.token.Hello(nil))
	if s := k.until(driver.Ready); s.out != "" {
		t.Fatalf("before it is ready: %q", s.out)
	}
	return k
}

// noted is what a program says while somebody looks.
type noted struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write implements io.Writer.
func (n *noted) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

// String implements fmt.Stringer.
func (n *noted) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

func (k *kept) write(b []byte) {
	if _, err := k.in.Write(b); err != nil {
		k.t.Fatal(err)
	}
}

// until reads up to a message of that type.
func (k *kept) until(last driver.Type) (s said) {
	k.t.Helper()
	stuck := time.AfterFunc(2*time.Minute, func() { _ = k.cmd.Process.Kill() })
	defer stuck.Stop()
	b := make([]byte, 4096)
	for {
		for len(k.held) > 0 {
			n, c := k.token.Cut(k.held, false)
			if n == 0 {
				break
			}
			piece := k.held[:n]
			k.held = k.held[n:]
			if c == nil {
				s.out += string(piece)
				continue
			}
			text, whole := k.parts.Add(c)
			if !whole {
				continue
			}
			m, err := driver.Parse(text)
			if err != nil {
				k.t.Fatalf("%q: %v", text, err)
			}
			switch m.Type {
			case driver.Shown:
				s.results = append(s.results, m.Result)
			case driver.Fail:
				s.failed = m.Error
			}
			if m.Type == last {
				s.end = m
				return s
			}
		}
		n, err := k.out.Read(b)
		if err != nil {
			k.t.Fatalf("the driver ended: %v; %q; stderr %q", err, s.out, k.errs.String())
		}
		k.held = append(k.held, b[:n]...)
	}
}

func (k *kept) turn(code string) said {
	k.t.Helper()
	k.n++
	k.write(driver.Turn{Turn: k.n, Code: code}.Line())
	s := k.until(driver.End)
	if s.end.Turn != k.n || s.end.Count != k.n {
		k.t.Fatalf("the end of another turn: %+v", s.end)
	}
	return s
}

// turns are code and what it prints, shows (the text of all results, joined by |)
// and raises.
type turns []struct{ code, out, text, failed string }

func (k *kept) all(all turns) {
	k.t.Helper()
	for _, c := range all {
		s := k.turn(c.code)
		var texts []string
		for _, r := range s.results {
			texts = append(texts, r.Text)
		}
		failed := ""
		if s.failed != nil {
			failed = s.failed.Name
		}
		if s.out != c.out || strings.Join(texts, "|") != c.text || failed != c.failed {
			k.t.Errorf("%s:\nprints %q, shows %q, raises %+v", c.code, s.out, texts, s.failed)
		}
	}
}

const fakePlot = `
import sys, types
class Figure:
    def savefig(self, out, format=None, **_): out.write(b"\x89PNG " + format.encode())
Figure.__module__ = "matplotlib.figure"
open_ = {}
plot = types.ModuleType("matplotlib.pyplot")
plot.get_fignums = lambda: list(open_)
plot.figure = lambda n=None: open_.setdefault(n or len(open_) + 1, Figure())
plot.close = lambda _: open_.clear()
sys.modules["matplotlib"] = types.ModuleType("matplotlib")
sys.modules["matplotlib.pyplot"] = sys.modules["matplotlib"].pyplot = plot
class DataFrame:
    def head(self, n): return self
    def to_dict(self, orient): return {"a": [1, 2.5], "b": [float("nan"), "x"]}
    def _repr_html_(self): return "<table>"
    def __repr__(self): return "a b"
DataFrame.__module__ = "pandas.core.frame"
`

func TestPythonContext(t *testing.T) {
	k := keep(t, "python3", "python3", "DIR/python/firebreak_context.py")
	k.all(turns{
		{"x = 41\nprint('hi')\nx + 1", "hi\n", "42", ""},
		{"x", "", "41", ""},
		{"_ + 1", "", "42", ""},
		{"x;", "", "", ""},
		{"None", "", "", ""},
		{"import asyncio\nawait asyncio.sleep(0.001)\nasync def f(): return 3\nawait f()", "", "3", ""},
		{"def g():\n  yield 1\n  yield 2\nit = g(); next(it)", "", "1", ""},
		{"next(it)", "", "2", ""},
		{"import threading, time\nn = [0]\ndef count():\n  while True: n[0] += 1; time.sleep(0.001)\nthreading.Thread(target=count, daemon=True).start()", "", "", ""},
		{"a = n[0]\nwhile n[0] < a + 3: time.sleep(0.001)\n'it runs'", "", "'it runs'", ""},
		{"import socket\ns, c = socket.socketpair()", "", "", ""},
		{"s.send(b'x'); c.recv(1)", "", "b'x'", ""},
		{"1 / 0", "", "", "ZeroDivisionError"},
		{"import sys; sys.exit(3)", "", "", "SystemExit"},
		{"def (", "", "", "SyntaxError"},
		{"raise KeyboardInterrupt", "", "", "KeyboardInterrupt"},
		{"input()", "", "", "EOFError"},
		{"sys.stdin.read(), __import__('os').read(0, 10)", "", "('', b'')", ""},
		{"import os\nif os.fork() == 0:\n  print('child'); display('no'); raise SystemExit(3)\nos.waitstatus_to_exitcode(os.wait()[1])", "child\n", "3", ""},
		{"import subprocess\nsubprocess.run(['sh', '-c', 'echo sub; cat; ls /proc/self/fd | wc -l']).returncode", "sub\n4\n", "0", ""},
		{"sys.stdout.close()", "", "", ""},
		{"display(1, 2)", "", "1|2", ""},
		{"class R:\n  def __repr__(self): raise ValueError\nR()", "", "<R whose repr failed: ValueError>", ""},
		{"[R()]", "", "<list whose repr failed: ValueError>", ""},
		{"class E(Exception):\n  def __str__(self): raise ValueError\nraise E", "", "", "E"},
		{"x", "", "41", ""},
		{"__name__, 'firebreak_context' in sys.modules, sys.argv", "", "('__main__', False, [''])", ""},
	})
	s := k.turn("def f():\n  boom()\n\nf()")
	if want := "Traceback (most recent call last):\n  File \"<turn 28>\", line 4, in <module>\n    f()\n  File \"<turn 28>\", line 2, in f\n    boom()\n"; s.failed == nil || !strings.HasPrefix(s.failed.Traceback, want) || strings.Contains(s.failed.Traceback, "firebreak_context") {
		t.Errorf("%+v", s.failed)
	}
	k.turn(fakePlot)
	s = k.turn("import matplotlib.pyplot as plt\nplt.figure(); plt.figure(); None")
	if len(s.results) != 2 || s.results[0].PNG != "iVBORw==" && !strings.HasPrefix(s.results[0].PNG, "iVBO") || s.results[0].Main {
		t.Errorf("%+v", s.results)
	}
	if s = k.turn("plt.figure(); 'value'"); len(s.results) != 2 || !s.results[0].Main || s.results[1].PNG == "" {
		t.Errorf("a value, and then what was drawn: %+v", s.results)
	}
	s = k.turn("DataFrame()")
	if len(s.results) != 1 || s.results[0].HTML != "<table>" || s.results[0].Text != "a b" || string(s.results[0].Data) != `{"a":[1,2.5],"b":[null,"x"]}` {
		t.Errorf("%+v", s.results)
	}
	s = k.turn("class B:\n  def _repr_mimebundle_(self, include=None, exclude=None): return {'text/plain': 'p', 'application/json': {'a': [1]}, 'text/latex': '$x$', 'x/y': 'z'}\nB()")
	if r := s.results[0]; r.Text != "p" || string(r.JSON) != `{"a":[1]}` || r.LaTeX != "$x$" || r.Extra["x/y"] != "z" || !r.Main {
		t.Errorf("%+v", r)
	}
	if s = k.turn("'x' * (5 << 20)"); len(s.results) != 1 || s.results[0].Text != driver.TooLarge {
		t.Errorf("%d results", len(s.results))
	}
	if s = k.turn("'x' * (1 << 20)"); len(s.results[0].Text) != 1<<20+2 {
		t.Errorf("%d bytes", len(s.results[0].Text))
	}
	k.interrupted("print('up')\nwhile True: pass", "KeyboardInterrupt")
	k.interrupted("print('up')\nawait asyncio.sleep(600)", "KeyboardInterrupt")
	_ = syscall.Kill(-k.cmd.Process.Pid, syscall.SIGINT) // between turns
	k.all(turns{{"x", "", "41", ""}})
}

// What a turn comes to and its end reach the host together: each write wakes it.
func TestPythonEndsInOneWrite(t *testing.T) {
	k := keep(t, "python3", "python3", "DIR/python/firebreak_context.py")
	for n, code := range []string{"6 * 7", "1 / 0", "None", "7"} {
		k.write(driver.Turn{Turn: n + 1, Code: code}.Line())
		b := make([]byte, 4096)
		got, err := k.out.Read(b)
		if err != nil || !strings.Contains(string(b[:got]), `"type":"end"`) {
			t.Errorf("%s: first comes %q, %v", code, b[:got], err)
		}
	}
}

func TestNodeContext(t *testing.T) {
	k := keep(t, "node", "sh", "-c", `exec node "$0" 3<&0 4>&1 5>&2 0</dev/null`, "DIR/node/context.js")
	k.all(turns{
		{"const x = 41; console.log('hi'); x + 1", "hi\n", "42", ""},
		{"x", "", "41", ""},
		{"x;", "", "", ""},
		{"let y = await Promise.resolve(5)\ny * 2", "", "10", ""},
		{"y", "", "5", ""},
		{"let z = 1", "", "", ""},
		{"let z = 2; z", "", "2", ""},
		{"function f() { return 3 }; f()", "", "3", ""},
		{"const {a, b} = await Promise.resolve({a: 1, b: 2})\na + b", "", "3", ""},
		{"for (let i = 0; i < 2; i++) {\n  await null;\n  console.log(i)\n}", "0\n1\n", "", ""},
		{"async function g() { return 4 }\nawait g()", "", "4", ""},
		{"await g()", "", "4", ""},
		{"throw new TypeError('no')", "", "", "TypeError"},
		{"await Promise.reject(new RangeError('no'))", "", "", "RangeError"},
		{"(", "", "", "SyntaxError"},
		{"throw 7", "", "", "Thrown"},
		{"globalThis.n = 0; setInterval(() => n++, 1); undefined", "", "", ""},
		{"await new Promise((done) => setInterval(() => n > 3 && done(), 1)); 'it runs'", "", "'it runs'", ""},
		{"require('fs').readFileSync(0, 'utf8')", "", "''", ""},
		{"require('child_process').execSync('echo sub; cat', {stdio: ['inherit', 'pipe', 'inherit']}).toString()", "", "'sub\\n'", ""},
		{"(await import('path')).basename('/a/b')", "", "'b'", ""},
		{"display(1, [2])", "", "1|[ 2 ]", ""},
		{"process.emit; x", "", "41", ""},
	})
	s := k.turn("display.html('<b>'); display.json({a: [1]}); display.png(Buffer.from('p')); ({toHTML: () => '<i>'})")
	if r := s.results; len(r) != 4 || r[0].HTML != "<b>" || string(r[1].JSON) != `{"a":[1]}` || r[2].PNG != "cA==" || r[3].HTML != "<i>" || !r[3].Main {
		t.Errorf("%+v", s.results)
	}
	// What goes wrong beside a turn is said, and ends nothing.
	k.turn("setTimeout(() => { throw new Error('late') }, 1); Promise.reject(new Error('nobody')); await new Promise((r) => setTimeout(r, 50))")
	k.interrupted("console.log('up'); while (true) {}", "Interrupted")
	k.interrupted("console.log('up'); await new Promise(() => {})", "Interrupted")
	k.all(turns{{"x", "", "41", ""}})
	for _, want := range []string{"Uncaught Error: late", "Uncaught Error: nobody"} {
		for end := time.Now().Add(time.Minute); !strings.Contains(k.errs.String(), want); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%q", k.errs.String())
			}
		}
	}
}

// interrupted runs code that prints something and goes on for ever.
func (k *kept) interrupted(code, name string) {
	k.t.Helper()
	k.n++
	k.write(driver.Turn{Turn: k.n, Code: code}.Line())
	stuck := time.AfterFunc(2*time.Minute, func() { _ = k.cmd.Process.Kill() })
	defer stuck.Stop()
	for !strings.Contains(string(k.held), "up\n") {
		b := make([]byte, 4096)
		n, err := k.out.Read(b)
		if err != nil {
			k.t.Fatal(err)
		}
		k.held = append(k.held, b[:n]...)
	}
	over := make(chan struct{})
	defer close(over)
	go func() { // again and again, as the host does for Node
		for again := true; again; {
			_ = syscall.Kill(-k.cmd.Process.Pid, syscall.SIGINT)
			if name == "KeyboardInterrupt" {
				return
			}
			select {
			case <-over:
				again = false
			case <-time.After(time.Second):
			}
		}
	}()
	if s := k.until(driver.End); s.failed == nil || s.failed.Name != name {
		k.t.Errorf("%s: %+v", code, s.failed)
	}
}

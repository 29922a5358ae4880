package sim

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// live returns a session on a fresh instance.
func live(t *testing.T, limits sandbox.Limits) *guest.Session {
	t.Helper()
	b := New(Config{})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(func() { cancel(); b.Close() })
	inst, err := b.Create(ctx, sandbox.Spec{Instance: sandbox.NewInstanceID(), Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := inst.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err := guest.Open(ctx, conn, guest.Config{PIDs: limits.PIDs, Memory: limits.Memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// run returns what argv prints and its exit.
func run(t *testing.T, s *guest.Session, stdin string, argv ...string) (out, errs string, e guest.Exit) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p, err := s.Exec(ctx, guest.Command{Argv: argv, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(p.Stdin(), stdin)
		p.Stdin().Close()
	}()
	var o, eb bytes.Buffer
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(&eb, p.Stderr()) }()
	if _, err := io.Copy(&o, p.Stdout()); err != nil {
		t.Fatal(err)
	}
	<-done
	if e, err = p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return o.String(), eb.String(), e
}

func TestShell(t *testing.T) {
	s := live(t, sandbox.Limits{})
	for _, c := range []struct {
		script, out string
		code        int
	}{
		{"echo hi", "hi\n", 0},
		{"echo a; echo b", "a\nb\n", 0},
		{"echo a && false && echo b || echo c", "a\nc\n", 0},
		{"false || exit 3; echo not reached", "", 3},
		{"true\nexit 4\n", "", 4},
		{"echo 'a  b' \"$HOME\" ${USER}", "a  b /home/user user\n", 0},
		{"false; echo $?", "1\n", 0},
		{"echo x > f; echo y >> f; cat f; cat < f", "x\ny\nx\ny\n", 0},
		{"cd /tmp; pwd; echo t > t; ls", "/tmp\nt\n", 0},
		{"echo err >&2; echo out", "out\n", 0},
		{"nosuch", "", 127},
		{"cat nofile", "", 1},
		{"mkdir -p a/b; ls a; rm -rf a; ls a", "b\n", 2},
		{"# a comment\n\n  echo ok # another", "ok\n", 0},
		{"", "", 0},
		{"exit", "", 0},
		{"sh -c 'exit 5'; echo $?", "5\n", 0},
		{"python3 -c 'print(1)'; echo $?", "127\n", 0},
		{"echo $0-$1-$2", "zero-one-\n", 0},
		{"echo 'echo sourced $1' > s; . ./s", "sourced one\n", 0},
		// refused as a whole: the first command must not run either
		{"echo no; echo a | cat", "", 127},
		{"echo no; for i in 1 2; do echo $i; done", "", 127},
		{"echo no; x=1", "", 127},
		{"echo no; sleep 9 &", "", 127},
		{"echo no $(id)", "", 127},
		{"echo 'no", "", 127},
		{"echo no > ", "", 127},
		{"&& echo no", "", 127},
	} {
		out, errs, e := run(t, s, "", "sh", "-c", c.script, "zero", "one")
		if out != c.out || e.Code != c.code {
			t.Errorf("%q: %q, exit %d; want %q, %d (stderr %q)", c.script, out, e.Code, c.out, c.code, errs)
		}
	}
}

func TestDirectives(t *testing.T) {
	s := live(t, sandbox.Limits{})
	code := `import firebreak                # sim:
print(6*7)                      # sim: stdout 42
# a comment
sys.stderr.write("x")           # sim: stderr oops
sys.exit(3)                     # sim: exit 3
`
	out, errs, e := run(t, s, "", "python3", "-c", code)
	if out != "42\n" || errs != "oops\n" || e.Code != 3 {
		t.Errorf("python3: %q, %q, %d", out, errs, e.Code)
	}
	out, _, e = run(t, s, "console.log(1) // sim: stdout 1\n", "node", "-")
	if out != "1\n" || e.Code != 0 {
		t.Errorf("node from stdin: %q, %d", out, e.Code)
	}
	// One line without a directive, and nothing of it is pretended.
	out, errs, e = run(t, s, "", "python3", "-c", "print(1) # sim: stdout 1\nprint(2)")
	if out != "" || e.Code != notModelled || !strings.HasPrefix(errs, "sim: a model does not execute code") {
		t.Errorf("unmodelled code: %q, %q, %d", out, errs, e.Code)
	}
	if out, _, e = run(t, s, "", "python3", "-c", "print(1)"); out != "" || e.Code != notModelled {
		t.Errorf("plain code: %q, %d", out, e.Code)
	}
	if _, errs, e = run(t, s, "", "python3", "-c", "# sim: levitate"); e.Code != notModelled {
		t.Errorf("unknown directive: %q, %d", errs, e.Code)
	}
	// The ways in which code arrives.
	if _, err := s.WriteFile(t.Context(), "a b.py", strings.NewReader("# sim: stdout file\n# sim: args"), guest.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"python3", "-u", "a b.py", "x", "y"},
		{"python3", "-c", `exec(compile(open("a b.py",'rb').read(),"a b.py",'exec'))`, "x", "y"},
		{"node", "-e", `require('vm').runInThisContext(require('fs').readFileSync("/home/user/a b.py",'utf8'),{filename:"x"})`, "--", "x", "y"},
		{"sh", "-c", `. "$0"`, "a b.py", "x", "y"},
	} {
		if out, errs, e = run(t, s, "", argv...); out != "file\nx y\n" || e.Code != 0 {
			t.Errorf("%q: %q, %q, %d", argv, out, errs, e.Code)
		}
	}
	if _, _, e = run(t, s, "", "python3", "missing.py"); e.Code != 2 {
		t.Errorf("missing file: %d", e.Code)
	}
}

func TestDirectivesWithLimits(t *testing.T) {
	s := live(t, sandbox.Limits{Memory: 64 << 20, PIDs: 16})
	_, _, e := run(t, s, "", "python3", "-c", "x=bytearray(10**9) # sim: alloc 1000000000")
	if e.Reason != sandbox.ReasonMemory || e.Code != 137 {
		t.Errorf("alloc: %+v", e)
	}
	_, _, e = run(t, s, "", "python3", "-c", "while True: os.fork() # sim: bomb")
	if e.Reason != sandbox.ReasonPIDs {
		t.Errorf("bomb: %+v", e)
	}
}

func TestResult(t *testing.T) {
	s := live(t, sandbox.Limits{})
	ctx := t.Context()
	p, err := s.Exec(ctx, guest.Command{Argv: []string{"python3", "-c", `firebreak.result({"ok": 1}) # sim: result {"ok": 1}`},
		Env: []string{guest.ResultEnv + "=/tmp/result"}})
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout().Close()
	p.Stderr().Close()
	if e, err := p.Wait(ctx); err != nil || e.Code != 0 {
		t.Fatalf("%+v, %v", e, err)
	}
	if b, err := s.ReadAll(ctx, "/tmp/result", "", 1<<10); err != nil || string(b) != `{"ok": 1}` {
		t.Errorf("result %q, %v", b, err)
	}
}

func TestDeadline(t *testing.T) {
	l := newLine()
	defer l.close()
	c := l.dial()
	defer c.Close()
	for range 3 {
		c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Fatal("read of nothing succeeded")
		}
		c.SetReadDeadline(time.Time{})
		if _, err := l.guestEnd().Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 8)); n != 1 || err != nil {
			t.Fatalf("read after a deadline was lifted: %d, %v", n, err)
		}
	}
	c.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
	if n, err := c.Write(make([]byte, 2*lineBuffer)); err == nil || n != lineBuffer {
		t.Errorf("write to a full line: %d, %v", n, err)
	}
}

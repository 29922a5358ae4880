package backendtest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func testExec(t *testing.T, s *suite) {
	s.par(t, "ExitCodes", s.testExitCodes)
	s.par(t, "Missing", s.testMissing)
	s.par(t, "Arguments", s.testArguments)
	s.par(t, "Environment", s.testEnvironment)
	s.par(t, "Stdin", s.testStdin)
	s.par(t, "AtOnce", s.testExecAtOnce)
	s.par(t, "Signals", s.testSignals)
	s.par(t, "Terminal", s.testTerminal)
	s.par(t, "Timeout", s.testTimeout)
	s.par(t, "HeldOutput", s.testHeldOutput)
	s.par(t, "Invalid", func(t *testing.T) {
		x := s.open(t)
		for _, c := range []guest.Command{
			{}, {Argv: []string{""}}, {Argv: []string{"a\x00b"}},
			{Argv: x.argv("echo"), Env: []string{"novalue"}}, {Argv: x.argv("echo"), Timeout: -1},
		} {
			_, err := x.Exec(deadline(t), c)
			wantKind(t, fmt.Sprintf("exec %q", c.Argv), err, sandbox.KindInvalid)
		}
		_, err := x.Exec(deadline(t), guest.Command{Argv: x.argv("echo", strings.Repeat("a", 300<<10))})
		wantKind(t, "exec of a huge argument", err, sandbox.KindTooLarge)
		x.alive()
	})
}

func (s *suite) testExitCodes(t *testing.T) {
	x := s.open(t)
	for _, code := range []int{0, 1, 2, 7, 124, 126, 127, 255} {
		o := x.probe("exit", fmt.Sprint(code))
		if o.Code != code || o.Signal != 0 || o.Reason != sandbox.ReasonDone {
			t.Errorf("exit %d: got %+v", code, o.Exit)
		}
	}
	for _, sig := range []int{1, 2, 6, 9, 11, 15} {
		o := x.probe("signalself", fmt.Sprint(sig))
		if o.Code != 128+sig || o.Signal != sig || o.Reason != sandbox.ReasonDone {
			t.Errorf("death by signal %d: got %+v, want code %d", sig, o.Exit, 128+sig)
		}
	}
}

func (s *suite) testMissing(t *testing.T) {
	x := s.open(t)
	for _, c := range []struct {
		what string
		cmd  guest.Command
		kind sandbox.Kind
	}{
		{"a name not in PATH", guest.Command{Argv: []string{"no-such-program"}}, sandbox.KindNotFound},
		{"a path that is not there", guest.Command{Argv: []string{"/no/such/program"}}, sandbox.KindNotFound},
		{"a directory", guest.Command{Argv: []string{"/tmp"}}, sandbox.KindIsDirectory},
		{"a file that is no program", guest.Command{Argv: []string{"/etc/passwd"}}, sandbox.KindDenied},
		{"a missing working directory", guest.Command{Argv: x.argv("exit", "0"), Dir: "/no/such/dir"}, sandbox.KindNotFound},
		{"an unknown user", guest.Command{Argv: x.argv("exit", "0"), User: "nobody-of-that-name"}, sandbox.KindNotFound},
	} {
		_, err := x.try(c.cmd, "")
		wantKind(t, "exec of "+c.what, err, c.kind)
	}
	x.alive()
}

func (s *suite) testArguments(t *testing.T) {
	x := s.open(t)
	args := []string{"two words", "", "'\"$HOME`\\", "héllo 世界", "line\nbreak", "-n", "--help"}
	if o, want := x.probe(append([]string{"echo"}, args...)...), strings.Join(args, " ")+"\n"; o.out != want {
		t.Errorf("echo returned %q, want %q", o.out, want)
	}
	long := strings.Repeat("a", 100<<10)
	if o := x.probe("echo", long); o.out != long+"\n" {
		t.Errorf("an argument of 100 KiB arrived as %d bytes", len(o.out))
	}
}

func (s *suite) testEnvironment(t *testing.T) {
	x := s.open(t)
	t.Logf("the host's own environment must not arrive")
	canary := "FIREBREAK_CANARY_" + strings.ToUpper(string(x.spec.Instance))
	if err := os.Setenv(canary, "leak"); err != nil {
		t.Fatal(err)
	}
	defer os.Unsetenv(canary)
	o := x.exec(guest.Command{Argv: x.argv("env"), Env: []string{"A=1", "B=two words=x", "HOME=/tmp", "EMPTY="}}, "")
	have := map[string]bool{}
	for _, l := range strings.Split(o.out, "\n") {
		have[l] = true
		if strings.HasPrefix(l, "FIREBREAK_CANARY_") {
			t.Errorf("the host's environment arrived: %q", l)
		}
	}
	for _, want := range []string{"A=1", "B=two words=x", "HOME=/tmp", "EMPTY="} {
		if !have[want] {
			t.Errorf("environment lacks %q: %q", want, o.out)
		}
	}
	o = x.probe("env")
	if !strings.Contains(o.out, "PATH=") || !strings.Contains(o.out, "HOME="+guest.DefaultHome) {
		t.Errorf("the base environment lacks PATH or HOME: %q", o.out)
	}
}

func (s *suite) testStdin(t *testing.T) {
	x := s.open(t)
	t.Run("Hash", func(t *testing.T) {
		data := make([]byte, 8<<20)
		r := rand.NewChaCha8([32]byte{1})
		r.Read(data)
		o := x.exec(guest.Command{Argv: x.argv("sha")}, string(data))
		if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.Contains(o.out, want) {
			t.Errorf("8 MiB of stdin hash to %q, want %s", o.out, want)
		}
	})
	t.Run("None", func(t *testing.T) {
		if o := x.probe("cat"); o.Code != 0 || o.out != "" {
			t.Errorf("cat without stdin: %+v, want end of file at once", o)
		}
	})
	t.Run("Close", func(t *testing.T) {
		p := x.start("cat")
		if _, err := io.WriteString(p.Stdin(), "one\n"); err != nil {
			t.Fatal(err)
		}
		until(t, p, "one\n") // it is read as it comes, not at the end
		p.Stdin().Close()
		if rest, err := io.ReadAll(p.Stdout()); err != nil || len(rest) > 0 {
			t.Errorf("after closing stdin: %q, %v", rest, err)
		}
		p.Stderr().Close()
		if e := x.wait(p); e.Code != 0 {
			t.Errorf("cat ended with %+v", e)
		}
	})
	t.Run("Unread", func(t *testing.T) {
		// A program that ends without reading does not fail its exec.
		o := x.exec(guest.Command{Argv: x.argv("exit", "3")}, strings.Repeat("x", 1<<20))
		if o.Code != 3 {
			t.Errorf("exit 3 with unread stdin: %+v", o.Exit)
		}
	})
}

func (s *suite) testExecAtOnce(t *testing.T) {
	x := s.open(t)
	const n = 16
	var wg sync.WaitGroup
	outs, errs := make([]outcome, n), make([]error, n)
	for i := range n {
		wg.Go(func() {
			in := strings.Repeat(fmt.Sprintf("%04d", i), 2000)
			outs[i], errs[i] = x.try(guest.Command{Argv: x.argv("cat")}, in)
			if errs[i] == nil && outs[i].out != in {
				errs[i] = fmt.Errorf("stdin and stdout differ: %d and %d bytes", len(in), len(outs[i].out))
			}
		})
	}
	wg.Wait()
	for i := range n {
		if errs[i] != nil || outs[i].Code != 0 {
			t.Errorf("exec %d: %+v, %v", i, outs[i].Exit, errs[i])
		}
	}
}

func (s *suite) testSignals(t *testing.T) {
	x := s.open(t)
	up := func(verb ...string) *guest.Process {
		p := x.start(verb...)
		t.Cleanup(func() { p.Close() })
		return p
	}
	send := func(p *guest.Process, sig int) {
		t.Helper()
		if err := p.Signal(deadline(t), sig); err != nil {
			t.Errorf("signal %d: %v", sig, err)
		}
	}
	for _, sig := range []int{15, 9, 2} {
		p := up("cat")
		if _, err := io.WriteString(p.Stdin(), "up\n"); err != nil {
			t.Fatal(err)
		}
		until(t, p, "up\n")
		send(p, sig)
		if e := x.wait(p); e.Code != 128+sig || e.Signal != sig {
			t.Errorf("after signal %d: %+v", sig, e)
		}
		if err := p.Signal(deadline(t), 15); sandbox.KindOf(err) != sandbox.KindNotFound {
			t.Errorf("signal to an ended program: %v, want kind not_found", err)
		}
	}
	p := up("ignore-term")
	until(t, p, "ready")
	send(p, 15)
	x.alive() // a round trip later it still runs
	ctx := deadline(t)
	if ps, err := x.Processes(ctx); err != nil || !running(ps, p.ID()) {
		t.Errorf("a program that ignores SIGTERM ended: %v, %v", ps, err)
	}
	send(p, 9)
	if e := x.wait(p); e.Signal != 9 {
		t.Errorf("SIGKILL: %+v", e)
	}
	wantKind(t, "signal 0", p.Signal(ctx, 0), sandbox.KindInvalid)
	wantKind(t, "signal 65", p.Signal(ctx, 65), sandbox.KindInvalid)
}

// testHeldOutput: a process left behind that holds standard output does not
// keep its exec from ending.
func (s *suite) testHeldOutput(t *testing.T) {
	x := s.open(t)
	o := x.probe("hold-output")
	if o.Code != 0 || strings.TrimSpace(o.out) == "" {
		t.Errorf("hold-output: %+v, want its pid", o)
	}
	within(t, "an exec whose output a daemon holds", o.took, time.Second)
	x.alive()
}

func running(ps []guest.ProcessInfo, id uint32) bool {
	for _, p := range ps {
		if p.ID == id {
			return p.Exit == nil
		}
	}
	return false
}

func (s *suite) testTimeout(t *testing.T) {
	x := s.open(t)
	const limit = 400 * time.Millisecond
	for _, verb := range [][]string{{"sleep", "60s"}, {"spin"}, {"ignore-term"}, {"cat"}} {
		began := time.Now() // before the guest's clock starts: the caller may be slow
		p, err := x.Exec(deadline(t), guest.Command{Argv: x.argv(verb...), Timeout: limit, Stdin: true})
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, p.Stdout())
		go io.Copy(io.Discard, p.Stderr())
		e := x.wait(p)
		if e.Reason != sandbox.ReasonTimeout || e.Code != 137 {
			t.Errorf("%s: %+v, want reason timeout and code 137", verb[0], e)
		}
		if took := time.Since(began); took < limit {
			t.Errorf("%s: killed after %s, before its limit", verb[0], took)
		} else {
			within(t, verb[0]+" with a limit of 400ms", took, limit+time.Second)
		}
	}
	// A program that ends in time is not touched.
	o := x.exec(guest.Command{Argv: x.argv("exit", "5"), Timeout: patience}, "")
	if o.Code != 5 || o.Reason != sandbox.ReasonDone {
		t.Errorf("exit 5 within its limit: %+v", o.Exit)
	}
	x.alive()
}

package failpoint

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestMain doubles as the victim: with VICTIM set it hits two points three
// times each and says how far it came.
func TestMain(m *testing.M) {
	if os.Getenv("FAILPOINT_VICTIM") == "" {
		os.Exit(m.Run())
	}
	for range 3 {
		Hit("a/one")
		os.Stdout.WriteString("1")
		Hit("a/two")
		os.Stdout.WriteString("2")
	}
}

func victim(t *testing.T, env string) (stdout, stderr string, state *os.ProcessState) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FAILPOINT_VICTIM=1", Env+"="+env)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // its state is what the tests look at
	return out.String(), errs.String(), cmd.ProcessState
}

func TestKillsAtTheNamedHit(t *testing.T) {
	for env, want := range map[string]string{
		"":         "121212",
		"a/three":  "121212",
		"a/one":    "",
		"a/one:1":  "",
		"a/two:2":  "121",
		"a/one:3":  "1212",
		"a/one:99": "121212",
	} {
		out, _, state := victim(t, env)
		if out != want {
			t.Errorf("%s=%s: got as far as %q, want %q", Env, env, out, want)
		}
		ws, ok := state.Sys().(syscall.WaitStatus)
		if killed := ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL; killed != (want != "121212") {
			t.Errorf("%s=%s: killed %v, state %v", Env, env, killed, state)
		}
	}
}

func TestCountPrintsEveryHit(t *testing.T) {
	out, errs, _ := victim(t, "count")
	want := "failpoint: a/one:1\nfailpoint: a/two:1\nfailpoint: a/one:2\n"
	if out != "121212" || !strings.HasPrefix(errs, want) || strings.Count(errs, "\n") != 6 {
		t.Errorf("out %q, stderr %q", out, errs)
	}
}

// TestFile: what a file says counts from the moment it says so.
func TestFile(t *testing.T) {
	path := t.TempDir() + "/arm"
	say := func(v string) {
		if err := os.WriteFile(path, []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := parse("@" + path)
	f("a/one")
	say("count\n")
	f("a/one")
	f("a/two")
	f("a/one")
	say("")
	f("a/one")
	say("count")
	f("a/one")
	say("count again")
	f("a/one")
	if b, err := os.ReadFile(path + ".hits"); err != nil || string(b) != "a/one:1\na/two:1\na/one:2\na/one:1\na/one:1\n" {
		t.Errorf("hits %q, %v", b, err)
	}
	say("a/two:2")
	if out, _, state := victim(t, "@"+path); out != "121" || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("got as far as %q, %v", out, state)
	}
	say("")
	if out, _, _ := victim(t, "@"+path); out != "121212" {
		t.Errorf("not armed: got as far as %q", out)
	}
}

func TestIntercept(t *testing.T) {
	var got []string
	restore := Intercept(func(name string) { got = append(got, name) })
	Hit("x/y")
	restore()
	Hit("x/z")
	if strings.Join(got, ",") != "x/y" {
		t.Errorf("intercepted %q", got)
	}
}

func BenchmarkHitOff(b *testing.B) {
	for b.Loop() {
		Hit("bench/off")
	}
}

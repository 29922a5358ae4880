package agent_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	verbs "github.com/firebreak-dev/firebreak/internal/guest/probe"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestNotPID1(t *testing.T) {
	if _, err := agent.NewLinux(); err == nil {
		t.Fatal("the agent accepts not to be PID 1: its kill(-1) would hit the machine")
	}
}

func TestExec(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	out, errs, e := run(t, s, guest.Command{}, "echo", "hello", "world")
	if out != "hello world\n" || errs != "" || e.Code != 0 || e.Reason != sandbox.ReasonDone {
		t.Fatalf("%q %q %+v", out, errs, e)
	}
	if _, _, e := run(t, s, guest.Command{}, "exit", "42"); e.Code != 42 || e.Reason != sandbox.ReasonDone {
		t.Errorf("exit 42: %+v", e)
	}
	if _, _, e := run(t, s, guest.Command{}, "signalself", "15"); e.Code != 143 || e.Signal != 15 {
		t.Errorf("signal 15: %+v", e)
	}
	_, err := s.Exec(ctx(t), guest.Command{Argv: []string{"nothing-of-this-name"}})
	if sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("missing program: %v", err)
	}
	_, err = s.Exec(ctx(t), guest.Command{Argv: []string{guest.AgentPath}, Dir: "/missing"})
	if sandbox.KindOf(err) != sandbox.KindNotFound || !strings.Contains(err.Error(), "directory") {
		t.Errorf("missing directory: %v", err)
	}
	_, err = s.Exec(ctx(t), guest.Command{Argv: []string{guest.AgentPath}, User: "nobody-here"})
	if sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("missing user: %v", err)
	}
	if _, err := s.Exec(ctx(t), guest.Command{Argv: []string{"/etc/passwd"}}); sandbox.KindOf(err) != sandbox.KindDenied {
		t.Errorf("not executable: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	var id struct {
		UID, EUID, GID                         int
		Groups                                 []int
		CapInh, CapPrm, CapEff, CapBnd, CapAmb string
		NNP                                    bool `json:"no_new_privs"`
		Core                                   int
		CWD                                    string
		PPID                                   int
	}
	out, _, _ := run(t, s, guest.Command{}, "id")
	unmarshal(t, out, &id)
	const none = "0000000000000000"
	if id.UID != 1000 || id.EUID != 1000 || id.GID != 1000 || id.CapBnd != none || id.CapEff != none || id.CapPrm != none ||
		id.CapInh != none || id.CapAmb != none || !id.NNP || id.Core != 0 || id.CWD != "/home/user" || id.PPID != 1 {
		t.Errorf("user: %s", out)
	}
	if len(id.Groups) != 1 || id.Groups[0] != 2000 {
		t.Errorf("groups: %v", id.Groups)
	}
	out, _, _ = run(t, s, guest.Command{User: "root", Dir: "/"}, "id")
	unmarshal(t, out, &id)
	bnd, err := strconv.ParseUint(id.CapBnd, 16, 64)
	must(t, err)
	const sysResource, sysPtrace, sysAdmin = 1 << 24, 1 << 19, 1 << 21
	if id.UID != 0 || !id.NNP || bnd&(sysResource|sysPtrace|sysAdmin) != 0 || bnd&1 == 0 || id.CapEff != id.CapBnd {
		t.Errorf("root: %s", out)
	}
	out, _, _ = run(t, s, guest.Command{User: "4321"}, "id")
	unmarshal(t, out, &id)
	if id.UID != 4321 || id.CapBnd != none {
		t.Errorf("numeric: %s", out)
	}
}

func TestEnvironment(t *testing.T) {
	b := newBox(t)
	must(t, os.MkdirAll(b.root+guest.PythonDir, 0o755))
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{Env: []string{"A=1", "PYTHONPATH=/x", "HOME=/tmp", "A=2"}}, "env")
	out, _, _ := finish(t, p)
	want := map[string]string{"A": "2", "HOME": "/tmp", "USER": "user", "LANG": "C.UTF-8", "PATH": guest.DefaultPath,
		"PYTHONPATH": "/x:" + guest.PythonDir, guest.ResultEnv: p.ResultPath()}
	got := map[string]string{}
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		k, v, _ := strings.Cut(l, "=")
		if _, twice := got[k]; twice {
			t.Errorf("%s is set twice", k)
		}
		got[k] = v
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s=%q, want %q", k, got[k], v)
		}
	}
}

func TestStdin(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{Stdin: true}, "sha")
	const size = 5<<20 + 17
	go func() {
		verbs.WritePattern(p.Stdin(), size, false)
		p.Stdin().Close()
	}()
	out, _, e := finish(t, p)
	if want := verbs.PatternHash(size, false) + " " + strconv.Itoa(size) + "\n"; out != want || e.Code != 0 {
		t.Errorf("got %q, want %q, %+v", out, want, e)
	}
	// A program that does not read must not block who writes.
	p = probe(t, s, guest.Command{Stdin: true}, "sleep", "50ms")
	err := verbs.WritePattern(p.Stdin(), 10<<20, false)
	if sandbox.KindOf(err) != sandbox.KindGone {
		t.Errorf("writing to an ended program: %v", err)
	}
	if _, _, e := finish(t, p); e.Code != 0 {
		t.Errorf("%+v", e)
	}
}

func TestOutput(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	const size = 20 << 20
	for _, verb := range [][]string{{"out"}, {"noline"}, {"out", "stderr"}} {
		args := append([]string{verb[0], strconv.Itoa(size)}, verb[1:]...)
		p := probe(t, s, guest.Command{}, args...)
		from := p.Stdout()
		if len(verb) > 1 {
			from = p.Stderr()
		}
		h := sha256.New()
		n, err := io.Copy(h, from)
		must(t, err)
		e, err := p.Wait(ctx(t))
		must(t, err)
		if n != size || hex.EncodeToString(h.Sum(nil)) != verbs.PatternHash(size, verb[0] == "out") || e.Code != 0 {
			t.Errorf("%v: %d bytes, %+v", verb, n, e)
		}
	}
}

// TestStalledReader: one program whose output nobody reads stalls neither
// others nor files, and its end is still reported.
func TestStalledReader(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	stalled := probe(t, s, guest.Command{}, "out", strconv.Itoa(10<<20))
	time.Sleep(50 * time.Millisecond)
	for range 3 {
		if out, _, _ := run(t, s, guest.Command{}, "echo", "x"); out != "x\n" {
			t.Fatalf("%q", out)
		}
	}
	if _, err := s.WriteFile(ctx(t), "f", strings.NewReader("abc"), guest.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	must(t, stalled.Signal(ctx(t), 9))
	e, err := stalled.Wait(ctx(t)) // its output is still unread
	if err != nil || e.Code != 137 || e.Reason != sandbox.ReasonDone {
		t.Fatalf("%+v %v", e, err)
	}
	n, err := io.Copy(io.Discard, stalled.Stdout())
	if err != nil || n < guest.DefaultWindow {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func TestSignals(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{}, "ignore-term")
	if l := line(t, p.Stdout()); l != "ready" {
		t.Fatal(l)
	}
	must(t, p.Signal(ctx(t), 15))
	c, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := p.Wait(c); sandbox.KindOf(err) != sandbox.KindTimeout {
		t.Fatalf("ended by SIGTERM: %v", err)
	}
	must(t, p.Signal(ctx(t), 9))
	if _, _, e := finish(t, p); e.Signal != 9 || e.Code != 137 {
		t.Fatalf("%+v", e)
	}
	if err := p.Signal(ctx(t), 9); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	start := time.Now()
	_, _, e := run(t, s, guest.Command{Timeout: 300 * time.Millisecond}, "spin")
	if e.Reason != sandbox.ReasonTimeout || e.Code != 137 || e.Detail != "limit 300ms" {
		t.Errorf("%+v", e)
	}
	if d := time.Since(start); d > 1200*time.Millisecond {
		t.Errorf("took %s", d)
	}
	if _, _, e := run(t, s, guest.Command{Timeout: 5 * time.Second}, "exit", "3"); e.Reason != sandbox.ReasonDone || e.Code != 3 {
		t.Errorf("ended in time: %+v", e)
	}
}

// TestDeadlineMoves: a deadline comes when the host says last, or not at all.
func TestDeadlineMoves(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	ctx := ctx(t)
	for left, reason := range map[time.Duration]sandbox.Reason{50 * time.Millisecond: sandbox.ReasonTimeout, 0: sandbox.ReasonDone} {
		p, err := s.Exec(ctx, guest.Command{Argv: []string{guest.AgentPath, "probe", "sleep", "2s"}, Timeout: 1500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Limit(ctx, p.ID(), left); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, p.Stdout())
		go io.Copy(io.Discard, p.Stderr())
		e, err := p.Wait(ctx)
		// The host's own limit stands: it is its caller's to know what it said.
		if sandbox.KindOf(err) == sandbox.KindTimeout && left == 0 {
			continue
		}
		if err != nil || e.Reason != reason {
			t.Errorf("with %s left: %+v, %v", left, e, err)
		}
	}
	if err := s.Limit(ctx, 1<<30, 0); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("of a process that is not there: %v", err)
	}
}

// TestDeadlineKillsDescendants: also those that left session and group.
func TestDeadlineKillsDescendants(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	_, _, e := run(t, s, guest.Command{Timeout: 300 * time.Millisecond}, "bomb")
	if e.Reason != sandbox.ReasonTimeout {
		t.Errorf("%+v", e)
	}
	onlyAgent(t, s)
}

// onlyAgent checks that no user process is left, but the one that looks.
func onlyAgent(t *testing.T, s *guest.Session) {
	t.Helper()
	var n struct{ Processes int }
	var out string
	for range 100 {
		out, _, _ = run(t, s, guest.Command{User: "root", Dir: "/"}, "tasks")
		unmarshal(t, out, &n)
		if n.Processes == 2 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left: %s", out)
}

// TestDaemon: a process left behind neither delays the exec's end nor dies of
// it, as long as it has left the session.
func TestDaemon(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	for _, verb := range []string{"daemon", "hold-output"} {
		start := time.Now()
		out, _, e := run(t, s, guest.Command{}, verb)
		if d := time.Since(start); d > time.Second || e.Code != 0 {
			t.Errorf("%s: %s, %+v", verb, d, e)
		}
		pid := strings.TrimSpace(out)
		if out, _, e := run(t, s, guest.Command{}, "read", "/proc/"+pid+"/stat"); e.Code != 0 || !strings.HasPrefix(out, pid+" ") {
			t.Errorf("%s: the daemon is gone", verb)
		}
	}
	// A deadline takes the daemons of its own exec and leaves the others.
	_, _, e := run(t, s, guest.Command{Timeout: 200 * time.Millisecond}, "fork", "5")
	if e.Reason != sandbox.ReasonTimeout {
		t.Errorf("%+v", e)
	}
	var n struct{ Processes int }
	out, _, _ := run(t, s, guest.Command{}, "tasks")
	unmarshal(t, out, &n)
	if n.Processes != 4 { // agent, two daemons, the one that looks
		t.Errorf("%s", out)
	}
}

func TestGroupIsKilledAtEnd(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{}, "fork", "10")
	line(t, p.Stdout())
	pid := p.PID()
	// Only the leader: its children stay in the group and must go with it.
	must(t, kill(b, s, pid))
	if _, _, e := finish(t, p); e.Signal != 9 {
		t.Errorf("%+v", e)
	}
	onlyAgent(t, s)
}

// kill kills one process of the box from inside.
func kill(b *box, s *guest.Session, pid int) error {
	host, err := hostPID(b, pid)
	if err != nil {
		return err
	}
	return (&os.Process{Pid: host}).Kill()
}

//go:build linux

package gvisor

import (
	"os/exec"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestProcessIsNotItsPID(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p, ok := identify(cmd.Process.Pid)
	if !ok || p.gone() {
		t.Fatalf("identify(%d) = %+v, %v", cmd.Process.Pid, p, ok)
	}
	other := p
	other.Start++ // who had the pid before
	if !other.gone() {
		t.Error("a process with another start time counts as alive")
	}
	if err := other.kill(); err != nil {
		t.Errorf("killing what is gone: %v", err)
	}
	if p.gone() {
		t.Fatal("killing a former owner of the pid killed the present one")
	}
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	if !p.waitGone(time.Now().Add(10 * time.Second)) {
		t.Error("a killed process is not gone")
	}
	if !p.gone() {
		t.Error("a zombie counts as alive")
	}
}

func TestNamedFindsRunscOnly(t *testing.T) {
	id := sandbox.NewInstanceID()
	// Shells that wait for their input, called this and that.
	start := func(argv0 string) int {
		c := &exec.Cmd{Path: "/bin/sh", Args: []string{argv0, "-c", "read line", string(id)}}
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); c.Wait() })
		return c.Process.Pid
	}
	sentry := start("runsc-sandbox")
	start("sh") // somebody looking for the id
	// A program has no command line for a moment after its exec.
	found := named(id)
	for end := time.Now().Add(time.Minute); len(found) == 0 && time.Now().Before(end); found = named(id) {
		time.Sleep(time.Millisecond)
	}
	if len(found) != 1 || found[0].PID != sentry {
		t.Errorf("named = %+v, want only %d", found, sentry)
	}
}

func BenchmarkNamed(b *testing.B) {
	id := sandbox.NewInstanceID()
	for b.Loop() {
		named(id)
	}
}

// TestRoleOfThePassing: a process that begins or ends at this moment has no
// command line, and must not be taken for a stub, which has none either: a
// sandbox whose oldest stub ends is ended.
func TestRoleOfThePassing(t *testing.T) {
	looks, runs := 0, 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); runs++ {
		cmd := exec.Command("/bin/true")
		cmd.Args = []string{"runsc", "run", "x"}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p, ok := identify(cmd.Process.Pid)
		for ; ok && !p.gone(); looks++ {
			if role := commandRole(p.PID); role == "stub" {
				t.Errorf("look %d at process %d: a runtime is a stub", looks, runs)
				break
			}
		}
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Fatal(err)
		}
	}
	t.Logf("%d looks at %d processes", looks, runs)
}

// TestAlive: what is said of an instance without a look at its files is true the moment
// its sentry has ended, whether or not somebody has noticed.
func TestAlive(t *testing.T) {
	b := open(t, t.TempDir())
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	if !x.Alive() || x.OOMKills() != 0 {
		t.Errorf("alive %v, OOM kills %d", x.Alive(), x.OOMKills())
	}
	if err := x.running.Sentry.kill(); err != nil {
		t.Fatal(err)
	}
	if !x.running.Sentry.waitGone(time.Now().Add(time.Minute)) {
		t.Fatal("it does not end")
	}
	if x.Alive() {
		t.Error("it is taken for alive")
	}
	if _, err := x.Instance.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	if x.Alive() {
		t.Error("it is taken for alive after its end")
	}
}

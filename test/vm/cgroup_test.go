//go:build linux

package vm

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDelegatedCgroup is the proof on a real kernel: an ordinary user with a
// delegated cgroup of version 2 has every limit enforced, and nothing is left of
// it; one without has them reported as not enforced; root divides the top.
func TestDelegatedCgroup(t *testing.T) {
	machine(t)
	bin, err := filepath.Abs("../../bin/firebreak")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("not run: bin/firebreak is not built (run `make`)")
	}
	const guest = "/.firebreak/firebreak-guest"
	run := func(args ...string) []string { return append([]string{"/usr/bin/firebreak", "run"}, args...) }
	suite := func(tests string) []string {
		return []string{"/usr/bin/gvisor.test", "-test.v", "-test.short", "-test.timeout=10m", "-test.run", tests}
	}
	const user = 1234
	plan := []step{
		{Name: "hello", UID: user, Delegated: true, Argv: run("--json", "--", guest, "probe", "echo", "hello")},
		{Name: "twice", UID: user, Delegated: true, Copies: 2, Argv: run("--json", "--", guest, "probe", "echo", "hello")},
		{Name: "memory", UID: user, Delegated: true, Argv: run("--json", "--memory", "64MiB", "--timeout", "2m", "--", guest, "probe", "alloc", "1073741824")},
		{Name: "pids", UID: user, Delegated: true, Argv: run("--json", "--pids", "16", "--timeout", "2m", "--", guest, "probe", "fork", "64")},
		{Name: "refused", UID: user, Argv: run("--memory", "64MiB", "--", guest, "probe", "echo", "hello")},
		{Name: "suite-user", UID: user, Delegated: true, Argv: suite(
			"TestConformance/Suite/Limits/^(Memory|PIDs)$|TestCPUShare|TestKernelKillsTheGuest|TestKilledWhileCreating|TestOtherParent")},
		{Name: "suite-root", Argv: suite("TestEndSaysMemory|TestHostSide|TestCPUShare")},
	}
	for k := range plan {
		plan[k].Timeout = 10 * time.Minute
	}
	got := boot(t, plan, map[string]string{
		"/usr/bin/firebreak":   bin,
		"/usr/bin/gvisor.test": build(t, "test", "-c", "./internal/backend/gvisor"),
		"/bin/sh":              bin, // a machine without a shell is no template; nobody runs it
	})
	for _, s := range plan {
		o, ok := got[s.Name]
		if !ok {
			t.Errorf("%s was not reached", s.Name)
			continue
		}
		t.Logf("%s: exit code %d after %s\n%s", o.Name, o.Code, o.Took.Round(time.Millisecond), o.Output)
		if len(o.Left) > 0 || o.Alive > 0 {
			t.Errorf("%s left cgroups %q and %d processes", o.Name, o.Left, o.Alive)
		}
	}
	checkEnforced(t, got["hello"], "done", 0)
	checkEnforced(t, got["twice"], "done", 0)
	checkEnforced(t, got["memory"], "memory", 137)
	checkEnforced(t, got["pids"], "pids", 137)
	if o := got["refused"]; o.Code != 125 || !strings.Contains(o.Output, "systemd-run") || !strings.Contains(o.Output, "--accept-weaker") {
		t.Errorf("an explicit limit without delegation: code %d\n%s", o.Code, o.Output)
	}
	for _, name := range []string{"suite-user", "suite-root"} {
		if o := got[name]; o.Code != 0 || strings.Contains(o.Output, "--- SKIP") {
			t.Errorf("%s: exit code %d, or something was skipped", name, o.Code)
		}
	}
}

func checkEnforced(t *testing.T, o outcome, reason string, code int) {
	t.Helper()
	if o.Code != code {
		t.Errorf("%s: exit code %d, want %d", o.Name, o.Code, code)
	}
	for d := json.NewDecoder(strings.NewReader(o.Output)); ; {
		var run struct {
			Reason string
			Limits map[string]struct{ Enforced bool }
		}
		if err := d.Decode(&run); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Errorf("%s: %v", o.Name, err)
			break
		}
		if run.Reason != reason || len(run.Limits) == 0 {
			t.Errorf("%s ended with %q, %d limits; want %q", o.Name, run.Reason, len(run.Limits), reason)
		}
		for name, l := range run.Limits {
			if !l.Enforced {
				t.Errorf("%s: the %s limit is not enforced", o.Name, name)
			}
		}
	}
}

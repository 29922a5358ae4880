//go:build linux

package microvm

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// TestRealFirecracker is about the program itself, where there is what it takes: that
// and its jailer on the PATH, KVM, and an uncompressed kernel.
func TestRealFirecracker(t *testing.T) {
	if _, err := exec.LookPath("firecracker"); err != nil {
		t.Skip("not run: there is no firecracker on the PATH")
	}
	kernel := os.Getenv("FIREBREAK_MACHINE_KERNEL")
	if kernel == "" {
		t.Skip("not run: FIREBREAK_MACHINE_KERNEL names no uncompressed kernel")
	}
	real := func(t *testing.T, dir string) *Backend {
		t.Helper()
		cfg := open(t, dir).cfg
		cfg.VMM, cfg.Kernel = vmmFirecracker, kernel
		b, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b
	}
	b := real(t, t.TempDir())
	if info, err := b.Info(patient(t)); err != nil || !info.Available {
		t.Skipf("not run: %s (%v)", info.Reason, err)
	}
	t.Run("Held", func(t *testing.T) { realHeld(t, b) })
	t.Run("Ends", func(t *testing.T) {
		b := real(t, t.TempDir())
		b.test = machine.TestKeys
		inst, s := boot(t, b)
		probeAs(t, s, "root", "write", "/proc/sysrq-trigger", "c")
		if exit, err := inst.Wait(patient(t)); err != nil || exit.Reason != sandbox.ReasonCrashed {
			t.Errorf("%+v, %v", exit, err)
		}
	})
	if !b.look().info.Capabilities.Snapshot {
		t.Skipf("the rest is not run: %s saves no machines", b.look().info.Version)
	}
	t.Run("Copies", func(t *testing.T) { testCopies(t, b) })
	t.Run("Life", func(t *testing.T) { realLife(t, b) })
	t.Run("Conformance", func(t *testing.T) {
		root := minimalRoot(t)
		backendtest.Run(t, backendtest.Config{
			New:  func(t *testing.T, dir string) sandbox.Backend { return real(t, dir) },
			Root: func(*testing.T) sandbox.Root { return root },
			Frozen: func(t *testing.T, dir string) (sandbox.Backend, sandbox.Root) {
				b := real(t, dir)
				b.test = machine.TestFreeze
				return b, root
			},
			Kill: func(t *testing.T, b sandbox.Backend, id sandbox.InstanceID) {
				procs, err := readProcesses(b.(*Backend).dir(id))
				if err == nil {
					err = procs[0].kill()
				}
				if err != nil {
					t.Errorf("kill the monitor: %v", err)
				}
			},
			Scope:    func(dir string) residue.Scope { return residue.Scope{Dirs: []string{dir}} },
			Parallel: 2,
		})
	})
}

// realHeld: what the monitor is left with.
func realHeld(t *testing.T, b *Backend) {
	inst, s := boot(t, b)
	if out := probeAs(t, s, "", "echo", "hello"); out != "hello\n" {
		t.Errorf("echo: %q", out)
	}
	i := inst.(*Instance)
	proc := fmt.Sprintf("/proc/%d", i.processes[0].PID)
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nSeccomp:\t2\n", "\nCapEff:\t0000000000000000\n", fmt.Sprintf("\nUid:\t%d\t", userOf(i.id))} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the monitor has no %q:\n%s", want, status)
		}
	}
	limits, err := os.ReadFile(proc + "/limits")
	if err != nil || !strings.Contains(string(limits), fmt.Sprintf("Max file size             %d", (&fireVMM{}).jail(vm{memory: DefaultMemory + guestOverhead(DefaultMemory), disk: i.dir + "/" + fileDisk}).FileSize)) {
		t.Errorf("limits:\n%s%v", limits, err)
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	if ns, err := os.Readlink(proc + "/ns/net"); err != nil || ns == own {
		t.Errorf("the monitor is in the host's network: %q, %v", ns, err)
	}
}

// realLife: configured, started, paused and saved with a program that runs, loaded in
// another process, resumed, killed; nothing is left of either.
func realLife(t *testing.T, b *Backend) {
	root := minimalRoot(t)
	first := made(t, b, root, nil)
	s := speak(t, first)
	p, err := s.Exec(patient(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	echo := func(p *guest.Process, text string) {
		t.Helper()
		buf := make([]byte, len(text))
		if _, err := p.Stdin().Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(buf); {
			k, err := p.Stdout().Read(buf[n:])
			if n += k; err != nil {
				t.Fatal(err)
			}
		}
		if string(buf) != text {
			t.Errorf("%q came back as %q", text, buf)
		}
	}
	echo(p, "before\n")
	snap := saved(t, first)
	echo(p, "afterwards\n") // over the same session
	var ids []sandbox.InstanceID
	for range 2 {
		y := made(t, b, root, &snap)
		q, err := speak(t, y).Reattach(patient(t), p.ID(), guest.Position{Stdout: int64(len("before\n"))})
		if err != nil {
			t.Fatal(err)
		}
		echo(q, "a copy\n")
		ids = append(ids, y.id)
		checkRemoved(t, b, y.id)
	}
	checkRemoved(t, b, first.id)
	for _, id := range append(ids, first.id) {
		if left := named(id); len(left) > 0 {
			t.Errorf("processes are left of %s: %v", id, left)
		}
	}
}

//go:build linux

package microvm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestProbe: a machine says hello and goes.
func TestProbe(t *testing.T) {
	b := machines(t)
	began := time.Now()
	info, err := b.Probe(patient(t))
	if err != nil || !info.Available {
		t.Fatalf("%+v, %v", info, err)
	}
	if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	t.Logf("%s: said hello and was removed after %s", info.Version, time.Since(began).Round(time.Millisecond))
}

// TestProbeSaysWhy: what does not boot is not available, with what was said.
func TestProbeSaysWhy(t *testing.T) {
	b := machines(t)
	junk := filepath.Join(t.TempDir(), "vmlinuz-0")
	if err := os.WriteFile(junk, bytes.Repeat([]byte("junk"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := b.cfg
	cfg.Kernel = junk
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(patient(t), 20*time.Second)
	defer cancel()
	info, err := b.Probe(ctx)
	if err == nil && (info.Available || info.Reason == "") || err != nil && sandbox.KindOf(err) != sandbox.KindTimeout {
		t.Errorf("a kernel of junk: %+v, %v", info, err)
	}
	t.Logf("%s; %v", info.Reason, err)
	if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// boot makes an instance with a session, destroyed when the test ends.
func boot(t *testing.T, b *Backend) (sandbox.Instance, *guest.Session) {
	t.Helper()
	inst, err := b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r, err := inst.Destroy(context.Background()); err != nil || !r.Clean {
			t.Errorf("Destroy: %+v, %v", r, err)
		}
	})
	conn, err := inst.Dial(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := guest.Open(patient(t), conn, guest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return inst, s
}

func probeAs(t *testing.T, s *guest.Session, user string, verb ...string) string {
	t.Helper()
	p, err := s.Exec(patient(t), guest.Command{Argv: append([]string{guest.AgentPath, "probe"}, verb...), User: user})
	if err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(patient(t), func() { p.Close() })
	defer stop()
	go io.Copy(io.Discard, p.Stderr())
	out, _ := io.ReadAll(p.Stdout()) // cut off where the machine ended
	_, _ = p.Wait(patient(t))
	return string(out)
}

// TestEnds: each way a guest ends its machine has a reason, its monitor does not
// outlive it, and the host goes on. Root inside asks the guest's kernel for it.
func TestEnds(t *testing.T) {
	b := machines(t)
	b.test = machine.TestKeys
	for _, c := range []struct{ name, key, detail string }{
		{"panic", "c", "its processor was reset: a panic, or a triple fault: Kernel panic"},
		{"reset", "b", "its processor was reset"},
		{"off", "o", "it switched itself off"},
		{"agent", "i", "it switched itself off: the agent has ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.name != "panic" {
				t.Skip("not run: -short, and it boots a machine")
			}
			inst, s := boot(t, b)
			probeAs(t, s, "root", "write", "/proc/sysrq-trigger", c.key)
			exit, err := inst.Wait(patient(t))
			if err != nil || exit.Reason != sandbox.ReasonCrashed || !strings.HasPrefix(exit.Detail, c.detail) {
				t.Errorf("%+v, %v; want crashed, %q", exit, err, c.detail)
			}
			p := inst.(*Instance).processes[0]
			for end := time.Now().Add(time.Minute); !p.gone(); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the monitor lives on")
				}
			}
			if _, err := inst.Dial(patient(t)); sandbox.KindOf(err) != sandbox.KindGone {
				t.Errorf("Dial: %v", err)
			}
		})
	}
}

// TestHeld: what the monitor is left with, and what a guest's root is.
func TestHeld(t *testing.T) {
	b := machines(t)
	inst, s := boot(t, b)
	i := inst.(*Instance)
	proc := filepath.Join("/proc", i.processes[0].name()[:strings.IndexByte(i.processes[0].name(), '@')])
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), "\nSeccomp:\t2\n") {
		t.Errorf("the monitor has no seccomp filter:\n%s", status)
	}
	if os.Geteuid() == 0 {
		if !strings.Contains(string(status), "\nCapEff:\t0000000000000000\n") || strings.Contains(string(status), "\nUid:\t0") {
			t.Errorf("the monitor has rights:\n%s", status)
		}
		if root, err := os.Readlink(filepath.Join(proc, "root")); err != nil || root != filepath.Join(i.dir, dirEmpty) {
			t.Errorf("the monitor's root directory is %q, %v", root, err)
		}
		own, _ := os.Readlink("/proc/self/ns/net")
		if ns, err := os.Readlink(filepath.Join(proc, "ns/net")); err != nil || ns == own {
			t.Errorf("the monitor is in the host's network: %q, %v", ns, err)
		}
	}
	// Root inside has a container's capabilities: no devices, no modules, no mounts.
	out := probeAs(t, s, "root", "id")
	var id struct {
		UID    int
		CapEff string
	}
	if err := json.Unmarshal([]byte(out), &id); err != nil || id.UID != 0 {
		t.Errorf("root inside: %s, %v", out, err)
	}
	if caps, err := strconv.ParseUint(id.CapEff, 16, 64); err != nil || caps&(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_SYS_MODULE|1<<unix.CAP_SYS_RAWIO|1<<unix.CAP_MKNOD|1<<unix.CAP_SYS_CHROOT|1<<unix.CAP_SYS_BOOT) != 0 {
		t.Errorf("root inside has the capabilities %s", id.CapEff)
	}
	for file, want := range map[string]string{"/proc/sys/kernel/modules_disabled": "1\n", "/proc/sys/kernel/modprobe": "\n"} {
		if out := probeAs(t, s, "root", "read", file); out != want {
			t.Errorf("%s: %q", file, out)
		}
	}
	if out := probeAs(t, s, "", "read", "/proc/net/protocols"); strings.Contains(out, "VSOCK") || !strings.Contains(out, "TCP") {
		t.Errorf("the guest speaks vsock:\n%s", out)
	}
	for file, text := range map[string]string{"/proc/sys/kernel/core_pattern": "|/tmp/x", "/proc/sys/kernel/modprobe": "/tmp/x", "/proc/sysrq-trigger": "c", "/sys/kernel/uevent_helper": "/tmp/x"} {
		probeAs(t, s, "root", "write", file, text)
		if out := probeAs(t, s, "root", "read", file); strings.Contains(out, "/tmp/x") {
			t.Errorf("root inside wrote to %s", file)
		}
	}
	if err := s.Ping(patient(t)); err != nil {
		t.Errorf("the machine did not survive it: %v", err)
	}
	if out := probeAs(t, s, "root", "ls", "/dev"); strings.Contains(out, "vda") || strings.Contains(out, "vport") || strings.Contains(out, "console") {
		t.Errorf("devices inside: %s", out)
	}
	if out := probeAs(t, s, "", "ls", "/proc"); strings.Contains(out, "kthreadd") || !strings.Contains(out, "self") {
		t.Errorf("/proc inside: %s", out)
	}
}

// TestConsoleFlood: what a guest writes to its console without end costs the host
// nothing, and the last of it is there when it is needed.
func TestConsoleFlood(t *testing.T) {
	b := machines(t)
	b.test = machine.TestKeys
	inst, s := boot(t, b)
	before, err := inst.Status(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 12 { // each lists every task's stack: tens of kilobytes
		probeAs(t, s, "root", "write", "/proc/sysrq-trigger", "t")
	}
	after, err := inst.Status(patient(t))
	if err != nil || !after.Alive || after.Usage.Disk > before.Usage.Disk+8<<20 {
		t.Errorf("%+v, %v; before %+v", after, err, before.Usage)
	}
	entries, _ := os.ReadDir(inst.(*Instance).dir)
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && e.Name() != fileDisk && fi.Mode().IsRegular() && fi.Size() > 64<<10 {
			t.Errorf("%s has %d bytes", e.Name(), fi.Size())
		}
	}
	probeAs(t, s, "root", "write", "/proc/sysrq-trigger", "c")
	if exit, err := inst.Wait(patient(t)); err != nil || !strings.Contains(exit.Detail, "Kernel panic") {
		t.Errorf("%+v, %v", exit, err)
	}
	i := inst.(*Instance)
	if n := len(i.stop.console); n == 0 || n > consoleSize {
		t.Errorf("%d bytes of the console were kept, the bound is %d", n, consoleSize)
	}
}

//go:build linux

package microvm

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// openWire opens a wire that is removed when the test ends.
func openWire(t *testing.T) (l *wire.Link, reopen func(*testing.T) *wire.Link) {
	t.Helper()
	if err := wire.Probe(); err != nil {
		t.Skipf("not run: %v", err)
	}
	dir, id := filepath.Join(t.TempDir(), "wires"), string(sandbox.NewInstanceID())
	l, err := wire.Open(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Tap.Close()
		if objects, err := wire.Remove(dir, id); err != nil {
			t.Errorf("Remove: %v %+v", err, objects)
		}
	})
	return l, func(t *testing.T) *wire.Link {
		t.Helper()
		l, err := wire.Reopen(dir, id)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

// linksIn are the links of a wire's namespace, in order.
func linksIn(t *testing.T, w sandbox.Wire) (names []string) {
	t.Helper()
	ns, err := os.Open(w.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	home, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		var links []net.Interface
		if err == nil {
			links, err = net.Interfaces()
		}
		for _, l := range links {
			names = append(names, l.Name)
		}
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil { // a thread that cannot go back ends
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	slices.Reverse(names) // lo first
	return names
}

// TestWireHeld: a monitor has the wire's other end as a descriptor and nothing more of
// any network; whoever takes it over leaves nothing, and user code cannot change what
// the machine has.
func TestWireHeld(t *testing.T) {
	b := machines(t)
	l, _ := openWire(t)
	i := made(t, b, minimalRoot(t), nil, func(s *sandbox.Spec) { s.Wire = &l.Wire })
	pid := i.processes[0].PID
	wires, err := wireNamespace(l.Wire.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || ns == own || ns == wires {
		t.Errorf("the monitor is in the network %q (%v)", ns, err)
	}
	if dev, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid)); err != nil || strings.Count(string(dev), ":") != 1 || !strings.Contains(string(dev), "lo:") {
		t.Errorf("the monitor's network has the devices\n%s (%v)", dev, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.Contains(string(status), "\nCapEff:\t0000000000000000\n") || !strings.Contains(string(status), "\nSeccomp:\t2\n") {
		t.Errorf("the monitor's rights (%v):\n%s", err, status)
	}
	taps, at := 0, 0
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, f := range links {
		if to, err := os.Readlink(f); err == nil && to == "/dev/net/tun" {
			taps++
			at, _ = strconv.Atoi(filepath.Base(f))
		}
	}
	if taps != 1 {
		t.Fatalf("the monitor has %d taps", taps)
	}
	var id struct{ CapBnd string }
	if out := probeAs(t, speak(t, i), "root", "id"); json.Unmarshal([]byte(out), &id) != nil {
		t.Errorf("root inside: %s", out)
	}
	if caps, err := strconv.ParseUint(id.CapBnd, 16, 64); err != nil || caps&(1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW) != 0 {
		t.Errorf("root inside may have the capabilities %s", id.CapBnd)
	}
	// As who has taken over the monitor could: the link is to outlive it.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	tap, err := unix.PidfdGetfd(pidfd, at, 0)
	if err == nil {
		err = unix.IoctlSetInt(tap, unix.TUNSETPERSIST, 1)
		unix.Close(tap)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := i.processes[0].kill(); err != nil {
		t.Fatal(err)
	}
	i.processes[0].waitGone(time.Now().Add(time.Minute))
	if links := linksIn(t, l.Wire); !slices.Contains(links, wire.MachineLink) {
		t.Errorf("the wire's namespace has %q: the test shows nothing", links)
	}
	if r, err := i.Destroy(patient(t)); err != nil || !r.Clean {
		t.Errorf("Destroy: %+v, %v", r, err)
	}
	if links := linksIn(t, l.Wire); !slices.Equal(links, []string{"lo", wire.LinkName}) {
		t.Errorf("the wire's namespace has %q", links)
	}
}

// TestWireWithoutTheMeans: what cannot be had is refused with the reason.
func TestWireWithoutTheMeans(t *testing.T) {
	why := sandbox.Errorf("probe wires", sandbox.KindUnsupported, "no such thing").WithHint("buy one")
	for name, c := range map[string]struct {
		wires Wires
		want  []string
	}{
		"not asked": {nil, []string{"cannot have a network", "attaches none"}},
		"missing":   {without{why: why}, []string{"no such thing", "buy one"}},
	} {
		b := open(t, t.TempDir())
		b.cfg.Wires = c.wires
		info, err := b.Info(patient(t))
		if err != nil || info.Capabilities.Wire {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		if !info.Available {
			t.Skipf("not run: %s", info.Reason)
		}
		_, err = b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t), Wire: &sandbox.Wire{NetNS: "/x", Link: "eth0"}})
		if sandbox.KindOf(err) != sandbox.KindUnsupported {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(fmt.Sprintf("%v %+v", err, err), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
}

// without cannot plug anything in.
type without struct {
	wire.Machines
	why error
}

func (w without) Probe() error { return w.why }

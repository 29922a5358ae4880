//go:build linux

package microvm

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

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

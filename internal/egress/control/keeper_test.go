//go:build linux

package control

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root, to make a TAP")
	}
}

// recorded collects events.
type recorded struct {
	mu  sync.Mutex
	all []egress.Event
}

func (r *recorded) record(e egress.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, e)
	return nil
}

func startKeeper(t *testing.T, o Options) *Keeper {
	t.Helper()
	if o.Argv == nil {
		o.Argv = []string{filepath.Join(programs, "router"), "router"}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	k, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// makeTap makes a TAP as wires have them, in a network namespace of its own that
// ends with it.
func makeTap(t *testing.T) *os.File {
	t.Helper()
	needRoot(t)
	var tap *os.File
	inNetns(t, func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		r, _ := unix.NewIfreq("eth0")
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
			t.Fatal(err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4); errno != 0 {
			t.Fatal(errno)
		}
		tap = os.NewFile(uintptr(fd), "tap")
	})
	t.Cleanup(func() { tap.Close() })
	return tap
}

// inNetns runs f in a new network namespace, on a thread that ends with it.
func inNetns(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
	if t.Failed() {
		t.FailNow()
	}
}

var _ = unsafe.Pointer(nil)

func allow(hosts string) Policies {
	return Policies{Documents: [][]byte{[]byte("version: 1\nallow:\n- " + hosts + "\n")}}
}

func TestAttachDetach(t *testing.T) {
	var events recorded
	k := startKeeper(t, Options{Record: events.record})
	ctx := t.Context()
	tap := makeTap(t)
	if err := k.Attach(ctx, Wire{ID: "in1", Policies: allow("host: example.com")}, tap); err != nil {
		t.Fatal(err)
	}
	s, err := k.Stats(ctx)
	if err != nil || s.Wires != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	g, n, err := k.Update(ctx, "in1", allow("host: example.org"))
	if err != nil || g != 2 || n != 0 {
		t.Fatalf("generation %d, %d closed, %v", g, n, err)
	}
	for range 2 {
		if err := k.Detach(ctx, "in1"); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := k.Stats(ctx); err != nil || s.Wires != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
}

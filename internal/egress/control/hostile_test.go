//go:build linux

package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func liar(t testing.TB, lie string) []string { return []string{binary(t, "liar"), lie} }

// descriptors counts those of a process.
func countDescriptors(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	return len(list)
}

// TestLies: a router that says what cannot be is ended, whatever it says, and
// nothing of it is left here.
func TestLies(t *testing.T) {
	needRoot(t)
	for _, lie := range []string{"garbage", "empty", "kind", "two", "unknown", "stranger", "null", "both", "order", "again", "escape", "long", "negative",
		"debt", "large", "endless", "flood", "files", "kinds", "deep"} {
		t.Run(lie, func(t *testing.T) {
			before := countDescriptors(t, os.Getpid())
			p, err := begin(liar(t, lie), quiet)
			must(t, err)
			s := newSession(p, time.Now())
			heard, settled := make(chan struct{}), make(chan struct{})
			hold := make(chan struct{})
			go func() { defer close(heard); s.read(func(*up) {}) }()
			go func() { defer close(settled); s.settle(func(egress.Event) error { <-hold; return nil }) }()
			if _, err := s.call(t.Context(), &down{Op: opStart, Start: &start{}}, -1, time.Minute); err != nil && !errors.Is(err, errLost) {
				t.Errorf("start: %v", err)
			}
			select {
			case <-s.lost:
			case <-time.After(time.Minute):
				t.Error("it was not ended")
			}
			close(hold)
			p.kill()
			<-p.done
			<-heard
			<-settled
			p.conn.Close()
			if why := s.why(); !strings.Contains(why, "it said what cannot be") {
				t.Errorf("ended for another reason: %s", why)
			}
			if now := countDescriptors(t, os.Getpid()); now > before {
				t.Errorf("%d descriptors, %d before", now, before)
			}
		})
	}
}

// TestLiesAboutOthers: what a router says of wires it does not serve is nobody's;
// what it writes to its log and how much it says bounds itself.
func TestLiesAboutOthers(t *testing.T) {
	needRoot(t)
	for _, lie := range []string{"others", "talk", "usage"} {
		t.Run(lie, func(t *testing.T) {
			k, j := startKeeper(t, func(o *Options) { o.Argv = liar(t, lie); o.Logger = quiet })
			s, err := k.session(t.Context(), "test", "")
			must(t, err)
			w := &kept{id: "in1", one: make(chan struct{}, 1), rules: map[string]bool{"good": true}, used: map[string]policy.Used{}, generation: 1, by: s}
			must(t, k.add(w))
			for range 3 {
				_, err := k.Stats(t.Context())
				must(t, err)
			}
			if s.gone() {
				t.Errorf("it was ended: %s", s.why())
			}
			if n := j.count(func(egress.Event) bool { return true }); n != 0 {
				t.Errorf("%d events of a wire it does not serve", n)
			}
			if u := k.Used("in1"); len(u) != 0 {
				t.Errorf("used: %v", u)
			}
		})
	}
}

// TestStubborn: a router that does not begin is an error within the time there is,
// and one that does not stop does not hold up Close.
func TestStubborn(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, Options{Argv: liar(t, "mute")}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("mute: %v", err)
	}
	if _, err := Start(t.Context(), Options{Argv: liar(t, "no such")}); sandbox.KindOf(err) != sandbox.KindUnavailable || !strings.Contains(err.Error(), "no such lie") {
		t.Errorf("one that ends: %v", err)
	}
	if _, err := Start(t.Context(), Options{Argv: []string{"/no/such/program"}}); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("none: %v", err)
	}
	k, _ := startKeeper(t, nil)
	must(t, syscall.Kill(router(t, k), syscall.SIGSTOP))
	begun := time.Now()
	must(t, k.Close())
	if d := time.Since(begun); d > 30*time.Second {
		t.Errorf("closed after %v", d)
	}
	must(t, k.Close())
	if _, err := k.Stats(t.Context()); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("statistics after the end: %v", err)
	}
}

// keeperProcess is a process that keeps a router, as somebody, and its router.
func keeperProcess(t *testing.T, as *syscall.Credential) (cmd *exec.Cmd, pid int) {
	t.Helper()
	cmd = exec.Command(binary(t, "keeper"), routerProgram(t)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q %v", line, err)
	}
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
	must(t, err)
	for _, f := range children {
		b, _ := os.ReadFile(f)
		fmt.Sscan(string(b), &pid)
	}
	if pid == 0 {
		t.Skip("not run: this kernel does not list children")
	}
	return cmd, pid
}

// TestKeeperKilled: the router does not outlive who keeps it, and ends with nobody
// else.
func TestKeeperKilled(t *testing.T) {
	needRoot(t)
	cmd, pid := keeperProcess(t, nil)
	if got := status(t, fmt.Sprintf("/proc/%d/status", pid))["Uid"]; !strings.HasPrefix(got, fmt.Sprint(routerID)) {
		t.Fatalf("%d is not the router: %s", pid, got)
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		must(t, syscall.Kill(pid, s))
	}
	time.Sleep(100 * time.Millisecond)
	must(t, syscall.Kill(pid, 0))
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, "the router is gone", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
}

// TestUnprivileged: who is not root has a router that is confined as far as it
// can be.
func TestUnprivileged(t *testing.T) {
	needRoot(t)
	_, pid := keeperProcess(t, &syscall.Credential{Uid: 12345, Gid: 12345})
	for _, file := range threads(t, pid) {
		got := status(t, file)
		if got["Uid"] != "12345 12345 12345 12345" || got["NoNewPrivs"] != "1" || got["Seccomp"] != "2" || got["CapPrm"] != "0000000000000000" {
			t.Errorf("%s: %v", file, got)
		}
	}
}

// TestNothingLeaks: descriptors, goroutines and threads after many wires and
// routers are as many as before.
func TestNothingLeaks(t *testing.T) {
	p, s := newPlace(t), newSink(t)
	k, _ := startKeeper(t, nil)
	ctx := t.Context()
	round := func(id string) {
		must(t, k.Attach(ctx, Wire{ID: id, Policies: rules(s.port, "")}, p.tap))
		must(t, k.Detach(ctx, id))
	}
	round("first")
	measure := func() (own, its, goroutines int) {
		return countDescriptors(t, os.Getpid()), countDescriptors(t, router(t, k)), runtime.NumGoroutine()
	}
	own, its, goroutines := measure()
	wires, restarts := 200, 20
	if testing.Short() {
		wires, restarts = 40, 4
	}
	for i := range wires {
		round(fmt.Sprint("in", i))
	}
	must(t, k.Attach(ctx, Wire{ID: "stays", Policies: rules(s.port, "")}, p.tap))
	for range restarts {
		pid := router(t, k)
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		eventually(t, "another router serves", func() bool { return router(t, k) != pid })
	}
	p.mustEcho("good.example", s.port).Close()
	must(t, k.Detach(ctx, "stays"))
	eventually(t, "everything is as before", func() bool {
		o, i, g := measure()
		if o > own || i > its || g > goroutines {
			t.Logf("%d descriptors here, %d in the router, %d goroutines; before %d, %d, %d", o, i, g, own, its, goroutines)
			return false
		}
		return true
	})
}

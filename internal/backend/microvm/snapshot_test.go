//go:build linux

package microvm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// coldCreate is how long a machine may take to be made where it is emulated, on a
// machine that has a moment for it.
const coldCreate = 12 * time.Second

// quickly repeats what takes long on a busy machine until it was done within limit
// once, and returns the least it took.
func quickly(t *testing.T, limit time.Duration, times int, do func()) time.Duration {
	t.Helper()
	least := time.Duration(1<<63 - 1)
	for range times {
		began := time.Now()
		do()
		if least = min(least, time.Since(began)); least <= limit {
			break
		}
	}
	return least
}

// made boots an instance of root, destroyed when the test ends.
func made(t *testing.T, b *Backend, root sandbox.Root, from *sandbox.Snapshot, change ...func(*sandbox.Spec)) *Instance {
	t.Helper()
	spec := sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root}
	for _, c := range change {
		c(&spec)
	}
	inst, err := b.make(patient(t), spec, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r, err := inst.Destroy(context.Background()); err != nil || !r.Clean {
			t.Errorf("Destroy: %+v, %v", r, err)
		}
	})
	return inst.(*Instance)
}

// speak opens a session with an instance.
func speak(t *testing.T, inst sandbox.Instance) *guest.Session {
	t.Helper()
	conn, err := inst.Dial(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := guest.Open(patient(t), conn, guest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// saved saves an instance.
func saved(t *testing.T, inst *Instance) sandbox.Snapshot {
	t.Helper()
	snap, err := inst.Snapshot(patient(t), filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// TestCopies: a machine that was made of another's memory is another: its random
// numbers, its names, and the time it is. Its memory is its own control group's.
func TestCopies(t *testing.T) { testCopies(t, machines(t)) }

func testCopies(t *testing.T, b *Backend) {
	t.Helper()
	root := minimalRoot(t)
	if err := os.WriteFile(filepath.Join(root.Dir, "etc/machine-id"), []byte(strings.Repeat("0", 32)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var first *Instance
	cold := quickly(t, coldCreate, 4, func() { first = made(t, b, root, nil) })
	emulated := ""
	if b.look().accel == accelTCG {
		emulated = " (emulation)"
		if cold > coldCreate {
			t.Errorf("a machine was never made within %s%s, the least was %s", coldCreate, emulated, cold)
		}
	}
	t.Logf("made within %s%s", cold.Round(time.Millisecond), emulated)
	identity := func(s *guest.Session) (all []string) {
		for _, f := range []string{"/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/proc/sys/kernel/hostname"} {
			all = append(all, strings.TrimSpace(probeAs(t, s, "", "read", f)))
		}
		return append(all, probeAs(t, s, "", "random"))
	}
	snap := saved(t, first)
	seen := map[string]string{}
	note := func(who string, s *guest.Session) {
		t.Helper()
		for k, v := range identity(s) {
			if other, ok := seen[v]; ok || len(v) < 20 {
				t.Errorf("%s has %q, number %d, as %s has", who, v, k, other)
			}
			seen[v] = who
		}
		began := time.Now()
		nanos, err := strconv.ParseInt(strings.TrimSpace(probeAs(t, s, "", "now")), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		const off = 100 * time.Millisecond
		if at := time.Unix(0, nanos); at.Before(began.Add(-off)) || at.After(time.Now().Add(off)) {
			t.Errorf("%s thinks it is %s, it is between %s and %s", who, at, began, time.Now())
		}
	}
	note("the first", speak(t, first))
	for _, who := range []string{"one copy", "another"} {
		began := time.Now()
		y := made(t, b, root, &snap)
		t.Logf("%s was there after %s", who, time.Since(began).Round(time.Millisecond))
		if st := y.status(); len(y.group) > 0 && st.Usage.Memory < 32<<20 {
			t.Errorf("%s uses %d bytes of memory", who, st.Usage.Memory)
		}
		note(who, speak(t, y))
	}
}

// TestKilledWhileSaving kills who saves a machine at each step: the machine goes on,
// for the next one, and can be saved.
func TestKilledWhileSaving(t *testing.T) {
	b := machines(t)
	root := minimalRoot(t)
	l, _ := openWire(t)
	inst := made(t, b, root, nil, func(s *sandbox.Spec) { s.Wire = &l.Wire })
	b.Close() // it is the helpers' now
	next := func() *Backend {
		n := open(t, b.cfg.Dir)
		n.look() // so that it tidies up what the helpers left
		return n
	}
	for _, point := range []string{"after-mkdir", "after-freeze", "after-stop", "after-state", "after-save", "after-seal"} {
		t.Run(point, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "image")
			die(t, helper{Config: b.cfg, ID: inst.id, Save: dir}, "microvm.snapshot/"+point)
			again, err := next().Attach(patient(t), inst.id)
			if err != nil {
				t.Fatal(err)
			}
			if err := speak(t, again).Ping(patient(t)); err != nil {
				t.Errorf("the machine stands still: %v", err)
			}
		})
	}
	c := next()
	again, err := c.Attach(patient(t), inst.id)
	if err != nil {
		t.Fatal(err)
	}
	snap := saved(t, again.(*Instance))
	for _, point := range []string{"after-memory", "after-state", "after-renewal"} {
		t.Run("restore-"+point, func(t *testing.T) {
			l, _ := openWire(t)
			h := helper{Config: c.cfg, ID: sandbox.NewInstanceID(), Root: root, From: snap, Wire: &l.Wire}
			die(t, h, "microvm.restore/"+point)
			n := next()
			if st, err := n.statusOf(h.ID); err != nil || st.Alive || st.Exit.Reason != sandbox.ReasonLost {
				t.Errorf("%+v, %v; want a dead one, lost", st, err)
			}
			inst, err := n.Attach(patient(t), h.ID)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := inst.Destroy(patient(t)); err != nil || !r.Clean {
				t.Errorf("Destroy: %+v, %v", r, err)
			}
			if p := named(h.ID); len(p) > 0 {
				t.Errorf("processes are left: %v", p)
			}
			if links := linksIn(t, l.Wire); !slices.Equal(links, []string{"lo", wire.LinkName}) {
				t.Errorf("the wire's namespace has %q", links)
			}
		})
	}
	checkRemoved(t, c, inst.id)
}

// die runs a helper that is killed at point.
func die(t *testing.T, h helper, point string) {
	t.Helper()
	cmd, _, _ := startHelper(t, h, failpoint.Env+"="+point)
	err := cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the helper ended with %v, not by its failpoint", err)
	}
}

// TestSaveFails: who has no time gets no snapshot, nothing is left, and the machine
// goes on.
func TestSaveFails(t *testing.T) {
	b := machines(t)
	inst := made(t, b, minimalRoot(t), nil)
	dir := filepath.Join(t.TempDir(), "image")
	ctx, cancel := context.WithTimeout(patient(t), time.Millisecond)
	defer cancel()
	if _, err := inst.Snapshot(ctx, dir); sandbox.KindOf(err) != sandbox.KindTimeout {
		t.Errorf("in no time: %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it left its directory: %v", err)
	}
	if err := speak(t, inst).Ping(patient(t)); err != nil {
		t.Errorf("the machine stands still: %v", err)
	}
}

// TestSnapshotOfOther: a snapshot taken with another build of anything is refused,
// with what differs.
func TestSnapshotOfOther(t *testing.T) {
	b := open(t, t.TempDir())
	if info, err := b.Info(t.Context()); err != nil || !info.Available {
		t.Skipf("not run: %s (%v)", info.Reason, err)
	}
	root := minimalRoot(t)
	spec, err := admit(sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root}, b.look())
	if err != nil {
		t.Fatal(err)
	}
	i := newInstance(b, b.intentOf(spec, b.look()), b.look().monitor)
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := i.machine(patient(t), spec, b.look(), machine.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.trace(spec, &m, nil); err != nil {
		t.Fatal(err)
	}
	o, err := i.readOrigin()
	if err != nil || len(o.Builds) != 9 {
		t.Fatalf("%+v, %v", o, err)
	}
	for k := range o.Builds {
		dir := filepath.Join(t.TempDir(), "image")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		builds := slices.Clone(o.Builds)
		builds[k].Is += "x"
		snap, err := snapimage.Seal(t.Context(), dir, snapimage.Manifest{Version: imageVersion, Template: root.Digest, Limits: spec.Limits, Builds: builds})
		if err != nil {
			t.Fatal(err)
		}
		again := spec
		again.Instance = sandbox.NewInstanceID()
		_, err = b.Restore(patient(t), again, snap)
		if sandbox.KindOf(err) != sandbox.KindConflict || !strings.Contains(err.Error(), "another "+builds[k].What) {
			t.Errorf("another %s: %v", builds[k].What, err)
		}
		if left := named(again.Instance); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if _, err := os.Lstat(b.dir(again.Instance)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory: %v", err)
		}
	}
}

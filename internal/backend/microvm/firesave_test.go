//go:build linux

package microvm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// fired is a Backend whose monitor is the stand-in.
func fired(t *testing.T, dir, version string) *Backend {
	t.Helper()
	f, kernel := stub(t, version)
	b := open(t, dir)
	b.look = pretend(b, f, kernel)
	return b
}

// ordered lists what the toy of an instance was told.
func ordered(t *testing.T, inst *Instance) (all []toyOrder) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(jailRootOf(inst.dir), fileToy))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var o toyOrder
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

// TestFirecrackerCopies: a machine is saved and goes on, as do any number that are made
// of it, one of another's; each was told to be another while it was frozen. They share
// the file of the memory, which none can write, and it outlives the image.
func TestFirecrackerCopies(t *testing.T) {
	b, root := fired(t, t.TempDir(), "1.13.1"), minimalRoot(t)
	first := made(t, b, root, nil)
	s := speak(t, first)
	snap := saved(t, first)
	if err := s.Ping(patient(t)); err != nil {
		t.Errorf("the session has not survived: %v", err)
	}
	jail, err := os.ReadDir(jailRootOf(first.dir))
	for _, e := range jail {
		if strings.HasPrefix(e.Name(), "saved.") {
			t.Errorf("%s is left in the jail", e.Name())
		}
	}
	memory := filepath.Join(snap.Dir, imageMemory)
	var st unix.Stat_t
	if err := errors.Join(err, unix.Stat(memory, &st)); err != nil || st.Size != (DefaultMemory+guestOverhead(DefaultMemory)) || st.Blocks*512 > 1<<20 || snap.Size > 1<<20 {
		t.Errorf("the memory is %+v, the snapshot has %d bytes (%v)", st, snap.Size, err)
	}
	secret := ordered(t, first)[0].Secret
	var copies []*Instance
	var all sync.WaitGroup
	var mu sync.Mutex
	for range 2 {
		all.Go(func() {
			inst, err := b.Restore(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Sandbox: sandbox.NewID(), Root: root}, snap)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			copies = append(copies, inst.(*Instance))
		})
	}
	all.Wait()
	for _, y := range copies {
		defer y.Destroy(patient(t))
	}
	if len(copies) != 2 {
		t.FailNow()
	}
	seen := map[string]bool{}
	for _, y := range copies {
		o := ordered(t, y)
		r := o[0].Order.Renew
		if len(o) < 2 || r == nil || !o[0].Frozen || o[0].Secret != secret || !o[1].Order.Thaw {
			t.Fatalf("a copy was told %+v", o)
		}
		for _, v := range []string{string(r.Seed), string(r.BootID), string(r.MachineID), r.Hostname} {
			if seen[v] || len(v) < 16 {
				t.Errorf("%q is not only one copy's", v)
			}
			seen[v] = true
		}
		if off := time.Since(time.Unix(0, o[0].Order.Time)); off < 0 || off > time.Hour {
			t.Errorf("the time is %s off", off)
		}
		if err := speak(t, y).Ping(patient(t)); err != nil {
			t.Errorf("a copy does not answer: %v", err)
		}
		var in unix.Stat_t
		if err := unix.Stat(filepath.Join(jailRootOf(y.dir), jailMemory), &in); err != nil || in.Ino != st.Ino || in.Uid != 0 || in.Mode&0o777 != 0o444 {
			t.Errorf("the memory in the jail: %+v, %v", in, err)
		}
	}
	again := saved(t, copies[0])
	for _, d := range []string{snap.Dir} {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
	z := made(t, b, root, &again)
	if o := ordered(t, z); o[0].Secret != secret {
		t.Errorf("the copy of a copy knows %q, not %q", o[0].Secret, secret)
	}
	if err := speak(t, copies[1]).Ping(patient(t)); err != nil {
		t.Errorf("a copy whose image is gone: %v", err)
	}
}

// TestFirecrackerStream: who talks with a program while the machine is saved, again and
// again, misses nothing and hears nothing twice.
func TestFirecrackerStream(t *testing.T) {
	b := fired(t, t.TempDir(), "1.15.0")
	inst := made(t, b, minimalRoot(t), nil)
	s := speak(t, inst)
	p, err := s.Exec(patient(t), guest.Command{Argv: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	const lines = 600
	var want strings.Builder
	for n := range lines {
		fmt.Fprintf(&want, "line %d %s\n", n, strings.Repeat("x", 4000))
	}
	go func() {
		io.WriteString(p.Stdin(), want.String())
		p.Stdin().Close()
	}()
	go io.Copy(io.Discard, p.Stderr())
	got := make(chan string)
	half := make(chan struct{})
	go func() {
		b := make([]byte, len(want.String())/4)
		n, _ := io.ReadFull(p.Stdout(), b)
		close(half)
		rest, _ := io.ReadAll(p.Stdout())
		got <- string(b[:n]) + string(rest)
	}()
	<-half
	for range 3 {
		saved(t, inst)
	}
	if g := <-got; g != want.String() {
		t.Errorf("%d bytes came, or others than the %d that were sent (%v)", len(g), want.Len(), s.Err())
	}
	if e, err := p.Wait(patient(t)); err != nil || e.Code != 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestFirecrackerSuite: what of the suite does not ask for programs that are copied,
// which a model's are not.
func TestFirecrackerSuite(t *testing.T) {
	backendtest.Run(t, backendtest.Config{
		New:    func(t *testing.T, dir string) sandbox.Backend { return fired(t, dir, "1.13.1") },
		Root:   func(t *testing.T) sandbox.Root { return minimalRoot(t) },
		Scope:  func(dir string) residue.Scope { return residue.Scope{Dirs: []string{dir}} },
		Groups: []string{"Snapshot"},
		Tests:  []string{"Snapshot/DoesNotFit", "Snapshot/Ended"},
	})
}

// TestFirecrackerTampered: a bit of any file of an image, also where the memory has a
// hole, is found out before a machine goes on from it, and nothing is left.
func TestFirecrackerTampered(t *testing.T) {
	b, root := fired(t, t.TempDir(), "1.13.1"), minimalRoot(t)
	snap := saved(t, made(t, b, root, nil))
	files, err := os.ReadDir(snap.Dir)
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, e := range files {
		f, err := os.OpenFile(filepath.Join(snap.Dir, e.Name()), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int64{0, size / 2, min(1<<20, size-1), size - 1} {
			bit := make([]byte, 1)
			flip := func() {
				t.Helper()
				if _, err := f.ReadAt(bit, at); err != nil {
					t.Fatal(err)
				}
				bit[0] ^= 1
				if _, err := f.WriteAt(bit, at); err != nil {
					t.Fatal(err)
				}
			}
			flip()
			spec := sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root}
			if _, err := b.Restore(patient(t), spec, snap); sandbox.KindOf(err) != sandbox.KindConflict {
				t.Errorf("byte %d of %s: %v", at, e.Name(), err)
			}
			if _, err := os.Lstat(b.dir(spec.Instance)); !errors.Is(err, fs.ErrNotExist) || len(named(spec.Instance)) > 0 {
				t.Errorf("byte %d of %s: something is left: %v", at, e.Name(), err)
			}
			flip()
		}
	}
	if err := speak(t, made(t, b, root, &snap)).Ping(patient(t)); err != nil {
		t.Errorf("as it was: %v", err)
	}
}

// TestFirecrackerSaves: which versions do, and what the others say. One of 1.16 goes on
// when it was not possible to save it.
func TestFirecrackerSaves(t *testing.T) {
	root := minimalRoot(t)
	old := fired(t, t.TempDir(), "1.12.0")
	inst := made(t, old, root, nil)
	var e *sandbox.Error
	if _, err := inst.Snapshot(patient(t), filepath.Join(t.TempDir(), "image")); !errors.As(err, &e) || e.Kind != sandbox.KindUnsupported || !strings.Contains(e.Hint, "1.13") {
		t.Errorf("a machine of 1.12: %v", err)
	}
	b := fired(t, t.TempDir(), "1.16.0")
	inst = made(t, b, root, nil)
	s := speak(t, inst)
	snap := saved(t, inst)
	if err := s.Ping(patient(t)); err != nil {
		t.Errorf("after it was saved: %v", err)
	}
	if _, err := old.Restore(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root}, snap); sandbox.KindOf(err) != sandbox.KindUnsupported {
		t.Errorf("restored with 1.12: %v", err)
	}
	// The monitor cannot write where it should.
	blocked := filepath.Join(jailRootOf(inst.dir), "saved.memory")
	dir := filepath.Join(t.TempDir(), "image")
	stop := make(chan struct{})
	var spoiling sync.WaitGroup
	spoiling.Go(func() {
		for { // it is removed before it is written
			select {
			case <-stop:
				return
			default:
				_ = os.Mkdir(blocked, 0o700)
			}
		}
	})
	_, err := inst.Snapshot(patient(t), dir)
	close(stop)
	spoiling.Wait()
	if err == nil {
		return // it was written before it could be spoilt
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a snapshot that failed left its directory: %v", err)
	}
	if err := s.Ping(patient(t)); err != nil {
		t.Errorf("after it was not saved: %v", err)
	}
}

// TestFirecrackerSavesLies: a monitor that was taken over and saves what it likes makes
// no snapshot, or one of its own.
func TestFirecrackerSavesLies(t *testing.T) {
	dir := t.TempDir()
	m := vm{dir: dir, memory: 1 << 20}
	root := filepath.Join(dir, dirJail, "firecracker", filepath.Base(dir), "root")
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	state, memory := filepath.Join(root, savedState), filepath.Join(root, savedMemory)
	write := func(name string, size int64) func() error {
		return func() error { return errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size)) }
	}
	if err := write(secret, 1<<20)(); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		state, memory func() error
		good          bool
	}{
		"as it should be": {write(state, 10), write(memory, 1<<20), true},
		"a link":          {write(state, 10), func() error { return os.Symlink(secret, memory) }, false},
		"a link as state": {func() error { return os.Symlink(secret, state) }, write(memory, 1<<20), false},
		"a pipe":          {func() error { return unix.Mkfifo(state, 0o600) }, write(memory, 1<<20), false},
		"a directory":     {write(state, 10), func() error { return os.Mkdir(memory, 0o700) }, false},
		"less memory":     {write(state, 10), write(memory, 1<<20-1), false},
		"more memory":     {write(state, 10), write(memory, 1<<40), false},
		"a large state":   {write(state, maxState+1), write(memory, 1<<20), false},
		"nothing":         {func() error { return nil }, func() error { return nil }, false},
	} {
		if err := errors.Join(dropSaved(dir), c.state(), c.memory()); err != nil {
			t.Fatal(err)
		}
		if err := collect(patient(t), m, t.TempDir()); (err == nil) != c.good || err != nil && strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := dropSaved(dir); err != nil {
		t.Error(err)
	}
}

// TestFirecrackerKilledWhileSaving kills who saves a machine, or makes one of a
// snapshot, at each step: the one goes on for the next server, the other is removed.
func TestFirecrackerKilledWhileSaving(t *testing.T) {
	root := minimalRoot(t)
	for version, points := range map[string][]string{
		"1.13.1": {"after-mkdir", "after-freeze", "after-stop", "after-state", "after-save", "after-seal"},
		"1.16.1": {"after-stop", "after-state"},
	} {
		f, kernel := stub(t, version)
		next := func(dir string) *Backend {
			b := open(t, dir)
			b.look = pretend(b, f, kernel)
			return b
		}
		b := next(t.TempDir())
		inst := made(t, b, root, nil)
		b.Close() // it is the helpers' now
		for _, point := range points {
			t.Run(version+"-save-"+point, func(t *testing.T) {
				die(t, helper{Config: b.cfg, ID: inst.id, Save: filepath.Join(t.TempDir(), "image"), Fake: f, Kernel: kernel}, "microvm.snapshot/"+point)
				again, err := next(b.cfg.Dir).Attach(patient(t), inst.id)
				if err != nil {
					t.Fatal(err)
				}
				if err := speak(t, again).Ping(patient(t)); err != nil {
					t.Errorf("the machine stands still: %v", err)
				}
			})
		}
		c := next(b.cfg.Dir)
		again, err := c.Attach(patient(t), inst.id)
		if err != nil {
			t.Fatal(err)
		}
		snap := saved(t, again.(*Instance))
		for _, point := range []string{"microvm.restore/after-memory", "microvm.firecracker/after-api", "microvm.restore/after-state", "microvm.restore/after-renewal"} {
			t.Run(version+"-restore-"+filepath.Base(point), func(t *testing.T) {
				h := helper{Config: c.cfg, ID: sandbox.NewInstanceID(), Root: root, From: snap, Fake: f, Kernel: kernel}
				die(t, h, point)
				n := next(b.cfg.Dir)
				if st, err := n.statusOf(h.ID); err != nil || st.Alive || st.Exit.Reason != sandbox.ReasonLost {
					t.Errorf("%+v, %v; want a dead one, lost", st, err)
				}
				gone, err := n.Attach(patient(t), h.ID)
				if err != nil {
					t.Fatal(err)
				}
				if r, err := gone.Destroy(patient(t)); err != nil || !r.Clean {
					t.Errorf("Destroy: %+v, %v", r, err)
				}
				if p := named(h.ID); len(p) > 0 {
					t.Errorf("processes are left: %v", p)
				}
			})
		}
		checkRemoved(t, c, inst.id)
	}
}

// TestSnapshotOfOtherMonitor: what QEMU saved is not for Firecracker, and the reverse;
// nor for another release of it, or another build that calls itself the same.
func TestSnapshotOfOtherMonitor(t *testing.T) {
	root := minimalRoot(t)
	b := fired(t, t.TempDir(), "1.13.1")
	snap := saved(t, made(t, b, root, nil))
	refused := func(what, says string, by *Backend, from sandbox.Snapshot) {
		t.Helper()
		spec := sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root, Limits: from.Limits}
		_, err := by.Restore(patient(t), spec, from)
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Kind != sandbox.KindConflict || e.Hint == "" || !strings.Contains(e.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Lstat(by.dir(spec.Instance)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the directory: %v", what, err)
		}
	}
	refused("another release", "another monitor", fired(t, t.TempDir(), "1.14.0"), snap)
	f, kernel := stub(t, "1.13.1")
	if err := os.WriteFile(f.Program, []byte("#!/bin/sh\n# patched\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	other := open(t, t.TempDir())
	other.look = pretend(other, f, kernel)
	refused("another build", "another build of the monitor", other, snap)
	q := open(t, t.TempDir())
	if info, err := q.Info(t.Context()); err != nil || !info.Available || q.look().vmm != vmmQEMU {
		t.Skipf("the rest is not run: no QEMU: %s (%v)", info.Reason, err)
	}
	refused("Firecracker's by QEMU", "another monitor", q, snap)
	spec, err := admit(sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root}, q.look())
	if err != nil {
		t.Fatal(err)
	}
	i := newInstance(q, q.intentOf(spec, q.look()), q.look().monitor)
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := i.machine(patient(t), spec, q.look(), machine.Settings{})
	if err == nil {
		err = i.trace(spec, &m, nil)
	}
	o, err2 := i.readOrigin()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	theirs, err := snapimage.Seal(t.Context(), dir, snapimage.Manifest{Version: imageVersion, Template: root.Digest, Limits: spec.Limits, Builds: o.Builds})
	if err != nil {
		t.Fatal(err)
	}
	refused("QEMU's by Firecracker", "another monitor", b, theirs)
}

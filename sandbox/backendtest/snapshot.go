package backendtest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func testSnapshot(t *testing.T, s *suite) {
	if !s.info.Capabilities.Snapshot {
		s.sub(t, "Refused", s.testSavesNothing)
		return
	}
	s.par(t, "GoesOn", s.testGoesOn)
	s.par(t, "ReadonlyRoot", s.testGoesOnReadonly)
	s.par(t, "AgainAndAgain", s.testSavedAgain)
	s.par(t, "Tampered", s.testTampered)
	s.par(t, "DoesNotFit", s.testDoesNotFit)
	s.par(t, "Ended", s.testSaveEnded)
	if s.info.Capabilities.Wire && s.Wire != nil {
		s.par(t, "Wired", s.testSavedWired)
		s.par(t, "WiredOrNot", s.testWiredOrNot)
	}
}

// testSavesNothing: without the capability there is nothing to call, or it refuses.
func (s *suite) testSavesNothing(t *testing.T) {
	x := s.open(t)
	if saver, ok := x.inst.(sandbox.Snapshotter); ok {
		_, err := saver.Snapshot(deadline(t), filepath.Join(t.TempDir(), "image"))
		wantKind(t, "Snapshot", err, sandbox.KindUnsupported)
	}
	if r, ok := s.b.(sandbox.Restorer); ok {
		_, err := r.Restore(deadline(t), s.spec(t), sandbox.Snapshot{Dir: t.TempDir()})
		wantKind(t, "Restore", err, sandbox.KindUnsupported)
	}
}

// save saves x.
func (x *box) save() sandbox.Snapshot {
	x.Helper()
	dir := filepath.Join(x.T.TempDir(), "image")
	snap, err := x.inst.(sandbox.Snapshotter).Snapshot(deadline(x.T), dir)
	if err != nil {
		x.Fatalf("Snapshot: %v", err)
	}
	if snap.Dir != dir || snap.Digest == "" || snap.Size == 0 || snap.Created.IsZero() || snap.Limits.Memory != x.spec.Limits.Memory || snap.Limits.CPUs == 0 || snap.ReadonlyRoot != x.spec.ReadonlyRoot {
		x.Errorf("the snapshot is %+v", snap)
	}
	return snap
}

// again is the specification of another instance like x.
func (x *box) again() sandbox.Spec {
	spec := x.spec
	spec.Instance, spec.Sandbox = sandbox.NewInstanceID(), sandbox.NewID()
	return spec
}

// restore makes an instance of what was saved of x.
func (x *box) restore(from sandbox.Snapshot, change ...func(*sandbox.Spec)) *box {
	x.Helper()
	spec := x.again()
	for _, c := range change {
		c(&spec)
	}
	inst, err := x.s.b.(sandbox.Restorer).Restore(deadline(x.T), spec, from)
	if err != nil {
		x.Fatalf("Restore: %v", err)
	}
	y := &box{T: x.T, s: x.s, b: x.b, inst: inst, spec: spec}
	x.Cleanup(func() { y.destroy(y.T) })
	y.Session = y.dial()
	return y
}

// echo sends a line to a program that returns it.
func (x *box) echo(p *guest.Process, text string) {
	x.Helper()
	if _, err := io.WriteString(p.Stdin(), text); err != nil {
		x.Fatal(err)
	}
	until(x.T, p, text)
}

// testGoesOn: the instance that is saved goes on, and so does each that is made of
// the snapshot, with its files and programs, apart from the others.
func (s *suite) testGoesOn(t *testing.T) {
	x := s.open(t)
	x.probe("write", "/tmp/file", "before")
	p := x.start("cat")
	x.echo(p, "first\n")
	snap := x.save()
	x.echo(p, "second\n")
	x.probe("write", "/tmp/file", "after")
	for _, text := range []string{"second\n", "2ND...\n"} { // as long as in the first: positions are bytes
		y := x.restore(snap)
		q, err := y.Reattach(deadline(t), p.ID(), guest.Position{Stdout: int64(len("first\n"))})
		if err != nil {
			t.Fatalf("the program is not there: %v", err)
		}
		y.echo(q, text)
		if o := y.probe("read", "/tmp/file"); o.out != "before" {
			t.Errorf("the file is %q, it was %q", o.out, "before")
		}
		y.probe("write", "/tmp/file", "other")
		y.alive()
		if st := y.status(); !st.Alive || st.Enforced != x.status().Enforced {
			t.Errorf("restored: %+v, saved: %+v", st, x.status())
		}
	}
	x.echo(p, "third\n")
	if o := x.probe("read", "/tmp/file"); o.out != "after" {
		t.Errorf("the file of the first is %q", o.out)
	}
}

// testGoesOnReadonly is the same for a root that is read-only.
func (s *suite) testGoesOnReadonly(t *testing.T) {
	if !s.info.Capabilities.ReadonlyRoot {
		t.Skip("not run: no read-only root")
	}
	x := s.open(t, func(spec *sandbox.Spec) { spec.ReadonlyRoot = true })
	x.probe("write", "/tmp/file", "before")
	x.probe("write", guest.DefaultHome+"/file", "home")
	y := x.restore(x.save())
	if a, b := y.probe("read", "/tmp/file"), y.probe("read", guest.DefaultHome+"/file"); a.out != "before" || b.out != "home" {
		t.Errorf("the files are %q and %q", a.out, b.out)
	}
	if o := y.probe("write", "/etc/x", "y"); o.Code == 0 {
		t.Error("the root became writable")
	}
}

// testSavedAgain: what is restored can be saved, and restored, any number of times.
func (s *suite) testSavedAgain(t *testing.T) {
	x := s.open(t)
	p := x.start("cat")
	x.echo(p, "0\n")
	for n := range 3 {
		snap := x.save()
		y := x.restore(snap)
		x.destroy(t)
		q, err := y.Reattach(deadline(t), p.ID(), guest.Position{Stdout: int64(2 * (n + 1))})
		if err != nil {
			t.Fatal(err)
		}
		y.echo(q, "1\n")
		x, p = y, q
	}
}

// testTampered: a snapshot of which anything was changed is refused, before any of
// it is used, and leaves nothing.
func (s *suite) testTampered(t *testing.T) {
	x := s.open(t)
	snap := x.save()
	refused := func(what string, from sandbox.Snapshot, kinds ...sandbox.Kind) {
		t.Helper()
		spec := x.again()
		inst, err := s.b.(sandbox.Restorer).Restore(deadline(t), spec, from)
		wantKind(t, "Restore of a snapshot with "+what, err, kinds...)
		if err == nil {
			inst.Destroy(deadline(t))
		}
		s.checkGone(t, spec.Instance)
	}
	files, err := os.ReadDir(snap.Dir)
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		name := filepath.Join(snap.Dir, f.Name())
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		put := func(b []byte) {
			t.Helper()
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		bad := append([]byte(nil), good...)
		bad[len(bad)/2] ^= 1
		put(bad)
		refused("one bit of "+f.Name()+" changed", snap, sandbox.KindConflict)
		put(good[:len(good)-1])
		refused("the end of "+f.Name()+" missing", snap, sandbox.KindConflict)
		put(append(append([]byte(nil), good...), 0))
		refused("more at the end of "+f.Name(), snap, sandbox.KindConflict)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		refused("no "+f.Name(), snap, sandbox.KindConflict, sandbox.KindNotFound)
		if err := os.Symlink("/etc/passwd", name); err != nil {
			t.Fatal(err)
		}
		refused("a link for "+f.Name(), snap, sandbox.KindConflict)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		put(good)
	}
	extra := filepath.Join(snap.Dir, "extra")
	if err := os.WriteFile(extra, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a file more", snap, sandbox.KindConflict)
	if err := os.Remove(extra); err != nil {
		t.Fatal(err)
	}
	other := snap
	other.Digest = x.restore(snap).save().Digest
	refused("another's digest", other, sandbox.KindConflict)
	x.restore(snap).alive() // and as it was it is good
}

// testDoesNotFit: a snapshot is for its tenant and its root, with its limits.
func (s *suite) testDoesNotFit(t *testing.T) {
	x := s.open(t)
	snap := x.save()
	for _, c := range []struct {
		what   string
		change func(*sandbox.Spec)
		kind   sandbox.Kind
	}{
		{"another tenant", func(s *sandbox.Spec) { s.Tenant = "other" }, sandbox.KindNotFound},
		{"another root", func(s *sandbox.Spec) { s.Root.Digest = "sha256:other" }, sandbox.KindConflict},
		{"another root that changes", func(s *sandbox.Spec) { s.Root.Digest, s.Root.Mutable = "sha256:other", true }, sandbox.KindConflict},
		{"other limits", func(s *sandbox.Spec) { s.Limits.Memory *= 2 }, sandbox.KindConflict},
		{"a read-only root", func(s *sandbox.Spec) { s.ReadonlyRoot = true }, sandbox.KindConflict},
	} {
		spec := x.again()
		c.change(&spec)
		_, err := s.b.(sandbox.Restorer).Restore(deadline(t), spec, snap)
		wantKind(t, "Restore with "+c.what, err, c.kind)
		s.checkGone(t, spec.Instance)
	}
	_, err := s.b.(sandbox.Restorer).Restore(deadline(t), x.again(), sandbox.Snapshot{Dir: filepath.Join(t.TempDir(), "no"), Digest: snap.Digest, Limits: snap.Limits})
	wantKind(t, "Restore of what is not there", err, sandbox.KindNotFound)
	_, err = x.inst.(sandbox.Snapshotter).Snapshot(deadline(t), snap.Dir)
	wantKind(t, "Snapshot over another", err, sandbox.KindExists)
	if _, err := os.Stat(snap.Dir); err != nil {
		t.Errorf("the one that was there: %v", err)
	}
	x.alive()
}

func (s *suite) testSaveEnded(t *testing.T) {
	x := s.open(t)
	x.destroy(t)
	dir := filepath.Join(t.TempDir(), "image")
	_, err := x.inst.(sandbox.Snapshotter).Snapshot(deadline(t), dir)
	wantKind(t, "Snapshot of an instance that has ended", err, sandbox.KindGone)
	if _, err := os.Lstat(dir); err == nil {
		t.Error("a refused snapshot left its directory")
	}
}

// testSavedWired: what had a wire goes on with another one, as its far end sees it.
// Connections over the one before have ended for the guest, without a word to the
// new far end; the instance that was saved keeps its own.
func (s *suite) testSavedWired(t *testing.T) {
	x, _, _ := s.wired(t)
	open, listening := x.start("converse", farHost.String()+":80"), x.start("serve", "echo")
	x.echo(open, "first\n")
	var port int
	if _, err := fmt.Fscanln(listening.Stdout(), &port); err != nil {
		t.Fatal(err)
	}
	snap := x.save()
	x.echo(open, "second\n")
	for range 2 {
		w := s.Wire(t)
		f := serve(t, w.Tap)
		y := x.restore(snap, func(sp *sandbox.Spec) { sp.Wire = &w.Wire })
		p, err := y.Reattach(deadline(t), open.ID(), guest.Position{Stdout: int64(len("first\n"))})
		if err != nil {
			t.Fatal(err)
		}
		if e := y.wait(p); e.Code != 1 {
			t.Errorf("the program whose connection is gone ended with %+v", e)
		}
		if _, kinds, dials, _ := f.seen(); kinds["tcp"] != 0 || len(dials) != 0 {
			t.Errorf("an old connection reached the new wire: %v, %v", kinds, dials)
		}
		if o := y.probe("resolve", farName); strings.TrimSpace(o.out) != farHost.String() {
			t.Errorf("the name resolves to %+v", o)
		}
		text := strings.Repeat("over the other wire. ", 1500)
		if o := y.probe("connect", farName+":80", text); o.out != text {
			t.Errorf("an echo of %d bytes: code %d, %d bytes, %q", len(text), o.Code, len(o.out), o.errs)
		}
		if _, err := y.Reattach(deadline(t), listening.ID(), guest.Position{Stdout: int64(len(fmt.Sprintln(port)))}); err != nil {
			t.Errorf("the program that listens: %v", err)
		}
		c, err := y.DialPort(deadline(t), port)
		if err != nil {
			t.Errorf("nobody listens any more: %v", err)
		} else {
			c.Close()
		}
	}
	x.echo(open, "third\n")
}

// testWiredOrNot: a device is neither added nor taken away.
func (s *suite) testWiredOrNot(t *testing.T) {
	x, _, _ := s.wired(t)
	y, w := s.open(t), s.Wire(t)
	defer w.Tap.Close()
	for what, c := range map[string]struct {
		saved *box
		wire  *sandbox.Wire
	}{"a wire more": {y, &w.Wire}, "no wire": {x, nil}} {
		spec := c.saved.again()
		spec.Wire = c.wire
		_, err := s.b.(sandbox.Restorer).Restore(deadline(t), spec, c.saved.save())
		wantKind(t, "Restore with "+what, err, sandbox.KindConflict)
		s.checkGone(t, spec.Instance)
	}
	x.alive()
	y.alive()
}

//go:build linux

package gvisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// remembering is an instance with a program that returns what it is told.
func remembering(t *testing.T, b *Backend) (box, *guest.Process) {
	t.Helper()
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t), Tenant: "acme"})
	p, err := x.Exec(within(t), guest.Command{Stdin: true, Argv: []string{guest.AgentPath, "probe", "cat"}})
	if err != nil {
		t.Fatal(err)
	}
	say(t, p, "first")
	return x, p
}

func say(t *testing.T, p *guest.Process, text string) {
	t.Helper()
	if _, err := io.WriteString(p.Stdin(), text+"\n"); err != nil {
		t.Fatal(err)
	}
	if got := line(t, p.Stdout()); got != text {
		t.Fatalf("it says %q, not %q", got, text)
	}
}

// prepare makes a blank for what x is.
func prepare(t *testing.T, b *Backend, x box) sandbox.Blank {
	t.Helper()
	s := x.spec()
	bl, err := b.Prepare(within(t), s)
	if err != nil {
		t.Fatal(err)
	}
	if bl.ID() != s.Instance {
		t.Errorf("the blank is %s, not %s", bl.ID(), s.Instance)
	}
	t.Cleanup(func() {
		if r, err := bl.Destroy(within(t)); err != nil || !r.Clean {
			t.Errorf("Destroy: %+v, %v", r, err)
		}
	})
	return bl
}

// spec is that of another instance like x.
func (x box) spec() sandbox.Spec {
	s := sandbox.Spec{Instance: sandbox.NewInstanceID(), Sandbox: sandbox.NewID(), Tenant: x.intent.Tenant, Limits: x.intent.Limits, ReadonlyRoot: x.intent.ReadonlyRoot}
	s.Root.Digest = x.intent.Template
	var o ociSpec
	if b, err := os.ReadFile(filepath.Join(x.dir, fileBundle)); err == nil && json.Unmarshal(b, &o) == nil {
		s.Root.Dir = o.Root.Path
	}
	return s
}

// goesOn meets what was restored of remembering's.
func goesOn(t *testing.T, inst sandbox.Instance, p *guest.Process) {
	t.Helper()
	conn, err := inst.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	sess, err := guest.Open(within(t), conn, guest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	q, err := sess.Reattach(within(t), p.ID(), guest.Position{Stdout: int64(len("first\n"))})
	if err != nil {
		t.Fatal(err)
	}
	say(t, q, "other")
}

// TestBlank: what was saved goes on in an instance that was there before, with the
// name of that, from files and from what is held; and each blank is used once.
func TestBlank(t *testing.T) {
	b := open(t, t.TempDir())
	saving(t, b)
	x, p := remembering(t, b)
	snap, err := x.Snapshot(within(t), filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := x.Hold(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []sandbox.Snapshot{snap, held} {
		bl := prepare(t, b, x)
		if list, err := b.List(t.Context()); err != nil || len(list) != 2 || !list[0].Alive || !list[1].Alive {
			t.Errorf("with a blank there are %+v, %v", list, err)
		}
		y, err := bl.Restore(within(t), from)
		if err != nil {
			t.Fatal(err)
		}
		if y.ID() != bl.ID() {
			t.Errorf("it became %s", y.ID())
		}
		goesOn(t, y, p)
		if _, err := bl.Restore(within(t), from); err == nil {
			t.Error("it was restored into twice")
		}
		if _, err := y.Destroy(within(t)); err != nil {
			t.Error(err)
		}
	}
	say(t, p, "second")
}

// TestHeld: what is held is for any number of instances, until it is released, and is
// nowhere to be found.
func TestHeld(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	saving(t, b)
	x, p := remembering(t, b)
	before := tree(t, dir)
	held, err := x.Hold(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if held.Dir != "" || held.Size == 0 || held.Limits != x.intent.Limits {
		t.Errorf("%+v", held)
	}
	if after := tree(t, dir); !reflect.DeepEqual(before, after) {
		t.Errorf("it has names: %v, before %v", after, before)
	}
	for range 2 {
		y, err := b.Restore(within(t), x.spec(), held)
		if err != nil {
			t.Fatal(err)
		}
		goesOn(t, y, p)
		if _, err := y.Destroy(within(t)); err != nil {
			t.Error(err)
		}
	}
	other := x.spec()
	other.Tenant = "other"
	if _, err := b.Restore(within(t), other, held); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("another tenant: %v", err)
	}
	b.Release(held)
	b.Release(held)
	if _, err := b.Restore(within(t), x.spec(), held); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("released: %v", err)
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("left are %v, %v", list, err)
	}
}

func tree(t *testing.T, dir string) (all []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		all = append(all, name)
		return err
	}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return all
}

// TestBlankBadImage: an image that was changed is not put into a blank, which is gone
// then; so is one whose sentry has died.
func TestBlankBadImage(t *testing.T) {
	b := open(t, t.TempDir())
	saving(t, b)
	x, _ := remembering(t, b)
	snap, err := x.Snapshot(within(t), filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	dead := prepare(t, b, x)
	if err := dead.(*blank).i.running.Sentry.kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := dead.Restore(within(t), snap); err == nil {
		t.Error("a dead one was restored into")
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"pages.img":      func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"checkpoint.img": func(b []byte) []byte { return append(b, 0) },
	} {
		name = filepath.Join(snap.Dir, name)
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, spoil(bytes.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		bl := prepare(t, b, x)
		if _, err := bl.Restore(within(t), snap); sandbox.KindOf(err) != sandbox.KindConflict {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.WriteFile(name, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("left are %v, %v", list, err)
	}
}

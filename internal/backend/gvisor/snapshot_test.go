//go:build linux

package gvisor

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// restore makes an instance of a snapshot and destroys it when the test ends.
func restore(t *testing.T, b *Backend, s sandbox.Spec, from sandbox.Snapshot) box {
	t.Helper()
	s.Instance = sandbox.NewInstanceID()
	s.Limits, s.ReadonlyRoot = from.Limits, from.ReadonlyRoot
	inst, err := b.Restore(within(t), s, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r, err := inst.Destroy(within(t)); err != nil || !r.Clean {
			t.Errorf("Destroy: %+v, %v", r, err)
		}
	})
	conn, err := inst.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	sess, err := guest.Open(within(t), conn, guest.Config{PIDs: s.Limits.PIDs, Memory: s.Limits.Memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sess.Close() })
	return box{inst.(*Instance), sess}
}

// saving skips where nothing can be saved.
func saving(t *testing.T, b *Backend) {
	t.Helper()
	info, err := b.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !info.Capabilities.Snapshot {
		t.Skip("not run: needs root")
	}
}

// TestSnapshotInterpreter: an interpreter goes on in the middle of its program,
// in the sandbox that was saved and in each that is made of it.
func TestSnapshotInterpreter(t *testing.T) {
	b := open(t, t.TempDir())
	saving(t, b)
	store, err := template.New(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	host, err := store.Resolve(within(t), template.Host)
	if err != nil {
		t.Fatal(err)
	}
	spec := sandbox.Spec{Root: host.Root, Tenant: "acme"}
	x := create(t, b, spec)
	p, err := x.Exec(within(t), guest.Command{Stdin: true, Argv: []string{"python3", "-uc", `
import sys, hashlib
have = {"n": 41, "list": list(range(200000))}
for line in sys.stdin:
    have["n"] += 1
    print(have["n"], sum(have["list"]), flush=True)
`}})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(x box, p *guest.Process, want string) {
		t.Helper()
		if _, err := io.WriteString(p.Stdin(), "\n"); err != nil {
			t.Fatal(err)
		}
		if got := line(t, p.Stdout()); got != want+" 19999900000" {
			t.Fatalf("the interpreter says %q, want %s", got, want)
		}
	}
	ask(x, p, "42")
	began := time.Now()
	snap, err := x.Snapshot(within(t), filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("saved %s in %s", sandbox.FormatSize(snap.Size), time.Since(began).Round(time.Millisecond))
	ask(x, p, "43")
	for range 2 {
		began = time.Now()
		y := restore(t, b, spec, snap)
		t.Logf("restored in %s", time.Since(began).Round(time.Millisecond))
		q, err := y.Reattach(within(t), p.ID(), guest.Position{Stdout: int64(len("42 19999900000\n"))})
		if err != nil {
			t.Fatal(err)
		}
		ask(y, q, "43")
		ask(y, q, "44")
	}
}

// line reads one, without what ends it.
func line(t *testing.T, r io.Reader) string {
	t.Helper()
	var b strings.Builder
	for one := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, one); err != nil {
			t.Fatal(err)
		}
		if one[0] == '\n' {
			return b.String()
		}
		b.Write(one)
	}
}

// TestSnapshotOfOtherBuild: what another build of runsc or of the agent has saved is
// refused, and what another has made is not saved.
func TestSnapshotOfOtherBuild(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	saving(t, b)
	spec := sandbox.Spec{Root: minimalRoot(t), Tenant: "acme"}
	x := create(t, b, spec)
	snap, err := x.Snapshot(within(t), filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	newer := t.TempDir()
	runsc, runtime := filepath.Join(newer, "runsc"), filepath.Join(newer, "runtime")
	program, err := os.ReadFile(b.cfg.Runsc)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(runsc, append(program, "newer"...), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(runtime, os.DirFS(b.cfg.Runtime)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(runtime, "newer.py"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"runsc":     func(c *Config) { c.Runsc = runsc },
		"the agent": func(c *Config) { c.Runtime = runtime },
	} {
		cfg := b.cfg
		change(&cfg)
		other, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { other.Close() })
		s := spec
		s.Instance, s.Limits = sandbox.NewInstanceID(), snap.Limits
		if _, err := other.Restore(within(t), s, snap); sandbox.KindOf(err) != sandbox.KindConflict || !strings.Contains(err.Error(), "another build of "+what) {
			t.Errorf("of another build of %s: %v", what, err)
		}
		i, err := other.Attach(within(t), x.ID())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.(*Instance).Snapshot(within(t), filepath.Join(t.TempDir(), "image")); sandbox.KindOf(err) != sandbox.KindUnsupported {
			t.Errorf("what another build of %s made: %v", what, err)
		}
	}
	restore(t, b, spec, snap).probe(t, "echo", "it is good")
}

// TestSnapshotWithoutSpace: on a full disk nothing is left of the snapshot, and the
// sandbox goes on.
func TestSnapshotWithoutSpace(t *testing.T) {
	b := open(t, t.TempDir())
	saving(t, b)
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	x.probe(t, "fill", "/tmp/large", "8388608")
	full := t.TempDir()
	if err := unix.Mount("none", full, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("not run: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		_, err := x.Snapshot(within(t), filepath.Join(full, "image"))
		if sandbox.KindOf(err) != sandbox.KindNoSpace {
			t.Errorf("on a full disk: %v", err)
		}
		if left, err := os.ReadDir(full); err != nil || len(left) != 0 {
			t.Errorf("left %v, %v", left, err)
		}
		if out, exit := x.probe(t, "echo", "alive"); out != "alive\n" || exit.Code != 0 {
			t.Errorf("the sandbox says %q, %+v", out, exit)
		}
	}
	if _, err := x.Snapshot(within(t), filepath.Join(t.TempDir(), "image")); err != nil {
		t.Errorf("with space: %v", err)
	}
}

// TestSnapshotCanceled: one that nobody waits for any more leaves nothing, and the
// sandbox goes on.
func TestSnapshotCanceled(t *testing.T) {
	b := open(t, t.TempDir())
	saving(t, b)
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	for _, after := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		dir := filepath.Join(t.TempDir(), "image")
		_, err := x.Snapshot(ctx, dir)
		cancel()
		if _, e := os.Lstat(dir); (e == nil) != (err == nil) {
			t.Errorf("after %s: %v, and the directory: %v", after, err, e)
		}
		x.probe(t, "echo", "alive")
	}
}

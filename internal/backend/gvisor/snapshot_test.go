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

var _ = os.Remove
var _ context.Context

//go:build linux

package microvm

import (
	"path/filepath"
	"testing"

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

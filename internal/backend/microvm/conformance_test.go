//go:build linux

package microvm

import (
	"io"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// TestConformance: the suite of every backend. Under emulation it takes minutes.
func TestConformance(t *testing.T) {
	machines(t)
	root := minimalRoot(t)
	backendtest.Run(t, backendtest.Config{
		New:  func(t *testing.T, dir string) sandbox.Backend { return open(t, dir) },
		Root: func(*testing.T) sandbox.Root { return root },
		Frozen: func(t *testing.T, dir string) (sandbox.Backend, sandbox.Root) {
			b := open(t, dir)
			b.test = machine.TestFreeze
			return b, root
		},
		Kill: func(t *testing.T, b sandbox.Backend, id sandbox.InstanceID) {
			procs, err := readProcesses(b.(*Backend).dir(id))
			if err == nil {
				err = procs[0].kill()
			}
			if err != nil {
				t.Errorf("kill the monitor: %v", err)
			}
		},
		Wire: func(t *testing.T) backendtest.Wire {
			l, reopen := openWire(t)
			return backendtest.Wire{Wire: l.Wire, Tap: l.Tap, Reopen: func(t *testing.T) io.ReadWriteCloser { return reopen(t).Tap }}
		},
		Scope:    func(dir string) residue.Scope { return residue.Scope{Dirs: []string{dir}} },
		Parallel: 2,
		Volume:   8,
	})
}

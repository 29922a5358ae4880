// Package backendtest decides whether a sandbox.Backend keeps its contract.
//
// A backend's whole test is one call:
//
//	func TestConformance(t *testing.T) {
//		backendtest.Run(t, backendtest.Config{
//			New:  func(t *testing.T, dir string) sandbox.Backend { return open(t, dir) },
//			Root: hostRoot,
//			Kill: killTheSentry,
//		})
//	}
//
// The suite boots instances, drives the verb program inside them
// (`firebreak-guest probe VERB`), breaks them, destroys them, and after each
// looks for what is left with package residue, which never asks the receipt.
// Everything in it has a deadline, and nothing waits by sleeping.
//
// What a backend says in Info decides what is asked of it: a limit it enforces
// is tested, a limit it does not enforce must be refused. Other exclusions are
// named in Config.Skip with a reason, and show as "not run: reason". What cannot
// apply, such as a missing root for a backend that reads none, is left out.
//
// With -short, or under the race detector, the volumes are smaller and the
// behaviour asked for is the same.
package backendtest

import (
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// Config describes the backend under test.
type Config struct {
	// New returns a backend whose state lives in dir. Two backends over one dir
	// stand for a process and its successor after a restart. Required. The
	// suite closes what it is given.
	New func(t *testing.T, dir string) sandbox.Backend
	// Root returns the file system of the suite's instances. The zero Root is
	// for backends that read none.
	Root func(t *testing.T) sandbox.Root
	// Frozen returns a backend over dir whose agents never answer, and a root
	// to use with it. Without it that is not tested.
	Frozen func(t *testing.T, dir string) (sandbox.Backend, sandbox.Root)
	// Kill ends an instance's boundary from outside, as a fault would. Without
	// it that is not tested.
	Kill func(t *testing.T, b sandbox.Backend, id sandbox.InstanceID)
	// Dir returns a directory for a backend's state. It defaults to t.TempDir,
	// whose names may be too long for sockets.
	Dir func(t *testing.T) string
	// Scope completes what the oracle looks at, for state in dir. It defaults
	// to dir alone.
	Scope func(dir string) residue.Scope
	// Wire returns a wire that no instance was on, removed when the test ends. It
	// must be there when the backend claims to attach wires.
	Wire func(t *testing.T) Wire
	// Probe is the verb program's path inside. It defaults to guest.AgentPath.
	Probe string
	// Groups restricts the run to some of the suite's groups: Info, Create,
	// Exec, Output, Limits, Files, Isolation, Wire, Lifecycle, Snapshot, Destroy. All by
	// default.
	Groups []string
	// Tests restricts the run to subtests with these names below Run's, such as
	// "Snapshot/Tampered". All by default.
	Tests []string
	// Skip maps a subtest's name below Run's, such as "Limits/CPU", to why it
	// is not run.
	Skip map[string]string
	// Parallel is how many instances may live at once in tests about that. It
	// defaults to 4.
	Parallel int
	// Volume divides the amounts of data, for backends that are slow at it. It
	// defaults to 1.
	Volume int64
}

// patience bounds every single step. Nothing in the contract takes that long;
// a loaded machine may.
const patience = 60 * time.Second

// Run runs the whole suite. It must not run in parallel with other tests of
// the process: it accounts for the process's goroutines and descriptors.
func Run(t *testing.T, cfg Config) {
	if cfg.New == nil {
		t.Fatal("backendtest: Config.New is missing")
	}
	if cfg.Root == nil {
		cfg.Root = func(*testing.T) sandbox.Root { return sandbox.Root{} }
	}
	if cfg.Probe == "" {
		cfg.Probe = guest.AgentPath
	}
	if cfg.Dir == nil {
		cfg.Dir = func(t *testing.T) string { return t.TempDir() }
	}
	if cfg.Scope == nil {
		cfg.Scope = func(dir string) residue.Scope { return residue.Scope{Dirs: []string{dir}} }
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 4
	}
	if cfg.Volume == 0 {
		cfg.Volume = 1
	}
	leak := goleak.IgnoreCurrent()
	s := newSuite(t, cfg)
	t.Run("Suite", func(t *testing.T) { // returns when the parallel groups have ended
		for _, g := range []struct {
			name string
			run  func(*testing.T, *suite)
		}{
			{"Info", testInfo},
			{"Create", testCreate},
			{"Exec", testExec},
			{"Output", testOutput},
			{"Limits", testLimits},
			{"Files", testFiles},
			{"Isolation", testIsolation},
			{"Wire", testWire},
			{"Lifecycle", testLifecycle},
			{"Snapshot", testSnapshot},
			{"Destroy", testDestroy},
		} {
			if len(cfg.Groups) > 0 && !slices.Contains(cfg.Groups, g.name) {
				continue
			}
			t.Run(g.name, func(t *testing.T) { g.run(t, s) })
		}
	})
	s.finish(t)
	if err := goleak.Find(leak); err != nil {
		t.Errorf("goroutines are left: %v", err)
	}
}

// finish closes the suite's backend and looks for what all of it has left.
func (s *suite) finish(t *testing.T) {
	ctx := deadline(t)
	left, err := s.b.List(ctx)
	if err != nil {
		t.Errorf("List at the end: %v", err)
	}
	for _, st := range left {
		t.Errorf("instance %s is still listed", st.Instance)
		if inst, err := s.b.Attach(ctx, st.Instance); err == nil {
			inst.Destroy(ctx)
		}
	}
	if err := s.b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for _, f := range s.base.Diff() {
		t.Errorf("left on the host: %s", f)
	}
}

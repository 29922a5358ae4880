//go:build linux

package gvisor

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// runscEnv names another firebreak-runsc to test, to compare builds.
const runscEnv = "FIREBREAK_TEST_RUNSC"

// programs is the unpacked bundle, or why there is none.
var (
	programs    *bundle.Bundle
	noPrograms  error
	testCgroups = fmt.Sprintf("firebreak-test-%d", os.Getpid())
)

func TestMain(m *testing.M) {
	if arg := os.Getenv(helperEnv); arg != "" {
		if err := runHelper(arg); err != nil {
			fmt.Fprintln(os.Stderr, "helper:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "fb")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs, noPrograms = bundle.Open(dir)
	if p := os.Getenv(runscEnv); p != "" && noPrograms == nil {
		programs.Runsc = p
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// open returns a Backend over dir, closed when the test ends.
func open(t testing.TB, dir string) *Backend {
	t.Helper()
	if noPrograms != nil {
		t.Skipf("not run: %v", noPrograms)
	}
	b, err := New(Config{Dir: dir, Runsc: programs.Runsc, Runtime: programs.Runtime, Cgroup: testCgroups, Wires: wire.Probe})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// enforcing skips where the host enforces no limits: for an ordinary user
// without a cgroup of its own.
func enforcing(t testing.TB, b *Backend, set sandbox.LimitSet) {
	t.Helper()
	info, err := b.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if miss := set &^ info.Capabilities.Limits; miss != 0 {
		t.Skipf("not run: needs root or a delegated cgroup to enforce %s", miss)
	}
}

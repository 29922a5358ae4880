//go:build linux

package gvisor

import (
	"fmt"
	"os"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/bundle"
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
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// open returns a Backend over dir, closed when the test ends.
func open(t testing.TB, dir string) *Backend {
	t.Helper()
	if noPrograms != nil {
		t.Skipf("not run: %v", noPrograms)
	}
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root")
	}
	b, err := New(Config{Dir: dir, Runsc: programs.Runsc, Runtime: programs.Runtime, Cgroup: testCgroups})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

//go:build linux

package gvisor

import (
	"path/filepath"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestGoldenJournal: what a released version noted about its instances is
// understood by this one, which may have to take them over. Whoever changes the
// format adds a directory below testdata, and changes none.
func TestGoldenJournal(t *testing.T) {
	dirs, err := filepath.Glob("testdata/journal-*/in*")
	if err != nil || len(dirs) == 0 {
		t.Fatal(dirs, err)
	}
	for _, dir := range dirs {
		in, err := readIntent(dir)
		if err != nil || in.Instance != "inaaaaaaaaaaaaaaaaaa" || in.Sandbox != "sbaaaaaaaaaaaaaaaaaa" || in.Tenant != "acme" || in.Created.IsZero() ||
			in.Boot == "" || len(in.Cgroups) != 2 || in.Limits.Memory != 64<<20 || in.Enforced != sandbox.AllLimits || in.Overhead == 0 {
			t.Errorf("%s: %+v, %v", dir, in, err)
		}
		r, err := readRunning(dir)
		if err != nil || r.Sentry.PID != 12 || r.Sentry.Start != 345 || len(r.Processes) != 2 || r.Processes[1].Role != "gofer" {
			t.Errorf("%s: %+v, %v", dir, r, err)
		}
	}
}

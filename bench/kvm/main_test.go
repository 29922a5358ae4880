package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRefuses: where there is no Firecracker nothing is measured, and that is an error
// that says so.
func TestRefuses(t *testing.T) {
	if path, err := exec.LookPath("firecracker"); err == nil {
		t.Skipf("not run: there is %s", path)
	}
	out := filepath.Join(t.TempDir(), "kvm.json")
	err := run(t.Context(), out, 1)
	if err == nil || !strings.HasPrefix(err.Error(), "not run: ") || !strings.Contains(err.Error(), "firecracker") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("there are results")
	}
}

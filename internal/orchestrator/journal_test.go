package orchestrator

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestJournalTellsNoPath: callers are told that a process could not be noted, and
// nothing of where this machine would have noted it.
func TestJournalTellsNoPath(t *testing.T) {
	j := journal{filepath.Join(t.TempDir(), "gone")}
	id := sandbox.NewID()
	for _, stdin := range [][]byte{nil, []byte("kept")} {
		if err := j.add(&entry{Sandbox: id, ID: 1}, nil, stdin); err == nil || strings.Contains(err.Error(), j.dir) {
			t.Errorf("add: %v", err)
		}
	}
	if _, err := j.input(id); err == nil || strings.Contains(err.Error(), j.dir) {
		t.Errorf("input: %v", err)
	}
}

package audit

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// TestUnfinishedPartial: what a server that was killed left of a partial tile is no
// obstacle once that is full.
func TestUnfinishedPartial(t *testing.T) {
	dir := t.TempDir()
	if err := writeTile(dir, 0, 1, make([]tlog.Hash, 7), false); err != nil {
		t.Fatal(err)
	}
	tmp := tilePath(dir, 0, 1, 5) + ".tmp"
	if err := os.WriteFile(tmp, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dropPartials(dir, 1, 5); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(tmp); err != nil {
		t.Errorf("one that may be being written is gone: %v", err)
	}
	if err := dropPartials(dir, 1, tileWidth); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Dir(tmp)); err == nil {
		t.Error("the partial tiles of a full one are still there")
	}
}

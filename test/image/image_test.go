package image

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestSearch: needles are found wherever they are, also over the pieces a file is
// read in, each once.
func TestSearch(t *testing.T) {
	dir := t.TempDir()
	const piece = 4 << 20
	b := make([]byte, 3*piece)
	for _, at := range []int{0, 100, piece - 3, 2*piece - 6, 2*piece + 5, len(b) - 6} {
		copy(b[at:], "needle")
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b"), []byte("needl"), 0o600); err != nil {
		t.Fatal(err)
	}
	found, size, err := Search(dir, []byte("needle"), []byte("eneedl"), []byte("l"))
	if err != nil || size != int64(len(b))+5 || found[0] != 6 || found[1] != 0 || found[2] != 7 {
		t.Errorf("found %v in %d bytes, %v", found, size, err)
	}
	if _, _, err := Search(dir, bytes.Repeat([]byte("x"), maxNeedle+1)); err == nil {
		t.Error("a needle that is too long is accepted")
	}
}

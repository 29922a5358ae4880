package e2b

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestDrift generates again and demands the very bytes that are committed.
func TestDrift(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	cmd := exec.Command("go", "-C", filepath.Join(here, "../../tools"), "tool", "protogen", "-api", here, "-out", out, "-descriptors=false")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("protogen: %v\n%s", err, msg)
	}
	want, got := os.DirFS(filepath.Join(out, "gen")), os.DirFS("gen")
	files := 0
	err = fs.WalkDir(want, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		a, err := fs.ReadFile(want, path)
		if err != nil {
			return err
		}
		if b, err := fs.ReadFile(got, path); err != nil || !bytes.Equal(a, b) {
			t.Errorf("gen/%s is not what the protos say: run `make generate`", path)
		}
		return nil
	})
	if err != nil || files != 4 {
		t.Errorf("%d files were generated: %v", files, err)
	}
}

package api

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestDrift generates into a temporary directory and demands the very bytes
// that are committed: nobody edits generated code, nobody forgets to generate.
func TestDrift(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	cmd := exec.Command("go", "-C", filepath.Join(here, "..", "tools"), "tool", "protogen", "-api", here, "-out", out)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("protogen: %v\n%s", err, msg)
	}
	want, got := generated(t, out), generated(t, here)
	for path, content := range want {
		if !bytes.Equal(got[path], content) {
			t.Errorf("%s is not what the protos say: run `make generate`", path)
		}
	}
	for path := range got {
		if want[path] == nil {
			t.Errorf("%s is left over: run `make generate`", path)
		}
	}
	if len(want) < 5 {
		t.Errorf("only %d files were generated", len(want))
	}
}

// generated reads what protogen writes below dir.
func generated(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	add := func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[rel], err = os.ReadFile(path)
		return err
	}
	for _, part := range []string{"gen", "descriptors.binpb"} {
		if err := filepath.WalkDir(filepath.Join(dir, part), add); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

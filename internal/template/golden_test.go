package template

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestGoldenManifests: every manifest that a released version wrote is read by
// this one. Whoever changes the format adds a file, and changes none.
func TestGoldenManifests(t *testing.T) {
	files, err := filepath.Glob("testdata/manifest-*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m, err := decodeManifest(b)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if m.Name != "python" || m.Digest != "sha256:"+hexSum(nil) || m.Size != 5 || len(m.Packages) != 1 || m.Env["LANG"] != "C.UTF-8" ||
			!m.Created.Equal(time.Unix(1767225600, 0)) || len(m.Languages) != 1 || len(m.Mounts) != 1 || m.Mounts[0].Target != "/usr" {
			t.Errorf("%s: %+v", f, m)
		}
	}
}

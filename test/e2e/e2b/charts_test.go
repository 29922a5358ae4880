package e2b

import (
	"archive/tar"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// plotters is where matplotlib and pandas are, for the Python that sandboxes of
// the default template have.
var plotters = sync.OnceValue(func() func(testing.TB) string {
	var once sync.Once
	var dir string
	return func(t testing.TB) string {
		once.Do(func() {
			version, err := exec.Command("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").Output()
			if err != nil {
				t.Skip("not run: no /usr/bin/python3")
			}
			dir = installed(t, [][]string{{"python3", "-m", "venv", "venv"},
				{"venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--no-deps", "--no-compile", "--require-hashes",
					"--python-version", strings.TrimSpace(string(version)), "--target", "site", "-r", "charts.txt"}}, "charts.txt")
		})
		return filepath.Join(dir, "site")
	}
})()

// pack writes a directory as a tar file, without the packages' own tests.
func pack(t *testing.T, dir, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			if d != nil && d.IsDir() && d.Name() == "tests" {
				return fs.SkipDir
			}
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: rel, Mode: 0o644, Size: int64(len(b))}); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestCharts plots with the published matplotlib and pandas, and reads the
// results with the published clients.
func TestCharts(t *testing.T) {
	s := serve(t)
	site := filepath.Join(s.dir, "site.tar")
	pack(t, plotters(t), site)
	id := strings.TrimSpace(s.run(nil, s.bin, "create", "--memory", "1GiB"))
	s.run(nil, s.bin, "cp", site, id+":site.tar")
	s.run(nil, s.bin, "exec", id, "--", "sh", "-c", "mkdir site && tar -xf site.tar -C site")
	t.Run("js", func(t *testing.T) { s.steps(t, s.node(t, "charts.mjs", id)...) })
	t.Run("python", func(t *testing.T) { s.steps(t, s.python(t, "charts.py", id)...) })
}

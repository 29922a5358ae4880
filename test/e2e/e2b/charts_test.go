package e2b

import (
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
					"--python-version", strings.TrimSpace(string(version)), "--target", "site", "-r", "charts.txt"},
				{"find", "site", "-name", "tests", "-prune", "-exec", "rm", "-r", "{}", "+"}}, "charts.txt")
		})
		return filepath.Join(dir, "site")
	}
})()

// TestCharts plots with the published matplotlib and pandas, and reads the
// results with the published clients.
func TestCharts(t *testing.T) {
	s := serve(t)
	id := strings.TrimSpace(s.run(nil, s.bin, "create", "--memory", "1GiB"))
	s.run(nil, s.bin, "cp", plotters(t), id+":site")
	t.Run("js", func(t *testing.T) { s.steps(t, s.node(t, "charts.mjs", id)...) })
	t.Run("python", func(t *testing.T) { s.steps(t, s.python(t, "charts.py", id)...) })
}

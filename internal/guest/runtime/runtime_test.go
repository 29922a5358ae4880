package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run executes code with the modules laid out and returns what was reported.
func run(t *testing.T, program string, env func(dir string) string, args ...string) (result string, err error) {
	t.Helper()
	path, lerr := exec.LookPath(program)
	if lerr != nil {
		t.Skipf("not run: no %s", program)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, Files); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "result")
	c := exec.Command(path, args...)
	c.Env = append(os.Environ(), "FIREBREAK_RESULT="+file, env(dir))
	out, err := c.CombinedOutput()
	t.Logf("%s", out)
	left, _ := filepath.Glob(file + ".*")
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	b, _ := os.ReadFile(file)
	return string(b), err
}

func TestPython(t *testing.T) {
	py := func(dir string) string { return "PYTHONPATH=" + dir + "/python" }
	got, err := run(t, "python3", py, "-c", "import firebreak\nfirebreak.result(1)\nfirebreak.result({'a': [1, None, 'ü']})")
	if err != nil || got != `{"a":[1,null,"ü"]}` {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"float('nan')", "float('inf')", "object()", "'x' * (1 << 20)"} {
		got, err := run(t, "python3", py, "-c", "import firebreak\nfirebreak.result('kept')\nfirebreak.result("+bad+")")
		if err == nil || got != `"kept"` {
			t.Errorf("%s: %q %v", bad, got, err)
		}
	}
}

func TestNode(t *testing.T) {
	js := func(dir string) string { return "NODE_OPTIONS=--require=" + dir + "/node/firebreak.js" }
	got, err := run(t, "node", js, "-e", "firebreak.result(1); firebreak.result({a: [1, null, 'ü']})")
	if err != nil || got != `{"a":[1,null,"ü"]}` {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"NaN", "{a: Infinity}", "undefined", "() => 1", "1n", "'x'.repeat(1 << 20)"} {
		got, err := run(t, "node", js, "-e", "firebreak.result('kept'); firebreak.result("+bad+")")
		if err == nil || strings.TrimSpace(got) != `"kept"` {
			t.Errorf("%s: %q %v", bad, got, err)
		}
	}
}

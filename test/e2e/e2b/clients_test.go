package e2b

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestJS drives the npm packages e2b and, where it differs, its older release.
func TestJS(t *testing.T) {
	s := serve(t)
	for _, sdk := range []string{"e2b", "e2b-2-45"} {
		t.Run(sdk, func(t *testing.T) { s.steps(t, s.node(t, "sdk.mjs", sdk)...) })
	}
}

// TestPython drives PyPI's e2b.
func TestPython(t *testing.T) {
	s := serve(t)
	s.steps(t, s.python(t, "sdk.py")...)
}

// TestCodeInterpreter drives @e2b/code-interpreter and e2b-code-interpreter.
func TestCodeInterpreter(t *testing.T) {
	s := serve(t)
	t.Run("js", func(t *testing.T) { s.steps(t, s.node(t, "code.mjs")...) })
	t.Run("python", func(t *testing.T) { s.steps(t, s.python(t, "code.py")...) })
}

// TestPorts reaches servers inside sandboxes.
func TestPorts(t *testing.T) {
	s := serve(t, "--e2b-domain", "sbx.test")
	s.steps(t, s.node(t, "ports.mjs")...)
}

// node returns the command for a script with the npm packages beside it.
func (s *server) node(t *testing.T, script string, args ...string) []string {
	t.Helper()
	dir := filepath.Join(s.dir, "js")
	if _, err := os.Stat(dir); err != nil {
		if err := os.CopyFS(dir, os.DirFS("js")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(nodeClients(t), "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
			t.Fatal(err)
		}
	}
	return append([]string{"node", filepath.Join(dir, script)}, args...)
}

// python returns the command for a script with the PyPI packages.
func (s *server) python(t *testing.T, script string, args ...string) []string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("py", script))
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{filepath.Join(pythonClients(t), "venv/bin/python"), path}, args...)
}

// steps runs a script and makes a subtest of each line it prints: "ok NAME",
// or "failed NAME: why". The last line has to be "end", so that a script that
// stops half way does not pass.
func (s *server) steps(t *testing.T, argv ...string) {
	t.Helper()
	out, errs, err := s.try(s.clientEnv(), argv...)
	ended := false
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		what, rest, _ := strings.Cut(line, " ")
		name, why, _ := strings.Cut(rest, "\t")
		switch what {
		case "ok":
			t.Run(name, func(t *testing.T) { t.Log(why) })
		case "failed":
			t.Run(name, func(t *testing.T) { t.Error(strings.ReplaceAll(why, "\\n", "\n")) })
		case "end":
			ended = true
		}
	}
	if err != nil || !ended {
		t.Errorf("%s did not come to its end: %v\n%s%s\nserver:\n%s", filepath.Base(argv[1]), err, out, errs, tail(s.log(), 4000))
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

package cli

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestHelp holds every command's help against testdata/help, and each to having
// an example: help is what people read instead of a manual.
func TestHelp(t *testing.T) {
	var commands func(c *cobra.Command) [][]string
	commands = func(c *cobra.Command) [][]string {
		all := [][]string{strings.Fields(c.CommandPath())[1:]}
		for _, sub := range c.Commands() {
			all = append(all, commands(sub)...)
		}
		return all
	}
	app := &App{Lookup: func(string) (string, bool) { return "", false }, flags: map[string]string{}}
	root := app.root()
	seen := map[string]bool{}
	for _, path := range commands(root) {
		name := strings.Join(append([]string{"firebreak"}, path...), "-")
		if strings.Contains(name, "completion") {
			continue // cobra's own text
		}
		seen[name+".txt"] = true
		var out, errs bytes.Buffer
		app := &App{In: strings.NewReader(""), Out: &out, Err: &errs, Lookup: func(string) (string, bool) { return "", false }}
		if code := app.Execute(context.Background(), append(path, "--help")); code != 0 || errs.Len() > 0 {
			t.Errorf("%s --help: exit code %d, stderr %q", name, code, errs.String())
		}
		if len(path) > 0 && path[0] != "help" && !strings.Contains(out.String(), "Examples:") && !strings.Contains(out.String(), "Available Commands:") {
			t.Errorf("%s has no example", name)
		}
		file := filepath.Join("testdata", "help", name+".txt")
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%s --help has changed (go test ./cmd/firebreak/cli -update accepts it):\n%s", name, out.String())
		}
	}
	files, err := os.ReadDir(filepath.Join("testdata", "help"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !seen[f.Name()] {
			t.Errorf("testdata/help/%s is of no command", f.Name())
		}
	}
}

// TestUsageErrors: whatever is wrong with a command line, the exit code is 2,
// nothing is on stdout, and one line and a hint are on stderr.
func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"}, {"--nonsense"}, {"run"}, {"run", "--"}, {"run", "--nonsense", "-c", "1"}, {"run", "--memory", "lots", "-c", "1"},
		{"run", "--cpus", "-1", "-c", "1"}, {"run", "--cpus", "NaN", "-c", "1"}, {"run", "--pids", "0", "-c", "1"}, {"run", "--timeout", "soon", "-c", "1"},
		{"run", "--timeout", "-1s", "-c", "1"}, {"run", "--allow", "https://example.com", "-c", "1"}, {"run", "--policy", "no-such.yaml", "-c", "1"}, {"run", "--policy", "No Name", "-c", "1"},
		{"create", "--allow", "*.com"}, {"network"}, {"network", "x", "--allow", "a.example.com", "--none"}, {"network", "x", "--allow", ":443"}, {"policy", "set", "x"},
		{"policy", "set", "../x", "-"}, {"policy", "set", "x", "-"}, {"run", "--git", "u", "-c", "1"}, {"run", "--git", "", "x"},
		{"run", "no-such-file.py"}, {"run", "testdata"}, {"run", "--language", "cobol", "-c", "1"}, {"run", "--language", "node", "--", "ls"},
		{"run", "--env", "1=2", "-c", "1"}, {"run", "--input", "no-such-file", "-c", "1"}, {"run", "--input", "", "-c", "1"}, {"run", "--stdin", "-"},
		{"run", "help_test.go"}, {"exec"}, {"exec", "id"}, {"exec", "id", "cmd"}, {"exec", "--", "ls"}, {"cp", "a", "b"}, {"cp", "x:a", "y:b"}, {"cp", "a"},
		{"inspect"}, {"rm"}, {"ls", "x"}, {"create", "x"}, {"create", "--metadata", "nope"}, {"template", "nonsense"}, {"key", "nonsense"}, {"config", "x"},
		{"serve", "--listen", "nope"}, {"version", "x"}, {"--config", "no-such-file", "config", "--nonsense"},
	} {
		var out, errs bytes.Buffer
		app := &App{In: strings.NewReader(""), Out: &out, Err: &errs, Lookup: func(string) (string, bool) { return "", false }}
		code := app.Execute(context.Background(), args)
		if code != exitUsage || out.Len() > 0 {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, out.String(), errs.String())
		}
		lines := strings.Split(strings.TrimSuffix(errs.String(), "\n"), "\n")
		if len(lines) > 2 || !strings.HasPrefix(lines[0], "firebreak: ") || len(lines) == 2 && !strings.HasPrefix(lines[1], "  hint: ") {
			t.Errorf("%q: stderr %q", args, errs.String())
		}
	}
}

// TestUsageHints: the hint is the way out where there is one.
func TestUsageHints(t *testing.T) {
	dir := t.TempDir()
	perl := filepath.Join(dir, "tidy")
	if err := os.WriteFile(perl, []byte("#!/usr/bin/perl -w\nprint 1;\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(tree, "out")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		hint string
	}{
		{[]string{"run", "--input", tree, "-c", "1"}, "bring what the link points to by itself"},
		{[]string{"exce", "x"}, "did you mean `firebreak exec`?"},
		{[]string{"run", "--memry", "5M", "-c", "1"}, "did you mean --memory?"},
		{[]string{"create", "--nonsense"}, "`firebreak create --help` lists the flags"},
		{[]string{"run", "--timeout", "5", "-c", "1"}, "500ms, 30s, 1h30m"},
		{[]string{"run", perl}, "name its interpreter"}, // not run by the wrong one
	} {
		var out, errs bytes.Buffer
		app := &App{In: strings.NewReader(""), Out: &out, Err: &errs, Lookup: func(string) (string, bool) { return "", false }}
		if code := app.Execute(context.Background(), c.args); code != exitUsage || !strings.Contains(errs.String(), c.hint) {
			t.Errorf("%q: exit code %d, stderr %q", c.args, code, errs.String())
		}
	}
}

// failing is a disk that is full.
type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestFullOutput: what cannot be printed is our failure, not wrong usage.
func TestFullOutput(t *testing.T) {
	var errs bytes.Buffer
	app := &App{In: strings.NewReader(""), Out: failing{}, Err: &errs, Lookup: func(string) (string, bool) { return "", false }}
	if code := app.Execute(context.Background(), []string{"run", "--json", "no-such-file.py"}); code != exitFirebreak || strings.Contains(errs.String(), "--help") {
		t.Errorf("exit code %d, stderr %q", code, errs.String())
	}
}

func TestNeedsServer(t *testing.T) {
	for _, args := range [][]string{{"create"}, {"ls"}, {"inspect", "x"}, {"exec", "x", "--", "ls"}, {"eval", "x", "-c", "1"}, {"rm", "x"}, {"logs", "x"}, {"events", "x"}, {"cp", "x:a", "b"}, {"key", "ls"}, {"network", "x"}, {"policy", "ls"}, {"policy", "rm", "x"}, {"secret", "ls"}, {"secret", "rm", "x"}, {"binding", "ls"}, {"binding", "rm", "x"}, {"create", "--allow", "a.example.com"}} {
		var out, errs bytes.Buffer
		app := &App{Out: &out, Err: &errs, Lookup: func(k string) (string, bool) {
			return filepath.Join(t.TempDir(), "none.sock"), k == "FIREBREAK_SOCKET"
		}}
		code := app.Execute(context.Background(), args)
		want := exitFailed
		if args[0] == "exec" || args[0] == "eval" {
			want = exitFirebreak
		}
		if code != want || !strings.Contains(errs.String(), "no server answers") || !strings.Contains(errs.String(), "  hint: start one with `firebreak serve`") {
			t.Errorf("%q: exit code %d, stderr %q", args, code, errs.String())
		}
	}
}

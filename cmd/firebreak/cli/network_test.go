package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestNetworkFlags: files become documents of the request, with what they include
// beside them; names stay names.
func TestNetworkFlags(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	build := write("Build File.yaml", "include: [common, pypi, stored]\nallow: [a.example.com]")
	write("common.yaml", "include: [common]\nallow: [c.example.com]")
	preset := write("pypi.yaml", "allow: [mine.example.com]")
	other := write("other/common.yaml", "allow: [o.example.com]")
	bad := write("bad.yaml", "allow:\n  - https://x")
	rego := write("rego.yaml", "allow: []\nrego: |\n  package firebreak\n  allow := http.send({})\n")
	for name, c := range map[string]struct {
		flags    networkFlags
		policies []string
		docs     []string
		flag     string // of the error
		says     string
	}{
		"nothing":           {},
		"hosts":             {flags: networkFlags{allow: []string{"a.example.com", "*.cdn.example.com:8443"}}},
		"names":             {flags: networkFlags{policies: []string{"pypi", "build"}}, policies: []string{"pypi", "build"}},
		"a file":            {flags: networkFlags{policies: []string{build, "npm"}}, policies: []string{"build-file", "npm"}, docs: []string{"build-file", "common"}},
		"a built-in's name": {flags: networkFlags{policies: []string{preset}}, policies: []string{"file-pypi"}, docs: []string{"file-pypi"}},
		"twice":             {flags: networkFlags{policies: []string{build, build}}, policies: []string{"build-file", "build-file"}, docs: []string{"build-file", "common"}},
		"one name for two":  {flags: networkFlags{policies: []string{build, other}}, flag: "--policy", says: "both called common"},
		"no host":           {flags: networkFlags{allow: []string{"a.example.com", "a b"}}, flag: "--allow", says: "a b"},
		"no file":           {flags: networkFlags{policies: []string{filepath.Join(dir, "none.yaml")}}, flag: "--policy", says: "no such file"},
		"a bad rule":        {flags: networkFlags{policies: []string{bad}}, flag: "--policy", says: "bad.yaml:2"},
		"bad Rego":          {flags: networkFlags{policies: []string{rego}}, flag: "--policy", says: "rego.yaml:4"},
	} {
		n, err := c.flags.network()
		var e *sandbox.Error
		switch {
		case c.flag != "":
			if !errors.As(err, &e) || e.Op != c.flag || e.Kind != sandbox.KindInvalid || !strings.Contains(e.Error(), c.says) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case len(c.flags.allow)+len(c.flags.policies) == 0:
			if n != nil {
				t.Errorf("%s: %+v", name, n)
			}
		default:
			docs := slices.Sorted(maps.Keys(n.Documents))
			if !slices.Equal(n.Policies, c.policies) || !slices.Equal(docs, c.docs) || !slices.Equal(n.Allow, c.flags.allow) {
				t.Errorf("%s: %q, %q, %q", name, n.Policies, docs, n.Allow)
			}
			for d := range n.Documents {
				if !policy.ValidName(d) {
					t.Errorf("%s: %q is no name", name, d)
				}
			}
		}
	}
}

// TestPolicyName: whether something is a file does not depend on what lies in the
// current directory.
func TestPolicyName(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("pypi", []byte("mode: observe\nallow: []"), 0o600); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]bool{"pypi": true, "build": true, "./pypi": false, "build.yaml": false, "b.yml": false, "b.json": false, "dir/x": false, "-": false, "": false, "v1.2": true} {
		if policyName(s) != want {
			t.Errorf("%q is a name: %v", s, !want)
		}
	}
}

// TestTellDenied: bounded, one line each, and nothing a terminal obeys.
func TestTellDenied(t *testing.T) {
	var out, errs bytes.Buffer
	a := &App{Out: &out, Err: &errs}
	a.tellDenied([]*v1.EgressFlow{
		{Host: "ok.example.com", Port: 443, Decision: "allow", Count: 1},
		{Host: "api.example.com", Port: 8443, Decision: "deny", Reason: "no_rule", Hint: "to permit it: --allow api.example.com:8443", Count: 3},
		{Host: "only.example.com", Decision: "deny", Kind: "dns", Reason: "no_rule", Hint: "to permit it: --allow only.example.com:PORT", Count: 1},
		{Host: "\x1b[2Jevil\n" + strings.Repeat("x", 5000), Decision: "deny", Reason: "no_rule\r", Hint: strings.Repeat("y", 5000), Count: 1},
	}, 0)
	lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
	if len(lines) != 3 || lines[0] != "firebreak: denied: api.example.com:8443: no_rule; to permit it: --allow api.example.com:8443" ||
		lines[1] != "firebreak: denied: only.example.com: no_rule; to permit it: --allow only.example.com" || len(lines[2]) > 800 || strings.ContainsAny(lines[2], "\x1b\r") {
		t.Errorf("%q", lines)
	}
	errs.Reset()
	var many []*v1.EgressFlow
	for i := range 60 {
		many = append(many, &v1.EgressFlow{Host: fmt.Sprintf("h%d.example.com", i), Port: 443, Decision: "deny", Count: 1})
	}
	a.tellDenied(many, 5)
	if n := strings.Count(errs.String(), "\n"); n != maxDenied+1 || !strings.Contains(errs.String(), "more than that") {
		t.Errorf("%d lines: %s", n, errs.String())
	}
	errs.Reset()
	a.tellDenied([]*v1.EgressFlow{{Host: "a", Decision: "allow"}}, 9)
	if errs.Len() != 0 || out.Len() != 0 {
		t.Errorf("%q, %q", errs.String(), out.String())
	}
}

// TestPolicyShow: built-in ones need no server.
func TestPolicyShow(t *testing.T) {
	var out, errs bytes.Buffer
	app := &App{In: strings.NewReader(""), Out: &out, Err: &errs, Lookup: func(string) (string, bool) { return "", false }}
	want, err := policy.PresetText("pypi")
	if code := app.Execute(context.Background(), []string{"policy", "show", "pypi"}); code != 0 || err != nil || out.String() != string(want) || errs.Len() != 0 {
		t.Errorf("exit code %d, stderr %q", code, errs.String())
	}
}

package cli

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"1": 1, "1024": 1024, "64M": 64 << 20, "64MiB": 64 << 20, "64mb": 64 << 20, "64 MiB": 64 << 20, "0.5G": 512 << 20,
		"1.5k": 1536, "2t": 2 << 40, "100b": 100, " 1GiB ": 1 << 30, ".5k": 512,
	} {
		if got, err := sandbox.ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "lots", "-1M", "+1M", "1e9", "0x10", "inf", "NaN", "0", "0M", "0.1b", "M", "1.2.3M", "9999999T", "1 2M", "1M M", "١M"} {
		if got, err := sandbox.ParseSize(in); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("ParseSize(%q) = %d, %v; want invalid", in, got, err)
		}
	}
}

func TestParseProgram(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		dash int
		code string
		has  bool
		want program
	}{
		{"file", []string{"a.py"}, -1, "", false, program{form: formFile, file: "a.py", args: []string{}}},
		{"file and arguments", []string{"a.py", "-x", "--json", "--", "y"}, -1, "", false, program{form: formFile, file: "a.py", args: []string{"-x", "--json", "--", "y"}}},
		{"standard input", []string{"-", "x"}, -1, "", false, program{form: formStdin, args: []string{"x"}}},
		{"code", []string{"x", "y"}, -1, "print(1)", true, program{form: formCode, code: "print(1)", args: []string{"x", "y"}}},
		{"no code is code", nil, -1, "", true, program{form: formCode}},
		{"command", []string{"ls", "-l"}, 0, "", false, program{form: formCommand, args: []string{"ls", "-l"}}},
		{"a command called -", []string{"-"}, 0, "", false, program{form: formCommand, args: []string{"-"}}},
	} {
		got, err := parseProgram(c.args, c.dash, c.code, c.has)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	for name, args := range map[string]struct {
		args []string
		dash int
	}{"nothing": {nil, -1}, "nothing after the dashes": {nil, 0}} {
		if _, err := parseProgram(args.args, args.dash, "", false); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v; want invalid", name, err)
		}
	}
}

func TestDetectLanguage(t *testing.T) {
	for _, c := range []struct{ name, src, want string }{
		{"a.py", "", "python"}, {"A.PY", "", "python"}, {"a.js", "", "node"}, {"a.mjs", "", "node"}, {"a.cjs", "", "node"}, {"a.sh", "", "shell"},
		{"a", "#!/usr/bin/python3\n", "python"}, {"a", "#!/usr/bin/env python3.11", "python"}, {"a", "#!/usr/bin/env -S node --no-warnings\n", "node"},
		{"a", "#!/usr/bin/env A=b bash\n", "shell"}, {"a", "#! /bin/sh -e\n", "shell"}, {"a", "#!/usr/bin/perl\n", ""}, {"a", "#!\n", ""},
		{"a", "#!/usr/bin/env", ""}, {"a", "print(1)", ""}, {"a.py", "#!/bin/sh", "python"}, {"a.txt", "", ""}, {"", "#!/bin/dash\n", "shell"},
	} {
		if got := detectLanguage(c.name, []byte(c.src)); got != c.want {
			t.Errorf("detectLanguage(%q, %q) = %q; want %q", c.name, c.src, got, c.want)
		}
	}
}

func TestParseTransfers(t *testing.T) {
	for in, want := range map[string]transfer{
		"a.csv": {"a.csv", "a.csv"}, "dir/a.csv": {"dir/a.csv", "a.csv"}, "a:b": {"a", "b"}, "a:b/": {"a", "b/a"}, "/x/y/": {"/x/y/", "y"},
		"a:/tmp/b": {"a", "/tmp/b"}, "c:d:e": {"c:d", "e"}, "a:": {"a", "a"}, "a:/tmp/": {"a", "/tmp/a"},
	} {
		if got, err := parseInput(in); err != nil || got != want {
			t.Errorf("parseInput(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, want := range map[string]transfer{
		"a.png": {"a.png", "a.png"}, "/tmp/out/a.png": {"/tmp/out/a.png", "a.png"}, "a:b": {"a", "b"}, "x/a:b/": {"x/a", "b/a"}, "out/": {"out", "out"},
		".": {".", "."}, "..": {"..", "."}, ".:all": {".", "all"}, "/:r": {"/", "r"},
	} {
		if got, err := parseArtifact(in); err != nil || got != want {
			t.Errorf("parseArtifact(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":x"} {
		if _, err := parseInput(in); err == nil {
			t.Errorf("parseInput(%q) succeeded", in)
		}
		if _, err := parseArtifact(in); err == nil {
			t.Errorf("parseArtifact(%q) succeeded", in)
		}
	}
}

func TestArtifactDestination(t *testing.T) {
	as := artifacts{{"out", "out"}, {"out/special", "elsewhere"}, {"/tmp/x", "x"}, {"a.txt", "b.txt"}}
	for path, want := range map[string][2]string{
		"a.txt": {"b.txt", ""}, "/home/user/a.txt": {"b.txt", ""}, "out/d/e": {"out", "d/e"}, "out/special/f": {"elsewhere", "f"},
		"/tmp/x": {"x", ""}, "/tmp/x/y": {"x", "y"}, "/home/user/out/z": {"out", "z"},
	} {
		dst, rest, ok := as.destination(path)
		if !ok || dst != want[0] || rest != want[1] {
			t.Errorf("destination(%q) = %q, %q, %t; want %q", path, dst, rest, ok, want)
		}
	}
	for _, path := range []string{"other", "outside", "/etc/passwd", "../a.txt", "/tmp/xy"} {
		if dst, _, ok := as.destination(path); ok {
			t.Errorf("destination(%q) = %q; want none", path, dst)
		}
	}
	home := artifacts{{".", "."}}
	if _, _, ok := home.destination("../../etc/passwd"); ok {
		t.Error("a path above the home belongs to no artifact")
	}
}

func TestParseEnv(t *testing.T) {
	lookup := func(k string) (string, bool) { return "from here", k == "HERE" }
	got, err := parseEnv([]string{"A=1", "B=x=y", "C=", "HERE"}, lookup)
	want := map[string]string{"A": "1", "B": "x=y", "C": "", "HERE": "from here"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"MISSING", "=x", "1A=x", "A-B=x", "Ä=x", ""} {
		if _, err := parseEnv([]string{bad}, lookup); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%q: %v; want invalid", bad, err)
		}
	}
}

func TestParseRemote(t *testing.T) {
	for in, want := range map[string]remotePath{
		"sbabc:x": {"sbabc", "x"}, "web.1:/tmp": {"web.1", "/tmp"}, "sbabc:": {"sbabc", ""}, "file": {"", "file"}, "./a:b": {"", "./a:b"},
		"/a:b": {"", "/a:b"}, "-": {"", "-"}, ":x": {"", ":x"}, "sb:a:b": {"sb", "a:b"}, "dir/x:y": {"", "dir/x:y"},
	} {
		if got := parseRemote(in); got != want {
			t.Errorf("parseRemote(%q) = %+v; want %+v", in, got, want)
		}
	}
}

func TestVisible(t *testing.T) {
	if got := visible("a\x1b[31mb\rc\x9bd\te\x7f"); strings.ContainsAny(got, "\x1b\r\x7f") || strings.ContainsRune(got, 0x9b) || !strings.Contains(got, "\t") {
		t.Errorf("%q", got)
	}
}

func TestExitCodeAndLine(t *testing.T) {
	for _, c := range []struct {
		reason, detail string
		own, code      int
		line           string
	}{
		{"done", "", 3, 3, ""},
		{"timeout", "limit 2s", 124, 124, "killed: timeout (limit 2s)"},
		{"timeout", "limit 2s", 0, 124, "killed: timeout (limit 2s)"},
		{"memory", "limit 64 MiB", 137, 137, "killed: memory (limit 64 MiB)"},
		{"disk", "limit 32 MiB", 1, 1, "limit reached: disk (limit 32 MiB)"},
		{"operator", "", 0, 137, "killed: operator"},
		{"crashed", "sentry died", 0, 125, "the sandbox crashed (sentry died)"},
		{"lost", "", 0, 125, "the sandbox was lost"},
	} {
		code := exitCode(c.reason, c.own)
		if line := endLine(c.reason, c.detail, code); code != c.code || line != c.line {
			t.Errorf("%s/%d: %d %q; want %d %q", c.reason, c.own, code, line, c.code, c.line)
		}
	}
}

func TestErrorsAreTyped(t *testing.T) {
	var se *sandbox.Error
	if _, err := sandbox.ParseSize("lots"); !errors.As(err, &se) || se.Hint == "" {
		t.Errorf("%v has no hint", err)
	}
}

package cli

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// FuzzArguments: no argument panics; what is accepted is what was written.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"64M", "0.5GiB", "1e9", "9223372036854775807b", ".", "a=b", "=", "A", "src:dst/", ":", "./a:b", "sbaaaaaaaaaaaaaaaaaa:/x", "C:\\x", "../..", "\x00:y", "#!/usr/bin/env -S python3 -u", "-", "--"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		typed := func(err error) {
			if err != nil && sandbox.KindOf(err) != sandbox.KindInvalid {
				t.Fatalf("%q: %v", s, err)
			}
		}
		n, err := sandbox.ParseSize(s)
		typed(err)
		if err == nil && (n < 1 || n == math.MaxInt64) {
			t.Fatalf("%q is %d bytes", s, n)
		}
		env, err := parseEnv([]string{s}, func(string) (string, bool) { return "here", true })
		typed(err)
		for k := range env {
			if !validName(k) || strings.ContainsAny(k, "=\x00") {
				t.Fatalf("variable %q", k)
			}
		}
		m, err := parseMetadata([]string{s})
		typed(err)
		for k, v := range m {
			if k+"="+v != s {
				t.Fatalf("%q became %q=%q", s, k, v)
			}
		}
		in, err := parseInput(s)
		typed(err)
		if err == nil && (in.src == "" || strings.ContainsRune(in.dst, 0)) {
			t.Fatalf("%q became %+v", s, in)
		}
		_, err = parseArtifact(s)
		typed(err)
		if r := parseRemote(s); r.id == "" && r.path != s || r.id != "" && r.id+":"+r.path != s {
			t.Fatalf("%q became %+v", s, r)
		}
		_, err = parseLanguage(s)
		typed(err)
		_, err = parseProgram(strings.Fields(s), len(s)%3-1, s, len(s)%2 == 0)
		typed(err)
		if l := detectLanguage(s, []byte(s)); l != "" && l != "python" && l != "node" && l != "shell" {
			t.Fatalf("language %q", l)
		}
	})
}

// FuzzDownload writes a file under names that a sandbox made up: it is made
// where it belongs or nowhere, and nothing outside changes.
func FuzzDownload(f *testing.F) {
	for _, s := range []string{"a", "a/b/c", "../out/file", "/etc/passwd", "a/../../out/x", "up/x", "a\x00b", ".", "a/", strings.Repeat("d/", 200) + "x"} {
		f.Add("plots", s)
	}
	f.Add(".", "home/user/x")
	f.Fuzz(func(t *testing.T, dir, rel string) {
		if rest, ok := inside(dir, rel); ok && rest != "" && !strings.HasSuffix(filepath.Clean(rel), rest) && !strings.HasSuffix(rel, rest) {
			t.Fatalf("%q in %q is %q", rel, dir, rest)
		}
		top := t.TempDir()
		in, out := filepath.Join(top, "in"), filepath.Join(top, "out")
		for _, d := range []string{in, out} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("../out", filepath.Join(in, "up")); err != nil {
			t.Fatal(err)
		}
		if rel != "" {
			to, err := create(in, rel)
			if err == nil {
				_, err = to.WriteString("content")
				err = to.commit(err)
			}
			if err == nil {
				if b, err := os.ReadFile(filepath.Join(in, filepath.Clean(rel))); err != nil || string(b) != "content" {
					t.Fatalf("%q: %q, %v", rel, b, err)
				}
			}
		}
		if l, err := os.ReadDir(out); err != nil || len(l) != 0 {
			t.Fatalf("%q reached %v, %v", rel, l, err)
		}
		if l, err := os.ReadDir(top); err != nil || len(l) != 2 {
			t.Fatalf("%q reached %v, %v", rel, l, err)
		}
		_ = filepath.WalkDir(in, func(p string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(p, ".part") && strings.HasPrefix(d.Name(), ".") && !strings.HasSuffix(rel, ".part") {
				t.Errorf("left behind: %s", p)
			}
			return nil
		})
	})
}

package residue

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMentionsPath(t *testing.T) {
	for _, c := range []struct {
		s, dir string
		want   bool
	}{
		{"--root /data/x --id 1", "/data/x", true},
		{"/data/x/y", "/data/x", true},
		{"/data/xy /data/x", "/data/x", true},
		{"lowerdir=/data/x:/b", "/data/x", true},
		{"/data/xy", "/data/x", false},
		{"/data/x-2 /data/x.old", "/data/x", false},
		{"anything", "", false},
	} {
		if got := mentionsPath(c.s, c.dir); got != c.want {
			t.Errorf("mentionsPath(%q, %q) = %v, want %v", c.s, c.dir, got, c.want)
		}
	}
}

func TestTreeAndKeep(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "before"))
	base := take(t, Scope{Dirs: []string{dir}, Keep: []string{"cache", "lock"}})
	clean(t, base)

	write(t, filepath.Join(dir, "lock"))
	write(t, filepath.Join(dir, "cache", "v1", "runsc"))
	clean(t, base)

	write(t, filepath.Join(dir, "instances", "a"))
	found(t, base, "file", filepath.Join(dir, "instances", "a"))
	write(t, filepath.Join(dir, "lockbox"))
	found(t, base, "file", filepath.Join(dir, "lockbox"))
}

func TestRelativeScopeIsRefused(t *testing.T) {
	if _, err := Take(Scope{Dirs: []string{"data"}}); err == nil && os.PathSeparator == '/' {
		t.Fatal("a relative directory was accepted: nothing would ever match it")
	}
}

func TestUnreadableScopeIsAFinding(t *testing.T) {
	base := take(t, Scope{Dirs: []string{t.TempDir()}})
	base.scope.Dirs = []string{string([]byte{'/', 0})} // no such path can be read
	if f := findings(base.scope, matcher{}, func(object) bool { return false }); len(f) != 1 || f[0].Kind != "oracle" {
		t.Fatalf("blind oracle reported %v, want a finding about itself", f)
	}
}

func take(t *testing.T, s Scope) *Baseline {
	t.Helper()
	b, err := Take(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// now is Diff without its patience.
func now(b *Baseline) []Finding {
	return findings(b.scope, matcher{ids: b.ids, dirs: b.scope.Dirs}, func(o object) bool {
		return !b.seen[o.key] && (o.ours || b.scope.Exclusive && o.alien)
	})
}

func clean(t *testing.T, b *Baseline) {
	t.Helper()
	for _, f := range b.Diff() {
		t.Errorf("unexpected finding: %s", f)
	}
}

func found(t *testing.T, b *Baseline, kind, name string) {
	t.Helper()
	for _, f := range now(b) {
		if f.Kind == kind && strings.Contains(f.Name, name) {
			return
		}
	}
	t.Errorf("%s %s was not found; got %v", kind, name, now(b))
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
}

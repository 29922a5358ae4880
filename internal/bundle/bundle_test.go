//go:build linux

package bundle

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pack(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func testSet(t *testing.T) set {
	modules, err := tree(fstest.MapFS{
		"python/firebreak/__init__.py": {Data: []byte("x = 1\n")},
		"node/firebreak.js":            {Data: []byte("'use strict'\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(set{{name: "agent", perm: 0o755, source: pack(t, strings.Repeat("agent", 1<<16)), packing: ".gz"}}, modules...)
}

func TestInstallOnceForAll(t *testing.T) {
	s, dir := testSet(t), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ".unpack-crashed"), 0o700); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	dirs := make([]string, 8)
	for i := range dirs {
		wg.Go(func() {
			d, sums, err := s.install(dir)
			if err != nil || len(sums) != 3 {
				t.Errorf("install: %v, %d sums", err, len(sums))
			}
			dirs[i] = d
		})
	}
	wg.Wait()
	for _, d := range dirs {
		if d != dirs[0] {
			t.Errorf("two directories: %s and %s", d, dirs[0])
		}
	}
	fi, err := os.Stat(filepath.Join(dirs[0], "agent"))
	if err != nil || fi.Mode().Perm() != 0o755 || fi.Size() != 5<<16 {
		t.Errorf("agent: %v, %v", fi, err)
	}
	if b, err := os.ReadFile(filepath.Join(dirs[0], "python/firebreak/__init__.py")); err != nil || string(b) != "x = 1\n" {
		t.Errorf("module: %q, %v", b, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".unpack-") {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestVersionsLieSideBySide(t *testing.T) {
	dir := t.TempDir()
	one, _, err := set{{name: "p", perm: 0o755, source: pack(t, "one"), packing: ".gz"}}.install(dir)
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := set{{name: "p", perm: 0o755, source: pack(t, "two"), packing: ".gz"}}.install(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(filepath.Join(one, "p"))
	b, _ := os.ReadFile(filepath.Join(two, "p"))
	if string(a) != "one" || string(b) != "two" {
		t.Errorf("got %q and %q", a, b)
	}
}

func TestDamageIsRefused(t *testing.T) {
	for name, damage := range map[string]func(string) error{
		"changed":  func(p string) error { return os.WriteFile(p, []byte("evil"), 0o755) },
		"missing":  os.Remove,
		"writable": func(p string) error { return os.Chmod(p, 0o777) },
		"symlink": func(p string) error {
			if err := os.Rename(p, p+".real"); err != nil {
				return err
			}
			return os.Symlink(p+".real", p)
		},
		"unsummed": func(p string) error { return os.Remove(filepath.Join(filepath.Dir(p), sumsName)) },
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := testSet(t), t.TempDir()
			d, _, err := s.install(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(d, "agent")); err != nil {
				t.Fatal(err)
			}
			_, _, err = s.install(dir)
			var e *sandbox.Error
			if !errors.As(err, &e) || e.Kind != sandbox.KindInternal || e.Hint == "" {
				t.Errorf("got %v, want KindInternal with a hint", err)
			}
		})
	}
}

func TestCorruptAssetLeavesNothing(t *testing.T) {
	b := pack(t, strings.Repeat("agent", 1000))
	b[len(b)-5] ^= 1 // gzip's checksum
	dir := t.TempDir()
	d, _, err := set{{name: "agent", perm: 0o755, source: b, packing: ".gz"}}.install(dir)
	if err == nil {
		t.Fatalf("installed a corrupt program in %s", d)
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != ".lock" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir)
	if _, missing := assets.Open("assets/runsc.zst"); missing != nil {
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Kind != sandbox.KindUnavailable || !strings.Contains(e.Hint, "make") {
			t.Fatalf("without assets: %v, want KindUnavailable and how to get them", err)
		}
		t.Skip("not run: nothing is embedded, run `make`")
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir)
	if err != nil || again.Runsc != b.Runsc || again.Runtime != b.Runtime {
		t.Errorf("second Open: %+v, %v", again, err)
	}
	for _, p := range []string{b.Runsc, filepath.Join(b.Runtime, "firebreak-guest")} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", p, fi, err)
		}
		if b.Digests[filepath.Base(p)] == "" {
			t.Errorf("no digest for %s", p)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "libexec")); errors.Is(err, fs.ErrNotExist) {
		t.Error("nothing below libexec")
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	if _, err := Open(dir); err != nil {
		b.Skip("not run:", err)
	}
	for b.Loop() {
		if _, err := Open(dir); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPackings: each gives back what was packed, and nothing else for what was changed.
func TestPackings(t *testing.T) {
	content := strings.Repeat("program", 1<<15)
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for packing, source := range map[string][]byte{".gz": pack(t, content), ".zst": w.EncodeAll([]byte(content), nil)} {
		var got bytes.Buffer
		if err := (file{source: source, packing: packing}).write(&got); err != nil || got.String() != content {
			t.Errorf("%s: %d bytes, %v", packing, got.Len(), err)
		}
		source[len(source)-1] ^= 1
		got.Reset()
		if err := (file{source: source, packing: packing}).write(&got); err == nil {
			t.Errorf("%s: a damaged one was unpacked", packing)
		}
	}
}

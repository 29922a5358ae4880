package backendtest

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func testFiles(t *testing.T, s *suite) {
	s.par(t, "RoundTrip", s.testRoundTrip)
	s.par(t, "Tree", s.testTree)
	s.par(t, "Errors", s.testFileErrors)
	s.par(t, "WholeOrNotAtAll", s.testAtomicWrite)
	s.par(t, "StaysInside", s.testStaysInside)
}

// zeros is a reader of n zero bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (x *box) write(path, text string) {
	x.Helper()
	if _, err := x.WriteFile(deadline(x.T), path, strings.NewReader(text), guest.WriteOptions{}); err != nil {
		x.Fatalf("write %s: %v", path, err)
	}
}

func (x *box) read(path string) (string, error) {
	b, err := x.ReadAll(deadline(x.T), path, "", 64<<20)
	return string(b), err
}

func (s *suite) testRoundTrip(t *testing.T) {
	x := s.open(t)
	data := make([]byte, s.volume(16<<20)+17)
	rand.NewChaCha8([32]byte{2}).Read(data)
	info, err := x.WriteFile(deadline(t), "/home/user/data", bytes.NewReader(data), guest.WriteOptions{Mode: 0o640})
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != int64(len(data)) || info.Mode.Perm() != 0o640 || info.UID != guest.DefaultUID {
		t.Errorf("after writing: %+v", info)
	}
	if got, err := x.read("data"); err != nil || got != string(data) { // relative to the home
		t.Errorf("read back %d bytes, %v; want the %d written", len(got), err, len(data))
	}
	f, err := x.ReadFile(deadline(t), "data", guest.ReadOptions{Offset: 5, Length: 100})
	if err != nil {
		t.Fatal(err)
	}
	part, err := io.ReadAll(f)
	f.Close()
	if err != nil || !bytes.Equal(part, data[5:105]) {
		t.Errorf("a part: %d bytes, %v", len(part), err)
	}
	// A program sees the same file, and the API what a program wrote.
	if o := x.probe("read", "/home/user/data"); o.out != string(data) {
		t.Errorf("a program read %d bytes: %+v", len(o.out), o.Exit)
	}
	if o := x.probe("write", "made", "by a program"); o.Code != 0 {
		t.Errorf("write: %+v", o)
	}
	if got, err := x.read("made"); err != nil || got != "by a program" {
		t.Errorf("what a program wrote: %q, %v", got, err)
	}
	if _, err := x.WriteFile(deadline(t), "made", strings.NewReader(", twice"), guest.WriteOptions{Append: true}); err != nil {
		t.Errorf("append: %v", err)
	}
	if got, _ := x.read("made"); got != "by a program, twice" {
		t.Errorf("after appending: %q", got)
	}
	x.write("empty", "")
	if got, err := x.read("empty"); err != nil || got != "" {
		t.Errorf("an empty file: %q, %v", got, err)
	}
}

func (s *suite) testTree(t *testing.T) {
	x := s.open(t)
	ctx := deadline(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(x.Mkdir(ctx, "a", "", 0o755, false))
	check(x.Mkdir(ctx, "a/b/c", "", 0o755, true))
	check(x.Mkdir(ctx, "a/b/c", "", 0o755, true)) // fine with parents
	names := []string{"a/1", "a/b/2 with space", "a/b/ünï", "a/b/c/3"}
	for _, n := range names {
		x.write(n, n)
	}
	_, err := x.WriteFile(ctx, "new/dir/f", strings.NewReader("x"), guest.WriteOptions{Parents: true})
	check(err)

	paths := func(depth int) string {
		es, more, err := x.List(ctx, "a", guest.ListOptions{Depth: depth})
		check(err)
		if more {
			t.Error("List says it left something out")
		}
		var ps []string
		for _, e := range es {
			ps = append(ps, e.Path)
		}
		return strings.Join(ps, "|")
	}
	if got := paths(1); got != "1|b" {
		t.Errorf("List = %q", got)
	}
	if got := paths(3); got != "1|b|b/2 with space|b/c|b/c/3|b/ünï" {
		t.Errorf("List of three levels = %q", got)
	}
	if es, more, err := x.List(ctx, "a/b", guest.ListOptions{Max: 2}); err != nil || len(es) != 2 || !more {
		t.Errorf("List of at most 2 = %v, more=%v, %v", es, more, err)
	}
	check(x.Move(ctx, "a/b", "moved", ""))
	if got, err := x.read("moved/c/3"); err != nil || got != "a/b/c/3" {
		t.Errorf("after moving: %q, %v", got, err)
	}
	check(x.Move(ctx, "moved/c/3", "a/1", "")) // replaces
	if got, _ := x.read("a/1"); got != "a/b/c/3" {
		t.Errorf("after replacing: %q", got)
	}
	st, err := x.Stat(ctx, "moved", "")
	if err != nil || !st.IsDir() {
		t.Errorf("Stat of a directory: %+v, %v", st, err)
	}
	attributes := map[string]string{"kind": "report", "empty": ""}
	if st, err := x.WriteFile(ctx, "kept", strings.NewReader("x"), guest.WriteOptions{Attributes: attributes}); err != nil || !maps.Equal(st.Attributes, attributes) {
		t.Errorf("a file with attributes: %+v, %v", st, err)
	}
	check(x.Move(ctx, "kept", "kept too", ""))
	if st, err := x.Stat(ctx, "kept too", ""); err != nil || !maps.Equal(st.Attributes, attributes) {
		t.Errorf("after moving it: %+v, %v", st, err)
	}
	x.write("kept too", "y")
	if st, err := x.Stat(ctx, "kept too", ""); err != nil || len(st.Attributes) != 0 {
		t.Errorf("after replacing it: %+v, %v", st, err)
	}
	_, err = x.WriteFile(ctx, "none", strings.NewReader("x"), guest.WriteOptions{Attributes: map[string]string{"a": "\n"}})
	wantKind(t, "an attribute that is none", err, sandbox.KindInvalid)
	check(x.Symlink(ctx, "../a/1", "links/deep/to", "")) // makes what is missing above it
	check(x.Symlink(ctx, "nowhere", "links/to", ""))
	check(x.Symlink(ctx, "../a/1", "links/to", "")) // replaces
	if st, err := x.Stat(ctx, "links/to", ""); err != nil || st.Target != "../a/1" {
		t.Errorf("a link: %+v, %v", st, err)
	}
	if got, err := x.read("links/to"); err != nil || got != "a/b/c/3" {
		t.Errorf("through the link: %q, %v", got, err)
	}
	check(x.Remove(ctx, "moved", guest.RemoveOptions{Recursive: true}))
	check(x.Remove(ctx, "moved", guest.RemoveOptions{Force: true}))
	if _, err := x.Stat(ctx, "moved", ""); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("after removing: %v", err)
	}
}

func (s *suite) testFileErrors(t *testing.T) {
	x := s.open(t)
	ctx := deadline(t)
	x.write("f", "x")
	if err := x.Mkdir(ctx, "d", "", 0o755, false); err != nil {
		t.Fatal(err)
	}
	x.write("d/f", "x")
	write := func(path string) error {
		_, err := x.WriteFile(ctx, path, strings.NewReader("x"), guest.WriteOptions{})
		return err
	}
	read := func(path string) error { _, err := x.read(path); return err }
	for _, c := range []struct {
		what string
		err  error
		kind []sandbox.Kind
	}{
		{"read of nothing", read("none"), kinds(sandbox.KindNotFound)},
		{"read of a directory", read("d"), kinds(sandbox.KindIsDirectory)},
		{"read through a file", read("f/x"), kinds(sandbox.KindNotDirectory)},
		{"read of the empty path", read(""), kinds(sandbox.KindInvalid)},
		{"read of a NUL", read("a\x00b"), kinds(sandbox.KindInvalid)},
		{"write to a directory", write("d"), kinds(sandbox.KindIsDirectory)},
		{"write below nothing", write("none/f"), kinds(sandbox.KindNotFound)},
		{"write below a file", write("f/g"), kinds(sandbox.KindNotDirectory)},
		{"write to /etc", write("/etc/planted"), kinds(sandbox.KindDenied)},
		{"write of the agent's program", write(guest.AgentPath), kinds(sandbox.KindDenied, sandbox.KindNotFound)},
		{"mkdir of what exists", x.Mkdir(ctx, "d", "", 0o755, false), kinds(sandbox.KindExists)},
		{"mkdir of a file", x.Mkdir(ctx, "f", "", 0o755, true), kinds(sandbox.KindExists, sandbox.KindNotDirectory)},
		{"move of nothing", x.Move(ctx, "none", "f2", ""), kinds(sandbox.KindNotFound)},
		{"move into itself", x.Move(ctx, "d", "d/e", ""), kinds(sandbox.KindInvalid)},
		{"move of a file over a directory", x.Move(ctx, "f", "d", ""), kinds(sandbox.KindIsDirectory, sandbox.KindExists)},
		{"link over a directory", x.Symlink(ctx, "f", "d", ""), kinds(sandbox.KindIsDirectory, sandbox.KindExists)},
		{"link in /etc", x.Symlink(ctx, "f", "/etc/planted", ""), kinds(sandbox.KindDenied)},
		{"link to the empty path", x.Symlink(ctx, "", "l", ""), kinds(sandbox.KindInvalid)},
		{"remove of nothing", x.Remove(ctx, "none", guest.RemoveOptions{}), kinds(sandbox.KindNotFound)},
		{"remove of a full directory", x.Remove(ctx, "d", guest.RemoveOptions{}), kinds(sandbox.KindConflict, sandbox.KindExists, sandbox.KindInvalid)},
		{"list of a file", listErr(x, "f"), kinds(sandbox.KindNotDirectory)},
		{"list of nothing", listErr(x, "none"), kinds(sandbox.KindNotFound)},
	} {
		wantKind(t, c.what, c.err, c.kind...)
	}
	_, err := x.WriteFile(ctx, "capped", zeros(2<<20), guest.WriteOptions{MaxSize: 1 << 20})
	wantKind(t, "a write over its cap", err, sandbox.KindTooLarge)
	_, err = x.ReadAll(ctx, "/dev/zero", "", 1<<20)
	wantKind(t, "read of a device", err, sandbox.KindInvalid, sandbox.KindDenied)
}

func kinds(k ...sandbox.Kind) []sandbox.Kind { return k }

func listErr(x *box, path string) error {
	_, _, err := x.List(deadline(x.T), path, guest.ListOptions{})
	return err
}

// testAtomicWrite: a write that fails leaves what was there.
func (s *suite) testAtomicWrite(t *testing.T) {
	x := s.open(t)
	x.write("f", "old")
	broken := errors.New("the sender's disk broke")
	r := io.MultiReader(zeros(3<<20), &failing{broken})
	if _, err := x.WriteFile(deadline(t), "f", r, guest.WriteOptions{}); !errors.Is(err, broken) {
		t.Errorf("write from a broken reader: %v", err)
	}
	if got, err := x.read("f"); err != nil || got != "old" {
		t.Errorf("after a failed write: %d bytes, %v; want the old content", len(got), err)
	}
	// The remains of the attempt go away; the cancellation travels, so wait.
	if !eventually(t, func() bool {
		es, _, err := x.List(deadline(t), ".", guest.ListOptions{})
		n := 0
		for _, e := range es {
			if strings.HasPrefix(e.Name(), ".sim-") || strings.Contains(e.Name(), "firebreak") || e.Size >= 256<<10 {
				n++
			}
		}
		return err == nil && n == 0
	}) {
		t.Error("a failed write left a file behind")
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// testStaysInside: no path leads to the host.
func (s *suite) testStaysInside(t *testing.T) {
	x := s.open(t)
	ctx := deadline(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	for _, path := range []string{secret, up + secret, "/proc/self/root" + secret, "/proc/1/root" + secret,
		"/tmp/" + up + secret, "/proc/1/cwd/" + up + secret} {
		if got, err := x.read(path); err == nil {
			t.Errorf("%s reads as %q", path, got)
		}
		if o := x.probe("read", path); o.Code == 0 {
			t.Errorf("a program reads %s as %q", path, o.out)
		}
	}
	// Written by as many ways up as there are, it stays inside.
	if _, err := x.WriteFile(ctx, up+"tmp/planted", strings.NewReader("x"), guest.WriteOptions{}); err != nil {
		t.Errorf("write through dots: %v", err)
	}
	if got, err := x.read("/tmp/planted"); err != nil || got != "x" {
		t.Errorf("dots lead elsewhere than to the sandbox's own root: %q, %v", got, err)
	}
	if _, err := os.Lstat("/tmp/planted"); err == nil {
		t.Error("the host's /tmp/planted exists")
	}
	if _, err := x.WriteFile(ctx, secret, strings.NewReader("x"), guest.WriteOptions{Parents: true}); err == nil {
		// Its own /tmp has the same name; the host's must be untouched.
		t.Logf("%s was made inside", secret)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "host" {
		t.Errorf("the host's file now reads %q, %v", b, err)
	}
}

package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	verbs "github.com/firebreak-dev/firebreak/internal/guest/probe"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// pattern is a reader of n bytes of the probe's pattern.
func pattern(t testing.TB, n int64) io.Reader {
	r, w := io.Pipe()
	go func() { w.CloseWithError(verbs.WritePattern(w, n, true)) }()
	t.Cleanup(func() { r.Close() }) // not everybody reads to the end
	return r
}

func want(t *testing.T, what string, err error, k sandbox.Kind) {
	t.Helper()
	if sandbox.KindOf(err) != k {
		t.Errorf("%s: %v (%s), want %s", what, err, sandbox.KindOf(err), k)
	}
}

func TestFiles(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	const size = 3<<20 + 5
	info, err := s.WriteFile(c, "a/b/c.bin", pattern(t, size), guest.WriteOptions{Parents: true})
	must(t, err)
	if info.Path != "/home/user/a/b/c.bin" || info.Size != size || info.UID != 1000 || info.Mode != 0o644 {
		t.Errorf("%+v", info)
	}
	f, err := s.ReadFile(c, "a/b/c.bin", guest.ReadOptions{})
	must(t, err)
	h := sha256.New()
	n, err := io.Copy(h, f)
	must(t, err)
	must(t, f.Close())
	if n != size || hex.EncodeToString(h.Sum(nil)) != verbs.PatternHash(size, true) {
		t.Errorf("read back %d bytes", n)
	}
	f, err = s.ReadFile(c, "/home/user/a/b/c.bin", guest.ReadOptions{Offset: 100, Length: 50})
	must(t, err)
	part, err := io.ReadAll(f)
	must(t, err)
	wantPart := make([]byte, 50)
	verbs.Pattern(100, wantPart, true)
	if !bytes.Equal(part, wantPart) {
		t.Errorf("range: %q", part)
	}
	all, err := s.ReadAll(c, "a/b/c.bin", "", size)
	if err != nil || len(all) != size {
		t.Errorf("%d %v", len(all), err)
	}
	_, err = s.ReadAll(c, "a/b/c.bin", "", size-1)
	want(t, "limit", err, sandbox.KindTooLarge)

	_, err = s.WriteFile(c, "a/x", strings.NewReader("one"), guest.WriteOptions{Mode: 0o600})
	must(t, err)
	_, err = s.WriteFile(c, "a/x", strings.NewReader("two"), guest.WriteOptions{})
	must(t, err)
	info, err = s.WriteFile(c, "a/x", strings.NewReader("three"), guest.WriteOptions{Append: true})
	must(t, err)
	if info.Mode != 0o600 || info.Size != 8 {
		t.Errorf("append: %+v", info)
	}
	if got, _ := s.ReadAll(c, "a/x", "", 100); string(got) != "twothree" {
		t.Errorf("%q", got)
	}

	must(t, s.Mkdir(c, "d/e", "", 0, true))
	must(t, s.Move(c, "a/x", "d/e/y", ""))
	entries, more, err := s.List(c, ".", guest.ListOptions{Depth: 3})
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Path)
	}
	if got := strings.Join(names, " "); got != "a a/b a/b/c.bin d d/e d/e/y" || more {
		t.Errorf("list: %s %v", got, more)
	}
	entries, more, err = s.List(c, "", guest.ListOptions{})
	want(t, "empty path", err, sandbox.KindInvalid)
	entries, more, err = s.List(c, ".", guest.ListOptions{Depth: 3, Max: 2})
	if err != nil || len(entries) != 2 || !more {
		t.Errorf("capped list: %d %v %v", len(entries), more, err)
	}
	must(t, s.Remove(c, "d", guest.RemoveOptions{Recursive: true}))
	_, err = s.Stat(c, "d", "")
	want(t, "removed", err, sandbox.KindNotFound)
	must(t, s.Remove(c, "d", guest.RemoveOptions{Force: true}))
}

func TestFileErrors(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	_, err := s.ReadFile(c, "missing", guest.ReadOptions{})
	want(t, "read missing", err, sandbox.KindNotFound)
	_, err = s.ReadFile(c, "/tmp", guest.ReadOptions{})
	want(t, "read directory", err, sandbox.KindIsDirectory)
	_, err = s.ReadFile(c, "/dev/null", guest.ReadOptions{})
	want(t, "read device", err, sandbox.KindInvalid)
	must(t, unix.Mkfifo(b.root+"/tmp/fifo", 0o666))
	_, err = s.ReadFile(c, "/tmp/fifo", guest.ReadOptions{})
	want(t, "read fifo", err, sandbox.KindInvalid)
	_, err = s.WriteFile(c, "/tmp/fifo", strings.NewReader("x"), guest.WriteOptions{Append: true})
	want(t, "write fifo", err, sandbox.KindInvalid)
	_, err = s.WriteFile(c, "/etc/passwd", strings.NewReader("x"), guest.WriteOptions{})
	want(t, "write to root's directory", err, sandbox.KindDenied)
	_, err = s.WriteFile(c, "/tmp", strings.NewReader("x"), guest.WriteOptions{})
	want(t, "write directory", err, sandbox.KindIsDirectory)
	_, err = s.WriteFile(c, "/etc/passwd/x", strings.NewReader("x"), guest.WriteOptions{})
	want(t, "below a file", err, sandbox.KindNotDirectory)
	_, err = s.WriteFile(c, "no/parents", strings.NewReader("x"), guest.WriteOptions{})
	want(t, "no parents", err, sandbox.KindNotFound)
	_, _, err = s.List(c, "/etc/passwd", guest.ListOptions{})
	want(t, "list file", err, sandbox.KindNotDirectory)
	want(t, "mkdir twice", s.Mkdir(c, "/tmp", "", 0, false), sandbox.KindExists)
	want(t, "remove missing", s.Remove(c, "missing", guest.RemoveOptions{}), sandbox.KindNotFound)
	want(t, "move missing", s.Move(c, "missing", "x", ""), sandbox.KindNotFound)
	_, err = s.Stat(c, "a\x00b", "")
	want(t, "NUL", err, sandbox.KindInvalid)
	_, err = s.Stat(c, "x", "nobody-here")
	want(t, "unknown user", err, sandbox.KindNotFound)

	// The kernel decides with the user's rights, not the agent's.
	must(t, os.WriteFile(b.root+"/root/secret", []byte("s"), 0o600))
	must(t, os.WriteFile(b.root+"/tmp/secret", []byte("s"), 0o600))
	for _, p := range []string{"/root/secret", "/tmp/secret"} {
		_, err = s.ReadFile(c, p, guest.ReadOptions{})
		want(t, p, err, sandbox.KindDenied)
		got, err := s.ReadAll(c, p, "root", 10)
		if err != nil || string(got) != "s" {
			t.Errorf("%s as root: %v", p, err)
		}
	}
	must(t, os.Symlink("/root/secret", b.root+"/home/user/link"))
	_, err = s.ReadFile(c, "link", guest.ReadOptions{})
	want(t, "through a link", err, sandbox.KindDenied)
	// Nor does a link lead into the agent.
	must(t, os.Symlink("/proc/self/environ", b.root+"/home/user/self"))
	_, err = s.ReadFile(c, "self", guest.ReadOptions{})
	want(t, "the agent's environment", err, sandbox.KindDenied)
	if got, err := s.ReadAll(c, "/proc/version", "", 4096); err != nil || len(got) == 0 {
		t.Errorf("an ordinary file of /proc: %v", err)
	}
}

// TestWriteIsAtomic: whatever goes wrong, the old content stays and nothing is
// left beside it.
func TestWriteIsAtomic(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	_, err := s.WriteFile(c, "f", strings.NewReader("old"), guest.WriteOptions{})
	must(t, err)
	_, err = s.WriteFile(c, "f", pattern(t, 3<<20), guest.WriteOptions{MaxSize: 1 << 20})
	want(t, "too large", err, sandbox.KindTooLarge)
	broken := errors.New("broken")
	_, err = s.WriteFile(c, "f", io.MultiReader(pattern(t, 1<<20), failing{broken}), guest.WriteOptions{})
	if !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	cancelled, cancel := context.WithCancel(c)
	_, err = s.WriteFile(cancelled, "f", io.MultiReader(pattern(t, 1<<20), canceller{cancel}, pattern(t, 8<<20)), guest.WriteOptions{})
	want(t, "cancelled", err, sandbox.KindCanceled)
	must(t, s.Ping(c))
	for range 100 {
		entries, _, err := s.List(c, ".", guest.ListOptions{})
		must(t, err)
		if len(entries) == 1 {
			break
		}
	}
	entries, _, err := s.List(c, ".", guest.ListOptions{})
	must(t, err)
	if got, _ := s.ReadAll(c, "f", "", 10); string(got) != "old" || len(entries) != 1 {
		t.Errorf("%q, %+v", got, entries)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type canceller struct{ cancel func() }

func (c canceller) Read([]byte) (int, error) { c.cancel(); return 0, io.EOF }

func TestDiskFull(t *testing.T) {
	b := newBox(t)
	home := b.root + "/home/user"
	b.stop()
	must(t, unix.Mount("tmpfs", home, "tmpfs", 0, "size=4m,uid=1000,gid=1000,mode=755"))
	t.Cleanup(func() { unix.Unmount(home, unix.MNT_DETACH) })
	b = &box{t: t, root: b.root, in: b.in, out: b.out}
	b.start()
	s := b.open(guest.Config{})
	_, errs, e := run(t, s, guest.Command{}, "fill", "big", strconv.Itoa(8<<20))
	if e.Reason != sandbox.ReasonDisk || e.Code != 1 {
		t.Errorf("%q %+v", errs, e)
	}
	_, err := s.WriteFile(ctx(t), "more", pattern(t, 1<<20), guest.WriteOptions{})
	want(t, "write", err, sandbox.KindNoSpace)
	if _, _, e := run(t, s, guest.Command{}, "exit", "0"); e.Reason != sandbox.ReasonDone {
		t.Errorf("success on a full disk: %+v", e)
	}
	must(t, s.Remove(ctx(t), "big", guest.RemoveOptions{}))
	if _, _, e := run(t, s, guest.Command{}, "exit", "1"); e.Reason != sandbox.ReasonDone {
		t.Errorf("failure with space: %+v", e)
	}
}

func TestListBig(t *testing.T) {
	b := newBox(t)
	dir := b.root + "/home/user/many"
	must(t, os.Mkdir(dir, 0o755))
	for i := range 3000 {
		must(t, os.WriteFile(dir+"/"+strconv.Itoa(i)+strings.Repeat("x", 100), nil, 0o644))
	}
	s := b.open(guest.Config{})
	entries, more, err := s.List(ctx(t), "many", guest.ListOptions{})
	if err != nil || more || len(entries) != 3000 {
		t.Fatalf("%d %v %v", len(entries), more, err)
	}
	if entries[0].Mode.Type() != fs.FileMode(0) || entries[0].UID != 0 {
		t.Errorf("%+v", entries[0])
	}
}

func TestResult(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{}, "result", `{"ok":1}`)
	finish(t, p)
	got, err := s.ReadAll(ctx(t), p.ResultPath(), "", guest.MaxResult)
	if err != nil || string(got) != `{"ok":1}` {
		t.Errorf("%q %v", got, err)
	}
}

// What an earlier program put where this one's result goes neither passes for
// it nor keeps it from reporting one.
func TestResultIsSquatted(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{}, "exit", "0")
	finish(t, p)
	// Ids count every call: this directory and its file are two, then comes the program.
	next := p.ID() + 3
	if err := s.Mkdir(ctx(t), guest.ResultPath(next), "", 0o755, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteFile(ctx(t), guest.ResultPath(next)+"/x", strings.NewReader(`"forged"`), guest.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	p = probe(t, s, guest.Command{}, "result", `{"ok":1}`)
	finish(t, p)
	if p.ID() != next {
		t.Fatalf("its id is %d, not %d: nothing was put in its way", p.ID(), next)
	}
	got, err := s.ReadAll(ctx(t), p.ResultPath(), "", guest.MaxResult)
	if err != nil || string(got) != `{"ok":1}` {
		t.Errorf("%q %v", got, err)
	}
}

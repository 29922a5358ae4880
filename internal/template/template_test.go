package template

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// helperEnv turns the test binary into a helper process; see TestMain.
const helperEnv = "FIREBREAK_TEMPLATE_TEST_HELPER"

var helpers = map[string]func(dir string) error{}

func TestMain(m *testing.M) {
	if h := helpers[os.Getenv(helperEnv)]; h != nil {
		if err := h(os.Args[len(os.Args)-1]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func newStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fakeRoot makes a machine's root directory out of files (path to content),
// "-> target" being a link and a trailing slash a directory.
func fakeRoot(t *testing.T, files map[string]string) hostView {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		target, link := strings.CutPrefix(content, "-> ")
		switch {
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(p, 0o755))
		case link:
			must(t, os.Symlink(target, p))
		default:
			must(t, os.WriteFile(p, []byte(content), 0o755))
		}
	}
	return hostView{dir}
}

// fakePack publishes a pack made without a mirror.
func fakePack(t *testing.T, s *Store, name, content string) Template {
	t.Helper()
	tmp, err := s.newTemporary()
	must(t, err)
	root := filepath.Join(tmp.dir, "rootfs")
	must(t, os.Mkdir(root, 0o755))
	must(t, os.Chmod(root, 0o755))
	must(t, skeleton(root))
	must(t, os.WriteFile(filepath.Join(root, "usr/content"), []byte(content), 0o644))
	must(t, settle(root, true))
	listing, size, err := list(t.Context(), root)
	must(t, err)
	digest := "sha256:" + hexSum(listing)
	unlock, err := s.lock()
	must(t, err)
	defer unlock()
	must(t, s.publish(tmp, manifest{Version: manifestVersion, Name: name, Digest: digest, Listing: digest,
		Created: time.Now(), Size: size, Languages: []string{Python, Shell}, Env: map[string]string{"A": "b"}}, listing))
	must(t, s.point(name, digest, ""))
	tm, err := s.Resolve(t.Context(), name)
	must(t, err)
	return tm
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks the kind of err and that its hint contains hint.
func want(t *testing.T, err error, kind sandbox.Kind, hint string) {
	t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Kind != kind || !strings.Contains(e.Hint, hint) {
		t.Errorf("got %v (kind %s), want kind %s and a hint with %q", err, sandbox.KindOf(err), kind, hint)
	}
}

// noTemporaries fails when dir holds something unfinished.
func noTemporaries(t *testing.T, dir string) {
	t.Helper()
	names, err := readDirNames(dir)
	must(t, err)
	for _, n := range names {
		if strings.HasPrefix(n, tmpPrefix) {
			t.Errorf("%s was left behind", n)
		}
	}
}

func TestUnknownNames(t *testing.T) {
	s := newStore(t, t.TempDir())
	for _, c := range []struct {
		name string
		kind sandbox.Kind
		hint string
	}{
		{"python", sandbox.KindNotFound, "`firebreak template build python`"},
		{"node", sandbox.KindNotFound, "`firebreak template build node`"},
		{"mine", sandbox.KindNotFound, "firebreak template build"},
		{"sha256:" + strings.Repeat("0", 64), sandbox.KindNotFound, "firebreak template ls"},
		{"../names/x", sandbox.KindInvalid, "lower-case"},
		{"", sandbox.KindInvalid, "lower-case"},
		{"sha256:123", sandbox.KindInvalid, "64 hex"},
		{strings.Repeat("a", 1<<20), sandbox.KindInvalid, "lower-case"},
	} {
		_, err := s.Resolve(t.Context(), c.name)
		want(t, err, c.kind, c.hint)
		if len(err.Error()) > 500 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
	want(t, s.Remove(t.Context(), "python"), sandbox.KindNotFound, "build python")
	_, err := s.Acquire("sha256:" + strings.Repeat("0", 64))
	want(t, err, sandbox.KindNotFound, "")
	for _, name := range []string{Host, "Python", "a b"} {
		_, err := s.Build(t.Context(), name, BuildOptions{})
		want(t, err, sandbox.KindInvalid, "")
	}
	_, err = s.Build(t.Context(), "mine", BuildOptions{Pack: "ruby"})
	want(t, err, sandbox.KindNotFound, "python, node, shell")
	_, err = s.Build(t.Context(), "mine", BuildOptions{Pack: "base"})
	want(t, err, sandbox.KindNotFound, "python, node, shell")
	_, err = s.Build(t.Context(), "python", BuildOptions{Pack: "node"})
	want(t, err, sandbox.KindInvalid, "my-python")
	_, err = s.Build(t.Context(), "mine", BuildOptions{Pack: "python", Packages: []string{"--hook=x"}})
	want(t, err, sandbox.KindInvalid, "python3-numpy")
	noTemporaries(t, s.dir)
}

func TestPackLifecycle(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	one := fakePack(t, s, "python", "1")
	if one.Name != "python" || one.Default != Python || !one.Runs(Shell) || one.Runs(Node) || one.Root.Digest != one.Digest || one.Root.Mutable {
		t.Errorf("got %+v", one)
	}
	if again := fakePack(t, s, "same", "1"); again.Digest != one.Digest {
		t.Errorf("the same content has digests %s and %s", one.Digest, again.Digest)
	}
	two := fakePack(t, s, "python", "2")
	if two.Digest == one.Digest {
		t.Error("different content has the same digest")
	}
	other := newStore(t, dir) // as another process would see it
	if byDigest, err := other.Resolve(t.Context(), one.Digest); err != nil || byDigest.Root.Dir != one.Root.Dir {
		t.Errorf("by digest: %+v, %v", byDigest, err)
	}
	if c, err := other.Choose(t.Context(), Python); err != nil || c.Digest != two.Digest {
		t.Errorf("Choose: %+v, %v", c, err)
	}
	c, err := s.Resolve(t.Context(), "python")
	must(t, err)
	c.Env["A"] = "changed"
	if c, _ := s.Resolve(t.Context(), "python"); c.Env["A"] != "b" {
		t.Error("a caller's change reached the cache")
	}

	r1, err := s.Acquire(one.Digest)
	must(t, err)
	r2, err := s.Acquire(one.Digest)
	must(t, err)
	r1()
	r1() // twice is once
	must(t, s.Remove(t.Context(), "python"))
	want(t, other.Remove(t.Context(), "same"), sandbox.KindConflict, "firebreak ls")
	want(t, s.Remove(t.Context(), one.Digest), sandbox.KindConflict, "firebreak ls")
	if _, err := s.Resolve(t.Context(), "same"); err != nil {
		t.Error("a refused Remove changed something:", err)
	}
	r2()
	must(t, other.Remove(t.Context(), one.Digest))
	for _, name := range []string{"python", "same", one.Digest, two.Digest} {
		_, err := s.Resolve(t.Context(), name)
		want(t, err, sandbox.KindNotFound, "")
	}
	for _, name := range []string{"a", "b"} {
		fakePack(t, s, name, "shared")
	}
	fakePack(t, s, "z", "other")
	must(t, s.Remove(t.Context(), "a"))
	if _, err := s.Resolve(t.Context(), "b"); err != nil {
		t.Error("removing one name took another's template along:", err)
	}
	must(t, s.Remove(t.Context(), "b"))
	must(t, s.Remove(t.Context(), "z"))
	left, err := readDirNames(dir)
	must(t, err)
	slices.Sort(left)
	if !slices.Equal(left, []string{".lock", "names"}) {
		t.Errorf("left behind: %q", left)
	}
}

func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"manifest byte": func(t *testing.T, dir string) {
			p := filepath.Join(dir, "manifest.json")
			b, err := os.ReadFile(p)
			must(t, err)
			must(t, os.WriteFile(p, bytes.Replace(b, []byte(`"A":"b"`), []byte(`"A":"c"`), 1), 0o644))
		},
		"manifest cut":  func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "manifest.json"), 100)) },
		"manifest gone": func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "manifest.json"))) },
		"mount point created": func(t *testing.T, dir string) {
			must(t, os.Mkdir(filepath.Join(dir, "rootfs/.agent"), 0o755))
		},
		"root gone": func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, "rootfs"))) },
		"root is a link": func(t *testing.T, dir string) {
			must(t, os.RemoveAll(filepath.Join(dir, "rootfs")))
			must(t, os.Symlink("/", filepath.Join(dir, "rootfs")))
		},
		"root open to all": func(t *testing.T, dir string) { must(t, os.Chmod(filepath.Join(dir, "rootfs"), 0o777)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, t.TempDir())
			p := fakePack(t, s, "python", "1")
			damage(t, filepath.Dir(p.Root.Dir))
			_, err := s.Resolve(t.Context(), "python")
			want(t, err, sandbox.KindUnavailable, "firebreak template rm")
			_, err = newStore(t, s.dir).Resolve(t.Context(), p.Digest)
			want(t, err, sandbox.KindUnavailable, "firebreak template rm")
			all, err := s.List(t.Context())
			must(t, err)
			if !slices.ContainsFunc(all, func(x Template) bool { return x.Name == "python" && x.Damaged != "" }) {
				t.Errorf("List does not show the damage: %+v", all)
			}
			// building it again mends it, and so does removing it
			if fakePack(t, s, "python", "1").Digest != p.Digest {
				t.Error("rebuilt differently")
			}
			damage(t, filepath.Dir(p.Root.Dir))
			must(t, s.Remove(t.Context(), "python"))
			noTemporaries(t, s.dir)
		})
	}
}

func TestVerify(t *testing.T) {
	s := newStore(t, t.TempDir())
	p := fakePack(t, s, "python", "1")
	must(t, s.Verify(t.Context(), p.Digest))
	f := filepath.Join(p.Root.Dir, "usr/content")
	must(t, os.WriteFile(f, []byte("2"), 0o644))
	if _, err := s.Resolve(t.Context(), "python"); err != nil {
		t.Fatal(err) // what Resolve checks does not go that far
	}
	err := s.Verify(t.Context(), p.Digest)
	want(t, err, sandbox.KindUnavailable, "template rm")
	if err == nil || !strings.Contains(err.Error(), "/usr/content was changed") {
		t.Errorf("got %v", err)
	}
	must(t, os.Remove(f))
	if err := s.Verify(t.Context(), p.Digest); err == nil || !strings.Contains(err.Error(), "/usr/content is missing") {
		t.Errorf("got %v", err)
	}
	must(t, os.WriteFile(f, []byte("1"), 0o644))
	must(t, os.WriteFile(filepath.Join(p.Root.Dir, "etc/aaa"), nil, 0o644))
	if err := s.Verify(t.Context(), p.Digest); err == nil || !strings.Contains(err.Error(), "/etc/aaa was added") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, s.Verify(ctx, p.Digest), sandbox.KindCanceled, "")
}

// A temporary whose owner is gone is swept, one whose owner lives is not.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	live, err := s.newTemporary()
	must(t, err)
	dead, err := s.newTemporary()
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dead.dir, "rootfs/a/b"), 0o755))
	must(t, os.Chmod(filepath.Join(dead.dir, "rootfs/a"), 0o500))
	dead.lock.Close()
	must(t, os.Mkdir(filepath.Join(dir, tmpPrefix+"without-a-lock"), 0o755))
	newStore(t, dir)
	names, err := readDirNames(dir)
	must(t, err)
	slices.Sort(names)
	if wantNames := []string{".lock", "names", filepath.Base(live.dir)}; !slices.Equal(names, wantNames) {
		t.Errorf("after New: %q, want %q", names, wantNames)
	}
	must(t, live.discard())
	noTemporaries(t, dir)
}

func TestListingIsCanonical(t *testing.T) {
	makeTree := func(order ...string) string {
		dir := t.TempDir()
		for _, f := range order {
			must(t, os.WriteFile(filepath.Join(dir, f), []byte(f), 0o640))
			time.Sleep(time.Millisecond)
		}
		must(t, os.Symlink("a", filepath.Join(dir, "l")))
		b, size, err := list(t.Context(), dir)
		must(t, err)
		if size != 2 {
			t.Errorf("size %d, want 2", size)
		}
		return string(b)
	}
	one, two := makeTree("a", "b"), makeTree("b", "a")
	if one != two {
		t.Errorf("order and time of creation matter:\n%s%s", one, two)
	}
	const golden = `f 0640 0 0 1 ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb "a" ""
f 0640 0 0 1 3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d "b" ""
l 0777 0 0 0 - "l" "a"
`
	if one != golden {
		t.Errorf("got\n%s, want\n%s", one, golden)
	}
	dir := t.TempDir()
	must(t, mkfifo(filepath.Join(dir, "p")))
	if _, _, err := list(t.Context(), dir); err == nil {
		t.Error("a named pipe was accepted")
	}
	if _, _, err := list(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestSweepNames: a crash while a name is written leaves a file that the next
// start removes.
func TestSweepNames(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	if _, err := New(dir, log); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "names", newPrefix+"123")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(dir, log); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(left); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestCheck: what changed since it was built is refused before something starts
// from it, and what only looks changed is read again and found whole.
func TestCheck(t *testing.T) {
	s := newStore(t, t.TempDir())
	p := fakePack(t, s, "python", "1")
	must(t, s.Check(t.Context(), p.Digest))
	f := filepath.Join(p.Root.Dir, "usr/content")
	stamp := filepath.Join(s.dir, entryName(p.Digest), stampName)
	before, err := os.ReadFile(stamp)
	must(t, err)
	st, err := os.Stat(f)
	must(t, err)
	restore := func(content string) { // as somebody would who wants it to stay unnoticed
		must(t, os.WriteFile(f, []byte(content), 0o644))
		must(t, os.Chtimes(f, st.ModTime(), st.ModTime()))
	}
	for name, damage := range map[string]func(){
		"content": func() { restore("2") },
		"mode":    func() { must(t, os.Chmod(f, 0o755)) },
		"missing": func() { must(t, os.Remove(f)) },
		"added":   func() { must(t, os.WriteFile(filepath.Join(p.Root.Dir, "usr/more"), nil, 0o644)) },
		"link":    func() { must(t, os.Remove(f)); must(t, os.Symlink("/etc/passwd", f)) },
	} {
		damage()
		err := s.Check(t.Context(), p.Digest)
		want(t, err, sandbox.KindUnavailable, "template rm")
		if err := newStore(t, s.dir).Check(t.Context(), p.Digest); err == nil {
			t.Errorf("%s: another process does not see it", name)
		}
		os.Remove(f)
		os.Remove(filepath.Join(p.Root.Dir, "usr/more"))
		restore("1")
		must(t, os.Chmod(f, 0o644))
		must(t, s.Check(t.Context(), p.Digest)) // read again, and whole
	}
	after, err := os.ReadFile(stamp)
	must(t, err)
	if bytes.Equal(before, after) {
		t.Error("the stamp is the same after the files changed")
	}
	must(t, os.Remove(stamp))
	must(t, s.Check(t.Context(), p.Digest))
	if now, err := os.ReadFile(stamp); err != nil || !bytes.Equal(now, after) {
		t.Errorf("no stamp was made: %v", err)
	}
	if left, _ := filepath.Glob(stamp + ".*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if h, err := s.Resolve(t.Context(), Host); err == nil {
		must(t, s.Check(t.Context(), h.Digest))
	}
	want(t, s.Check(t.Context(), "sha256:"+strings.Repeat("0", 64)), sandbox.KindNotFound, "")
}

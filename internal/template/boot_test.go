package template

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// aKernel is a compressed kernel as far as anybody looks before it runs.
func aKernel() []byte {
	b := make([]byte, 5*512+64)
	b[0x1f1] = 4
	binary.LittleEndian.PutUint32(b[0x1f4:], 4)
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], "6.1.0-9-test (debian)\x00")
	return b
}

// aRootfs is a squashfs image, likewise.
func aRootfs() []byte {
	b := make([]byte, 4096)
	copy(b, "hsqs")
	binary.LittleEndian.PutUint64(b[40:], 4096)
	return b
}

// brings is a store that may read below the directory it comes with, which has a
// kernel and a root file system.
func brings(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "vmlinuz"), aKernel(), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "rootfs"), aRootfs(), 0o600))
	s, err := Open(t.TempDir(), Options{GivenDirs: []string{dir}}, slog.New(slog.DiscardHandler))
	must(t, err)
	return s, dir
}

// TestBoot: what is brought is copied, its digests are the template's, and it is the
// same template whenever it is built, under a name or none.
func TestBoot(t *testing.T) {
	s, dir := brings(t)
	paths := BuildOptions{Kernel: Given{Path: filepath.Join(dir, "vmlinuz")}, Rootfs: Given{Path: filepath.Join(dir, "rootfs")}, Languages: []string{Shell}}
	a, err := s.Build(t.Context(), "mine", paths)
	must(t, err)
	k, _, err := s.Receive(t.Context(), "me", bytes.NewReader(aKernel()))
	must(t, err)
	r, _, err := s.Receive(t.Context(), "me", bytes.NewReader(aRootfs()))
	must(t, err)
	uploads := BuildOptions{Kernel: Given{Upload: k}, Rootfs: Given{Upload: r}, Languages: []string{Shell}, Owner: "me"}
	other := uploads
	other.Owner = "another"
	if _, err := s.Build(t.Context(), "", other); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("another's upload: %v", err)
	}
	b, err := s.Build(t.Context(), "", uploads)
	must(t, err)
	if a.Digest != b.Digest || a.Name != "mine" || b.Name != "" || !a.Runs(Shell) {
		t.Errorf("%+v, then %+v", a, b)
	}
	boot := a.Root.Boot
	if a.Boot.Kernel.Release != "6.1.0-9-test" || a.Boot.Rootfs.Format != "squashfs" || boot.Kernel.Digest != "sha256:"+hexSum(aKernel()) || boot.Image.Digest != "sha256:"+hexSum(aRootfs()) {
		t.Errorf("%+v, %+v, %+v", a.Boot.Kernel, a.Boot.Rootfs, boot)
	}
	for path, want := range map[string][]byte{boot.Kernel.Path: aKernel(), boot.Image.Path: aRootfs()} {
		got, err := os.ReadFile(path)
		st, _ := os.Stat(path)
		if err != nil || !bytes.Equal(got, want) || st.Mode() != 0o444 || !strings.HasPrefix(path, s.dir) {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	again, err := s.Resolve(t.Context(), "mine")
	if err != nil || *again.Root.Boot != *boot {
		t.Errorf("resolved as %+v, %v", again, err)
	}
	paths.Languages = nil
	if c, err := s.Build(t.Context(), "", paths); err != nil || c.Digest == a.Digest {
		t.Errorf("with other languages: %+v, %v", c, err)
	}
}

// TestBootBesideRoot: a kernel goes with a root that is made of something else, and
// makes another template of it, which no image is taken for.
func TestBootBesideRoot(t *testing.T) {
	s, dir := brings(t)
	tar := tarOf(t, prog("bin/sh"))
	build := func(k Given) Template {
		up, _, err := s.Receive(t.Context(), "", bytes.NewReader(tar))
		must(t, err)
		b, err := s.Build(t.Context(), "mine", BuildOptions{Upload: up, Kernel: k})
		must(t, err)
		return b
	}
	plain, own := build(Given{}), build(Given{Path: filepath.Join(dir, "vmlinuz")})
	if plain.Digest == own.Digest || plain.Boot != nil || plain.Root.Boot != nil || own.Root.Boot.Image.Path != "" || own.Root.Boot.Kernel.Path == "" {
		t.Errorf("%+v, %+v", plain, own)
	}
	must(t, s.Verify(t.Context(), own.Digest))
}

// TestBootRefused: what no machine boots, and every file that is not below a directory
// the operator named, is refused with a type, and nothing is left.
func TestBootRefused(t *testing.T) {
	s, dir := brings(t)
	outside := filepath.Join(t.TempDir(), "vmlinuz")
	must(t, os.WriteFile(outside, aKernel(), 0o600))
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(dir, "dir")))
	must(t, os.Symlink("vmlinuz", filepath.Join(dir, "inside")))
	must(t, os.WriteFile(filepath.Join(dir, "junk"), bytes.Repeat([]byte("junk"), 1000), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "short"), aKernel()[:2600], 0o600))
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	at := func(name string) Given { return Given{Path: filepath.Join(dir, name)} }
	for what, c := range map[string]struct {
		o    BuildOptions
		kind sandbox.Kind
	}{
		"a path elsewhere":           {BuildOptions{Rootfs: Given{Path: outside}}, sandbox.KindDenied},
		"one that is not there":      {BuildOptions{Rootfs: Given{Path: outside + "x"}}, sandbox.KindDenied},
		"the machine's own":          {BuildOptions{Rootfs: Given{Path: "/etc/shadow"}}, sandbox.KindDenied},
		"a way out":                  {BuildOptions{Rootfs: Given{Path: dir + "/../" + filepath.Base(filepath.Dir(outside)) + "/vmlinuz"}}, sandbox.KindDenied},
		"a link that leads out":      {BuildOptions{Rootfs: at("link")}, sandbox.KindDenied},
		"a directory that leads out": {BuildOptions{Rootfs: at("dir/vmlinuz")}, sandbox.KindDenied},
		"a path aside":               {BuildOptions{Rootfs: Given{Path: "rootfs"}}, sandbox.KindDenied},
		"the directory":              {BuildOptions{Rootfs: Given{Path: dir}}, sandbox.KindDenied},
		"what is missing":            {BuildOptions{Rootfs: at("no")}, sandbox.KindNotFound},
		"a pipe":                     {BuildOptions{Rootfs: at("pipe")}, sandbox.KindInvalid},
		"junk":                       {BuildOptions{Rootfs: at("junk")}, sandbox.KindInvalid},
		"a kernel for a root":        {BuildOptions{Rootfs: at("vmlinuz")}, sandbox.KindInvalid},
		"a short kernel":             {BuildOptions{Rootfs: at("rootfs"), Kernel: at("short")}, sandbox.KindInvalid},
		"both":                       {BuildOptions{Rootfs: Given{Path: "/x", Upload: "y"}}, sandbox.KindInvalid},
		"two roots":                  {BuildOptions{Rootfs: at("rootfs"), Image: "alpine:3"}, sandbox.KindInvalid},
		"an unknown language":        {BuildOptions{Rootfs: at("rootfs"), Languages: []string{"cobol"}}, sandbox.KindInvalid},
		"languages of a pack":        {BuildOptions{Pack: Python, Languages: []string{Python}}, sandbox.KindInvalid},
		"no upload":                  {BuildOptions{Kernel: Given{Upload: "none"}, Rootfs: at("rootfs")}, sandbox.KindNotFound},
		"a kernel alone":             {BuildOptions{Kernel: at("vmlinuz")}, sandbox.KindNotFound},
	} {
		if _, err := s.Build(t.Context(), "mine", c.o); sandbox.KindOf(err) != c.kind {
			t.Errorf("%s: %v; want %s", what, err, c.kind)
		}
	}
	if _, err := s.Build(t.Context(), Python, BuildOptions{Kernel: at("vmlinuz")}); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("a pack's own name: %v", err)
	}
	if _, err := s.Build(t.Context(), "mine", BuildOptions{Rootfs: at("rootfs"), Kernel: at("inside")}); err != nil {
		t.Errorf("a link that stays: %v", err)
	}
	small, err := Open(t.TempDir(), Options{GivenDirs: []string{dir}, Limits: Limits{Bytes: 1000}}, s.log)
	must(t, err)
	if _, err := small.Build(t.Context(), "mine", BuildOptions{Rootfs: at("rootfs")}); sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Errorf("over the limit: %v", err)
	}
	none := newStore(t, t.TempDir())
	if _, err := none.Build(t.Context(), "mine", BuildOptions{Rootfs: at("rootfs")}); sandbox.KindOf(err) != sandbox.KindDenied {
		t.Errorf("without a directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Build(ctx, "mine", BuildOptions{Rootfs: at("rootfs")}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, tmpPrefix+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestBootDamaged: a file that is not what was brought keeps the template from being
// used, and it can be built again.
func TestBootDamaged(t *testing.T) {
	s, dir := brings(t)
	o := BuildOptions{Kernel: Given{Path: filepath.Join(dir, "vmlinuz")}, Rootfs: Given{Path: filepath.Join(dir, "rootfs")}}
	for name, spoil := range map[string]func(path string) error{
		"a bit": func(path string) error {
			b, err := os.ReadFile(path)
			b[0]++
			return errors.Join(err, os.Chmod(path, 0o644), os.WriteFile(path, b, 0o644))
		},
		"gone":   os.Remove,
		"a link": func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/dev/null", path)) },
	} {
		for part := range map[string]bool{bootKernel: true, bootRootfs: true} {
			a, err := s.Build(t.Context(), "mine", o)
			must(t, err)
			must(t, s.Check(t.Context(), a.Digest))
			must(t, spoil(filepath.Join(s.dir, entryName(a.Digest), bootName, part)))
			if err := s.Check(t.Context(), a.Digest); sandbox.KindOf(err) != sandbox.KindUnavailable {
				t.Errorf("%s of the %s: %v", name, part, err)
			}
			must(t, s.Remove(t.Context(), "mine"))
		}
	}
}

func init() {
	helpers["boot"] = func(dir string) error {
		from := os.Getenv("FIREBREAK_TEST_GIVEN")
		s, err := Open(dir, Options{GivenDirs: []string{from}}, slog.New(slog.DiscardHandler))
		if err == nil {
			_, err = s.Build(context.Background(), "mine", BuildOptions{Kernel: Given{Path: filepath.Join(from, "vmlinuz")}, Rootfs: Given{Path: filepath.Join(from, "rootfs")}})
		}
		return err
	}
}

// TestBootKilled: a build that is killed at any of its steps leaves nothing, or all.
func TestBootKilled(t *testing.T) {
	_, from := brings(t)
	run := func(dir, arm string) ([]byte, error) {
		cmd := exec.Command(os.Args[0], dir)
		cmd.Env = append(os.Environ(), helperEnv+"=boot", "FIREBREAK_TEST_GIVEN="+from, failpoint.Env+"="+arm)
		return cmd.CombinedOutput()
	}
	out, err := run(t.TempDir(), "count")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	points := 0
	for line := range bytes.Lines(out) {
		point, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "failpoint: ")
		if !ok {
			continue
		}
		points++
		dir := t.TempDir()
		if out, err := run(dir, point); err == nil {
			t.Errorf("%s: not killed: %s", point, out)
		}
		s := newStore(t, dir)
		noTemporaries(t, dir)
		if p, err := s.Resolve(t.Context(), "mine"); err == nil {
			must(t, s.Verify(t.Context(), p.Digest))
		} else {
			want(t, err, sandbox.KindNotFound, "")
		}
	}
	if points < 8 {
		t.Errorf("only %d crash points:\n%s", points, out)
	}
}

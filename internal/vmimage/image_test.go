//go:build linux

package vmimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// sample is a tree with one of everything an image can hold.
func sample(t testing.TB) Tree {
	t.Helper()
	dir, mounted := t.TempDir(), t.TempDir()
	at := time.Unix(1_700_000_000, 5)
	write := func(dir, name, text string, mode fs.FileMode) {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write(dir, "bin/tool", "#!/bin/sh\n", 0o755|fs.ModeSetuid)
	write(dir, "etc/empty", "", 0o600)
	write(dir, "etc/block", strings.Repeat("b", block), 0o644)
	write(dir, "etc/nearly", strings.Repeat("n", 2*block-10), 0o644) // its tail fits behind no inode
	write(dir, "etc/more", strings.Repeat("m", 3*block+100), 0o644)
	write(dir, "usr/hidden", "a mount is over it", 0o644)
	write(mounted, "lib/lib.so", "library", 0o644)
	for k := range 400 { // a directory of several blocks
		write(dir, fmt.Sprintf("many/%03d-%s", k, strings.Repeat("x", 40)), fmt.Sprint(k), 0o644)
	}
	if err := errors.Join(os.Symlink("../bin/tool", filepath.Join(dir, "etc/link")), os.Symlink(strings.Repeat("l", 4090), filepath.Join(dir, "etc/long")),
		os.Link(filepath.Join(dir, "bin/tool"), filepath.Join(dir, "bin/same")), os.Mkdir(filepath.Join(dir, "tmp"), 0o777), os.Chmod(filepath.Join(dir, "tmp"), 0o777|fs.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, mounted} {
		err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.Type()&fs.ModeSymlink == 0 {
				err = os.Chtimes(p, at, at)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return Tree{Dir: dir, Mounts: []sandbox.Mount{{Source: mounted, Target: "/usr"}},
		Owner: func(string, uint32, uint32) (uint32, uint32) { return 0, 0 }}
}

func TestRootIsReadBack(t *testing.T) {
	tree := sample(t)
	var b bytes.Buffer
	if err := WriteRoot(&b, tree); err != nil {
		t.Fatal(err)
	}
	if b.Len()%block != 0 {
		t.Errorf("%d bytes are no whole blocks", b.Len())
	}
	r := reader{t, b.Bytes()}
	got := map[string]string{}
	r.walk("/", r.root(), got)
	for path, want := range map[string]string{
		"/bin/tool": "f 4755 2 #!/bin/sh\n", "/bin/same": "f 4755 2 #!/bin/sh\n", "/etc/empty": "f 600 1 ", "/etc/link": "l 777 1 ../bin/tool",
		"/usr/lib/lib.so": "f 644 1 library", "/many/399-" + strings.Repeat("x", 40): "f 644 1 399", "/tmp": "d 1777 2 ", "/many": "d 755 2 ",
		"/etc/block": "f 644 1 " + strings.Repeat("b", block), "/etc/nearly": "f 644 1 " + strings.Repeat("n", 2*block-10),
		"/etc/more": "f 644 1 " + strings.Repeat("m", 3*block+100), "/etc/long": "l 777 1 " + strings.Repeat("l", 4090),
	} {
		if got[path] != want {
			t.Errorf("%s is %.40q, want %.40q", path, got[path], want)
		}
	}
	if _, ok := got["/usr/hidden"]; ok {
		t.Error("what lies under a mount shows")
	}
	var again bytes.Buffer
	if err := WriteRoot(&again, tree); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Errorf("the same tree makes other bytes (%v)", err)
	}
	var other bytes.Buffer // the same content elsewhere
	if err := WriteRoot(&other, sample(t)); err != nil || !equalButLinkTimes(t, b.Bytes(), other.Bytes()) {
		t.Errorf("the same content makes another image (%v)", err)
	}
	// A tool of others, where there is one.
	if fsck, err := exec.LookPath("fsck.erofs"); err == nil {
		p := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(p, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(fsck, p).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// equalButLinkTimes compares images of trees whose symbolic links were made at
// different times.
func equalButLinkTimes(t *testing.T, a, b []byte) bool {
	return len(a) == len(b) && (reader{t, a}).digest() == (reader{t, b}).digest()
}

// reader reads an image as the kernel's documentation describes it.
type reader struct {
	t *testing.T
	b []byte
}

func (r reader) root() uint64 { return uint64(le.Uint16(r.b[erofsSuper+14:])) }

func (r reader) inode(nid uint64) []byte {
	at := int(le.Uint32(r.b[erofsSuper+40:]))*block + int(nid)*slot
	return r.b[at:]
}

func (r reader) content(nid uint64) []byte {
	n := r.inode(nid)
	size := int(le.Uint64(n[8:]))
	layout := le.Uint16(n) >> 1
	full, tail := size, 0
	if layout == layoutInline {
		full, tail = size/block*block, size%block
		if inside := len(r.b) - len(n); inside%block+inodeSize+tail > block {
			r.t.Errorf("inode %d: its content crosses a block", nid)
		}
	}
	at := int(le.Uint32(n[16:])) * block
	return append(append([]byte(nil), r.b[at:at+full]...), n[inodeSize:inodeSize+tail]...)
}

func (r reader) walk(path string, nid uint64, got map[string]string) {
	n := r.inode(nid)
	mode := le.Uint16(n[4:])
	kind := map[uint16]string{0o100000: "f", 0o040000: "d", 0o120000: "l"}[mode&0o170000]
	c := r.content(nid)
	text := string(c)
	if kind == "d" {
		text = ""
		last := ""
		for len(c) > 0 {
			b := c[:min(block, len(c))]
			c = c[len(b):]
			count := int(le.Uint16(b[8:])) / direntSize
			for k := range count {
				e := b[k*direntSize:]
				begin, end := int(le.Uint16(e[8:])), len(b)
				if k+1 < count {
					end = int(le.Uint16(e[direntSize+8:]))
				}
				name := strings.TrimRight(string(b[begin:end]), "\x00")
				if name <= last {
					r.t.Errorf("%s: %q after %q", path, name, last)
				}
				if last = name; name != "." && name != ".." {
					r.walk(filepath.Join(path, name), le.Uint64(e), got)
				}
			}
		}
	}
	got[path] = fmt.Sprintf("%s %o %d %s", kind, mode&0o7777, le.Uint32(n[44:]), text)
}

// digest is of everything but the times of symbolic links.
func (r reader) digest() string {
	got := map[string]string{}
	r.walk("/", r.root(), got)
	h := sha256.New()
	fmt.Fprint(h, got) // sorted by key
	return hex.EncodeToString(h.Sum(nil))
}

func TestRootRefuses(t *testing.T) {
	tree := sample(t)
	tree.MaxBytes = 1000
	if err := WriteRoot(&bytes.Buffer{}, tree); sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Errorf("too much: %v", err)
	}
	if err := WriteRoot(&bytes.Buffer{}, Tree{Dir: filepath.Join(t.TempDir(), "no")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	if err := WriteRoot(full{}, sample(t)); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

type full struct{}

var errFull = errors.New("full")

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestDisk: of every size, a checker of others finds nothing wrong, and little is
// written.
func TestDisk(t *testing.T) {
	fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		fsck, err = exec.LookPath("/sbin/e2fsck")
	}
	for _, size := range []int64{sandbox.MinDisk, 16 << 20, 64<<20 + 4096*3, 128 << 20, 128<<20 + 40<<10, 1 << 30, 20 << 30} {
		f, cerr := os.Create(filepath.Join(t.TempDir(), "disk"))
		if cerr != nil {
			t.Fatal(cerr)
		}
		defer f.Close()
		if err := WriteDisk(f, size, UUID("x")); err != nil {
			t.Fatal(err)
		}
		fi, serr := f.Stat()
		if serr != nil || fi.Size() > size || fi.Size() < size-groupBlocks*block {
			t.Errorf("%d bytes asked for, %v", size, fi.Size())
		}
		if err != nil {
			continue
		}
		if out, err := exec.Command(fsck, "-fn", f.Name()).CombinedOutput(); err != nil {
			t.Errorf("%d bytes: %v\n%s", size, err, out)
		}
	}
	if err != nil {
		t.Skip("not run: there is no e2fsck to ask")
	}
	f, _ := os.Create(filepath.Join(t.TempDir(), "disk"))
	defer f.Close()
	if err := WriteDisk(f, MaxDisk+1, UUID("x")); sandbox.KindOf(err) != sandbox.KindUnsupported {
		t.Errorf("too large: %v", err)
	}
}

func TestInitial(t *testing.T) {
	var b bytes.Buffer
	files := []File{{"/modules/1.ko", 0o600, []byte("module")}, {"/init", 0o755, []byte("program")}}
	if err := WriteInitial(&b, files); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := WriteInitial(&again, []File{files[1], files[0]}); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Errorf("the order of files matters (%v)", err)
	}
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("not run: there is no cpio to ask")
	}
	cmd := exec.Command(cpio, "-itv", "--quiet")
	cmd.Stdin = &b
	out, err := cmd.Output()
	if err != nil || strings.Count(string(out), "\n") != 3 || !strings.Contains(string(out), "-rwxr-xr-x") || !strings.Contains(string(out), "modules/1.ko") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := WriteInitial(full{}, files); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":     "kernel/a/virtio-blk.ko.xz: kernel/b/virtio.ko.xz kernel/b/virtio_ring.ko.xz\nkernel/b/virtio.ko.xz: kernel/b/virtio_ring.ko.xz\nkernel/b/virtio_ring.ko.xz:\n",
		"modules.builtin": "kernel/fs/ext4/ext4.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Modules(dir, "virtio_blk", "ext4", "virtio")
	var base []string
	for _, g := range got {
		base = append(base, filepath.Base(g))
	}
	if err != nil || strings.Join(base, " ") != "virtio_ring.ko.xz virtio.ko.xz virtio-blk.ko.xz" {
		t.Errorf("%q, %v", base, err)
	}
	if _, err := Modules(dir, "erofs"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
	if _, err := Modules(t.TempDir(), "erofs"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a kernel without modules: %v", err)
	}
}

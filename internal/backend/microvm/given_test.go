//go:build linux

package microvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/vmimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// file is a file of a template, with its digest.
func file(t *testing.T, name string, content []byte) sandbox.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o444); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return sandbox.File{Path: path, Digest: "sha256:" + hex.EncodeToString(sum[:])}
}

// uncompressed is the kernel within one that Debian ships, whose payload is an LZ4
// "legacy" frame: blocks, each with its length before it.
func uncompressed(t *testing.T, bz []byte) []byte {
	t.Helper()
	le := binary.LittleEndian
	begin := (int(bz[0x1f1])+1)*512 + int(le.Uint32(bz[0x248:]))
	in := bz[begin : begin+int(le.Uint32(bz[0x24c:]))]
	if len(in) < 8 || le.Uint32(in) != 0x184c2102 {
		t.Skip("not run: the kernel is not packed by LZ4")
	}
	var out []byte
	for in = in[4:]; len(in) > 4; {
		n := int(le.Uint32(in))
		if n == 0 || n > len(in)-4 {
			break // the size that follows the frame
		}
		out, in = unpackLZ4(out, in[4:4+n]), in[4+n:]
	}
	return out
}

// unpackLZ4 appends what a block holds; its matches do not lead before it.
func unpackLZ4(out, in []byte) []byte {
	length := func(n int) int {
		if n != 15 {
			return n
		}
		for {
			b := in[0]
			in = in[1:]
			if n += int(b); b != 255 {
				return n
			}
		}
	}
	for {
		token := int(in[0])
		in = in[1:]
		n := length(token >> 4)
		out, in = append(out, in[:n]...), in[n:]
		if len(in) < 2 {
			return out
		}
		back := int(in[0]) | int(in[1])<<8
		in = in[2:]
		for n = length(token&15) + 4; n > 0; n-- {
			out = append(out, out[len(out)-back])
		}
	}
}

// halting is a kernel that a monitor takes, and that does nothing.
func halting() []byte {
	le := binary.LittleEndian
	const base, code = 0x100000, 0x200
	b := make([]byte, 0x300)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // executable
	le.PutUint16(b[18:], 62) // amd64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], base+code)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	load, note := b[64:], b[120:]
	le.PutUint32(load, 1)
	le.PutUint32(load[4:], 7)
	le.PutUint64(load[16:], base)
	le.PutUint64(load[24:], base)
	le.PutUint64(load[32:], uint64(len(b)))
	le.PutUint64(load[40:], uint64(len(b)))
	le.PutUint32(note, 4)
	le.PutUint64(note[8:], 0x180)
	le.PutUint64(note[32:], 20)
	le.PutUint64(note[40:], 20)
	le.PutUint64(note[48:], 4)
	pvh := b[0x180:]
	le.PutUint32(pvh, 4)
	le.PutUint32(pvh[4:], 4)
	le.PutUint32(pvh[8:], 18)
	copy(pvh[12:], "Xen\x00")
	le.PutUint32(pvh[16:], base+code)
	copy(b[code:], "\xfa\xf4\xeb\xfd") // cli; hlt; jmp back
	return b
}

// debian is Debian's kernel as a file somebody brings.
func debian(t *testing.T, b *Backend) []byte {
	t.Helper()
	bz, err := os.ReadFile(b.look().kernel)
	if err != nil {
		t.Fatal(err)
	}
	return bz
}

// imageOf is a root file system image of a directory, in a form that is ours to
// write.
func imageOf(t *testing.T, dir string) sandbox.File {
	t.Helper()
	var image bytes.Buffer
	if err := vmimage.WriteRoot(&image, vmimage.Tree{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	return file(t, "rootfs.erofs", image.Bytes())
}

// TestGiven boots a kernel and a root file system that a template brought: Debian's,
// unpacked, and an image that lacks all a sandbox needs. Its disk moves no more than
// the rate of machines.
func TestGiven(t *testing.T) {
	b := machines(t)
	const rate = 4 << 20
	cfg := b.cfg
	cfg.Rate = Rate{Bytes: rate, Ops: 1000}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dir := t.TempDir()
	for name, text := range map[string]string{"etc/mark": "brought", "etc/passwd": "root:x:0:0:them:/:/bin/false\nother:x:1000:1000::/:\n"} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/proc", filepath.Join(dir, ".firebreak")), os.Symlink("/", filepath.Join(dir, "home"))); err != nil {
		t.Fatal(err)
	}
	boot := &sandbox.Boot{Kernel: file(t, "vmlinux", uncompressed(t, debian(t, b))), Image: imageOf(t, dir)}
	inst := made(t, b, sandbox.Root{Digest: "sha256:given", Boot: boot}, nil)
	s := speak(t, inst)
	for path, want := range map[string]string{"/etc/mark": "brought", "/etc/passwd": "root:x:0:0:them:/:/bin/false\nuser:x:1000:1000:user:/home/user:/bin/sh\nother:x:1000:1000::/:\n"} {
		if got := probeAs(t, s, "", "read", path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if out := probeAs(t, s, "", "write", guest.DefaultHome+"/x", "y"); out != "" {
		t.Errorf("the home: %s", out)
	}
	const volume = 4 * rate
	began := time.Now()
	for _, verb := range [][]string{{"fill", guest.DefaultHome + "/fill", fmt.Sprint(volume)}, {"flush", guest.DefaultHome + "/fill"}} {
		if out := probeAs(t, s, "", verb...); out != "" {
			t.Errorf("%s: %s", verb[0], out)
		}
	}
	// A machine may do at once what it may in a moment, and its clock is not ours.
	if took, least := time.Since(began), volume/rate*time.Second/2; took < least {
		t.Errorf("%d MiB took %s, at %d MiB per second not less than %s", volume>>20, took, rate>>20, least)
	} else {
		t.Logf("%d MiB took %s", volume>>20, took.Round(10*time.Millisecond))
	}
	o, err := inst.readOrigin()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []sandbox.File{boot.Kernel, boot.Image} {
		if !strings.Contains(string(must(os.ReadFile(filepath.Join(inst.dir, fileOrigin)))), strings.TrimPrefix(f.Digest, "sha256:")) {
			t.Errorf("a snapshot would not be bound to %s: %+v", filepath.Base(f.Path), o)
		}
	}
}

// TestGivenReadonly: a root file system that was brought, in a form made by another's
// tools, is furnished also where nothing of it can be written; the kernel is this
// host's.
func TestGivenReadonly(t *testing.T) {
	b := machines(t)
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("not run: there is no mkfs.ext4 (apt-get install e2fsprogs)")
	}
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "rootfs")
	if err := os.WriteFile(filepath.Join(dir, "mark"), []byte("brought"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", "-d", dir, path, "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	root := sandbox.Root{Digest: "sha256:given", Boot: &sandbox.Boot{Image: file(t, "rootfs", must(os.ReadFile(path)))}}
	inst, err := b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root, ReadonlyRoot: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r, err := inst.Destroy(context.Background()); err != nil || !r.Clean {
			t.Errorf("Destroy: %+v, %v", r, err)
		}
	}()
	s := speak(t, inst)
	if got := probeAs(t, s, "", "read", "/mark"); got != "brought" {
		t.Errorf("the image has %q", got)
	}
	for path, writable := range map[string]bool{"/etc/x": false, "/mark": false, "/tmp/x": true, guest.DefaultHome + "/x": true} {
		probeAs(t, s, "root", "write", path, "written")
		if got := probeAs(t, s, "", "read", path) == "written"; got != writable {
			t.Errorf("%s can be written: %t", path, got)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestGivenLacks: a kernel without what a sandbox needs fails at once and says what
// it is, one that does nothing when the time is up; nothing is left of either.
func TestGivenLacks(t *testing.T) {
	b := machines(t)
	bz := debian(t, b)
	// Its release is one that no modules here are of.
	at := 0x200 + int(binary.LittleEndian.Uint16(bz[0x20e:]))
	copy(bz[at:], "0.0.0-none ")
	for _, c := range []struct {
		name   string
		kernel []byte
		time   time.Duration
		kind   sandbox.Kind
		says   string
	}{
		{"without modules", bz, 2 * time.Minute, sandbox.KindInvalid, "lacks erofs, overlay, "},
		{"that halts", halting(), 5 * time.Second, sandbox.KindTimeout, "its console is empty"},
		{"cut off", bz[:len(bz)/2], time.Minute, sandbox.KindInvalid, "not a whole kernel"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(patient(t), c.time)
			defer cancel()
			root := minimalRoot(t)
			root.Boot = &sandbox.Boot{Kernel: file(t, "vmlinuz", c.kernel)}
			_, err := b.Create(ctx, sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root})
			if sandbox.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %s, %q", err, c.kind, c.says)
			}
			if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestGivenChecked: what a template brought is booted as it was built, or not at all;
// it is looked at before each boot.
func TestGivenChecked(t *testing.T) {
	b := open(t, t.TempDir())
	f := file(t, "vmlinux", halting())
	at := func(f sandbox.File) (string, error) { return b.images.given(patient(t), "kernel", "kernel", f) }
	path, err := at(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, []byte("another"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if again, err := at(f); err != nil || again != path || !bytes.Equal(must(os.ReadFile(path)), halting()) {
		t.Errorf("a changed copy was not made anew: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Remove(path), os.Symlink(f.Path, link)); err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]sandbox.File{
		"a link":         {Path: link, Digest: f.Digest},
		"a directory":    {Path: t.TempDir(), Digest: f.Digest},
		"what is gone":   {Path: f.Path + "x", Digest: f.Digest},
		"another digest": {Path: f.Path, Digest: "sha256:" + strings.Repeat("0", 64)},
		"no digest":      {Path: f.Path},
		"a path aside":   {Path: "vmlinux", Digest: f.Digest},
	} {
		if _, err := at(bad); sandbox.KindOf(err) != sandbox.KindUnavailable && sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(b.cfg.Cache, ".new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestGivenElsewhere: Firecracker takes no compressed kernel, a kernel's modules are
// those of its release, and a snapshot is of the very files.
func TestGivenElsewhere(t *testing.T) {
	b := open(t, t.TempDir())
	p := b.look()
	if !p.info.Available {
		t.Skipf("not run: %s", p.info.Reason)
	}
	bz := file(t, "vmlinuz", debian(t, b))
	i := newInstance(b, intent{Instance: sandbox.NewInstanceID(), VMM: vmmFirecracker}, &fireVMM{})
	fire := p
	fire.vmm, fire.vsock = vmmFirecracker, agentPort
	var m vm
	var s machine.Settings
	if err := i.boots(patient(t), &sandbox.Boot{Kernel: bz}, &fire, &s, &m); sandbox.KindOf(err) != sandbox.KindUnsupported {
		t.Errorf("firecracker and a compressed kernel: %v", err)
	}
	dir := t.TempDir()
	image := imageOf(t, dir)
	if err := i.boots(patient(t), &sandbox.Boot{Kernel: file(t, "vmlinux", halting()), Image: image}, &fire, &s, &m); err != nil || len(fire.modules) > 0 || s.Given != "erofs" {
		t.Errorf("one without a release: %v, modules %v, %+v", err, fire.modules, s)
	}
	qemu := p
	if err := i.boots(patient(t), &sandbox.Boot{Kernel: bz}, &qemu, &s, &m); err != nil || len(qemu.modules) != len(p.modules) {
		t.Errorf("Debian's: %v, modules %v", err, qemu.modules)
	}
	bare := p
	bare.moduleDir = t.TempDir()
	for name, text := range map[string]string{"modules.dep": "", "modules.builtin": ""} {
		if err := os.WriteFile(filepath.Join(bare.moduleDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := i.boots(patient(t), &sandbox.Boot{Image: image}, &bare, &s, &m); sandbox.KindOf(err) != sandbox.KindInvalid || strings.Contains(err.Error(), bare.moduleDir) {
		t.Errorf("without a module: %v", err)
	}
	if dir := modulesOf("/", ".."); dir != "" {
		t.Errorf("modules in %s", dir)
	}
}

// TestGivenInJail: Firecracker finds in its jail what the template brought, and gets no
// kernel that it cannot load.
func TestGivenInJail(t *testing.T) {
	f, kernel := stub(t, "1.13.1")
	b := open(t, t.TempDir())
	b.look = pretend(b, f, kernel)
	boot := &sandbox.Boot{Kernel: file(t, "vmlinux", halting()), Image: imageOf(t, t.TempDir())}
	spec := sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: sandbox.Root{Digest: "sha256:given", Boot: boot}}
	spec.Limits.Disk = sandbox.MinDisk
	inst, err := b.Create(patient(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	reach(t, inst)
	root := jailRootOf(inst.(*Instance).dir)
	for name, from := range map[string]sandbox.File{jailKernel: boot.Kernel, jailRoot: boot.Image} {
		if !bytes.Equal(must(os.ReadFile(filepath.Join(root, name))), must(os.ReadFile(from.Path))) {
			t.Errorf("%s is another file", name)
		}
		if a, b := must(stampOf(filepath.Join(root, name))), must(stampOf(from.Path)); a.ino == b.ino {
			t.Errorf("%s is the template's own file", name)
		}
	}
	if r, err := inst.Destroy(patient(t)); err != nil || !r.Clean {
		t.Errorf("Destroy: %+v, %v", r, err)
	}
	bz := make([]byte, 5*512)
	copy(bz[0x202:], "HdrS")
	bz[0x1fe], bz[0x1ff] = 0x55, 0xaa
	spec.Instance, boot.Kernel = sandbox.NewInstanceID(), file(t, "vmlinuz", bz)
	if _, err := b.Create(patient(t), spec); sandbox.KindOf(err) != sandbox.KindUnsupported {
		t.Errorf("a compressed kernel: %v", err)
	}
	if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

package vmimage

import (
	"bytes"
	"io"
	"regexp"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// The forms of kernels and root file systems that somebody else made.
const (
	KernelELF = "elf"     // uncompressed, vmlinux
	KernelBz  = "bzimage" // as distributions ship it, vmlinuz

	SquashFS = "squashfs"
	EROFS    = "erofs"
	Ext4     = "ext4"
)

// Kernel is what a kernel's file says of itself.
type Kernel struct {
	Format string // KernelELF or KernelBz
	// Release is what it is called, "6.1.0-57-cloud-amd64", as it says; "" where it
	// does not. It is a name, and no part of a path.
	Release string
}

// Bounds of kernels. A distribution's takes 15 MiB, and 60 when it is unpacked.
const (
	MaxKernel  = 256 << 20
	maxHeaders = 64
	maxNotes   = 64 << 10
)

// reRelease is what a release may be: no separator, no dot in front.
var reRelease = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._+~-]{0,63}$`)

// InspectKernel reads what a monitor would of a kernel before anything of it runs:
// that it is one, for this architecture, and whole. Nothing is executed.
//
// Errors: KindInvalid saying what is wrong with it. Cost: an uncompressed kernel is
// read once.
func InspectKernel(r io.ReaderAt, size int64) (Kernel, error) {
	head := make([]byte, 0x250)
	if _, err := r.ReadAt(head, 0); err != nil {
		return Kernel{}, unfit("a kernel", "it has %d bytes", size)
	}
	switch {
	case size > MaxKernel:
		return Kernel{}, unfit("a kernel", "it has %s, more than %s", sandbox.FormatSize(size), sandbox.FormatSize(MaxKernel))
	case string(head[:4]) == "\x7fELF":
		return inspectELF(r, size, head)
	case string(head[0x202:0x206]) == "HdrS" && le.Uint16(head[0x1fe:]) == 0xaa55:
		return inspectBz(r, size, head)
	}
	return Kernel{}, unfit("a kernel", "it is neither an ELF file (vmlinux) nor a bzImage")
}

func unfit(what, format string, args ...any) error {
	return sandbox.Errorf("image", sandbox.KindInvalid, "not "+what+": "+format, args...)
}

// inspectBz reads the header of the boot protocol, Documentation/arch/x86/boot.rst.
func inspectBz(r io.ReaderAt, size int64, head []byte) (Kernel, error) {
	setup := int64(head[0x1f1])
	if setup == 0 {
		setup = 4
	}
	if whole := (setup+1)*512 + int64(le.Uint32(head[0x1f4:]))*16; size < whole {
		return Kernel{}, unfit("a whole kernel", "it has %d bytes of %d", size, whole)
	}
	k := Kernel{Format: KernelBz}
	if at := int64(le.Uint16(head[0x20e:])); at != 0 {
		b := make([]byte, 128)
		n, _ := r.ReadAt(b, 0x200+at) // what there is
		k.Release = releaseIn(b[:n])
	}
	return k, nil
}

// inspectELF reads the program headers. A kernel without the note by which machines
// are entered (PVH) boots nowhere here.
func inspectELF(r io.ReaderAt, size int64, head []byte) (Kernel, error) {
	const load, note, headerSize, amd64 = 1, 4, 56, 62
	k := Kernel{Format: KernelELF}
	at, count := le.Uint64(head[32:]), int(le.Uint16(head[56:]))
	switch {
	case head[4] != 2 || head[5] != 1 || le.Uint16(head[18:]) != amd64:
		return k, unfit("a kernel for this machine", "it is of another architecture")
	case count == 0 || count > maxHeaders || le.Uint16(head[54:]) != headerSize || at > uint64(size):
		return k, unfit("a kernel", "its program headers make no sense")
	}
	headers := make([]byte, count*headerSize)
	if _, err := r.ReadAt(headers, int64(at)); err != nil {
		return k, unfit("a whole kernel", "its program headers are missing")
	}
	if at, n := le.Uint64(head[40:]), uint64(le.Uint16(head[58:]))*uint64(le.Uint16(head[60:])); at > uint64(size) || n > uint64(size)-at {
		return k, unfit("a whole kernel", "its section headers are missing")
	}
	pvh, loads := false, 0
	for ; len(headers) > 0; headers = headers[headerSize:] {
		kind, from, length, memory := le.Uint32(headers), le.Uint64(headers[8:]), le.Uint64(headers[32:]), le.Uint64(headers[40:])
		if kind != load && kind != note {
			continue
		}
		if from > uint64(size) || length > uint64(size)-from {
			return k, unfit("a whole kernel", "it has %d bytes, and a part that ends after %d", size, from+length)
		}
		if kind == note && length <= maxNotes {
			b := make([]byte, length)
			if _, err := r.ReadAt(b, int64(from)); err != nil {
				return k, err
			}
			pvh = pvh || hasPVH(b)
			continue
		}
		if loads++; memory > 1<<30 || memory < length {
			return k, unfit("a kernel", "a part of it takes %d bytes of memory", memory)
		}
	}
	switch {
	case loads == 0:
		return k, unfit("a kernel", "nothing of it is loaded")
	case !pvh:
		return k, unfit("a kernel for machines", "it has no PVH entry (CONFIG_PVH)")
	}
	k.Release = findRelease(io.NewSectionReader(r, 0, size))
	return k, nil
}

// hasPVH looks for Xen's note 18, the address a machine is entered at.
func hasPVH(b []byte) bool {
	for len(b) >= 12 {
		name, desc := int(le.Uint32(b)+3)&^3, int(le.Uint32(b[4:])+3)&^3
		if name > len(b)-12 || desc > len(b)-12-name {
			return false
		}
		if le.Uint32(b[8:]) == 18 && bytes.HasPrefix(b[12:], []byte("Xen\x00")) {
			return true
		}
		b = b[12+name+desc:]
	}
	return false
}

// findRelease looks for the kernel's banner.
func findRelease(r io.Reader) string {
	banner := []byte("Linux version ")
	const keep = 256
	buf, have := make([]byte, 1<<20), 0
	for {
		n, err := io.ReadFull(r, buf[have:])
		have += n
		for at := 0; ; {
			k := bytes.Index(buf[at:have], banner)
			if k < 0 || have-at-k < keep && err == nil {
				break // there is none, or the next part shows it whole
			}
			at += k + len(banner)
			if s := releaseIn(buf[at:min(at+keep, have)]); s != "" {
				return s
			}
		}
		if err != nil {
			return ""
		}
		have = copy(buf, buf[have-keep:have])
	}
}

// releaseIn is the release at the beginning of b, up to a space.
func releaseIn(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	s, _, _ = strings.Cut(s, " ")
	if !reRelease.MatchString(s) {
		return ""
	}
	return s
}

// InspectRoot says what file system an image holds, by its superblock, and whether
// all of it is there. Nothing more is read, and nothing of it is ever mounted here.
//
// Errors: KindInvalid saying what is wrong with it.
func InspectRoot(r io.ReaderAt, size int64) (kind string, err error) {
	head := make([]byte, 2048)
	if _, err := r.ReadAt(head, 0); err != nil {
		return "", unfit("an image of a file system", "it has %d bytes", size)
	}
	super, whole := head[1024:], uint64(0)
	switch {
	case string(head[:4]) == "hsqs":
		kind, whole = SquashFS, le.Uint64(head[40:])
	case le.Uint32(super) == erofsMagic:
		kind, whole = EROFS, blocks(uint64(le.Uint32(super[36:])), uint32(super[12]))
	case le.Uint16(super[56:]) == ext4Magic:
		kind, whole = Ext4, blocks(uint64(le.Uint32(super[4:])), le.Uint32(super[24:])+10)
	default:
		return "", unfit("an image of a file system", "it is neither squashfs, erofs nor ext4")
	}
	if whole > uint64(size) {
		return "", unfit("a whole image", "its %s takes %d bytes, there are %d", kind, whole, size)
	}
	return kind, nil
}

// blocks is the size of n blocks of 2^bits bytes; of a size no file system has, more
// than any file.
func blocks(n uint64, bits uint32) uint64 {
	if bits > 16 {
		return 1 << 63
	}
	return n << bits
}

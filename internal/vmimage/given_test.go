//go:build linux

package vmimage

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// elf is a kernel of two parts: what is loaded, with a banner, and a note of a type.
func elf(note uint32) []byte {
	b := make([]byte, 0x400)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	load, notes := b[64:], b[120:]
	le.PutUint32(load, 1)
	le.PutUint64(load[32:], uint64(len(b)))
	le.PutUint64(load[40:], uint64(len(b)))
	le.PutUint32(notes, 4)
	le.PutUint64(notes[8:], 0x300)
	le.PutUint64(notes[32:], 20)
	at := b[0x300:]
	le.PutUint32(at, 4)
	le.PutUint32(at[4:], 4)
	le.PutUint32(at[8:], note)
	copy(at[12:], "Xen\x00")
	copy(b[0x380:], "Linux version %s\x00Linux version 6.1.0-9-test (gcc)")
	return b
}

// bz is a compressed kernel.
func bz() []byte {
	b := make([]byte, 5*512+64)
	b[0x1f1] = 4
	le.PutUint32(b[0x1f4:], 4)
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], "6.1.0-9-test (debian) #1\x00")
	return b
}

// TestInspectKernel: what boots is told from what does not, before a monitor has to.
func TestInspectKernel(t *testing.T) {
	far := append(elf(18), make([]byte, 3<<20)...) // a banner that two reads share
	copy(far[0x380:], make([]byte, 0x80))
	copy(far[1<<20-7:], "Linux version 6.1.0-9-test ")
	for what, b := range map[string][]byte{KernelELF: elf(18), KernelBz: bz(), "elf, far": far} {
		k, err := InspectKernel(bytes.NewReader(b), int64(len(b)))
		if err != nil || !strings.HasPrefix(what, k.Format) || k.Release != "6.1.0-9-test" {
			t.Errorf("%s: %+v, %v", what, k, err)
		}
	}
	change := func(b []byte, at int, to ...byte) []byte { copy(b[at:], to); return b }
	for what, b := range map[string][]byte{
		"nothing":                 nil,
		"too little":              elf(18)[:100],
		"text":                    bytes.Repeat([]byte("text"), 1000),
		"an ELF without an entry": elf(17),
		"one that is cut off":     elf(18)[:0x300],
		"one of another machine":  change(elf(18), 18, 183),
		"one of 32 bits":          change(elf(18), 4, 1),
		"one of many headers":     change(elf(18), 56, 255, 255),
		"one with headers aside":  change(elf(18), 32, 0, 0, 0, 0, 0, 0, 0, 0x80),
		"one that wraps around":   change(elf(18), 64+8, 255, 255, 255, 255, 255, 255, 255, 255),
		"one of much memory":      change(elf(18), 64+40, 0, 0, 0, 0, 1),
		"a cut bzImage":           bz()[:5*512+60],
	} {
		if k, err := InspectKernel(bytes.NewReader(b), int64(len(b))); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %+v, %v", what, k, err)
		}
	}
	for _, bad := range []string{"../x", "..", ".x", "a/b", "", strings.Repeat("x", 65)} {
		if got := releaseIn([]byte(bad + " rest")); got != "" {
			t.Errorf("release %q", got)
		}
	}
}

// TestInspectRoot: our own images are what they are, and a part of one is not whole.
func TestInspectRoot(t *testing.T) {
	var image bytes.Buffer
	if err := WriteRoot(&image, sample(t)); err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteDisk(f, 8<<20, UUID("x")); err != nil {
		t.Fatal(err)
	}
	squash := make([]byte, 4096)
	copy(squash, "hsqs")
	le.PutUint64(squash[40:], 4096)
	for kind, c := range map[string]struct {
		r    io.ReaderAt
		size int64
	}{EROFS: {bytes.NewReader(image.Bytes()), int64(image.Len())}, Ext4: {f, DiskSize(8 << 20)}, SquashFS: {bytes.NewReader(squash), 4096}} {
		if got, err := InspectRoot(c.r, c.size); err != nil || got != kind {
			t.Errorf("%s is %q, %v", kind, got, err)
		}
		if got, err := InspectRoot(c.r, c.size-1); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("a part of %s is %q, %v", kind, got, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 4096)} {
		if got, err := InspectRoot(bytes.NewReader(b), int64(len(b))); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%d zeros are %q, %v", len(b), got, err)
		}
	}
}

// FuzzInspect: no file somebody brings is more than an error.
func FuzzInspect(f *testing.F) {
	f.Add(elf(18))
	f.Add(bz())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := InspectKernel(bytes.NewReader(b), int64(len(b)))
		if err == nil && k.Release != "" && !reRelease.MatchString(k.Release) {
			t.Errorf("release %q", k.Release)
		}
		_, _ = InspectRoot(bytes.NewReader(b), int64(len(b)))
	})
}

package snapimage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// memory is an io.WriterAt that refuses what is outside.
type memory []byte

func (m memory) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > int64(len(m)) {
		panic("outside")
	}
	return copy(m[at:], b), nil
}

// sparse makes a file of size with data at some places.
func sparse(t testing.TB, size int64, data map[int64]string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err == nil {
		err = f.Truncate(size)
	}
	for at, s := range data {
		if err == nil {
			_, err = f.WriteAt([]byte(s), at)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestPack: what was packed is what is unpacked, and zeros take no room, be they
// holes or written.
func TestPack(t *testing.T) {
	for name, c := range map[string]struct {
		size   int64
		data   map[int64]string
		chunks int64
	}{
		"nothing":         {1, nil, 0},
		"a byte":          {1, map[int64]string{0: "x"}, 1},
		"holes":           {1 << 24, map[int64]string{5: "a", 1 << 20: "b", 1<<24 - 1: "c"}, 3},
		"zeros":           {1 << 20, map[int64]string{0: strings.Repeat("\x00", 1<<20)}, 0},
		"over the border": {1 << 20, map[int64]string{chunk - 2: "abcd"}, 2},
		"an odd end":      {3*chunk + 7, map[int64]string{3 * chunk: "1234567"}, 1},
	} {
		f := sparse(t, c.size, c.data)
		var b bytes.Buffer
		if err := pack(t.Context(), &b, f, c.size); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if most := c.chunks * (8 + chunk); int64(b.Len()) > most || c.chunks > 0 && b.Len() < 8 {
			t.Errorf("%s: %d bytes, at most %d were expected", name, b.Len(), most)
		}
		got, want := make(memory, c.size), make([]byte, c.size)
		if err := unpack(got, &b, c.size); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := io.ReadFull(io.NewSectionReader(f, 0, c.size), want); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: it came back otherwise (%v)", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pack(ctx, io.Discard, sparse(t, 1, map[int64]string{0: "x"}), 1); err == nil {
		t.Error("packed for nobody")
	}
}

// FuzzUnpack: nothing is written outside, whatever is read.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{}, uint32(1))
	f.Add(append(make([]byte, 8), 'x'), uint32(1))
	f.Add(bytes.Repeat([]byte{0xff}, 9), uint32(chunk+1))
	f.Add(append(append(make([]byte, 8+chunk), make([]byte, 7)...), 1, 'x'), uint32(chunk+1))
	f.Fuzz(func(t *testing.T, b []byte, size uint32) {
		m := make(memory, size%(4*chunk)+1)
		if err := unpack(m, bytes.NewReader(b), int64(len(m))); err == nil && len(b) > 0 && len(b) < 9 {
			t.Errorf("%d bytes are no chunk", len(b))
		}
	})
}

// image seals one with a packed file and a plain one.
func image(t *testing.T) (sandbox.Snapshot, Manifest) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Pack(t.Context(), filepath.Join(dir, "ram"), sparse(t, 1<<20, map[int64]string{70000: "data"}), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state"), []byte("state"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := Manifest{Version: 1, Created: time.Now(), Tenant: "t", Template: "sha256:x", Limits: sandbox.Limits{Memory: 1, PIDs: 2},
		Builds: []Build{{"monitor", "1"}, {"kernel", "2"}}}
	s, err := Seal(t.Context(), dir, m)
	if err != nil {
		t.Fatal(err)
	}
	return s, m
}

// TestImage: what was sealed is opened, fits what it is of, and nothing else.
func TestImage(t *testing.T) {
	s, m := image(t)
	img, err := Open(s, 1)
	if err != nil {
		t.Fatal(err)
	}
	spec := sandbox.Spec{Tenant: "t", Root: sandbox.Root{Digest: "sha256:x"}, Limits: m.Limits}
	if err := img.Fits(spec); err != nil {
		t.Error(err)
	}
	if err := img.Built(spec, m.Builds); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*sandbox.Spec){
		"another tenant": func(s *sandbox.Spec) { s.Tenant = "u"; s.Root.Digest = "sha256:y" },
		"template":       func(s *sandbox.Spec) { s.Root.Digest = "sha256:y" },
		"limits":         func(s *sandbox.Spec) { s.Limits.PIDs++ },
		"read-only":      func(s *sandbox.Spec) { s.ReadonlyRoot = true },
		"a wire":         func(s *sandbox.Spec) { s.Wire = &sandbox.Wire{} },
	} {
		other := spec
		change(&other)
		want := sandbox.KindConflict
		if other.Tenant != spec.Tenant {
			want = sandbox.KindNotFound
		}
		if err := img.Fits(other); sandbox.KindOf(err) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, here := range [][]Build{{{"monitor", "1"}}, {{"monitor", "1"}, {"kernel", "3"}}, {{"monitor", "1"}, {"kernel", "2"}, {"x", "y"}}} {
		if err := img.Built(spec, here); sandbox.KindOf(err) != sandbox.KindConflict {
			t.Errorf("%v: %v", here, err)
		}
	}
	ram := make(memory, 1<<20)
	if err := img.Unpack(t.Context(), "ram", ram, 1<<20); err != nil || string(ram[70000:70004]) != "data" {
		t.Errorf("%q, %v", ram[70000:70004], err)
	}
	if b, err := img.Read(t.Context(), "state", 10); err != nil || string(b) != "state" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := img.Read(t.Context(), "state", 4); err == nil {
		t.Error("more than the limit")
	}
	if fi, err := os.Stat(filepath.Join(s.Dir, "state")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if _, err := Open(s, 2); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("another version: %v", err)
	}
}

// TestTampered: a changed file is found out by who uses it, wherever it was changed;
// a manifest that was sealed again is not the one whose digest is known.
func TestTampered(t *testing.T) {
	use := func(s sandbox.Snapshot) error {
		img, err := Open(s, 1)
		if err == nil {
			err = img.Unpack(t.Context(), "ram", make(memory, 1<<20), 1<<20)
		}
		if err == nil {
			_, err = img.Read(t.Context(), "state", 100)
		}
		return err
	}
	for _, name := range []string{"ram", "state", fileManifest} {
		s, _ := image(t)
		path := filepath.Join(s.Dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(good); at += max(1, len(good)/50) {
			bad := bytes.Clone(good)
			bad[at] ^= 1
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := use(s); sandbox.KindOf(err) != sandbox.KindConflict {
				t.Errorf("byte %d of %s changed: %v", at, name, err)
			}
		}
	}
	s, m := image(t)
	m.Tenant = "other"
	b, _ := json.Marshal(m)
	if err := os.WriteFile(filepath.Join(s.Dir, fileManifest), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := use(s); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("another manifest: %v", err)
	}
	if err := use(sandbox.Snapshot{Dir: t.TempDir()}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("nothing there: %v", err)
	}
}

// TestMeasure: each byte of a file counts, wherever its piece begins.
func TestMeasure(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	data := bytes.Repeat([]byte("0123456789abcdef"), (2*pieceSize+100)/16)
	seen := map[string]int{}
	for _, n := range []int{0, 1, pieceSize - 1, pieceSize, pieceSize + 1, len(data)} {
		for _, flip := range []int{-1, 0, n / 2, n - 1} {
			b := bytes.Clone(data[:n])
			if flip >= 0 && flip < n {
				b[flip] ^= 0x80
			} else if flip >= 0 {
				continue
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := Measure(t.Context(), name)
			if err != nil || m.Size != int64(n) {
				t.Fatalf("%+v, %v", m, err)
			}
			seen[m.SHA256]++
			for _, step := range []int{1<<20 + 1, pieceSize, 4099} { // read once, in whatever parts
				meter := newMeter()
				for part := range slices.Chunk(b, step) {
					meter.Write(part)
				}
				if meter.sum() != m.SHA256 {
					t.Errorf("%d bytes in parts of %d have another digest", n, step)
				}
			}
		}
	}
	// Of one byte the first is the middle and the last.
	if len(seen) != 1+2+4*4 || seen[strings.Repeat("0", 64)] != 0 {
		t.Errorf("%d digests of files that differ", len(seen))
	}
}

// TestLend: a file with holes keeps them, takes no more room in the reckoning than
// what is in it, is lent under another name, and is refused when a byte of it differs.
func TestLend(t *testing.T) {
	const size = 1<<20 + 5
	seal := func() (*Image, sandbox.Snapshot) {
		dir := filepath.Join(t.TempDir(), "image")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := Sparse(t.Context(), filepath.Join(dir, "memory"), sparse(t, size, map[int64]string{70000: "data", size - 1: "x"}), size); err != nil {
			t.Fatal(err)
		}
		s, err := Seal(t.Context(), dir, Manifest{Version: 1}, "memory")
		if err != nil {
			t.Fatal(err)
		}
		img, err := Open(s, 1)
		if err != nil {
			t.Fatal(err)
		}
		return img, s
	}
	img, s := seal()
	if s.Size > 3*chunk {
		t.Errorf("it is said to take %d bytes", s.Size)
	}
	var lent []string
	for _, name := range []string{"a", "b"} {
		to := filepath.Join(t.TempDir(), name)
		if err := img.Lend(t.Context(), "memory", to); err != nil {
			t.Fatal(err)
		}
		lent = append(lent, to)
	}
	b, err := os.ReadFile(lent[0])
	if err != nil || len(b) != size || string(b[70000:70004]) != "data" || b[size-1] != 'x' || bytes.Count(b, []byte{0}) != size-5 {
		t.Errorf("what was lent has %d bytes, or others (%v)", len(b), err)
	}
	x, errX := os.Stat(lent[0])
	y, errY := os.Stat(lent[1])
	if errX != nil || errY != nil || !os.SameFile(x, y) || x.Mode().Perm() != 0o444 {
		t.Errorf("%v and %v are not one file that nobody writes (%v, %v)", x, y, errX, errY)
	}
	if elsewhere, err := os.MkdirTemp("/dev/shm", "lend"); err == nil { // another file system, most of the time
		defer os.RemoveAll(elsewhere)
		to := filepath.Join(elsewhere, "a")
		if err := img.Lend(t.Context(), "memory", to); err != nil {
			t.Error(err)
		}
		c, err := os.ReadFile(to)
		if fi, err2 := os.Stat(to); err != nil || err2 != nil || !bytes.Equal(b, c) || fi.Mode().Perm() != 0o444 {
			t.Errorf("elsewhere it is another: %v, %v, %v", fi, err, err2)
		}
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(lent[1]); err != nil {
		t.Errorf("without its image it is gone: %v", err)
	}
	img, s = seal()
	name := filepath.Join(s.Dir, "memory")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for what, at := range map[string]int{"data": 70001, "a hole": size / 2, "the end": size - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if err := errors.Join(os.Remove(name), os.WriteFile(name, bad, 0o600)); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "c")
		if err := img.Lend(t.Context(), "memory", to); sandbox.KindOf(err) != sandbox.KindConflict {
			t.Errorf("%s changed: %v", what, err)
		}
		if _, err := os.Lstat(to); err == nil {
			t.Errorf("%s changed: it was lent", what)
		}
	}
	if err := os.WriteFile(name, good, 0o600); err != nil { // without holes, and the same
		t.Fatal(err)
	}
	if err := img.Lend(t.Context(), "memory", filepath.Join(t.TempDir(), "d")); err != nil {
		t.Errorf("as it was: %v", err)
	}
	if err := img.Lend(t.Context(), "state", filepath.Join(t.TempDir(), "e")); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("one that is not there: %v", err)
	}
}

package bundle

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak/internal/guest/runtime"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Every pattern has to match something, also in a clone without assets: this
// one matches README.md, *.gz and *.zst, and not what `make` is about to rename.
//
//go:embed assets/*[dtz]
var assets embed.FS

// Bundle says where the programs are.
type Bundle struct {
	Runsc   string // path of firebreak-runsc
	Runtime string // directory to be bound at /.firebreak: agent and language modules
	// Digests are the SHA-256 sums of all files, in hex, by path relative to
	// the directory they are in: "runsc", "firebreak-guest", "python/…".
	Digests map[string]string

	holds []*os.File
}

// Close lets go of the programs: Prune may remove them once no sandbox uses
// them. It is idempotent; the end of the process does the same.
func (b *Bundle) Close() error {
	var errs []error
	for _, f := range b.holds {
		errs = append(errs, f.Close())
	}
	b.holds = nil
	return errors.Join(errs...)
}

// Open unpacks what is embedded below dir, unless that was done before, and
// verifies every file's SHA-256. Processes that do so at once share one copy,
// which stays until each has closed its Bundle or ended; see Prune.
//
// Errors: KindUnavailable when the programs were not embedded; KindInternal
// when a file differs from what was unpacked; KindNoSpace.
//
// Cost: 20 ms for the checksums; half a second the first time.
func Open(dir string) (*Bundle, error) {
	runsc, err := embedded("runsc")
	if err != nil {
		return nil, err
	}
	agent, err := embedded("firebreak-guest")
	if err != nil {
		return nil, err
	}
	modules, err := tree(runtime.Files)
	if err != nil {
		return nil, err
	}
	sets := [2]set{{runsc}, append(set{agent}, modules...)}
	var dirs [2]string
	var sums [2]map[string]string
	var holds [2]*os.File
	var errs [2]error
	var wg sync.WaitGroup
	for i, s := range sets {
		wg.Go(func() { dirs[i], sums[i], holds[i], errs[i] = s.hold(filepath.Join(dir, "libexec")) })
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		for _, f := range holds {
			f.Close() // of nil it does nothing
		}
		return nil, sandbox.Wrap("unpack", "", err)
	}
	b := &Bundle{Runsc: filepath.Join(dirs[0], "runsc"), Runtime: dirs[1], Digests: sums[0], holds: holds[:]}
	for name, sum := range sums[1] {
		b.Digests[name] = sum
	}
	return b, nil
}

// file is one file to install.
type file struct {
	name    string // slash-separated, relative
	perm    fs.FileMode
	source  []byte
	packing string // of source, one of packings; empty: none
}

// packings are the ways in which programs are embedded, by the ends of their names. The
// runtime is a sixth of this program, and packed more tightly than gzip can. Each has a
// checksum at its end, which reading it verifies.
var packings = map[string]func(io.Reader) (io.ReadCloser, error){
	".gz": func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) },
	".zst": func(r io.Reader) (io.ReadCloser, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	},
}

// write writes the content of f to w.
func (f file) write(w io.Writer) error {
	if f.packing == "" {
		_, err := w.Write(f.source)
		return err
	}
	z, err := packings[f.packing](bytes.NewReader(f.source))
	if err != nil {
		return err
	}
	_, err = io.Copy(w, z)
	return errors.Join(err, z.Close())
}

// embedded returns a program from assets/.
func embedded(name string) (file, error) {
	for packing := range packings {
		b, err := assets.ReadFile(path.Join("assets", name+packing))
		if !errors.Is(err, fs.ErrNotExist) {
			return file{name: name, perm: 0o755, source: b, packing: packing}, err
		}
	}
	return file{}, sandbox.Errorf("unpack", sandbox.KindUnavailable, "%s is not embedded in this program", name).
		WithHint("run `make`: a plain `go build` leaves the embedded programs out")
}

// tree returns all files of a file system.
func tree(fsys fs.FS) (set, error) {
	var s set
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(fsys, name)
		s = append(s, file{name: name, perm: 0o644, source: b})
		return err
	})
	return s, err
}

// set is files that are installed together.
type set []file

// digest names the set by what it is made of.
func (s set) digest() string {
	h := sha256.New()
	for _, f := range s {
		fmt.Fprintf(h, "%s %o %q %x\n", f.name, f.perm, f.packing, sha256.Sum256(f.source))
	}
	return hex.EncodeToString(h.Sum(nil))
}

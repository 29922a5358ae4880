package gvisor

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// fileManifest says what an image is. The other files are runsc's.
const fileManifest = "manifest.json"

// maxManifest bounds what is read of one: it comes from the disk.
const maxManifest = 64 << 10

// manifest is what there is to know about an image before anything of it is
// used. Its own digest, which is kept elsewhere, covers all of the image.
type manifest struct {
	Version      int              `json:"version"`
	Created      time.Time        `json:"created"`
	Tenant       sandbox.TenantID `json:"tenant"`
	Template     string           `json:"template"`
	ReadonlyRoot bool             `json:"readonly_root"`
	// Wired says whether the guest has a network device, which it was started with and
	// which its programs have seen: one is neither taken from it nor added.
	Wired  bool           `json:"wired,omitempty"`
	Limits sandbox.Limits `json:"limits"`
	builds
	Files []imageFile `json:"files"`
}

// manifestVersion is that of what this package writes, the state of an instance
// of its own included.
const manifestVersion = 2

// builds is what an image fits. The guest's memory holds pointers into the agent
// and knows what the processor can do; only the same build of the sentry can read
// what one has written.
type builds struct {
	Runsc   string `json:"runsc"`   // SHA-256 of the program
	Runtime string `json:"runtime"` // of the agent and the language modules
	CPU     string `json:"cpu"`     // of the processor's features
}

// imageFile is one file of an image.
type imageFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// image is one that has been checked, or is only known to those who wrote it.
type image struct {
	dir   string
	files []*os.File // as a sentry takes them; nobody's who has opened dir again
	manifest
}

// close lets go of an image's files.
func (img *image) close() {
	for _, f := range img.files {
		f.Close()
	}
}

// again is the image's files, opened once more: a sentry moves where it reads.
func (img *image) again() (files []*os.File, err error) {
	for _, f := range img.files {
		g, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, g)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// buildsHere describes what this Backend makes instances of. Cost: the programs
// are read, once.
func (b *Backend) buildsHere() (builds, error) {
	runsc, err := digestFile(b.cfg.Runsc)
	if err != nil {
		return builds{}, err
	}
	h := sha256.New()
	err = filepath.WalkDir(b.cfg.Runtime, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := digestFile(name)
		rel, _ := filepath.Rel(b.cfg.Runtime, name)
		fmt.Fprintf(h, "%s %s\n", f.SHA256, rel)
		return err
	})
	return builds{Runsc: runsc.SHA256, Runtime: hex.EncodeToString(h.Sum(nil)), CPU: cpuFeatures()}, err
}

// cpuFeatures is a digest of what the first processor says it can do.
func cpuFeatures() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	h := sha256.New()
	io.WriteString(h, runtime.GOARCH+"\n")
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "CPU implementer":
			io.WriteString(h, strings.TrimSpace(value)+"\n")
		case "flags", "Features":
			f := strings.Fields(value)
			slices.Sort(f)
			io.WriteString(h, strings.Join(f, " "))
			return hex.EncodeToString(h.Sum(nil))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// digestFile measures one regular file, which must not be a link.
func digestFile(name string) (imageFile, error) {
	f, err := openFile(name)
	if err != nil {
		return imageFile{}, err
	}
	defer f.Close()
	return measure(context.Background(), f)
}

// openFile opens a regular file, which must not be a link.
func openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, cmp.Or(err, error(&fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}))
	}
	return f, nil
}

// pieceSize is how much of a file is hashed at once, by one of as many as there are
// CPUs. What a file's digest covers is the digests of its pieces.
const pieceSize = 1 << 20

// measure digests an open file without moving where it is read.
func measure(ctx context.Context, f *os.File) (imageFile, error) {
	fi, err := f.Stat()
	if err != nil {
		return imageFile{}, err
	}
	size := fi.Size()
	pieces := (size + pieceSize - 1) / pieceSize
	sums := make([]byte, pieces*sha256.Size)
	var next atomic.Int64
	work := func() error {
		buf := make([]byte, min(size, pieceSize))
		for k := next.Add(1) - 1; k < pieces; k = next.Add(1) - 1 {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(pieceSize, size-k*pieceSize)]
			if _, err := f.ReadAt(b, k*pieceSize); err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			copy(sums[k*sha256.Size:], sum[:])
		}
		return nil
	}
	errs := make([]error, min(int64(runtime.GOMAXPROCS(0)), pieces))
	var all sync.WaitGroup
	for k := range errs {
		all.Go(func() { errs[k] = work() })
	}
	all.Wait()
	sum := sha256.Sum256(sums)
	return imageFile{Name: filepath.Base(f.Name()), Size: size, SHA256: hex.EncodeToString(sum[:])}, errors.Join(errs...)
}

// seal measures the files of an image, writes its manifest, and returns when all
// of it is on stable storage.
func seal(ctx context.Context, dir string, m manifest, files []*os.File) (sandbox.Snapshot, error) {
	s := sandbox.Snapshot{Dir: dir, Created: m.Created, Limits: m.Limits, ReadonlyRoot: m.ReadonlyRoot}
	flushed := make(chan error, 1) // while they are read
	go func() {
		var errs []error
		for _, f := range files {
			errs = append(errs, f.Sync())
		}
		flushed <- errors.Join(errs...)
	}()
	for _, f := range files {
		measured, err := measure(ctx, f)
		if err != nil {
			return s, errors.Join(err, <-flushed)
		}
		m.Files, s.Size = append(m.Files, measured), s.Size+measured.Size
	}
	if err := <-flushed; err != nil {
		return s, err
	}
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return s, err
	}
	s.Digest, s.Size = digest(b), s.Size+int64(len(b))
	name := filepath.Join(dir, fileManifest)
	if err := os.WriteFile(name, b, 0o600); err != nil {
		return s, err
	}
	return s, errors.Join(flush(name), flush(dir), flush(filepath.Dir(dir)))
}

// flush puts a file, or a directory's entries, on stable storage.
func flush(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// changed is the error about an image that is not what was written.
func changed(format string, args ...any) error {
	return sandbox.Errorf("restore", sandbox.KindConflict, format, args...).WithHint("take another snapshot")
}

// openImage reads an image's manifest, of which nothing is parsed before its digest
// is right. Of the other files it knows no more than that they are there: verify
// reads them.
func openImage(from sandbox.Snapshot) (*image, error) {
	b, err := readSmall(filepath.Join(from.Dir, fileManifest), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, sandbox.Errorf("restore", sandbox.KindNotFound, "the snapshot's files are not there")
	}
	if sandbox.KindOf(err) == sandbox.KindCapacity {
		return nil, exhausted("", err)
	}
	if err != nil || digest(b) != from.Digest {
		return nil, changed("the snapshot's manifest is not the one that was written")
	}
	img := &image{dir: from.Dir}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&img.manifest); err != nil || img.Version != manifestVersion || !slices.EqualFunc(img.Files, imageNames, imageFile.called) {
		return nil, changed("the snapshot was written by another version")
	}
	entries, err := os.ReadDir(from.Dir)
	if err != nil {
		return nil, sandbox.Wrap("restore", "", bare(err))
	}
	if len(entries) != len(img.Files)+1 {
		return nil, changed("the snapshot has %d files, not %d", len(entries), len(img.Files)+1)
	}
	return img, nil
}

func (f imageFile) called(name string) bool { return f.Name == name }

// verify compares every byte of the image with its manifest. The files it leaves
// open are those it has read: what becomes of their names is all the same.
func (img *image) verify(ctx context.Context) error {
	if img.dir == "" { // it never had names
		return nil
	}
	for _, want := range img.Files {
		f, err := openFile(filepath.Join(img.dir, want.Name))
		if err == nil {
			img.files = append(img.files, f)
			var got imageFile
			if got, err = measure(ctx, f); err == nil && got != want {
				err = fs.ErrInvalid
			}
		}
		if err != nil {
			img.close()
			if cause := ctx.Err(); cause != nil {
				return sandbox.Wrap("restore", "", cause)
			}
			return changed("the snapshot's file %s is not what was written", want.Name)
		}
	}
	return nil
}

// readSmall reads a file of at most limit bytes, which must not be a link.
func readSmall(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fs.ErrInvalid
	}
	return b, err
}

// fits compares an image with what is to be made of it. Whose it is comes first:
// nobody learns anything about another's.
func (img *image) fits(s sandbox.Spec, here builds) error {
	refuse := func(hint, format string, args ...any) error {
		return sandbox.Errorf("restore", sandbox.KindConflict, format, args...).WithID(string(s.Sandbox)).WithHint("%s", hint)
	}
	const again = "take another snapshot"
	switch {
	case img.Tenant != s.Tenant:
		return sandbox.Errorf("restore", sandbox.KindNotFound, "no such snapshot").WithID(string(s.Sandbox))
	case img.Template != s.Root.Digest && s.Root.Mutable:
		return refuse(again, "this machine, which is the snapshot's template, has changed since it was taken")
	case img.Template != s.Root.Digest:
		return refuse("name the template it was taken of", "the snapshot is of another template")
	case img.Runsc != here.Runsc:
		return refuse(again, "the snapshot was taken by another build of runsc")
	case img.Runtime != here.Runtime:
		return refuse(again, "the snapshot was taken with another build of the agent")
	case img.CPU != here.CPU:
		return refuse(again, "the snapshot was taken on a processor with other features")
	case img.Wired && s.Wire == nil:
		return refuse("give it a network: one that says `allow: []` allows nothing", "the snapshot is of a sandbox with a network device, which it cannot do without")
	case !img.Wired && s.Wire != nil:
		return refuse("leave the network rules and bindings out", "the snapshot is of a sandbox without a network device, and gets none")
	case img.ReadonlyRoot != s.ReadonlyRoot || img.Limits != s.Limits:
		return refuse("leave the limits and readonly_root out", "a restored sandbox has the limits of the one that was saved")
	}
	return nil
}

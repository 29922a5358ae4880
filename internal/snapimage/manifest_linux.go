package snapimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// fileManifest is the manifest's name; all other names are the caller's.
const fileManifest = "manifest.json"

// maxManifest bounds what is read of one: it comes from the disk.
const maxManifest = 64 << 10

// Manifest is what there is to know about an image before anything of it is used.
type Manifest struct {
	Version      int              `json:"version"`
	Created      time.Time        `json:"created"`
	Tenant       sandbox.TenantID `json:"tenant"`
	Template     string           `json:"template"`
	ReadonlyRoot bool             `json:"readonly_root"`
	// Wired says whether the guest has a network device, which it was started with and
	// which its programs have seen: one is neither taken from it nor added.
	Wired  bool           `json:"wired,omitempty"`
	Limits sandbox.Limits `json:"limits"`
	Builds []Build        `json:"builds"`
	Files  []File         `json:"files"`
}

// Build is one of the things an image fits one of only: memory holds pointers into
// programs, and knows what the processor can do.
type Build struct {
	What string `json:"what"` // as in "another What"
	Is   string `json:"is"`
}

// File is one file of an image. That of a sparse one is the digest of what Pack would
// make of it: holes are not read.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	Sparse bool   `json:"sparse,omitempty"`
}

// Image is one whose manifest has been checked.
type Image struct {
	Manifest
	dir string
}

// Seal measures the files in dir, writes their manifest, and returns when all of it
// is on stable storage. m says what they are of; its Files are Seal's. Those named
// sparse are Sparse's: others may read them, who is let into dir.
func Seal(ctx context.Context, dir string, m Manifest, sparse ...string) (sandbox.Snapshot, error) {
	s := sandbox.Snapshot{Dir: dir, Created: m.Created, Limits: m.Limits, ReadonlyRoot: m.ReadonlyRoot}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return s, err
	}
	var names []string
	for _, e := range entries {
		name, mode := filepath.Join(dir, e.Name()), fs.FileMode(0o600)
		if slices.Contains(sparse, e.Name()) {
			mode = 0o444
		}
		if err := os.Chmod(name, mode); err != nil {
			return s, err
		}
		names = append(names, name)
	}
	flushed := make(chan error, 1) // while they are read
	go func() {
		var errs []error
		for _, name := range names {
			errs = append(errs, flush(name))
		}
		flushed <- errors.Join(errs...)
	}()
	m.Files = nil
	for _, name := range names {
		var f File
		var used int64
		if slices.Contains(sparse, filepath.Base(name)) {
			f, used, err = measureSparse(ctx, name)
		} else {
			f, err = Measure(ctx, name)
			used = f.Size
		}
		if err != nil {
			return s, errors.Join(err, <-flushed)
		}
		m.Files, s.Size = append(m.Files, f), s.Size+used
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

// measureSparse is Measure for a file with holes. used is the room that it takes.
func measureSparse(ctx context.Context, name string) (file File, used int64, err error) {
	f, size, err := open(name)
	if err != nil {
		return File{}, 0, err
	}
	defer f.Close()
	sum, used, err := sparseSum(ctx, f, size)
	return File{Name: filepath.Base(name), Size: size, SHA256: sum, Sparse: true}, used, err
}

// refuse is the error of an image that is not what was written.
func refuse(format string, args ...any) error {
	return sandbox.Errorf("restore", sandbox.KindConflict, format, args...).WithHint(again)
}

// Open reads an image's manifest, of the given version, and looks whether its files
// are there, and no others. Nothing of the image is parsed before its digest is
// right.
//
// Errors: KindNotFound when there is none; KindConflict when it is not what was
// written; KindCapacity, KindUnavailable for the host's.
func Open(from sandbox.Snapshot, version int) (*Image, error) {
	b, err := readSmall(filepath.Join(from.Dir, fileManifest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, sandbox.Errorf("restore", sandbox.KindNotFound, "the snapshot's files are not there")
	case sandbox.KindOf(err) == sandbox.KindCapacity:
		return nil, sandbox.Wrap("restore", "", bare(err))
	case err != nil || digest(b) != from.Digest:
		return nil, refuse("the snapshot's manifest is not the one that was written")
	}
	img := &Image{dir: from.Dir}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&img.Manifest); err != nil || img.Version != version {
		return nil, refuse("the snapshot was written by another version")
	}
	entries, err := os.ReadDir(from.Dir)
	if err != nil {
		return nil, sandbox.Wrap("restore", "", bare(err))
	}
	if len(entries) != len(img.Files)+1 {
		return nil, refuse("the snapshot has %d files, not %d", len(entries), len(img.Files)+1)
	}
	for _, f := range img.Files {
		fi, err := os.Lstat(filepath.Join(from.Dir, f.Name))
		if !filepath.IsLocal(f.Name) || err != nil || !fi.Mode().IsRegular() || fi.Size() != f.Size {
			return nil, img.changed(f.Name)
		}
	}
	return img, nil
}

func (img *Image) changed(name string) error {
	return refuse("the snapshot's file %s is not what was written", name)
}

// readSmall reads a manifest.
func readSmall(name string) ([]byte, error) {
	f, _, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = fs.ErrInvalid
	}
	return b, err
}

// bare is an error of the host without the files it names: the reader may be a
// tenant.
func bare(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

// again is what to do about an image that cannot be used.
const again = "take another snapshot"

// Fits compares an image with what is to be made of it. Whose it is comes first:
// nobody learns anything about another's.
//
// Errors: KindNotFound when it is another tenant's; KindConflict.
func (img *Image) Fits(s sandbox.Spec) error {
	refuse := func(hint, format string, args ...any) error {
		return sandbox.Errorf("restore", sandbox.KindConflict, format, args...).WithID(string(s.Sandbox)).WithHint("%s", hint)
	}
	switch {
	case img.Tenant != s.Tenant:
		return sandbox.Errorf("restore", sandbox.KindNotFound, "no such snapshot").WithID(string(s.Sandbox))
	case img.Template != s.Root.Digest && s.Root.Mutable:
		return refuse(again, "this machine, which is the snapshot's template, has changed since it was taken")
	case img.Template != s.Root.Digest:
		return refuse("name the template it was taken of", "the snapshot is of another template")
	case img.Wired && s.Wire == nil:
		return refuse("give it a network: one that says `allow: []` allows nothing", "the snapshot is of a sandbox with a network device, which it cannot do without")
	case !img.Wired && s.Wire != nil:
		return refuse("leave the network rules and bindings out", "the snapshot is of a sandbox without a network device, and gets none")
	case img.ReadonlyRoot != s.ReadonlyRoot || img.Limits != s.Limits:
		return refuse("leave the limits and readonly_root out", "a restored sandbox has the limits of the one that was saved")
	}
	return nil
}

// Built compares what an image was taken with with what there is here. s is what is
// to be made of it.
//
// Errors: KindConflict.
func (img *Image) Built(s sandbox.Spec, here []Build) error {
	for _, b := range here {
		if !slices.Contains(img.Builds, b) || len(here) != len(img.Builds) {
			return sandbox.Errorf("restore", sandbox.KindConflict, "the snapshot was taken with another %s", b.What).WithID(string(s.Sandbox)).WithHint(again)
		}
	}
	return nil
}

// Processor is a digest of what the first processor says it can do.
func Processor() string {
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

// open opens a file of the image that has its size.
func (img *Image) open(name string, sparse bool) (*os.File, File, error) {
	k := slices.IndexFunc(img.Files, func(f File) bool { return f.Name == name && f.Sparse == sparse })
	if k < 0 {
		return nil, File{}, img.changed(name)
	}
	file, size, err := open(filepath.Join(img.dir, name))
	switch {
	case sandbox.KindOf(err) == sandbox.KindCapacity:
		return nil, File{}, sandbox.Wrap("restore", "", bare(err))
	case err == nil && size == img.Files[k].Size:
		return file, img.Files[k], nil
	case err == nil:
		file.Close()
	}
	return nil, File{}, img.changed(name)
}

// with has f read a file of the image, of which it must leave nothing, and measures
// it meanwhile.
func (img *Image) with(ctx context.Context, name string, f func(io.Reader) error) error {
	file, want, err := img.open(name, false)
	if err != nil {
		return err
	}
	defer file.Close()
	h := newMeter()
	r := io.TeeReader(contextReader{ctx, io.LimitReader(file, want.Size+1)}, h)
	err = f(r)
	if ctx.Err() != nil {
		return sandbox.Wrap("restore", "", ctx.Err())
	}
	if err != nil && !errors.Is(err, errPacked) {
		return sandbox.Wrap("restore", "", bare(err))
	}
	if err != nil || h.sum() != want.SHA256 {
		return img.changed(name)
	}
	return nil
}

// Verify compares every byte of an image without sparse files with its manifest, and
// returns the files that it has read, by name and open: what becomes of their names
// meanwhile is all the same. The caller closes them.
//
// Errors: KindConflict; ctx's.
func (img *Image) Verify(ctx context.Context) (map[string]*os.File, error) {
	files := map[string]*os.File{}
	for _, want := range img.Files {
		f, _, err := open(filepath.Join(img.dir, want.Name))
		if err == nil {
			files[want.Name] = f
			var got File
			if got, err = measure(ctx, f); err == nil && got != want {
				err = fs.ErrInvalid
			}
		}
		if err == nil {
			continue
		}
		for _, f := range files {
			f.Close()
		}
		if cause := ctx.Err(); cause != nil {
			return nil, sandbox.Wrap("restore", "", cause)
		}
		return nil, img.changed(want.Name)
	}
	return files, nil
}

// Dir is where the image is; none of one that was not opened.
func (img *Image) Dir() string { return img.dir }

// Read returns a file of at most limit bytes.
func (img *Image) Read(ctx context.Context, name string, limit int64) (b []byte, err error) {
	err = img.with(ctx, name, func(r io.Reader) error {
		if b, err = io.ReadAll(io.LimitReader(r, limit+1)); err == nil && int64(len(b)) > limit {
			return errPacked
		}
		return err
	})
	return b, err
}

// Unpack writes what Pack has packed of a file of the given size. What it writes to
// is zero before.
func (img *Image) Unpack(ctx context.Context, name string, to io.WriterAt, size int64) error {
	return img.with(ctx, name, func(r io.Reader) error { return unpack(to, r, size) })
}

// contextReader makes a long read end with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

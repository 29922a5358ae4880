package template

import (
	"archive/tar"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// unpacker puts archives below a directory, which nothing in them can leave.
// Debian packages and the layers of an image go through the same one.
//
// A name that leads out is refused. A symbolic link on the way to an entry is
// followed as the guest would: absolute means from the root, and ".." stops
// there. What is already at an entry's own name is replaced, never written
// through. Setuid, setgid, extended attributes and with them file capabilities
// are not taken over.
//
// The resolution is done here; that each step also goes through os.Root is the
// second line, for when it is wrong.
type unpacker struct {
	root   *os.Root
	limits Limits

	packages bool // dpkg's rules: merged /usr, nothing open to others, the first package decides about a directory
	layers   bool // an image's rules: whiteouts, devices and pipes left out, modification times kept
	owners   bool // files belong to whom the archive says, else to us

	bytes    int64 // of all archives so far
	entries  int64
	streamed int64 // bytes of whole archives, headers included
	leftOut  int   // devices and pipes

	seed maphash.Seed
	// own holds the paths this layer wrote, hashed: those its whiteouts leave
	// alone, wherever in the archive they stand.
	own map[uint64]struct{}

	// Entries mostly follow their neighbours, so the last parent stays open.
	parentName string
	parentPath string
	parentRoot *os.Root

	buf []byte
}

func newUnpacker(root *os.Root, limits Limits) *unpacker {
	return &unpacker{root: root, limits: limits.orDefault(), seed: maphash.MakeSeed(), buf: make([]byte, 256<<10)}
}

// archive unpacks one tar archive. It reads to the end mark, not to the end.
//
// Errors: KindDenied for a name that leads out, KindTooLarge over a limit,
// KindInvalid for an archive that is broken; those of r and of the disk.
func (u *unpacker) archive(ctx context.Context, r io.Reader) (err error) {
	u.own = map[uint64]struct{}{}
	defer u.forget()
	for tr := tar.NewReader(r); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return broken(err)
		}
		if u.entries++; u.entries > u.limits.Entries {
			return refuse(sandbox.KindTooLarge, "more than %d entries", u.limits.Entries)
		}
		if err := u.entry(ctx, tr, h); err != nil {
			var e *sandbox.Error
			if !errors.As(err, &e) {
				err = &entryError{clip(h.Name), err}
			}
			return err
		}
	}
}

// entryError names the entry something happened at.
type entryError struct {
	name string
	err  error
}

// Error implements error.
func (e *entryError) Error() string { return e.name + ": " + e.err.Error() }

// Unwrap returns the cause.
func (e *entryError) Unwrap() error { return e.err }

// broken tells a bad archive from a source that failed.
func broken(err error) error {
	var e *sandbox.Error
	var path *fs.PathError
	if errors.As(err, &e) || errors.As(err, &path) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return refuse(sandbox.KindInvalid, "not a valid archive: %w", err)
}

// entryName is a clean path relative to the root. Errors: KindDenied,
// KindInvalid, KindTooLarge.
func (u *unpacker) entryName(name string) (string, error) {
	if len(name) > 4096 {
		return "", refuse(sandbox.KindTooLarge, "a name of %d bytes", len(name))
	}
	for c := range strings.SplitSeq(name, "/") {
		if len(c) > 255 || strings.IndexByte(c, 0) >= 0 {
			return "", refuse(sandbox.KindInvalid, "the name %q", clip(name))
		}
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", refuse(sandbox.KindDenied, "the name %q leads out of the image", clip(name))
	}
	if strings.Count(clean, "/") >= u.limits.Depth {
		return "", refuse(sandbox.KindTooLarge, "more than %d directories below each other", u.limits.Depth)
	}
	if u.packages {
		clean = mergedName(clean)
	}
	return clean, nil
}

func (u *unpacker) entry(ctx context.Context, tr *tar.Reader, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if u.layers {
			u.leftOut++
			return nil
		}
		fallthrough
	default:
		return refuse(sandbox.KindDenied, "%s: an entry of type %q does not belong in a template", clip(h.Name), h.Typeflag)
	}
	name, err := u.entryName(h.Name)
	if err != nil || name == "." {
		return err
	}
	dir, base := path.Split(name)
	parent, at, err := u.open(path.Clean(dir))
	if err != nil {
		return err
	}
	if u.layers && strings.HasPrefix(base, whiteout) {
		return u.hide(at, strings.TrimPrefix(base, whiteout))
	}
	u.mark(path.Join(at, base))
	if h.Typeflag == tar.TypeDir {
		return u.directory(parent, at, base, h)
	}
	if err := u.clear(parent, at, base); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return u.symlink(parent, base, h)
	case tar.TypeLink:
		return u.link(path.Join(at, base), h)
	}
	return u.file(ctx, parent, base, tr, h)
}

// directory makes a directory, or gives one that is there the entry's mode.
func (u *unpacker) directory(parent *os.Root, at, base string, h *tar.Header) error {
	st, err := parent.Lstat(base)
	switch {
	case err == nil && u.packages && (st.IsDir() || st.Mode().Type() == fs.ModeSymlink):
		_, err := u.resolve(path.Join(at, base))
		return err
	case err == nil && st.IsDir():
	default:
		if err := u.clear(parent, at, base); err != nil {
			return err
		}
		if err := parent.Mkdir(base, 0o700); err != nil {
			return err
		}
	}
	if u.owners {
		if err := chown(parent, base, h); err != nil {
			return err
		}
	}
	return parent.Chmod(base, u.mode(h, fs.ModeDir))
}

// mode is what of an entry's mode is granted. Where we are not root, we have to
// be able to read what we own.
func (u *unpacker) mode(h *tar.Header, kind fs.FileMode) fs.FileMode {
	m := fs.FileMode(h.Mode).Perm()
	if u.packages {
		return m &^ 0o022
	}
	if kind == fs.ModeDir && h.Mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	if !u.owners {
		m |= 0o400
		if kind == fs.ModeDir {
			m |= 0o700
		}
	}
	return m
}

func (u *unpacker) symlink(parent *os.Root, base string, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) > 4095 || strings.IndexByte(h.Linkname, 0) >= 0 {
		return refuse(sandbox.KindInvalid, "%s: a link to %q", clip(h.Name), clip(h.Linkname))
	}
	defer u.forget() // it may stand on the way to what follows
	if err := parent.Symlink(h.Linkname, base); err != nil {
		return err
	}
	if u.owners {
		return chown(parent, base, h)
	}
	return nil
}

// link makes a hard link to a file that an archive brought.
func (u *unpacker) link(name string, h *tar.Header) error {
	to, err := u.entryName(h.Linkname)
	if err != nil {
		return err
	}
	_, at, err := u.open(path.Dir(to))
	if err != nil {
		return err
	}
	target := path.Join(at, path.Base(to))
	st, err := u.root.Lstat(target)
	if err != nil || !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeSymlink {
		return refuse(sandbox.KindInvalid, "%s: a hard link to %q, which is no file of the image", clip(h.Name), clip(h.Linkname))
	}
	return u.root.Link(target, name)
}

func (u *unpacker) file(ctx context.Context, parent *os.Root, base string, tr *tar.Reader, h *tar.Header) (err error) {
	if h.Size < 0 || h.Size > u.limits.Bytes-u.bytes {
		return refuse(sandbox.KindTooLarge, "%s: more than %s of content", clip(h.Name), sandbox.FormatSize(u.limits.Bytes))
	}
	u.bytes += h.Size
	f, err := parent.OpenFile(base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := tr.Read(u.buf)
		if n > 0 {
			if _, err := f.Write(u.buf[:n]); err != nil {
				return noSpace(err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return broken(err)
		}
	}
	if u.owners {
		uid, gid, err := owner(h)
		if err == nil {
			err = f.Chown(uid, gid)
		}
		if err != nil {
			return err
		}
	}
	if err := f.Chmod(u.mode(h, 0)); err != nil {
		return err
	}
	if u.layers {
		t := sane(h.ModTime)
		return parent.Chtimes(base, t, t)
	}
	return nil
}

// sane keeps a time within what every file system can store.
func sane(t time.Time) time.Time {
	if s := t.Unix(); s < 0 || s > 1<<32 {
		return epoch
	}
	return t.Truncate(time.Second)
}

// owner is who an entry belongs to. Errors: KindInvalid for ids that no file
// can have.
func owner(h *tar.Header) (uid, gid int, err error) {
	const max = 1<<32 - 2 // -1 would mean "as it is"
	if h.Uid < 0 || h.Gid < 0 || h.Uid > max || h.Gid > max {
		return 0, 0, refuse(sandbox.KindInvalid, "%s: the owner %d:%d", clip(h.Name), h.Uid, h.Gid)
	}
	return h.Uid, h.Gid, nil
}

func chown(parent *os.Root, base string, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	return parent.Lchown(base, uid, gid)
}

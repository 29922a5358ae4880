package archive

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Entry is a file, directory or symbolic link of a tree.
type Entry struct {
	Path     string      // clean, relative, slashes
	Mode     fs.FileMode // fs.ModeDir, fs.ModeSymlink or a regular file, and permission bits
	Size     int64       // of a file
	Modified time.Time
	Target   string // of a link
}

// Reader reads an archive. It is not for concurrent use.
type Reader struct {
	tr      *tar.Reader
	entries int
	links   int
}

// NewReader reads the archive that r yields, which must not be compressed.
func NewReader(r io.Reader) *Reader { return &Reader{tr: tar.NewReader(r)} }

// Next goes to the next entry; the directory itself is none. It returns io.EOF at
// the end of the archive.
//
// Errors: KindDenied for what leads out, KindUnsupported for devices, pipes and
// hard links, KindTooLarge over a bound, KindInvalid for what is no archive; those
// of the reader below.
func (r *Reader) Next() (Entry, error) {
	for {
		h, err := r.tr.Next()
		if err == io.EOF {
			return Entry{}, io.EOF
		}
		if err != nil {
			return Entry{}, broken(err)
		}
		if r.entries++; r.entries > MaxEntries {
			return Entry{}, refuse(sandbox.KindTooLarge, "it has more than %d entries", MaxEntries)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, err := r.entry(h)
		if err != nil || e.Path != "." {
			return e, err
		}
	}
}

// Read reads the content of the file that Next went to.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.tr.Read(p)
	if err != nil && err != io.EOF {
		err = broken(err)
	}
	return n, err
}

func (r *Reader) entry(h *tar.Header) (Entry, error) {
	e := Entry{Path: path.Clean(h.Name), Mode: fs.FileMode(h.Mode) & fs.ModePerm, Modified: h.ModTime}
	for c := range strings.SplitSeq(h.Name, "/") {
		if c == ".." {
			return e, refuse(sandbox.KindDenied, "%q leads out of the directory", clip(h.Name))
		}
	}
	if h.Typeflag == tar.TypeDir && e.Path == "." {
		return e, nil
	}
	if why := Refused(e.Path); why != "" {
		kind := sandbox.KindInvalid
		if path.IsAbs(h.Name) {
			kind = sandbox.KindDenied
		}
		return e, refuse(kind, "%q: %s", clip(h.Name), why)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Size = h.Size
	case tar.TypeDir:
		e.Mode |= fs.ModeDir
	case tar.TypeSymlink:
		e.Mode, e.Target = e.Mode|fs.ModeSymlink, h.Linkname
		if why := RefusedLink(e.Path, e.Target); why != "" {
			return e, refuse(sandbox.KindDenied, "%q: %s", clip(h.Name), why)
		}
		if r.links++; r.links > MaxLinks {
			return e, refuse(sandbox.KindTooLarge, "it has more than %d symbolic links", MaxLinks)
		}
	case tar.TypeLink:
		return e, refuse(sandbox.KindUnsupported, "%q is a hard link", clip(h.Name)).WithHint("make it with tar --hard-dereference")
	default:
		return e, refuse(sandbox.KindUnsupported, "%q is neither file, directory nor symbolic link", clip(h.Name))
	}
	return e, nil
}

// broken tells a bad archive from a source that failed.
func broken(err error) error {
	var e *sandbox.Error
	switch {
	case errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, io.ErrUnexpectedEOF):
		return refuse(sandbox.KindInvalid, "it is no tar file, or ends early").WithHint("send an uncompressed tar file, or name its compression in Content-Encoding: gzip")
	}
	return err
}

func refuse(kind sandbox.Kind, format string, args ...any) *sandbox.Error {
	return sandbox.Errorf("unpack", kind, "the archive is refused: "+format, args...)
}

func clip(s string) string { return s[:min(len(s), 200)] }

package archive

import (
	"archive/tar"
	"io"
	"io/fs"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Writer writes an archive. It is not for concurrent use.
type Writer struct{ tw *tar.Writer }

// NewWriter writes to w, in blocks of 512 bytes.
func NewWriter(w io.Writer) *Writer { return &Writer{tar.NewWriter(w)} }

// Add writes an entry; r is the content of a file, of which exactly Size bytes are
// taken. Errors: KindConflict when r ends before,
// KindInvalid for what a Reader would refuse; those of r and of the writer below.
func (w *Writer) Add(e Entry, r io.Reader) error {
	why := Refused(e.Path)
	h := &tar.Header{Name: e.Path, Mode: int64(e.Mode.Perm()), ModTime: e.Modified.Truncate(time.Second), Typeflag: tar.TypeReg, Size: e.Size}
	switch e.Mode.Type() {
	case 0:
	case fs.ModeDir:
		h.Typeflag, h.Name, h.Size = tar.TypeDir, e.Path+"/", 0
	case fs.ModeSymlink:
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, e.Target, 0
		if why == "" {
			why = RefusedLink(e.Path, e.Target)
		}
	default:
		why = "it is neither file, directory nor symbolic link"
	}
	if why != "" {
		return sandbox.Errorf("pack", sandbox.KindInvalid, "%q: %s", clip(e.Path), why)
	}
	if err := w.tw.WriteHeader(h); err != nil || h.Size == 0 {
		return err
	}
	n, err := io.Copy(w.tw, io.LimitReader(r, h.Size))
	if err == nil && n < h.Size {
		err = sandbox.Errorf("pack", sandbox.KindConflict, "%q ended after %d of %d bytes: it changed while it was read", clip(e.Path), n, h.Size).
			WithHint("try again")
	}
	return err
}

// Close writes the end. It does not close the writer below.
func (w *Writer) Close() error { return w.tw.Close() }

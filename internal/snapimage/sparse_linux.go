package snapimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Sparse writes the first size bytes of from to a new file of that size, which has
// holes where they are zero: to be mapped as it is, and no larger than it has to be.
func Sparse(ctx context.Context, name string, from *os.File, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = chunks(ctx, from, size, func(at int64, packed []byte) error {
			_, err := f.WriteAt(packed[8:], at)
			return err
		})
	}
	return errors.Join(err, f.Close())
}

// sparseSum is the digest of what Pack would make of f, and how much that is.
func sparseSum(ctx context.Context, f *os.File, size int64) (sum string, used int64, err error) {
	h := sha256.New()
	err = chunks(ctx, f, size, func(_ int64, packed []byte) error {
		used += int64(len(packed))
		_, err := h.Write(packed)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), used, err
}

// Lend gives a sparse file of the image another name, at to, once what it holds was
// checked; on another file system it is copied. Nobody but this process's user may
// write to it, under either name, and it is there for as long as it has one: whoever
// maps it shares it with all others who do.
//
// Cost: reads the file, without its holes.
func (img *Image) Lend(ctx context.Context, name, to string) error {
	f, want, err := img.open(name, true)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, _, err := sparseSum(ctx, f, want.Size)
	switch {
	case ctx.Err() != nil:
		return sandbox.Wrap("restore", "", ctx.Err())
	case err != nil:
		return sandbox.Wrap("restore", "", bare(err))
	case sum != want.SHA256:
		return img.changed(name)
	}
	err = os.Link(filepath.Join(img.dir, name), to)
	if errors.Is(err, unix.EXDEV) {
		err = Sparse(ctx, to, f, want.Size)
	} else if err == nil && !same(f, to) { // the name is another file's by now
		return errors.Join(img.changed(name), os.Remove(to))
	}
	if err == nil {
		err = os.Chmod(to, 0o444)
	}
	return bare(err)
}

func same(f *os.File, name string) bool {
	a, err := f.Stat()
	b, err2 := os.Lstat(name)
	return err == nil && err2 == nil && os.SameFile(a, b)
}

package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// blobs is the layer cache: files named by what they hash to, shared by all
// builds of all processes.
//
// A blob appears by rename, complete and on stable storage. Whoever reads one
// holds a shared lock on it, which keeps collect from removing it; whoever
// fetches one holds an exclusive lock on "get-<hex>", so that a layer two builds
// need is fetched once. A crash leaves an unlocked get-<hex>, which the next
// fetch begins anew and sweep removes.
type blobs struct{ dir string }

const getPrefix = "get-"

// open returns the blob with this digest, fetching it if it is not there or not
// what its name says. The caller closes it; until then it stays.
//
// fetch writes the blob's bytes. What it wrote is refused with KindDenied when
// it does not hash to digest, with KindTooLarge past size.
func (c blobs) open(ctx context.Context, digest string, size int64, fetch func(context.Context, *blobWriter) error) (*os.File, error) {
	for {
		f, err := c.cached(ctx, digest)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		get, err := c.claim(ctx, digest)
		if err != nil {
			return nil, err
		}
		if _, err := os.Lstat(c.path(digest)); err == nil { // somebody else has just fetched it
			if err := errors.Join(os.Remove(get.Name()), get.Close()); err != nil {
				return nil, err
			}
			continue
		}
		err = c.fetch(ctx, get, digest, size, fetch)
		if err != nil {
			err = errors.Join(err, os.Remove(get.Name()))
		}
		if err = errors.Join(err, get.Close()); err != nil {
			return nil, err
		}
	}
}

func (c blobs) path(digest string) string { return filepath.Join(c.dir, entryName(digest)) }

// cached opens and checks a blob that is there. A damaged one is removed, and
// fs.ErrNotExist is the answer.
func (c blobs) cached(ctx context.Context, digest string) (*os.File, error) {
	path := c.path(digest)
	f, err := tryLock(path, shared)
	if errors.Is(err, errLocked) { // being removed
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	if !sameFile(f, path) {
		return nil, errors.Join(fs.ErrNotExist, f.Close())
	}
	h := sha256.New()
	_, err = io.Copy(h, ending{ctx, f})
	switch {
	case err != nil:
	case "sha256:"+hex.EncodeToString(h.Sum(nil)) != digest:
		err = errors.Join(fs.ErrNotExist, os.Remove(path))
	default:
		now := time.Now()
		_ = os.Chtimes(path, now, now) // when it was last used; collect goes by it
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// claim locks the place a blob is fetched into, waiting for another fetch of it.
func (c blobs) claim(ctx context.Context, digest string) (*os.File, error) {
	path := filepath.Join(c.dir, getPrefix+strings.TrimPrefix(digest, "sha256:"))
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, noSpace(err)
		}
		err = tryFlock(f, exclusive)
		if err == nil && sameFile(f, path) {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, errLocked) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// fetch fills get and gives it its name.
func (c blobs) fetch(ctx context.Context, get *os.File, digest string, size int64, fetch func(context.Context, *blobWriter) error) error {
	if err := get.Truncate(0); err != nil {
		return err
	}
	failpoint.Hit("template.blob/before-fetch")
	w := &blobWriter{f: get, h: sha256.New(), left: size}
	if err := fetch(ctx, w); err != nil {
		return noSpace(err)
	}
	if w.left != 0 {
		return refuse(sandbox.KindInvalid, "a blob ended %d bytes early", w.left)
	}
	if err := matches("a blob", w.h, digest); err != nil {
		return err
	}
	failpoint.Hit("template.blob/after-fetch")
	if err := get.Sync(); err != nil {
		return noSpace(err)
	}
	if err := os.Rename(get.Name(), c.path(digest)); err != nil {
		return err
	}
	failpoint.Hit("template.blob/after-rename")
	return syncDir(c.dir)
}

// blobWriter takes at most as many bytes as were promised. It begins anew when
// rewound.
type blobWriter struct {
	f    *os.File
	h    hash.Hash
	left int64
	n    int64
	// progress, if not nil, is told how much there is.
	progress func(n int64)
}

// Write implements io.Writer.
func (w *blobWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		return 0, refuse(sandbox.KindTooLarge, "a blob is larger than the image says")
	}
	n, err := w.f.Write(p)
	w.h.Write(p[:n])
	w.left -= int64(n)
	w.n += int64(n)
	if w.progress != nil {
		w.progress(w.n)
	}
	return n, err
}

// rewind forgets what was written, for another attempt.
func (w *blobWriter) rewind() error {
	w.left, w.n = w.left+w.n, 0
	w.h.Reset()
	if _, err := w.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return w.f.Truncate(0)
}

// sweep removes what fetches that died left behind.
func (c blobs) sweep() error {
	names, err := readDirNames(c.dir)
	for _, n := range names {
		if !strings.HasPrefix(n, getPrefix) {
			continue
		}
		path := filepath.Join(c.dir, n)
		f, lockErr := tryLock(path, exclusive)
		if lockErr != nil {
			continue // being fetched, or just finished
		}
		if sameFile(f, path) {
			err = errors.Join(err, os.Remove(path))
		}
		f.Close()
	}
	return err
}

package audit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
)

// Tiles are derived data: whatever one holds can be computed from the records,
// as long as those have not expired. So they are written without a flush, and
// one that a crash left absent, short or wrong is computed again.

func tilePath(dir string, level int, n int64, width int) string {
	return filepath.Join(dir, filepath.FromSlash(tlog.Tile{H: tileHeight, L: level, N: n, W: width}.Path()))
}

// readTile returns the first k hashes of a tile from its file: the full one,
// or, at level 0, the widest of those that are not. fs.ErrNotExist where none
// has so many.
func readTile(dir string, level int, n int64, k int) ([]tlog.Hash, error) {
	h, err := readTileFile(tilePath(dir, level, n, tileWidth), tileWidth)
	if err == nil {
		return h[:k], nil
	}
	if level > 0 || !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	width, err := widestPartial(dir, n)
	if err != nil {
		return nil, err
	}
	if width < k {
		return nil, fs.ErrNotExist
	}
	h, err = readTileFile(tilePath(dir, 0, n, width), width)
	if err != nil {
		return nil, err
	}
	return h[:k], nil
}

// readTileFile reads one file. One of another size is as good as none.
func readTileFile(path string, width int) ([]tlog.Hash, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) != width*tlog.HashSize {
		return nil, fs.ErrNotExist
	}
	h := make([]tlog.Hash, width)
	for i := range h {
		copy(h[i][:], b[i*tlog.HashSize:])
	}
	return h, nil
}

// partials lists the widths of the files of a tile of level 0 that is not full.
func partials(dir string, n int64) ([]int, error) {
	names, err := os.ReadDir(tilePath(dir, 0, n, tileWidth) + ".p")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range names {
		if w, err := strconv.Atoi(e.Name()); err == nil && w > 0 && w < tileWidth && strconv.Itoa(w) == e.Name() {
			list = append(list, w)
		}
	}
	return list, nil
}

func widestPartial(dir string, n int64) (width int, err error) {
	list, err := partials(dir, n)
	for _, w := range list {
		width = max(width, w)
	}
	return width, err
}

// writeTile makes a tile's file. With sync it is durable when this returns.
func writeTile(dir string, level int, n int64, h []tlog.Hash, sync bool) error {
	path := tilePath(dir, level, n, len(h))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	b := make([]byte, 0, len(h)*tlog.HashSize)
	for i := range h {
		b = append(b, h[i][:]...)
	}
	if sync {
		return replaceFile(path, b, 0o600)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

// halfWritten lists the widths of partial tiles that somebody died writing.
func halfWritten(dir string, n int64) (list []int) {
	names, _ := filepath.Glob(tilePath(dir, 0, n, tileWidth) + ".p/*.tmp")
	for _, name := range names {
		if w, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".tmp")); err == nil {
			list = append(list, w)
		}
	}
	return list
}

// dropPartials removes the files of a tile that was not full and is wider now, and
// what was to become one.
func dropPartials(dir string, n int64, below int) error {
	list, err := partials(dir, n)
	for _, w := range halfWritten(dir, n) {
		if w < below {
			err = errors.Join(err, os.Remove(tilePath(dir, 0, n, w)+".tmp"))
		}
	}
	for _, w := range list {
		if w < below {
			err = errors.Join(err, os.Remove(tilePath(dir, 0, n, w)))
		}
	}
	if err == nil && below == tileWidth {
		err = os.Remove(tilePath(dir, 0, n, tileWidth) + ".p")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// replaceFile makes a file with that content, durable when it returns, or
// leaves what was there.
func replaceFile(path string, b []byte, mode fs.FileMode) error {
	tmp := path + ".tmp"
	if err := writeSynced(tmp, b, mode); err != nil {
		return err
	}
	failpoint.Hit("audit/replacement-written")
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	failpoint.Hit("audit/replaced")
	return syncDir(filepath.Dir(path))
}

// writeSynced makes a file whose content is durable and whose name may not be.
func writeSynced(path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// swapFile is replaceFile for a file that is written often: it keeps the one
// that was replaced and writes into that the next time. So it needs no inode
// and no space once both are there, and works on a full disk.
func swapFile(path string, b []byte) error {
	spare := path + ".tmp"
	f, err := os.OpenFile(spare, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Truncate(int64(len(b)))
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	failpoint.Hit("audit/replacement-written")
	if err := exchange(spare, path); err != nil { // the first time, or where the file system cannot
		if err := os.Rename(spare, path); err != nil {
			return err
		}
		_ = os.WriteFile(spare, b, 0o600) // for the next time; then it may be too late for that
	}
	failpoint.Hit("audit/replaced")
	return syncDir(filepath.Dir(path))
}

package snapimage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A file's digest is that of the digests of its pieces: who has the whole file hashes
// them on all CPUs at once, and who reads it once hashes them as they come.
const pieceSize = 1 << 20

// Measure reads one regular file, which must not be a link, on as many CPUs as there
// are.
func Measure(ctx context.Context, name string) (File, error) {
	f, _, err := open(name)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	return measure(ctx, f)
}

// measure digests an open file without moving where it is read.
func measure(ctx context.Context, f *os.File) (File, error) {
	fi, err := f.Stat()
	if err != nil {
		return File{}, err
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
	return File{Name: filepath.Base(f.Name()), Size: size, SHA256: hex.EncodeToString(sum[:])}, errors.Join(errs...)
}

// meter digests what is written to it as measure does a file.
type meter struct {
	all, piece hash.Hash
	in         int // bytes of the piece
}

func newMeter() *meter { return &meter{all: sha256.New(), piece: sha256.New()} }

// Write implements io.Writer. It never fails.
func (m *meter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		part := b[:min(len(b), pieceSize-m.in)]
		m.piece.Write(part)
		b = b[len(part):]
		if m.in += len(part); m.in == pieceSize {
			m.turn()
		}
	}
	return n, nil
}

func (m *meter) turn() {
	m.all.Write(m.piece.Sum(nil))
	m.piece.Reset()
	m.in = 0
}

// sum ends the file.
func (m *meter) sum() string {
	if m.in > 0 {
		m.turn()
	}
	return hex.EncodeToString(m.all.Sum(nil))
}

// open opens a regular file, which must not be a link.
func open(name string) (*os.File, int64, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, 0, cmp.Or(err, error(&fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}))
	}
	return f, fi.Size(), nil
}

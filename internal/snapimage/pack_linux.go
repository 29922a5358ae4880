package snapimage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A packed file is those of its chunks that are not zero, in order: the chunk's
// number, eight bytes with the highest first, and the chunk. The last chunk of a
// file may be shorter.
const chunk = 64 << 10

var zero [chunk]byte

// errPacked: what was read is not what Pack writes.
var errPacked = errors.New("not a packed file")

// Pack writes the first size bytes of from to a new file. Holes are not read.
func Pack(ctx context.Context, name string, from *os.File, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(pack(ctx, w, from, size), w.Flush(), f.Close())
}

func pack(ctx context.Context, w io.Writer, from *os.File, size int64) error {
	return chunks(ctx, from, size, func(_ int64, packed []byte) error {
		_, err := w.Write(packed)
		return err
	})
}

// chunks calls each for every chunk of the first size bytes of from that is not zero,
// with where it begins and how it is packed.
func chunks(ctx context.Context, from *os.File, size int64, each func(at int64, packed []byte) error) error {
	buf := make([]byte, 8+chunk)
	for at := int64(0); at < size; at += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole to the end
		}
		if err == nil { // else a file system that has no holes to tell of
			at = next / chunk * chunk
		}
		if at >= size {
			return nil
		}
		part := buf[8 : 8+min(chunk, size-at)]
		if _, err := from.ReadAt(part, at); err != nil {
			return err
		}
		if bytes.Equal(part, zero[:len(part)]) {
			continue
		}
		binary.BigEndian.PutUint64(buf, uint64(at/chunk))
		if err := each(at, buf[:8+len(part)]); err != nil {
			return err
		}
	}
	return nil
}

func unpack(to io.WriterAt, from io.Reader, size int64) error {
	buf := make([]byte, chunk)
	from = bufio.NewReaderSize(from, 1<<20)
	for next := int64(0); ; {
		_, err := io.ReadFull(from, buf[:8])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return packedError(err)
		}
		n := int64(binary.BigEndian.Uint64(buf))
		if n < next || n > (size-1)/chunk {
			return errPacked
		}
		next = n + 1
		part := buf[:min(chunk, size-n*chunk)]
		if _, err := io.ReadFull(from, part); err != nil {
			return packedError(err)
		}
		if _, err := to.WriteAt(part, n*chunk); err != nil {
			return err
		}
	}
}

// packedError tells a file that is too short from one that cannot be read.
func packedError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errPacked
	}
	return err
}

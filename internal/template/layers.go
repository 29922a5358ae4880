package template

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// layer is one archive of an image on its way into a root directory.
type layer struct {
	r      io.Reader // packed
	size   int64     // of r, where known; for progress
	digest string    // what r must hash to; empty where nothing says
	diffID string    // what the unpacked archive must hash to; empty likewise
}

// apply unpacks l. It reads l to its end, so that what was unpacked is all that
// the digests speak of; on any error the caller throws the root directory away.
//
// Errors: KindDenied when a digest does not match, those of archive.
func (u *unpacker) apply(ctx context.Context, l layer, progress func(packed int64)) error {
	packedSum := sha256.New()
	packed := &meter{r: io.TeeReader(l.r, packedSum), over: func(n int64) error {
		if n > u.limits.Download {
			return refuse(sandbox.KindTooLarge, "a layer of more than %s", sandbox.FormatSize(u.limits.Download))
		}
		if progress != nil {
			progress(n)
		}
		return nil
	}}
	r, done, err := decompress(packed)
	if err != nil {
		return broken(err)
	}
	defer done()
	plainSum := sha256.New()
	plain := &meter{r: r, over: func(n int64) error {
		if n > u.limits.Bytes-u.streamed {
			return refuse(sandbox.KindTooLarge, "more than %s unpacked", sandbox.FormatSize(u.limits.Bytes))
		}
		if n > ratioFree && n/u.limits.Ratio > packed.n {
			return refuse(sandbox.KindTooLarge, "a layer that unpacks to more than %d times its size", u.limits.Ratio)
		}
		return nil
	}}
	defer func() { u.streamed += plain.n }()
	whole := io.TeeReader(plain, plainSum)
	if err := u.archive(ctx, whole); err != nil {
		return err
	}
	for _, rest := range []io.Reader{whole, packed} { // padding, and what nothing read
		if _, err := io.Copy(io.Discard, ending{ctx, rest}); err != nil {
			return broken(err)
		}
	}
	if err := matches("a layer", packedSum, l.digest); err != nil {
		return err
	}
	return matches("the content of a layer", plainSum, l.diffID)
}

// ending is a reader that ends with a context.
type ending struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (e ending) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	return e.r.Read(p)
}

// matches compares what was read with what was promised.
func matches(what string, h hash.Hash, want string) error {
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); want != "" && got != want {
		return refuse(sandbox.KindDenied, "%s has the digest %s, not %s as the image says", what, got, want)
	}
	return nil
}

// decompress tells the format by how it begins: media types lie, and archives
// have none. done frees what it holds.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, err
		}
		return z, func() {}, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// One goroutine and a bounded window: an archive must not choose how
		// much memory reading it takes.
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z'}):
		return nil, nil, refuse(sandbox.KindUnsupported, "compressed by bzip2 or xz").WithHint("gzip, zstd and plain tar archives are read")
	}
	return b, func() {}, nil
}

package orchestrator

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
)

// digestChunk is what the digest of a large content is computed of at a time, and
// digestChunks how many may wait: 1 MiB in all.
const (
	digestChunk  = 256 << 10
	digestChunks = 4
)

// digester passes a reader on and computes the digest of what is read, beside it:
// whoever reads waits only while four chunks are yet to be digested. Close it.
type digester struct {
	r       io.Reader
	n       int64
	chunk   []byte
	made    int
	free    chan []byte
	full    chan []byte
	sum     [sha256.Size]byte // valid once done is closed
	done    chan struct{}
	stopped bool
}

func newDigester(r io.Reader) *digester {
	d := &digester{r: r, free: make(chan []byte, digestChunks), full: make(chan []byte, digestChunks), done: make(chan struct{})}
	go func() {
		defer close(d.done)
		h := sha256.New()
		for c := range d.full {
			h.Write(c)
			d.free <- c[:0]
		}
		h.Sum(d.sum[:0])
	}()
	return d
}

// Read implements io.Reader.
func (d *digester) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.n += int64(n)
	for p = p[:n]; len(p) > 0; {
		if d.chunk == nil {
			d.chunk = d.next()
		}
		m := min(len(p), digestChunk-len(d.chunk))
		d.chunk, p = append(d.chunk, p[:m]...), p[m:]
		if len(d.chunk) == digestChunk {
			d.full <- d.chunk
			d.chunk = nil
		}
	}
	return n, err
}

// next returns an empty chunk, and waits for one where all are in use.
func (d *digester) next() []byte {
	select {
	case c := <-d.free:
		return c
	default:
	}
	if d.made < digestChunks {
		d.made++
		return make([]byte, 0, digestChunk)
	}
	return <-d.free
}

// Close waits for the digest of what was read and returns it. Idempotent.
func (d *digester) Close() (sum string) {
	if !d.stopped {
		d.stopped = true
		if len(d.chunk) > 0 {
			d.full <- d.chunk
		}
		close(d.full)
	}
	<-d.done
	return hex.EncodeToString(d.sum[:])
}

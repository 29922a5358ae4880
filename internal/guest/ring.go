package guest

// Ring is a growing ring buffer of bytes between one producer and one
// consumer. It allocates on demand and gives its memory back when drained.
//
// It does no locking: callers hold their own lock around each method, but may
// fill what Free returned and read what Data returned without it, because
// neither moves bytes the other one may touch.
type Ring struct {
	buf      []byte
	start, n int
}

const ringMin = 4 << 10

// Len is the number of bytes held.
func (r *Ring) Len() int { return r.n }

// Grow makes room for n more bytes, in powers of two. Producer only.
func (r *Ring) Grow(n int) {
	if r.n+n <= len(r.buf) {
		return
	}
	size := max(ringMin, len(r.buf))
	for size < r.n+n {
		size *= 2
	}
	buf := make([]byte, size)
	a, b := r.Data(0, r.n)
	copy(buf[copy(buf, a):], b)
	r.buf, r.start = buf, 0
}

// Free returns up to n bytes of free space in at most two pieces, for the
// producer to fill and then Commit. Call Grow first.
func (r *Ring) Free(n int) (a, b []byte) {
	n = min(n, len(r.buf)-r.n)
	return r.pieces(r.start+r.n, n)
}

// Commit adds the first n bytes of what Free returned to the content.
func (r *Ring) Commit(n int) { r.n += n }

// Data returns n bytes of content from position pos on, in at most two pieces.
func (r *Ring) Data(pos, n int) (a, b []byte) {
	n = max(0, min(n, r.n-pos))
	return r.pieces(r.start+pos, n)
}

func (r *Ring) pieces(from, n int) (a, b []byte) {
	if n == 0 {
		return nil, nil
	}
	if from >= len(r.buf) {
		from -= len(r.buf)
	}
	if from+n <= len(r.buf) {
		return r.buf[from : from+n], nil
	}
	return r.buf[from:], r.buf[:from+n-len(r.buf)]
}

// Consume drops the first n bytes of the content. It never releases memory:
// see Reset.
func (r *Ring) Consume(n int) {
	r.n -= n
	r.start += n
	if r.start >= len(r.buf) {
		r.start -= len(r.buf)
	}
}

// Reset drops content and memory. The producer must not hold Free's pieces.
func (r *Ring) Reset() { *r = Ring{} }

package inspect

import (
	"compress/gzip"
	"errors"
	"io"
)

// window is how much of a body is looked at at once.
const window = 32 << 10

var (
	errLeak = errors.New("a secret is where none goes")
	errBomb = errors.New("the body is packed too densely")
)

// stream is a body of which only goes on what was looked at: what may be the
// beginning of a secret waits for what follows.
type stream struct {
	from    io.Reader
	secrets *secrets
	redacts bool // secrets become stars; otherwise the first one is the end

	buf     []byte // what was read: until seen it may be given, from at on it was not
	at, end int
	seen    int
	full    bool  // there was more than there was room for
	stars   int   // how far stars reach into what is not seen yet
	err     error // of from
}

// newStream looks through a body. redacts says what becomes of secrets: stars, or
// errLeak.
func newStream(from io.Reader, s *secrets, redacts bool) *stream {
	return &stream{from: from, secrets: s, redacts: redacts}
}

// Read implements io.Reader. Errors: errLeak, those of the body.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.at == s.seen {
		if s.err != nil {
			return 0, s.err
		}
		s.fill()
	}
	n := copy(p, s.buf[s.at:s.seen])
	s.at += n
	return n, nil
}

// drained reports whether everything was read, to the end.
func (s *stream) drained() bool { return s.at == s.seen && s.err == io.EOF }

// fill reads once and looks at what there is.
func (s *stream) fill() {
	was := s.buf[s.seen:s.end]
	if s.buf == nil || s.full && len(s.buf) < window || len(was) > len(s.buf)/2 {
		s.buf = make([]byte, max(firstRead, 4*len(s.buf)))
	}
	s.end = copy(s.buf, was)
	n, err := s.from.Read(s.buf[s.end:])
	s.end += n
	s.at, s.err, s.full = 0, err, s.end == len(s.buf)
	b := s.buf[:s.end]
	if s.redacts {
		s.seen, s.stars = s.secrets.mark(b, s.stars, err != nil)
		return
	}
	var leak bool
	if s.seen, leak = s.secrets.pass(b, err != nil); leak {
		s.err = s.secrets.found(b[s.seen:])
	}
}

// expansion is how many times its size a packed body may be, beyond modest bytes.
const (
	expansion = 100
	modest    = 1 << 20
)

// unpacked is what comes out of gzip, which is not more than hostile code is to
// make of little.
type unpacked struct {
	in  *counting
	zip *gzip.Reader
	out int64
}

// unpack reads gzip. The first bytes are read when the first are asked for.
func unpack(from io.Reader) *unpacked { return &unpacked{in: &counting{from: from}} }

// Read implements io.Reader. Errors: errBomb, those of the body and of package
// gzip.
func (u *unpacked) Read(p []byte) (int, error) {
	if u.zip == nil {
		z, err := gzip.NewReader(u.in)
		if err != nil {
			return 0, err
		}
		u.zip = z
	}
	n, err := u.zip.Read(p)
	if u.out += int64(n); u.out > modest && u.out/expansion > u.in.n {
		return 0, errBomb
	}
	return n, err
}

type counting struct {
	from io.Reader
	n    int64
}

// Read implements io.Reader.
func (c *counting) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += int64(n)
	return n, err
}

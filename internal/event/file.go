package event

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// A sandbox's events are in up to three files: <id>.events has what is kept and
// only grows; <id>.out and <id>.out.old have the rest, and when .out is full it
// replaces .out.old. So dropping the oldest is one rename, and nothing is ever
// rewritten.
const (
	eventSuffix = ".events"
	outSuffix   = ".out"
	oldSuffix   = ".out.old"
)

// log is an append-only file of events.
type log struct {
	path string
	f    *os.File
	size int64
}

// append writes one encoded event. After a short write the file is cut back, so
// that a full disk damages nothing.
func (l *log) append(b []byte) error {
	if err := l.open(); err != nil {
		return err
	}
	failpoint.Hit("event/before-append")
	n, err := l.f.Write(b)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, l.f.Truncate(l.size))
		}
		return err
	}
	failpoint.Hit("event/after-append")
	l.size += int64(n)
	return nil
}

// open opens the file, unless it is, and makes it where there is none.
func (l *log) open() error {
	if l.f != nil {
		return nil
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.f = f
	return nil
}

func (l *log) close() error {
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// reader decodes the events of a file one after the other.
type reader struct {
	f    *os.File
	r    *bufio.Reader
	good int64 // bytes of whole events read so far
}

// openReader opens path; a file that does not exist has no events.
func openReader(path string) (*reader, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &reader{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &reader{f: f, r: bufio.NewReaderSize(f, 32<<10)}, nil
}

// next returns the next event, or io.EOF at the end or at the first damage: a
// write that a crash cut short.
func (r *reader) next() (*Event, error) {
	if r.r == nil {
		return nil, io.EOF
	}
	var h [frameHeader]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return nil, eof(err)
	}
	n, sum, ok := decodeHeader(h[:])
	if !ok {
		return nil, io.EOF
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r.r, body); err != nil {
		return nil, eof(err)
	}
	e, ok := decodeBody(body, sum)
	if !ok {
		return nil, io.EOF
	}
	r.good += int64(frameHeader + n)
	return e, nil
}

func eof(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
	}
}

// merged reads the files of a sandbox in the order of ids.
type merged struct {
	readers []*reader
	heads   []*Event // the next event of each reader; nil at its end
}

func openMerged(dir string, id sandbox.ID) (*merged, error) {
	m := &merged{}
	for _, suffix := range []string{oldSuffix, outSuffix, eventSuffix} {
		r, err := openReader(filepath.Join(dir, string(id)+suffix))
		if err != nil {
			m.close()
			return nil, err
		}
		m.readers = append(m.readers, r)
		m.heads = append(m.heads, nil)
		if err := m.advance(len(m.readers) - 1); err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

func (m *merged) advance(i int) error {
	e, err := m.readers[i].next()
	if err != nil && err != io.EOF {
		return err
	}
	m.heads[i] = e
	return nil
}

// next returns the event with the lowest id, or io.EOF.
func (m *merged) next() (*Event, error) {
	best := -1
	for i, e := range m.heads {
		if e != nil && (best < 0 || e.ID < m.heads[best].ID) {
			best = i
		}
	}
	if best < 0 {
		return nil, io.EOF
	}
	e := m.heads[best]
	return e, m.advance(best)
}

func (m *merged) close() {
	for _, r := range m.readers {
		r.close()
	}
}

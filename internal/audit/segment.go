package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// file is what a segment needs of an *os.File.
type file interface {
	WriteAt(b []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error // data, and what is needed to read it back
	Close() error
}

// errFlush marks a failed flush, after which nothing is known.
var errFlush = errors.New("flush failed")

// segment is the file being written.
type segment struct {
	f      file
	size   int64 // of what is durable
	failed error // why it must not be used any more
}

// append writes b behind what is durable and flushes it. When the write fails
// the segment is as before; when that cannot be had, or the flush fails, it
// must not be used again.
func (s *segment) append(b []byte) error {
	if _, err := s.f.WriteAt(b, s.size); err != nil {
		if terr := s.f.Truncate(s.size); terr != nil {
			s.failed = fmt.Errorf("%w: %w; then: %w", errFlush, err, terr)
			return s.failed
		}
		return err
	}
	if err := s.f.Sync(); err != nil {
		s.failed = fmt.Errorf("%w: %w", errFlush, err)
		return s.failed
	}
	s.size += int64(len(b))
	return nil
}

func (s *segment) close() error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}

func segmentPath(dir string, first sandbox.Position) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.log", first))
}

// segments lists the first positions of dir's segments in order. Other files
// are not its business.
func segments(dir string) ([]sandbox.Position, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []sandbox.Position
	for _, n := range names {
		digits, ok := strings.CutSuffix(n.Name(), ".log")
		p, err := strconv.ParseUint(digits, 10, 64)
		if ok && err == nil && len(digits) == 20 && p > 0 {
			list = append(list, sandbox.Position(p))
		}
	}
	slices.Sort(list)
	return list, nil
}

// rotate begins a new segment behind head. When it fails, the old one stays.
func (l *Log) rotate(head Head) error {
	next, err := l.create(head)
	if err != nil {
		return err
	}
	old := l.seg
	l.seg = next
	// Everything in it was flushed: all that can be lost is a descriptor.
	return old.close()
}

// create makes the segment that follows head, header and directory entry
// durable, or leaves none.
func (l *Log) create(head Head) (s segment, err error) {
	path := segmentPath(l.dir, head.Position+1)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return segment{}, err
	}
	s.f = l.o.wrap(dataFile{f})
	if err = s.append(segmentHeader(head.Position+1, head.Hash)); err == nil {
		err = syncDir(l.dir)
	}
	if err != nil {
		s.f.Close()
		os.Remove(path)
		return segment{}, err
	}
	return s, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

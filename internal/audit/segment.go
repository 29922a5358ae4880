package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// file is what a segment needs of an *os.File.
type file interface {
	WriteAt(b []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error // data, and what is needed to read it back
	// Allocate takes space for n bytes at off without changing the size.
	// errors.ErrUnsupported where the file system cannot.
	Allocate(off, n int64) error
	Close() error
}

// errFlush marks a failed flush, after which nothing is known.
var errFlush = errors.New("flush failed")

// segment is the file being written.
type segment struct {
	f      file
	size   int64 // of what is durable
	room   int64 // up to where space is allocated, if beyond size
	zeroed int64 // up to where it holds zeros, if beyond size
	failed error // why it must not be used any more
}

// append writes b behind what is durable and flushes it. When the write fails
// the segment is as before; when that cannot be had, or the flush fails, it
// must not be used again.
func (s *segment) append(b []byte) error {
	failpoint.Hit("audit/before-write")
	if _, err := s.f.WriteAt(b, s.size); err != nil {
		if terr := s.f.Truncate(s.size); terr != nil {
			s.failed = fmt.Errorf("%w: %w; then: %w", errFlush, err, terr)
			return s.failed
		}
		s.room, s.zeroed = 0, 0
		return err
	}
	failpoint.Hit("audit/after-write")
	if err := s.f.Sync(); err != nil {
		s.failed = fmt.Errorf("%w: %w", errFlush, err)
		return s.failed
	}
	failpoint.Hit("audit/after-sync")
	s.size += int64(len(b))
	return nil
}

var zeros [64 << 10]byte

// extend allocates reserve and step bytes behind what is durable and fills the
// next step or so of them with zeros. A flush of records that replace zeros
// has no other metadata to write, which takes half the time.
func (s *segment) extend(reserve, step int64) error {
	if err := s.f.Allocate(s.size, reserve+step); err != nil {
		return err
	}
	s.room = s.size + reserve + step
	end := s.size + step + min(reserve, step/4)
	for at := max(s.zeroed, s.size); at < end; {
		n, err := s.f.WriteAt(zeros[:min(end-at, int64(len(zeros)))], at)
		if err != nil {
			s.room = 0 // to be asked for again
			return err
		}
		at += int64(n)
		s.zeroed = at
	}
	return nil
}

// close also gives back the space that was allocated and not used.
func (s *segment) close() error {
	if s.f == nil {
		return nil
	}
	var err error
	if max(s.room, s.zeroed) > s.size && s.failed == nil {
		err = s.f.Truncate(s.size)
	}
	return errors.Join(err, s.f.Close())
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

// roll begins a new segment behind what is durable. When it fails, the old one
// stays. links tells whether l.links are as of there.
func (l *Log) roll(links bool) error {
	if links {
		if err := l.links.save(l.dir, l.head); err != nil {
			return err
		}
		failpoint.Hit("audit/after-links")
	}
	next, err := l.create(l.head)
	if err != nil {
		return err
	}
	failpoint.Hit("audit/after-rotate")
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
	failpoint.Hit("audit/after-create")
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

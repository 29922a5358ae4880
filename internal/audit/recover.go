package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// recover finds the end of the log and opens its last segment for writing,
// after removing what a dying process left half written there. It returns how
// many bytes that was.
func (l *Log) recover() (cut int64, err error) {
	list, err := segments(l.dir)
	if err != nil {
		return 0, err
	}
	if n := len(list); n > 0 {
		// A crash between creating a segment and flushing its header leaves
		// a file that holds no record.
		path := segmentPath(l.dir, list[n-1])
		if torn, err := tornHeader(path); err != nil {
			return 0, err
		} else if torn {
			if err := os.Remove(path); err != nil {
				return 0, err
			}
			list = list[:n-1]
		}
	}
	if len(list) == 0 {
		l.seg, err = l.create(Head{})
		return 0, err
	}
	return l.reopen(list[len(list)-1])
}

func tornHeader(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(headerLen)+1))
	if err != nil || len(b) > headerLen {
		return false, err
	}
	_, _, ok := parseHeader(b)
	return !ok, nil
}

func (l *Log) reopen(first sandbox.Position) (cut int64, err error) {
	path := segmentPath(l.dir, first)
	r, err := newSegmentReader(path, first)
	if err != nil {
		return 0, err
	}
	defer r.close()
	for {
		_, err := r.next()
		if errors.Is(err, io.EOF) || errors.Is(err, errBadFrame) {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	rest, err := r.rest()
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	if len(rest) > 0 {
		if err = l.dropTail(dataFile{f}, r, rest); err != nil {
			f.Close()
			return 0, err
		}
	}
	l.seg = segment{f: l.o.wrap(dataFile{f}), size: r.off}
	l.head = r.head
	return int64(len(rest)), nil
}

// dropTail removes rest, the end of the segment that is no whole record,
// unless a record can be found in it: then it is not the mark of an
// interrupted write, and removing it would remove evidence. What is removed is
// kept aside in "<position>.cut".
func (l *Log) dropTail(f file, r *segmentReader, rest []byte) error {
	if holdsRecord(rest, r.head.Position) {
		return r.damaged("a bad record is followed by good ones")
	}
	aside := filepath.Join(l.dir, fmt.Sprintf("%020d.cut", r.head.Position+1))
	if err := os.WriteFile(aside, rest, 0o600); err != nil {
		return err
	}
	if err := f.Truncate(r.off); err != nil {
		return err
	}
	return f.Sync()
}

// holdsRecord looks at every offset of b but the first for a frame that could
// follow position after. Bytes that a caller put into a record may look like
// one; that errs on the side of refusing.
func holdsRecord(b []byte, after sandbox.Position) bool {
	for i := 1; i+frameLen+minPayload <= len(b); i++ {
		j := bytes.IndexByte(b[i+frameLen:], version)
		if j < 0 {
			return false
		}
		i += j
		if i+frameLen+minPayload > len(b) {
			return false
		}
		p := sandbox.Position(binary.BigEndian.Uint64(b[i+frameLen+positionOff:]))
		if p <= after || p-after > 1<<32 {
			continue
		}
		if _, _, _, err := cutFrame(b[i:]); err == nil {
			return true
		}
	}
	return false
}

package audit

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Entry is one record as stored.
type Entry struct {
	Position  sandbox.Position
	Hash      [32]byte         // chain hash up to and including this record
	Leaf      tlog.Hash        // of the Merkle tree: index Position-1
	Version   uint8            // of the payload; the three below are zero in version 1
	Monotonic time.Duration    // since the machine was booted, when it was recorded
	Boot      [16]byte         // which boot that was
	Previous  sandbox.Position // of the same sandbox's previous record; 0 where there is none
	Record    sandbox.Record
	Payload   []byte // what Leaf and Hash are over
}

// Reader reads the log of a directory in order and checks every sum and link
// of the chain on its way. It needs no lock and works in any process while the
// log is being written; it may then show a record just before it is durable.
// It is for use by one goroutine.
type Reader struct {
	dir  string
	from sandbox.Position
	seg  *segmentReader
	at   sandbox.Position // first position of seg
	head Head             // where the chain is known to begin; see Expire
}

// NewReader returns a Reader of the log in dir, beginning at a position; 0 and
// 1 are the beginning of what has not expired. Errors: KindNotFound without a
// directory; KindInternal when the log begins later, because older segments were
// taken away.
//
// Cost: the segment with the position is read from its own beginning.
func NewReader(dir string, from sandbox.Position) (*Reader, error) {
	from = max(from, 1)
	list, err := segments(dir)
	if err != nil {
		return nil, sandbox.Wrap("read audit log", dir, err)
	}
	r := &Reader{dir: dir, from: from}
	if r.head, err = readExpired(dir); err != nil {
		return nil, sandbox.Wrap("read audit log", dir, err)
	}
	if from == 1 && r.head.Position > 0 {
		from = r.head.Position + 1
	}
	i, found := slices.BinarySearch(list, from)
	if !found {
		i--
	}
	if i < 0 && len(list) > 0 {
		return nil, sandbox.Errorf("read audit log", sandbox.KindInternal, "position %d is missing: the log begins at %d", from, list[0])
	}
	if i >= 0 {
		r.at = list[i]
	}
	return r, nil
}

// Next returns the next entry. io.EOF says that there is none yet: the Reader
// stays usable and finds what is written later. Errors: KindInternal where the
// log is damaged; it says at which position.
func (r *Reader) Next() (Entry, error) {
	for {
		e, err := r.next()
		if err != nil && !errors.Is(err, io.EOF) {
			return Entry{}, sandbox.Wrap("read audit log", r.dir, err)
		}
		if err != nil || e.Position >= r.from {
			e.Payload = slices.Clone(e.Payload)
			return e, err
		}
	}
}

func (r *Reader) next() (Entry, error) {
	if r.seg == nil {
		if err := r.open(); err != nil {
			return Entry{}, err
		}
	}
	e, err := r.seg.next()
	if !errors.Is(err, io.EOF) {
		return e, err
	}
	list, err := segments(r.dir)
	if err != nil {
		return Entry{}, err
	}
	i, _ := slices.BinarySearch(list, r.at+1)
	if i == len(list) {
		return Entry{}, io.EOF
	}
	// There is a later segment, so this one has its final size: look again.
	e, err = r.seg.next()
	if !errors.Is(err, io.EOF) {
		return e, err
	}
	if err := r.seg.ended(); err != nil {
		return Entry{}, err
	}
	if want := r.seg.head.Position + 1; list[i] != want {
		return Entry{}, r.seg.damaged(fmt.Sprintf("the next segment begins at %d", list[i]))
	}
	next, err := newSegmentReader(segmentPath(r.dir, list[i]), list[i])
	if err != nil {
		return Entry{}, err
	}
	if next.head != r.seg.head {
		next.close()
		return Entry{}, r.seg.damaged("the next segment does not continue the chain")
	}
	r.seg.close()
	r.seg, r.at = next, list[i]
	return r.next()
}

func (r *Reader) open() error {
	if r.at == 0 { // the log was empty
		list, err := segments(r.dir)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return io.EOF
		}
		r.at = list[0]
	}
	seg, err := newSegmentReader(segmentPath(r.dir, r.at), r.at)
	if err != nil {
		return err
	}
	if r.at == 1 && seg.head.Hash != ([32]byte{}) || r.at == r.head.Position+1 && seg.head != r.head {
		seg.close()
		return seg.damaged("the first segment continues another log")
	}
	r.seg = seg
	return nil
}

// Close ends the Reader.
func (r *Reader) Close() error {
	if r.seg == nil {
		return nil
	}
	return sandbox.Wrap("read audit log", r.dir, r.seg.close())
}

// Scan iterates over the entries that are in the log now, from a position. It
// ends at the first error, which it yields.
func Scan(dir string, from sandbox.Position) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		r, err := NewReader(dir, from)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer r.Close()
		for {
			e, err := r.Next()
			if errors.Is(err, io.EOF) || !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// segmentReader reads one segment.
type segmentReader struct {
	f    *os.File
	path string
	head Head   // of what was read
	off  int64  // of the next frame
	buf  []byte // bytes of the file from off on, as far as read
	all  []byte // what buf is a part of

	chain chainer
}

// newSegmentReader opens a segment. A header that is not complete yet is
// io.EOF.
func newSegmentReader(path string, first sandbox.Position) (*segmentReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s := &segmentReader{f: f, path: path, all: make([]byte, 2*(frameLen+MaxRecord))}
	if err := s.fill(headerLen); err != nil {
		f.Close()
		return nil, err
	}
	got, prev, ok := parseHeader(s.buf)
	if !ok || got != first {
		f.Close()
		s.head.Position = first - 1
		return nil, s.damaged("the segment header is bad")
	}
	s.head = Head{first - 1, prev}
	s.advance(headerLen)
	return s, nil
}

func (s *segmentReader) advance(n int) { s.buf, s.off = s.buf[n:], s.off+int64(n) }

// fill makes at least n bytes available in buf, or says io.EOF. n is at most
// one frame.
func (s *segmentReader) fill(n int) error {
	if len(s.buf) >= n {
		return nil
	}
	have := copy(s.all, s.buf)
	m, err := s.f.ReadAt(s.all[have:], s.off+int64(have))
	s.buf = s.all[:have+m]
	if len(s.buf) >= n {
		return nil
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

// errBadFrame marks damage that an interrupted write may have left, if nothing
// follows it.
var errBadFrame = errors.New("bad frame")

// next returns the next entry, whose Payload is good until the next call; io.EOF
// at the end, where room for records begins, and where the file ends within a
// frame.
func (s *segmentReader) next() (Entry, error) {
	if err := s.fill(4); err != nil {
		return Entry{}, err
	}
	payload, hash, n, err := cutFrame(s.buf)
	if errors.Is(err, errShort) {
		if err := s.fill(n); errors.Is(err, io.EOF) {
			return s.short()
		} else if err != nil {
			return Entry{}, err
		}
		payload, hash, n, err = cutFrame(s.buf)
	}
	if err != nil {
		return s.bad()
	}
	e, err := decodePayload(payload)
	switch {
	case err != nil:
		return Entry{}, s.damaged("the record is malformed")
	case e.Position != s.head.Position+1:
		return Entry{}, s.damaged(fmt.Sprintf("the record says it is %d", e.Position))
	case hash != s.chain.next(s.head.Hash, payload):
		return Entry{}, s.damaged("the chain is broken")
	}
	s.head = Head{e.Position, hash}
	e.Hash, e.Payload = hash, payload
	e.Leaf = s.chain.leaf(payload)
	s.advance(n)
	return e, nil
}

// bad decides about a frame that is none: it is the room behind the records,
// or was being written when the machine died, or is damage.
func (s *segmentReader) bad() (Entry, error) {
	s.fill(frameLen) // as far as there is so much
	if len(trimZeros(s.buf[:min(frameLen, len(s.buf))])) == 0 {
		s.buf = nil // it may be written meanwhile
		return Entry{}, io.EOF
	}
	rest, err := s.rest()
	if err != nil {
		return Entry{}, err
	}
	s.buf = nil
	short, maybe := cutShort(rest)
	if maybe {
		time.Sleep(writeTime)
		if rest, err = s.rest(); err != nil {
			return Entry{}, err
		}
	}
	if _, _, _, err := cutFrame(rest); err == nil { // it was completed meanwhile
		return s.next()
	}
	if skipped(rest, s.off) || short && !holdsRecord(rest, s.head.Position) {
		return Entry{}, io.EOF
	}
	return Entry{}, s.damaged("the sum or length is wrong", errBadFrame)
}

// short decides about a frame that reaches beyond the end of the file: it is
// being written, or was when its writer died; or its length was changed, which
// shows when a record follows.
func (s *segmentReader) short() (Entry, error) {
	rest, err := s.rest()
	if err != nil {
		return Entry{}, err
	}
	if _, _, _, err := cutFrame(rest); !errors.Is(err, errShort) {
		s.buf = nil // it was completed meanwhile
		return s.next()
	}
	if holdsRecord(rest, s.head.Position) {
		return Entry{}, s.damaged("a length is wrong", errBadFrame)
	}
	return Entry{}, io.EOF
}

// rest reads what is left of the segment, without the room behind it: zeros,
// but for those that belong to the last sector that holds something else.
func (s *segmentReader) rest() ([]byte, error) {
	fi, err := s.f.Stat()
	if err != nil || fi.Size() <= s.off {
		return nil, err
	}
	b := make([]byte, fi.Size()-s.off)
	n, err := s.f.ReadAt(b, s.off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	b = b[:n]
	used := len(trimZeros(b))
	if used == 0 {
		return nil, err
	}
	return b[:min(n, used+sector-int((s.off+int64(used))%sector))], err
}

// end checks what follows the last record that was read: nothing but room and
// the beginning of a record. It returns what is not room.
func (s *segmentReader) end() ([]byte, error) {
	rest, err := s.rest()
	if err != nil {
		return nil, err
	}
	if _, _, _, err := cutFrame(rest); err == nil {
		return nil, nil // it was written meanwhile
	}
	if !skipped(rest, s.off) && holdsRecord(rest, s.head.Position) {
		return nil, s.damaged("a bad record is followed by good ones")
	}
	return rest, nil
}

// ended checks that a segment which another one follows ends with a record.
func (s *segmentReader) ended() error {
	rest, err := s.rest()
	if err == nil && len(rest) > 0 {
		err = s.damaged("the segment ends within a record")
	}
	return err
}

func (s *segmentReader) damaged(what string, cause ...error) error {
	err := fmt.Errorf("%s: damaged after position %d: %s", s.path, s.head.Position, what)
	return sandbox.Errorf("read audit log", sandbox.KindInternal, "%w", errors.Join(append(cause, err)...)).
		WithHint("keep the files as they are; a copy from before shows what was changed")
}

func (s *segmentReader) close() error { return s.f.Close() }

package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// frames cuts a segment into frames through one large buffer.
type frames struct {
	f   *os.File
	buf []byte
	r   int   // of the next frame in buf
	w   int   // end of what was read
	off int64 // of the next frame in the file
}

const scanBuffer = 1 << 20

var buffers = sync.Pool{New: func() any { return make([]byte, scanBuffer) }}

// need makes n bytes available, or as many as there are.
func (s *frames) need(n int) ([]byte, error) {
	if s.w-s.r >= n {
		return s.buf[s.r:s.w], nil
	}
	s.w = copy(s.buf, s.buf[s.r:s.w])
	s.r = 0
	for s.w < n {
		m, err := s.f.ReadAt(s.buf[s.w:], s.off+int64(s.w))
		s.w += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return s.buf[:s.w], nil
}

func (s *frames) advance(n int) { s.r, s.off = s.r+n, s.off+int64(n) }

// next returns the next frame as cutFrame does, without moving on. errShort
// says that the file ends before it does.
func (s *frames) next() (payload []byte, hash [32]byte, n int, err error) {
	b, err := s.need(4)
	if err != nil {
		return nil, hash, 0, err
	}
	payload, hash, n, err = cutFrame(b)
	if errors.Is(err, errShort) && n > len(b) {
		if b, err = s.need(n); err != nil {
			return nil, hash, 0, err
		}
		payload, hash, n, err = cutFrame(b)
	}
	return payload, hash, n, err
}

// hasher computes both hashes of a payload from one copy of it.
type hasher struct{ buf []byte }

func (h *hasher) sums(prev *[32]byte, payload []byte) (chained [32]byte, leaf tlog.Hash) {
	const head = len(chainDomain) + 32
	if h.buf == nil {
		h.buf = append(make([]byte, 0, head+MaxRecord), chainDomain...)
	}
	b := append(h.buf[:len(chainDomain)], prev[:]...)
	b = append(b, payload...)
	chained = sha256.Sum256(b)
	b[head-1] = 0 // RFC 6962: a leaf is hashed behind a zero byte
	return chained, sha256.Sum256(b[head-1:])
}

// scan reads every segment.
func (v *verifier) scan() error {
	list, err := segments(v.dir)
	if err != nil {
		return err
	}
	i, _ := slices.BinarySearch(list, v.begin.Position+1)
	list = list[i:] // what has expired and was not removed yet
	if len(list) == 0 {
		v.at.file = filepath.Base(segmentPath("", v.head.Position+1))
	}
	if len(list) > 0 {
		v.rep.First = uint64(v.begin.Position) + 1
	}
	v.reached()
	buf := buffers.Get().([]byte)
	defer buffers.Put(buf)
	for len(list) > 0 {
		later, err := v.segment(list[0], buf, len(list) == 1)
		if err != nil {
			return err
		}
		list = append(list[1:], later...)
	}
	if uint64(v.head.Position) < v.rep.First {
		v.rep.First = 0
	}
	return nil
}

// bad is an error about the next record.
func (v *verifier) bad(what string) error { return v.badAt(v.head.Position+1, what) }

func (v *verifier) badAt(p sandbox.Position, what string) error {
	e := &EvidenceError{File: v.at.file, Offset: v.at.off, Position: p, What: what}
	if cp := v.notes.checkpoint; cp != nil && int64(e.Position) > cp.cp.Size {
		e.What += " (it was not signed yet)"
	}
	return e
}

// segment reads one segment; of the last one, also what a running log has added
// meanwhile, and it returns those that the log has begun behind it.
func (v *verifier) segment(first sandbox.Position, buf []byte, last bool) (later []sandbox.Position, err error) {
	path := segmentPath(v.dir, first)
	v.at = place{filepath.Base(path), 0}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, sandbox.Errorf("verify audit log", sandbox.KindUnavailable, "segments expired meanwhile").WithHint("try again")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &frames{f: f, buf: buf}
	head, err := s.need(headerLen)
	if err != nil {
		return nil, err
	}
	if first != v.head.Position+1 {
		return nil, v.bad(fmt.Sprintf("the segment begins at %d, missing are the records from %d on", first, v.head.Position+1))
	}
	if len(head) < headerLen && last {
		return nil, v.torn(head)
	}
	at, prev, ok := parseHeader(head)
	if !ok || at != first {
		return nil, v.bad("the segment header is damaged")
	}
	if prev != v.head.Hash {
		return nil, v.bad("the segment does not continue the chain")
	}
	s.advance(headerLen)
	if err := v.frames(s, last); err != nil || !last {
		return nil, err
	}
	if later, err = segments(v.dir); err != nil {
		return nil, err
	}
	i, _ := slices.BinarySearch(later, first+1)
	if later = later[i:]; len(later) == 0 {
		return nil, nil
	}
	// This one has its final size since: what came after it was looked at has to be read first.
	s.r, s.w, v.rep.Torn = 0, 0, 0
	return later, v.frames(s, false)
}

// frames reads the records of a segment.
func (v *verifier) frames(s *frames, last bool) error {
	var h hasher
	var p view
	for {
		v.at.off = s.off
		payload, stored, n, err := s.next()
		switch {
		case errors.Is(err, errShort), errors.Is(err, errFormat):
			if again, err := v.unframed(s, err, last); err != nil || !again {
				return err
			}
			continue
		case err != nil:
			return err
		}
		if !viewPayload(payload, &p) {
			return v.bad("the record is malformed")
		}
		if p.position != uint64(v.head.Position)+1 {
			return v.bad(fmt.Sprintf("the record says it is %d", p.position))
		}
		chained, leaf := h.sums(&v.head.Hash, payload)
		if chained != stored {
			return v.bad("the chain is broken")
		}
		v.head = Head{sandbox.Position(p.position), stored}
		if err := v.record(payload, &p, leaf); err != nil {
			return err
		}
		s.advance(n)
	}
}

// unframed decides about bytes that are no frame: room, a write that was
// interrupted, or damage; or a frame that was completed meanwhile, which is to
// be read again.
func (v *verifier) unframed(s *frames, why error, last bool) (again bool, err error) {
	tail := &segmentReader{f: s.f, head: v.head, off: s.off}
	rest, err := tail.rest()
	if err != nil || len(rest) == 0 {
		return false, err
	}
	short, maybe := cutShort(rest)
	if maybe && last {
		time.Sleep(writeTime)
		if rest, err = tail.rest(); err != nil {
			return false, err
		}
	}
	if _, _, _, err := cutFrame(rest); err == nil && last {
		s.w = s.r
		return true, nil
	}
	signed := int64(0)
	if v.notes.checkpoint != nil {
		signed = v.notes.checkpoint.cp.Size
	}
	switch {
	case int64(v.head.Position) < signed && errors.Is(why, errShort) && last:
		return false, v.bad(fmt.Sprintf("the log ends at %d, within a record, and %d records are signed", v.head.Position, signed))
	case int64(v.head.Position) < signed || !last:
		return false, v.bad("the checksum or the length is wrong")
	case skipped(rest, s.off):
	case holdsRecord(rest, v.head.Position):
		return false, v.bad("it is damaged, and records follow")
	case short:
	case errors.Is(why, errFormat) && len(trimZeros(rest[:min(frameLen, len(rest))])) > 0:
		return false, v.bad("the checksum or the length is wrong")
	}
	return false, v.torn(rest)
}

// torn notes what an interrupted write left behind the last record.
func (v *verifier) torn(rest []byte) error {
	v.rep.Torn = int64(len(rest))
	return nil
}

// repair checks what a repair cut off against what it recorded about it. What
// is wrong counts only once the record itself is known to be right.
func (v *verifier) repair(p *view) error {
	v.rep.Repairs++
	name := fmt.Sprintf("%020d.cut", p.position)
	delete(v.cuts, sandbox.Position(p.position))
	b, err := os.ReadFile(filepath.Join(v.dir, name))
	digest := string(p.fields[fieldDigest])
	sum := sha256.Sum256(b)
	what := ""
	switch {
	case errors.Is(err, fs.ErrNotExist) && digest != "": // version 1 promised nothing about it
		what = fmt.Sprintf("it is missing; record %d tells of it", p.position)
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case p.detail("bytes") != fmt.Sprint(len(b)), digest != "" && digest != hex.EncodeToString(sum[:]):
		what = fmt.Sprintf("it is not what was cut off; record %d says", p.position)
	}
	if what != "" && v.unrepaired == nil {
		v.unrepaired = &EvidenceError{File: name, What: what}
	}
	return nil
}

// findRecord is where a record is.
func findRecord(dir string, p sandbox.Position) (at place, err error) {
	list, err := segments(dir)
	if err != nil {
		return at, err
	}
	i, found := slices.BinarySearch(list, p)
	if !found && i > 0 {
		i--
	}
	if i == len(list) {
		return at, errors.New("no such record")
	}
	n := list[i]
	err = walkFrames(dir, list[i], func(here place, _ []byte) bool {
		at = here
		n++
		return n <= p
	})
	return at, err
}

// walkFrames calls f with each frame from the segment on that begins at a
// position.
func walkFrames(dir string, first sandbox.Position, f func(place, []byte) bool) error {
	list, err := segments(dir)
	if err != nil {
		return err
	}
	buf := buffers.Get().([]byte)
	defer buffers.Put(buf)
	i, _ := slices.BinarySearch(list, first)
	for _, n := range list[i:] {
		file, err := os.Open(segmentPath(dir, n))
		if err != nil {
			return err
		}
		s := &frames{f: file, buf: buf, off: int64(headerLen)}
		name := filepath.Base(file.Name())
		for {
			payload, _, size, err := s.next()
			if err != nil {
				break
			}
			if !f(place{name, s.off}, payload) {
				file.Close()
				return nil
			}
			s.advance(size)
		}
		file.Close()
	}
	return nil
}

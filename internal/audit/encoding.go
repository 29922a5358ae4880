package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of a record.
const (
	MaxDetail = 1 << 10  // bytes of one Detail value
	MaxRecord = 64 << 10 // bytes of an encoded record
)

// The layout of a payload, and of what is around it.
const (
	version     = 2 // of the payloads that are written
	oldVersion  = 1 // of those that are read still
	magic       = "FBAUDIT1"
	headerLen   = len(magic) + 8 + 32 + 4
	frameLen    = 4 + 4 + 32 // of a frame without its payload
	chainDomain = "firebreak audit chain v1\n"

	positionOff = 1
	timeOff     = 9
	oldClassOff = 17 // of version 1
	monoOff     = 17
	bootOff     = 25
	policyOff   = 41
	previousOff = 49
	classOff    = 57
	textOff     = 58 // where the strings begin

	restLen       = 9*4 + 4 // nine empty strings and no details
	minOldPayload = oldClassOff + 1 + restLen
	minPayload    = textOff + restLen
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errFormat is what a decoder says of bytes the encoder would not have written.
var errFormat = errors.New("malformed record")

// fields lists the string fields in the order of the format.
func fields(r *sandbox.Record) [9]*string {
	return [9]*string{
		(*string)(&r.Tenant), (*string)(&r.Sandbox), (*string)(&r.Instance), &r.Principal, &r.Action,
		(*string)(&r.Outcome), (*string)(&r.Reason), &r.Object, &r.Digest,
	}
}

// appendPayload appends the encoding of e in the version e says.
func appendPayload(b []byte, e *Entry) []byte {
	r := &e.Record
	b = append(b, e.Version)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Position))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time.UnixNano()))
	if e.Version != oldVersion {
		b = binary.BigEndian.AppendUint64(b, uint64(e.Monotonic))
		b = append(b, e.Boot[:]...)
		b = binary.BigEndian.AppendUint64(b, r.Policy)
		b = binary.BigEndian.AppendUint64(b, uint64(e.Previous))
	}
	b = append(b, byte(r.Class))
	for _, s := range fields(r) {
		b = appendString(b, *s)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Detail)))
	var few [8]string // most records have no more, and cost no allocation
	keys := slices.AppendSeq(few[:0], maps.Keys(r.Detail))
	slices.Sort(keys)
	for _, k := range keys {
		b = appendString(b, k)
		b = appendString(b, r.Detail[k])
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// DecodePayload decodes one payload, as it is in a segment or in an evidence
// file. It is strict: whatever it accepts is exactly what the log would have
// written. The entry has no chain Hash, and its Payload is b itself. Errors:
// KindInvalid.
func DecodePayload(b []byte) (Entry, error) {
	e, err := decodePayload(b)
	if err != nil {
		return Entry{}, sandbox.Errorf("decode record", sandbox.KindInvalid, "%w", err)
	}
	e.Payload, e.Leaf = b, tlog.RecordHash(b)
	return e, nil
}

// decodePayload is the strict inverse of appendPayload. It leaves Hash, Leaf
// and Payload alone.
func decodePayload(b []byte) (e Entry, err error) {
	e.Version = payloadVersion(b)
	if e.Version == 0 || len(b) > MaxRecord {
		return e, errFormat
	}
	r := &e.Record
	e.Position = sandbox.Position(binary.BigEndian.Uint64(b[positionOff:]))
	r.Time = time.Unix(0, int64(binary.BigEndian.Uint64(b[timeOff:]))).UTC()
	class := oldClassOff
	if e.Version != oldVersion {
		e.Monotonic = time.Duration(binary.BigEndian.Uint64(b[monoOff:]))
		copy(e.Boot[:], b[bootOff:])
		r.Policy = binary.BigEndian.Uint64(b[policyOff:])
		e.Previous = sandbox.Position(binary.BigEndian.Uint64(b[previousOff:]))
		class = classOff
	}
	r.Class = sandbox.Class(b[class])
	if e.Position == 0 || e.Previous >= e.Position || e.Monotonic < 0 || r.Class > sandbox.Flow {
		return e, errFormat
	}
	b = b[class+1:]
	ok := true
	for _, s := range fields(r) {
		*s, b, ok = cutString(b, ok)
	}
	if !ok || len(b) < 4 || r.Sandbox == "" && e.Previous != 0 {
		return e, errFormat
	}
	r.Detail, err = decodeDetail(b)
	return e, err
}

// payloadVersion is 0 for what no payload begins with.
func payloadVersion(b []byte) uint8 {
	switch {
	case len(b) >= minPayload && b[0] == version, len(b) >= minOldPayload && b[0] == oldVersion:
		return b[0]
	}
	return 0
}

// decodeDetail decodes what a payload ends with.
func decodeDetail(b []byte) (m map[string]string, err error) {
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n)*8 > uint64(len(b)) {
		return nil, errFormat
	}
	if n > 0 {
		m = make(map[string]string, n)
	}
	last, ok := "", true
	for i := range n {
		var k, v string
		k, b, ok = cutString(b, ok)
		v, b, ok = cutString(b, ok)
		if !ok || (i > 0 && k <= last) {
			return nil, errFormat
		}
		m[k], last = v, k
	}
	if len(b) != 0 {
		return nil, errFormat
	}
	return m, nil
}

// cutString takes one string off b; ok stays false once it was.
func cutString(b []byte, ok bool) (string, []byte, bool) {
	s, rest, ok := cutBytes(b, ok)
	return string(s), rest, ok
}

func cutBytes(b []byte, ok bool) (s, rest []byte, _ bool) {
	if !ok || len(b) < 4 {
		return nil, b, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return nil, b, false
	}
	return b[:n], b[n:], true
}

// chainer computes chain hashes, without an allocation for each. It is for use
// by one goroutine.
type chainer struct{ buf []byte }

// next extends the chain hash by one payload.
func (c *chainer) next(prev [32]byte, payload []byte) [32]byte {
	c.buf = append(append(append(c.buf[:0], chainDomain...), prev[:]...), payload...)
	return sha256.Sum256(c.buf)
}

// leaf is tlog.RecordHash.
func (c *chainer) leaf(payload []byte) tlog.Hash {
	c.buf = append(append(c.buf[:0], 0), payload...)
	return sha256.Sum256(c.buf)
}

// seal fills in the frame at the front of b, whose length and payload are in
// place, and returns the rest of b and the new chain hash.
func (c *chainer) seal(b []byte, prev [32]byte) ([]byte, [32]byte) {
	n := frameLen + int(binary.BigEndian.Uint32(b))
	h := c.next(prev, b[frameLen:n])
	copy(b[8:], h[:])
	binary.BigEndian.PutUint32(b[4:], frameSum(b[:n]))
	return b[n:], h
}

func frameSum(frame []byte) uint32 {
	return crc32.Update(crc32.Checksum(frame[:4], castagnoli), castagnoli, frame[8:])
}

// errShort says that a frame goes on beyond the bytes at hand.
var errShort = errors.New("incomplete record")

// cutFrame takes the frame off the front of b: its payload, its chain hash, and
// its size. It checks the sum, not the chain.
func cutFrame(b []byte) (payload []byte, hash [32]byte, n int, err error) {
	if len(b) < 4 {
		return nil, hash, 0, errShort
	}
	size := int64(binary.BigEndian.Uint32(b))
	if size < int64(minOldPayload) || size > MaxRecord {
		return nil, hash, 0, errFormat
	}
	n = frameLen + int(size)
	if len(b) < n {
		return nil, hash, n, errShort
	}
	if binary.BigEndian.Uint32(b[4:]) != frameSum(b[:n]) {
		return nil, hash, n, errFormat
	}
	copy(hash[:], b[8:])
	return b[frameLen:n], hash, n, nil
}

// segmentHeader is what every segment begins with.
func segmentHeader(first sandbox.Position, prev [32]byte) []byte {
	b := append(make([]byte, 0, headerLen), magic...)
	b = binary.BigEndian.AppendUint64(b, uint64(first))
	b = append(b, prev[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseHeader(b []byte) (first sandbox.Position, prev [32]byte, ok bool) {
	if len(b) < headerLen || string(b[:len(magic)]) != magic ||
		binary.BigEndian.Uint32(b[headerLen-4:]) != crc32.Checksum(b[:headerLen-4], castagnoli) {
		return 0, prev, false
	}
	copy(prev[:], b[16:])
	first = sandbox.Position(binary.BigEndian.Uint64(b[8:]))
	return first, prev, first > 0
}

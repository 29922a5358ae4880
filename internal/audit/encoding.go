package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of a record.
const (
	MaxDetail = 1 << 10  // bytes of one Detail value
	MaxRecord = 64 << 10 // bytes of an encoded record
)

const (
	version     = 1
	magic       = "FBAUDIT1"
	headerLen   = len(magic) + 8 + 32 + 4
	frameLen    = 4 + 4 + 32 // of a frame without its payload
	positionOff = 1          // of the position in a payload
	minPayload  = 1 + 8 + 8 + 1 + 9*4 + 4
	chainDomain = "firebreak audit chain v1\n"
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

// appendPayload appends the encoding of r at position p.
func appendPayload(b []byte, p sandbox.Position, r *sandbox.Record) []byte {
	b = append(b, version)
	b = binary.BigEndian.AppendUint64(b, uint64(p))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time.UnixNano()))
	b = append(b, byte(r.Class))
	for _, s := range fields(r) {
		b = appendString(b, *s)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Detail)))
	for _, k := range slices.Sorted(maps.Keys(r.Detail)) {
		b = appendString(b, k)
		b = appendString(b, r.Detail[k])
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// decodePayload is the strict inverse of appendPayload.
func decodePayload(b []byte) (sandbox.Position, sandbox.Record, error) {
	var r sandbox.Record
	if len(b) < minPayload || len(b) > MaxRecord || b[0] != version {
		return 0, r, errFormat
	}
	p := sandbox.Position(binary.BigEndian.Uint64(b[positionOff:]))
	r.Time = time.Unix(0, int64(binary.BigEndian.Uint64(b[9:]))).UTC()
	r.Class = sandbox.Class(b[17])
	if p == 0 || r.Class > sandbox.Flow {
		return 0, r, errFormat
	}
	b = b[18:]
	ok := true
	for _, s := range fields(&r) {
		*s, b, ok = cutString(b, ok)
	}
	if !ok || len(b) < 4 {
		return 0, r, errFormat
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n)*8 > uint64(len(b)) {
		return 0, r, errFormat
	}
	if n > 0 {
		r.Detail = make(map[string]string, n)
	}
	last := ""
	for i := range n {
		var k, v string
		k, b, ok = cutString(b, ok)
		v, b, ok = cutString(b, ok)
		if !ok || (i > 0 && k <= last) {
			return 0, r, errFormat
		}
		r.Detail[k], last = v, k
	}
	if len(b) != 0 {
		return 0, r, errFormat
	}
	return p, r, nil
}

// cutString takes one string off b; ok stays false once it was.
func cutString(b []byte, ok bool) (string, []byte, bool) {
	if !ok || len(b) < 4 {
		return "", b, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return "", b, false
	}
	return string(b[:n]), b[n:], true
}

// chain extends the chain hash by one payload.
func chain(prev [32]byte, payload []byte) (h [32]byte) {
	d := sha256.New()
	d.Write([]byte(chainDomain))
	d.Write(prev[:])
	d.Write(payload)
	d.Sum(h[:0])
	return h
}

// sealFrame fills in the frame at the front of b, whose length and payload are
// in place, and returns the rest of b and the new chain hash.
func sealFrame(b []byte, prev [32]byte) ([]byte, [32]byte) {
	n := frameLen + int(binary.BigEndian.Uint32(b))
	h := chain(prev, b[frameLen:n])
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
	if size < int64(minPayload) || size > MaxRecord {
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

package event

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Type says what an event is about.
type Type string

// The types. What processes do is bounded: dropped oldest first when a sandbox
// exceeds its budget. StateChange and Receipt, of which a life has a handful,
// are kept.
const (
	StateChange Type = "state" // Data: JSON
	Started     Type = "started"
	Stdout      Type = "stdout" // Data: bytes as the process wrote them
	Stderr      Type = "stderr"
	PTY         Type = "pty" // what a terminal shows: instead of the two
	Exit        Type = "exit"
	Result      Type = "result"
	Limit       Type = "limit"
	Egress      Type = "egress"
	Artifact    Type = "artifact"
	Receipt     Type = "receipt"
	Turn        Type = "turn"      // a context's turn begins
	Display     Type = "display"   // it shows something
	Exception   Type = "exception" // it has raised one
	TurnEnd     Type = "turn_end"  // it has ended
	Truncated   Type = "truncated" // made by the hub: output was dropped here
)

// codes are the types on disk: a type's code never changes.
var codes = map[Type]byte{
	StateChange: 1, Started: 2, Stdout: 3, Stderr: 4, Exit: 5, Result: 6, Limit: 7, Egress: 8, Artifact: 9, Receipt: 10,
	PTY:  11,
	Turn: 12, Display: 13, Exception: 14, TurnEnd: 15,
}

var types = func() map[byte]Type {
	m := map[byte]Type{}
	for t, c := range codes {
		m[c] = t
	}
	return m
}()

// output is what may be dropped rather than refused on a full disk.
func (t Type) output() bool { return t == Stdout || t == Stderr || t == PTY }

// kept is never dropped for want of budget.
func (t Type) kept() bool { return t == StateChange || t == Receipt }

// Event is one event. It is immutable once published; subscribers share it.
type Event struct {
	ID      uint64 // from 1 per sandbox; set by Publish
	Time    time.Time
	Type    Type
	Process string // the process concerned, if any
	// Offset is where Data begins among all that the process printed on this
	// channel; output only. It is how a restarted server knows what it has.
	Offset uint64
	Data   []byte
	Final  bool // nothing follows: the sandbox has ended
}

// size is what an event costs in memory, roughly.
func (e *Event) size() int { return len(e.Data) + len(e.Process) + 96 }

// On disk an event is
//
//	u32 length of the rest, u32 CRC-32C of the rest,
//	u64 id, i64 Unix nanoseconds, u8 type, u8 flags (1: final),
//	u16 length of process, process, u64 offset (with flag 2), data
//
// all big-endian.
const (
	frameHeader = 8
	bodyHeader  = 20
	maxProcess  = 256
	// MaxData is the most bytes of Data an event may have.
	MaxData = 1 << 20
	maxBody = bodyHeader + maxProcess + offsetSize + MaxData

	final      = 1
	offset     = 2
	offsetSize = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendTo appends e's encoding to b.
func (e *Event) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, frameHeader)...)
	b = binary.BigEndian.AppendUint64(b, e.ID)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.UnixNano()))
	var flags byte
	if e.Final {
		flags = final
	}
	if e.Type.output() {
		flags |= offset
	}
	b = append(b, codes[e.Type], flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Process)))
	b = append(b, e.Process...)
	if e.Type.output() {
		b = binary.BigEndian.AppendUint64(b, e.Offset)
	}
	b = append(b, e.Data...)
	body := b[start+frameHeader:]
	binary.BigEndian.PutUint32(b[start:], uint32(len(body)))
	binary.BigEndian.PutUint32(b[start+4:], crc32.Checksum(body, castagnoli))
	return b
}

// decodeHeader returns the length and the checksum of the body that follows,
// and false when no event has such a length.
func decodeHeader(h []byte) (length int, sum uint32, ok bool) {
	n := binary.BigEndian.Uint32(h)
	return int(n), binary.BigEndian.Uint32(h[4:]), n >= bodyHeader && n <= maxBody
}

// decodeBody decodes a body; false when it is damaged. Data shares b.
func decodeBody(b []byte, sum uint32) (*Event, bool) {
	if len(b) < bodyHeader || crc32.Checksum(b, castagnoli) != sum {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(b[18:]))
	t, known := types[b[16]]
	if !known || b[17]&^(final|offset) != 0 || n > maxProcess || bodyHeader+n > len(b) {
		return nil, false
	}
	e := &Event{
		ID: binary.BigEndian.Uint64(b), Time: time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))).UTC(),
		Type: t, Final: b[17]&final != 0, Process: string(b[bodyHeader : bodyHeader+n]), Data: b[bodyHeader+n:],
	}
	if b[17]&offset != 0 {
		if len(e.Data) < offsetSize || !t.output() {
			return nil, false
		}
		e.Offset, e.Data = binary.BigEndian.Uint64(e.Data), e.Data[offsetSize:]
	}
	return e, true
}

// check refuses what could not be read back.
func (e *Event) check() error {
	switch {
	case codes[e.Type] == 0:
		return sandbox.Errorf("publish", sandbox.KindInvalid, "%q is no type of event", e.Type)
	case len(e.Process) > maxProcess:
		return sandbox.Errorf("publish", sandbox.KindTooLarge, "a process id of %d bytes", len(e.Process))
	case len(e.Data) > MaxData:
		return sandbox.Errorf("publish", sandbox.KindTooLarge, "an event of %d bytes", len(e.Data)).WithHint("split it at %d", MaxData)
	}
	return nil
}

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Type is a frame's type.
type Type uint8

// The frame types. Values are wire format: never reuse one.
const (
	TypeReset    Type = 0x01
	TypeResetAck Type = 0x02
	TypeHello    Type = 0x03
	TypeCall     Type = 0x10
	TypeReply    Type = 0x11
	TypeCancel   Type = 0x12
	TypeStdin    Type = 0x20
	TypeStdout   Type = 0x21
	TypeStderr   Type = 0x22
	TypeFile     Type = 0x23
	TypeWindow   Type = 0x28
	TypeEnd      Type = 0x29
	TypeExit     Type = 0x2a
	TypeExitAck  Type = 0x2b
)

// Sizes of the wire format.
const (
	HeaderSize = 16
	// DataHeader is a header and the offset that begins each data payload.
	DataHeader = HeaderSize + 8
	// MaxData is the most raw bytes one data frame carries.
	MaxData = 1 << 20
	// MaxControl caps JSON from the guest.
	MaxControl = 64 << 10
	// MaxCall caps JSON to the guest. It is larger because a call carries a
	// program's arguments and environment, which Linux lets be this big.
	MaxCall = 256 << 10
	// MaxFrame is the longest frame there is: enough filler for any half frame.
	MaxFrame = DataHeader + MaxData

	// NonceSize is the length of either side's nonce.
	NonceSize = 16

	resetSize    = NonceSize + 8
	resetAckSize = 2*NonceSize + 8
	markSize     = 9 // channel u8, offset u64

	magic   = 0xfb1e
	version = 1
)

// Windows: the most unacknowledged bytes of one channel.
const (
	DefaultWindow = 256 << 10 // stdin, stdout, stderr
	MinWindow     = 4 << 10
	FileWindow    = 4 << 20 // file contents
	DialWindow    = 256 << 10
)

// ErrProtocol is wrapped by every decoding error that means the other end
// broke the protocol, as opposed to the stream having failed.
var ErrProtocol = errors.New("protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Violation returns an error that wraps ErrProtocol.
func Violation(format string, args ...any) error { return violation(format, args...) }

// Role says which end a decoder belongs to: it decides which frames may come.
type Role uint8

// The two ends.
const (
	Host  Role = iota // decodes what a guest sent
	Guest             // decodes what a host sent
)

// bounds returns the payload sizes role accepts for t.
func (r Role) bounds(t Type) (lo, hi int, ok bool) {
	switch t {
	case TypeHello:
		return 2, MaxControl, true
	case TypeWindow, TypeEnd:
		return markSize, markSize, true
	case TypeFile:
		return 8, 8 + MaxData, true
	}
	if r == Host {
		switch t {
		case TypeResetAck:
			return resetAckSize, resetAckSize, true
		case TypeReply, TypeExit:
			return 2, MaxControl, true
		case TypeStdout, TypeStderr:
			return 8, 8 + MaxData, true
		}
		return 0, 0, false
	}
	switch t {
	case TypeReset:
		return resetSize, resetSize, true
	case TypeCall:
		return 2, MaxCall, true
	case TypeStdin:
		return 8, 8 + MaxData, true
	case TypeCancel, TypeExitAck:
		return 0, 0, true
	}
	return 0, 0, false
}

// Header is a decoded frame header. Data frames have Offset and a Length that
// no longer counts it.
type Header struct {
	Type   Type
	Stream uint32
	Length int
	Offset uint64
}

func (t Type) isData() bool { return t >= TypeStdin && t <= TypeFile }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// putHeader fills b[:16]; the checksum covers what follows in b and segs.
func putHeader(b []byte, t Type, stream uint32, length int, segs ...[]byte) {
	binary.BigEndian.PutUint16(b, magic)
	b[2], b[3] = version, byte(t)
	binary.BigEndian.PutUint32(b[4:], stream)
	binary.BigEndian.PutUint32(b[8:], uint32(length))
	crc := crc32.Update(0, castagnoli, b[:12])
	crc = crc32.Update(crc, castagnoli, b[HeaderSize:])
	for _, s := range segs {
		crc = crc32.Update(crc, castagnoli, s)
	}
	binary.BigEndian.PutUint32(b[12:], crc)
}

// AppendFrame appends a whole frame to dst and returns it.
func AppendFrame(dst []byte, t Type, stream uint32, payload []byte) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	dst = append(dst, payload...)
	putHeader(dst[n:], t, stream, len(payload))
	return dst
}

// AppendMark appends a window or end frame to dst and returns it. channel is
// the data type it is about.
func AppendMark(dst []byte, t Type, stream uint32, channel Type, offset uint64) []byte {
	var p [markSize]byte
	p[0] = byte(channel)
	binary.BigEndian.PutUint64(p[1:], offset)
	return AppendFrame(dst, t, stream, p[:])
}

// PutData fills h with the header and offset of a data frame whose raw bytes
// are segs, to be written right after h. At most MaxData bytes.
func PutData(h *[DataHeader]byte, t Type, stream uint32, offset uint64, segs ...[]byte) {
	n := 8
	for _, s := range segs {
		n += len(s)
	}
	binary.BigEndian.PutUint64(h[HeaderSize:], offset)
	putHeader(h[:], t, stream, n, segs...)
}

// ParseMark decodes the payload of a window or end frame.
func ParseMark(p []byte) (channel Type, offset uint64, err error) {
	if len(p) != markSize || !Type(p[0]).isData() {
		return 0, 0, violation("bad window or end frame")
	}
	return Type(p[0]), binary.BigEndian.Uint64(p[1:]), nil
}

// Decoder reads frames. It holds a small buffer, so that a burst of small
// frames costs one read; large payloads go straight to where they are wanted.
//
// The sequence is: Next, then Read until Length bytes have been read, then
// Verify. Nothing read may be acted on before Verify. Not safe for concurrent
// use.
type Decoder struct {
	r    io.Reader
	role Role
	buf  []byte
	a, b int // unread part of buf
	crc  uint32
	want uint32
	left int
}

// NewDecoder returns a Decoder for the end that role names.
func NewDecoder(r io.Reader, role Role) *Decoder {
	return &Decoder{r: r, role: role, buf: make([]byte, 4096)}
}

// fill makes n bytes available in buf.
func (d *Decoder) fill(n int) error {
	if d.b-d.a >= n {
		return nil
	}
	if d.a > 0 {
		d.b = copy(d.buf, d.buf[d.a:d.b])
		d.a = 0
	}
	got, err := io.ReadAtLeast(d.r, d.buf[d.b:], n-d.b)
	d.b += got
	if d.b >= n {
		return nil
	}
	return err
}

// Next reads the next header. Errors wrap ErrProtocol or are the stream's.
func (d *Decoder) Next() (Header, error) {
	if err := d.fill(HeaderSize); err != nil {
		return Header{}, err
	}
	p := d.buf[d.a : d.a+HeaderSize]
	h, err := d.parse(p)
	if err != nil {
		return Header{}, err
	}
	d.want = binary.BigEndian.Uint32(p[12:])
	d.crc = crc32.Update(0, castagnoli, p[:12])
	d.left = h.Length
	d.a += HeaderSize
	if h.Type.isData() {
		if err := d.fill(8); err != nil {
			return Header{}, err
		}
		o := d.buf[d.a : d.a+8]
		h.Offset = binary.BigEndian.Uint64(o)
		d.crc = crc32.Update(d.crc, castagnoli, o)
		d.a += 8
		d.left -= 8
		h.Length -= 8
		if h.Offset > 1<<62 {
			return Header{}, violation("offset out of range")
		}
	}
	return h, nil
}

func (d *Decoder) parse(p []byte) (Header, error) {
	h := Header{Type: Type(p[3]), Stream: binary.BigEndian.Uint32(p[4:])}
	n := binary.BigEndian.Uint32(p[8:])
	if binary.BigEndian.Uint16(p) != magic || p[2] != version {
		return h, violation("bad magic or version")
	}
	lo, hi, ok := d.role.bounds(h.Type)
	if !ok {
		return h, violation("unexpected frame type %#x", byte(h.Type))
	}
	if n < uint32(lo) || n > uint32(hi) {
		return h, violation("frame type %#x of %d bytes", byte(h.Type), n)
	}
	h.Length = int(n)
	return h, nil
}

// Read fills p, which must not be longer than what is left of the payload.
func (d *Decoder) Read(p []byte) error {
	if len(p) > d.left {
		return violation("read past the payload") // unreachable unless a caller errs
	}
	d.left -= len(p)
	n := copy(p, d.buf[d.a:d.b])
	d.a += n
	if n < len(p) {
		if rest := p[n:]; len(rest) < len(d.buf)/2 {
			if err := d.fill(len(rest)); err != nil {
				return err
			}
			d.a += copy(rest, d.buf[d.a:d.b])
		} else if _, err := io.ReadFull(d.r, rest); err != nil {
			return err
		}
	}
	d.crc = crc32.Update(d.crc, castagnoli, p)
	return nil
}

// Skip reads and drops the rest of the payload.
func (d *Decoder) Skip() error {
	var p [512]byte
	for d.left > 0 {
		if err := d.Read(p[:min(d.left, len(p))]); err != nil {
			return err
		}
	}
	return nil
}

// Verify ends a frame: its payload has been read and the checksum matches.
func (d *Decoder) Verify() error {
	if d.left != 0 {
		return violation("payload not read") // unreachable unless a caller errs
	}
	if d.crc != d.want {
		return violation("bad checksum")
	}
	return nil
}

// Payload reads the whole payload of the frame h and verifies it.
func (d *Decoder) Payload(h Header) ([]byte, error) {
	p := make([]byte, h.Length)
	if err := d.Read(p); err != nil {
		return nil, err
	}
	return p, d.Verify()
}

// Hunt discards bytes until it has read a whole, intact frame of type t whose
// payload satisfies ok, and returns the payload. It is how both ends find each
// other in a stream of unknown state. t must be reset or resetAck.
//
// Errors are the stream's only: no input is wrong for Hunt.
func (d *Decoder) Hunt(t Type, ok func(payload []byte) bool) ([]byte, error) {
	_, size, _ := d.role.bounds(t)
	for {
		if err := d.fill(HeaderSize + size); err != nil {
			return nil, err
		}
		p := d.buf[d.a:d.b]
		i := findMagic(p)
		if i != 0 {
			d.a += i
			continue
		}
		if h, err := d.parse(p[:HeaderSize]); err == nil && h.Type == t && h.Length == size {
			crc := crc32.Update(0, castagnoli, p[:12])
			body := p[HeaderSize : HeaderSize+size]
			crc = crc32.Update(crc, castagnoli, body)
			if crc == binary.BigEndian.Uint32(p[12:]) && ok(body) {
				d.a += HeaderSize + size
				return append([]byte(nil), body...), nil
			}
		}
		d.a++
	}
}

// findMagic returns where the magic may begin in p, or len(p)-1 at most, so
// that a magic cut in two is not lost.
func findMagic(p []byte) int {
	for i := 0; i+1 < len(p); i++ {
		if p[i] == magic>>8 && p[i+1] == magic&0xff {
			return i
		}
	}
	return len(p) - 1
}

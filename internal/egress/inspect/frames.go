package inspect

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"
)

// The kinds of frames of WebSocket, RFC 6455.
const (
	opMore   = 0x0 // of the message before
	opText   = 0x1
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xa
)

const (
	maxControl = 125         // bytes of a close, ping or pong
	maxMessage = 64 << 20    // bytes
	byeTime    = time.Second // for who is writing
)

// Why a WebSocket is closed.
const (
	codeProtocol = 1002
	codePolicy   = 1008
	codeTooBig   = 1009
)

// frameError is what about a frame cannot be.
type frameError struct {
	code int
	text string
}

// Error implements error.
func (e *frameError) Error() string { return e.text }

func oddFrame(text string) error { return &frameError{codeProtocol, text} }

// frame is the head of one.
type frame struct {
	op   byte
	last bool // of its message
	mask [4]byte
	size int64
}

func (f *frame) control() bool { return f.op >= opClose }

// readFrame reads the head of a frame as narrowly as it can be read: no extension
// was agreed on. masked: so are all that come from a client, and none of a server's.
// Errors: *frameError, those of in.
func readFrame(in *bufio.Reader, masked bool) (f frame, err error) {
	var b [8]byte
	if _, err := io.ReadFull(in, b[:2]); err != nil {
		return f, err
	}
	f.op, f.last, f.size = b[0]&0xf, b[0]&0x80 != 0, int64(b[1]&0x7f)
	switch {
	case b[0]&0x70 != 0:
		return f, oddFrame("a frame of an extension that was not agreed on")
	case f.op > opBinary && f.op < opClose, f.op > opPong:
		return f, oddFrame("a frame of no kind")
	case b[1]&0x80 != 0 != masked:
		return f, oddFrame("a frame is masked that must not be, or the other way round")
	case f.control() && (!f.last || f.size > maxControl):
		return f, oddFrame("a close, ping or pong in pieces, or a long one")
	}
	if more := map[int64]int{126: 2, 127: 8}[f.size]; more > 0 {
		least := int64(126)
		if more == 8 {
			least = 1 << 16
		}
		clear(b[:])
		if _, err := io.ReadFull(in, b[8-more:]); err != nil {
			return f, broken(err)
		}
		n := binary.BigEndian.Uint64(b[:])
		if n>>63 != 0 || int64(n) < least {
			return f, oddFrame("the length of a frame is longer than it has to be")
		}
		f.size = int64(n)
	}
	if masked {
		if _, err := io.ReadFull(in, f.mask[:]); err != nil {
			return f, broken(err)
		}
	}
	if f.size > maxMessage {
		return f, &frameError{codeTooBig, fmt.Sprintf("a message longer than %d MiB", maxMessage>>20)}
	}
	return f, nil
}

// broken is err of what ends in the middle of something.
func broken(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// unmask undoes, or makes, the mask of bytes that begin at an offset of the frame.
func (f *frame) unmask(b []byte, offset int64) {
	if f.mask == [4]byte{} {
		return
	}
	for i := range b {
		b[i] ^= f.mask[(offset+int64(i))&3]
	}
}

// frames writes them to one side. Its methods may be called at once.
type frames struct {
	masked bool // as a client's are

	mu     sync.Mutex
	out    *bufio.Writer // guarded by mu
	closed bool          // guarded by mu; a close was the last
}

// write writes one frame, in whose payload it may do what it likes. Errors: those
// of out; io.ErrClosedPipe after a close.
func (w *frames) write(op byte, last bool, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.put(op, last, payload)
}

func (w *frames) put(op byte, last bool, payload []byte) error {
	if w.closed {
		return io.ErrClosedPipe
	}
	w.closed = op == opClose
	b := make([]byte, 0, 14)
	b = append(b, op)
	if last {
		b[0] |= 0x80
	}
	switch n := len(payload); {
	case n <= maxControl:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	if w.masked {
		b[1] |= 0x80
		f := frame{}
		_, _ = rand.Read(f.mask[:]) // never fails
		b = append(b, f.mask[:]...)
		f.unmask(payload, 0)
	}
	_, _ = w.out.Write(b) // what fails, fails again when it is flushed
	_, _ = w.out.Write(payload)
	return w.out.Flush()
}

// bye closes with a code, unless somebody is writing who does not get on.
func (w *frames) bye(code int, text string) {
	for end := time.Now().Add(byeTime); !w.mu.TryLock(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return
		}
	}
	defer w.mu.Unlock()
	_ = w.put(opClose, true, append(binary.BigEndian.AppendUint16(nil, uint16(code)), text...))
}

package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
	"golang.org/x/sys/unix"
)

const (
	maxPacket  = 32 << 10 // bytes of a message in one packet
	maxMessage = 8 << 20
)

// The first byte of a packet.
const (
	packetLast = 0 // the message ends with it
	packetMore = 1 // it is full, and there is more
)

// link carries messages over a unixpacket socket. One goroutine receives; any may
// send. After an error of either, it is of no more use.
type link struct {
	conn *net.UnixConn

	sending sync.Mutex
	packet  []byte // guarded by sending

	in  []byte // one packet, and a byte to see that it was not longer
	oob []byte
}

// newLink makes a link. Descriptors are taken only if that is said: without room
// for them the kernel drops those that are sent.
func newLink(conn *net.UnixConn, descriptors bool) *link {
	l := &link{conn: conn, packet: make([]byte, 0, 1+maxPacket), in: make([]byte, 1+maxPacket+1)}
	if descriptors {
		l.oob = make([]byte, unix.CmsgSpace(2*4))
	}
	return l
}

// send sends a message, with a descriptor unless that is -1, within timeout. An
// error that is no KindTooLarge ends the link.
func (l *link) send(message any, descriptor int, timeout time.Duration) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(message); err != nil {
		return err
	}
	rest := b.Bytes()
	defer clear(rest) // it may hold secrets
	if len(rest) > maxMessage {
		return sandbox.Errorf("router", sandbox.KindTooLarge, "a message of %d bytes", len(rest))
	}
	l.sending.Lock()
	defer l.sending.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	for {
		kind, part, oob := byte(packetLast), rest, []byte(nil)
		if len(part) > maxPacket {
			kind, part = packetMore, rest[:maxPacket]
		} else if descriptor >= 0 {
			oob = unix.UnixRights(descriptor)
		}
		l.packet = append(append(l.packet[:0], kind), part...)
		if _, _, err := l.conn.WriteMsgUnix(l.packet, oob, nil); err != nil {
			return err
		}
		if rest = rest[len(part):]; kind == packetLast {
			clear(l.packet[:cap(l.packet)])
			return nil
		}
	}
}

// receive returns the next message and the descriptor that came with it, nil for
// none. It is valid until the next call. io.EOF: the other side is gone.
func (l *link) receive() (message []byte, descriptor *os.File, err error) {
	defer func() {
		if err != nil && descriptor != nil {
			descriptor.Close()
		}
	}()
	for {
		n, files, err := l.read()
		if len(files) > 0 && descriptor == nil {
			descriptor, files = files[0], files[1:]
		}
		for _, f := range files {
			f.Close()
			err = errors.Join(err, errors.New("a message with two descriptors"))
		}
		if err != nil {
			return nil, descriptor, err
		}
		part := l.in[1:n]
		switch {
		case n == 1 || n > 1+maxPacket || len(message)+len(part) > maxMessage:
			return nil, descriptor, errors.New("a packet that is too long, or empty")
		case l.in[0] == packetMore && len(part) == maxPacket:
			message = append(message, part...)
		case l.in[0] == packetLast && message == nil:
			return part, descriptor, nil
		case l.in[0] == packetLast:
			return append(message, part...), descriptor, nil
		default:
			return nil, descriptor, errors.New("a packet that is none")
		}
	}
}

// read reads one packet. A peer that died with something unread makes an error
// once; what it had sent comes after that.
func (l *link) read() (n int, files []*os.File, err error) {
	var oobn, flags int
	for range 2 {
		if l.oob == nil {
			n, err = l.conn.Read(l.in)
		} else {
			n, oobn, flags, _, err = l.conn.ReadMsgUnix(l.in, l.oob)
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			break
		}
	}
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) {
			err = io.EOF
		}
		return 0, nil, err
	}
	files, err = descriptors(l.oob[:oobn])
	switch {
	case err == nil && flags&unix.MSG_CTRUNC != 0:
		err = errors.New("a message with too many descriptors")
	case err == nil && n == 0:
		err = io.EOF
	}
	return n, files, err
}

// descriptors are those in a control message. All of them are returned, whatever
// the error, for the caller to close.
func descriptors(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, e := unix.ParseUnixRights(&m)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("a control message that brings no descriptor: %w", e))
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "tap"))
		}
	}
	return files, err
}

package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// FuzzFrame: a frame comes out as it went in; with one byte changed, nothing
// that was not sent is believed.
func FuzzFrame(f *testing.F) {
	f.Add(byte(TypeReply), uint32(7), []byte(`{}`), uint16(0), byte(0))
	f.Add(byte(TypeStdout), uint32(1), []byte("\x00\x00\x00\x00\x00\x00\x00\x05hello"), uint16(20), byte(1))
	f.Add(byte(TypeResetAck), uint32(0), bytes.Repeat([]byte{9}, resetAckSize), uint16(3), byte(0xff))
	f.Fuzz(func(t *testing.T, typ byte, stream uint32, payload []byte, at uint16, flip byte) {
		if len(payload) > MaxData {
			return
		}
		frame := AppendFrame(nil, Type(typ), stream, payload)
		read := func(b []byte) (h Header, p []byte, err error) {
			d := NewDecoder(bytes.NewReader(b), Host)
			if h, err = d.Next(); err == nil {
				p, err = d.Payload(h)
			}
			return h, p, err
		}
		h, p, err := read(frame)
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("untyped: %v", err)
		}
		if err == nil {
			want := payload
			if h.Type.isData() {
				want = payload[8:]
			}
			if h.Type != Type(typ) || h.Stream != stream || !bytes.Equal(p, want) {
				t.Fatalf("%+v %q", h, p)
			}
		}
		if flip == 0 {
			return
		}
		frame[int(at)%len(frame)] ^= flip
		if h, p, err := read(frame); err == nil {
			t.Fatalf("a damaged frame was believed: %+v %q", h, p)
		}
	})
}

// guestConn is a connection on which a guest says what it likes.
type guestConn struct {
	io.Reader
	wrote int
}

func (c *guestConn) Write(p []byte) (int, error)    { c.wrote += len(p); return len(p), nil }
func (*guestConn) Close() error                     { return nil }
func (*guestConn) LocalAddr() net.Addr              { return nil }
func (*guestConn) RemoteAddr() net.Addr             { return nil }
func (*guestConn) SetDeadline(time.Time) error      { return nil }
func (*guestConn) SetReadDeadline(time.Time) error  { return nil }
func (*guestConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzHello: whatever a guest sends in place of its hello, the host ends typed.
func FuzzHello(f *testing.F) {
	ack := corpus(f)["resetAck"]
	f.Add(append(bytes.Clone(ack), AppendFrame(nil, TypeHello, 0, []byte(`{"protocol":1,"next_id":4}`))...))
	f.Add(append(bytes.Clone(ack), AppendFrame(nil, TypeHello, 0, []byte(`{"protocol":2}`))...))
	f.Add(append(bytes.Clone(ack), ack...))
	f.Add(AppendFrame(nil, TypeHello, 0, []byte(`null`)))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &guestConn{Reader: bytes.NewReader(in)}
		hello, err := awaitHello(NewDecoder(c, Host))
		if err == nil && hello.Protocol != ProtocolVersion {
			t.Fatalf("accepted %+v", hello)
		}
		if err != nil && !errors.Is(err, ErrProtocol) && err != io.EOF && err != io.ErrUnexpectedEOF && sandbox.KindOf(err) != sandbox.KindUnsupported {
			t.Fatalf("untyped: %v", err)
		}
		if c.wrote != 0 {
			t.Fatal("it answered")
		}
	})
}

// FuzzClaims: what a guest claims in JSON is bounded and safe to show.
func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"path":"a","size":-1,"mode":420}{"path":"b\u001b[2J"}`))
	f.Add([]byte(`{"kind":"unauthenticated","message":"\u001b]0;x\u0007"}`))
	f.Add([]byte(`{"error":{"kind":"not_found","message":"no"},"file":{"path":"/x"}}`))
	f.Add([]byte(`{"type":"create","path":"a\nb"}`))
	f.Add([]byte(`{"type":"overflow","path":"x"}`))
	f.Add([]byte(`[[[[`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if list, err := decodeListing(bytes.NewReader(in), 100); err == nil {
			if len(list) > 100 {
				t.Fatalf("%d entries", len(list))
			}
			for _, e := range list {
				if e.Size < 0 || !utf8.ValidString(e.Path) || len(e.Path) > 3*MaxPath || !utf8.ValidString(e.Target) || len(e.Target) > 3*MaxPath {
					t.Fatalf("%+v", e)
				}
			}
		} else if sandbox.KindOf(err) != sandbox.KindProtocol {
			t.Fatalf("untyped: %v", err)
		}
		if e, err := decodeEvent(in); err == nil {
			if !e.valid() || !utf8.ValidString(e.Path) || len(e.Path) > 3*MaxPath {
				t.Fatalf("%+v", e)
			}
		} else if sandbox.KindOf(err) != sandbox.KindProtocol {
			t.Fatalf("untyped: %v", err)
		}
		var e WireError
		if json.Unmarshal(in, &e) != nil {
			return
		}
		err := unwire("op", &e)
		k := sandbox.KindOf(err)
		if k != sandbox.KindProtocol && !guestKinds[k] {
			t.Fatalf("a guest may not claim %s", k)
		}
		if s := err.Error(); len(s) > 4*maxMessage || !utf8.ValidString(s) || bytes.ContainsFunc([]byte(s), unicode.IsControl) {
			t.Fatalf("not safe to show: %q", s)
		}
	})
}

//go:build linux

package egress

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestTransfer: large transfers both ways at once arrive whole, and an end of one
// direction is no end of the other.
func TestTransfer(t *testing.T) {
	const size = 32 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data)
	want := sha256.Sum256(data)
	p := newPlace(t)
	s := serve(t, func(c net.Conn) {
		go func() {
			_, _ = c.Write(data)
			_ = c.(*counted).CloseWrite()
		}()
		h := sha256.New()
		_, _ = io.Copy(h, c)
		if !bytes.Equal(h.Sum(nil), want[:]) {
			t.Error("the server got something else")
		}
	})
	_, j := attached(t, p, raw, nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port).(*net.TCPConn)
	h := sha256.New()
	if n, err := io.Copy(h, c); err != nil || n != size || !bytes.Equal(h.Sum(nil), want[:]) {
		t.Errorf("%d bytes of %d: %v", n, size, err)
	}
	if _, err := c.Write(data); err != nil { // after its end
		t.Fatal(err)
	}
	_ = c.CloseWrite()
	e := j.wait(t, "the end", func(e Event) bool { return e.Kind == KindClose })
	if e.Upload != size || e.Download != size || e.Reason != ReasonDone {
		t.Errorf("%+v", e)
	}
	eventually(t, "the server has all", func() bool { return s.bytes.Load() == size })
}

// TestBothFull: a connection on which both sides write and neither reads for a
// while does not hang when they read again.
func TestBothFull(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	attached(t, p, raw, nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port).(*net.TCPConn)
	const size = 24 << 20 // more than all buffers on the way
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	for last := int64(-1); s.bytes.Load() != last; time.Sleep(300 * time.Millisecond) { // until nothing moves
		last = s.bytes.Load()
	}
	n, err := io.Copy(io.Discard, c)
	if err := errors.Join(err, <-wrote); err != nil || n != size {
		t.Errorf("%d bytes: %v", n, err)
	}
}

// TestReset: who breaks off on one side is seen to on the other.
func TestReset(t *testing.T) {
	p := newPlace(t)
	seen := make(chan error, 1)
	s := serve(t, func(c net.Conn) {
		tcp := c.(*counted).Conn.(*net.TCPConn)
		switch b := make([]byte, 1); {
		case readOne(c, b) != nil:
		case b[0] == 'r':
			_ = tcp.SetLinger(0) // what is said last is a reset
		default:
			seen <- readOne(c, b)
		}
	})
	_, j := attached(t, p, raw, nil)
	to := p.addr("good.example") + ":" + s.port
	c := p.mustDial(to)
	_, _ = io.WriteString(c, "r")
	if err := readOne(c, make([]byte, 1)); !reset(err) {
		t.Error(err)
	}
	c = p.mustDial(to)
	_, _ = io.WriteString(c, "x")
	eventually(t, "the server reads", func() bool { return s.bytes.Load() == 2 })
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if err := <-seen; !reset(err) {
		t.Error(err)
	}
	ended := func(e Event) bool { return e.Kind == KindClose }
	if e := j.wait(t, "the end", ended); e.Reason != ReasonReset {
		t.Errorf("%+v", e)
	}
}

func readOne(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	return err
}

// TestLastWords: a server that answers and ends while it is still being sent to
// is heard.
func TestLastWords(t *testing.T) {
	p := newPlace(t)
	s := serve(t, func(c net.Conn) {
		_ = readOne(c, make([]byte, 1))
		_, _ = io.WriteString(c, "413 enough")
		_ = c.(*counted).CloseWrite()
		time.Sleep(200 * time.Millisecond) // so that it is read before the reset
	})
	attached(t, p, raw, nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port)
	go func() { _, _ = c.Write(make([]byte, 64<<20)) }()
	buf := make([]byte, 10)
	if err := readOne(c, buf); err != nil || string(buf) != "413 enough" {
		t.Errorf("%q %v", buf, err)
	}
}

// TestIdle: a connection on which nothing is said for long ends.
func TestIdle(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	_, j := attached(t, p, raw, func(c *Config) { c.Limits.Idle = 500 * time.Millisecond })
	c := p.mustDial(p.addr("good.example") + ":" + s.port)
	if _, err := c.Read(make([]byte, 1)); !reset(err) {
		t.Error(err)
	}
	if e := j.wait(t, "the end", func(e Event) bool { return e.Kind == KindClose }); e.Reason != ReasonIdle {
		t.Errorf("%+v", e)
	}
}

// TestSilent: who says nothing where something has to be said is not waited for.
func TestSilent(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	_, j := attached(t, p, rules(s.port), func(c *Config) { c.Limits.Sniff = 200 * time.Millisecond })
	c := p.mustDial(p.addr("good.example") + ":" + s.port)
	if _, err := c.Read(make([]byte, 1)); !reset(err) {
		t.Error(err)
	}
	if e := j.wait(t, "the denial", func(e Event) bool { return e.Reason == ReasonSilent }); !strings.Contains(e.Hint, "protocol: tcp") || s.conns.Load() != 0 {
		t.Errorf("%+v", e)
	}
}

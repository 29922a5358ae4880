//go:build linux

package control

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// linked are two links to each other, the second one of which takes descriptors.
func linked(t testing.TB) (*link, *link) {
	t.Helper()
	ours, file, err := pair()
	must(t, err)
	conn, err := net.FileConn(file)
	file.Close()
	must(t, err)
	t.Cleanup(func() { ours.Close(); conn.Close() })
	return newLink(ours, false), newLink(conn.(*net.UnixConn), true)
}

// TestLink: messages of all lengths arrive whole and in order, with their
// descriptors, and what was sent before the end is read after it.
func TestLink(t *testing.T) {
	a, b := linked(t)
	sizes := []int{0, 1, maxPacket - 3, maxPacket - 2, maxPacket - 1, maxPacket, 2*maxPacket - 3, 2 * maxPacket, 1 << 20}
	go func() {
		for i, n := range sizes {
			fd := -1
			if i%2 == 1 {
				fd = 0
			}
			if err := a.send(strings.Repeat("x", n), fd, time.Minute); err != nil {
				t.Error(err)
			}
		}
		a.conn.Close()
	}()
	for i, n := range sizes {
		m, f, err := b.receive()
		if err != nil || string(bytes.TrimSpace(m)) != `"`+strings.Repeat("x", n)+`"` || (f != nil) != (i%2 == 1) {
			t.Fatalf("%d: %d bytes, %v, %v", n, len(m), f, err)
		}
		if f != nil {
			f.Close()
		}
	}
	if _, _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
	if err := b.send("x", -1, time.Second); err == nil {
		t.Error("sent to nobody")
	}
}

// TestLinkRefuses: too long, too many descriptors, nobody who reads.
func TestLinkRefuses(t *testing.T) {
	a, b := linked(t)
	if err := a.send(strings.Repeat("x", maxMessage), -1, time.Second); sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Errorf("too long: %v", err)
	}
	before := countDescriptors(t, os.Getpid())
	for _, rights := range [][]int{{0, 0}, {0, 0, 0, 0, 0, 0}} {
		_, _, err := a.conn.WriteMsgUnix([]byte("\x00{}"), unix.UnixRights(rights...), nil)
		must(t, err)
		if _, f, err := b.receive(); err == nil || f != nil && f.Fd() != ^uintptr(0) {
			t.Errorf("%d descriptors: %v %v", len(rights), f, err)
		}
	}
	if now := countDescriptors(t, os.Getpid()); now > before {
		t.Errorf("%d descriptors, %d before", now, before)
	}
	begun := time.Now()
	var err error
	for err == nil {
		err = a.send(strings.Repeat("x", 1<<20), -1, 50*time.Millisecond)
	}
	if !os.IsTimeout(err) || time.Since(begun) > time.Minute {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
}

// FuzzPackets: whatever packets come, a message is one that was sent in full, or
// there is an error.
func FuzzPackets(f *testing.F) {
	f.Add([]byte("\x00{}"), []byte("\x01{"))
	f.Add([]byte("\x01"+strings.Repeat(" ", maxPacket)), []byte("\x00{}"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		a, b := linked(t)
		for _, p := range [][]byte{one, two} {
			if len(p) == 0 || len(p) > maxPacket+100 { // both are on their way at once
				return
			}
			if _, err := a.conn.Write(p); err != nil {
				t.Skip(err)
			}
		}
		a.conn.Close()
		for {
			m, file, err := b.receive()
			if err != nil {
				return
			}
			if file != nil || len(m) == 0 || len(m) > 2*maxPacket {
				t.Fatalf("%d bytes, %v", len(m), file)
			}
		}
	})
}

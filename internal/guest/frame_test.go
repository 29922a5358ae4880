package guest

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const goldenFile = "testdata/frames.golden"

// golden is one frame of each type, by direction.
func golden() []struct {
	name  string
	role  Role // who decodes it
	frame []byte
} {
	nonce := []byte("0123456789abcdef")
	epoch := []byte{0, 0, 0, 0, 0, 0, 0, 7}
	data := func(t Type, id uint32, at uint64, p string) []byte {
		var h [DataHeader]byte
		PutData(&h, t, id, at, []byte(p))
		return append(h[:], p...)
	}
	frame := func(t Type, id uint32, p string) []byte { return AppendFrame(nil, t, id, []byte(p)) }
	return []struct {
		name  string
		role  Role
		frame []byte
	}{
		{"reset", Guest, AppendFrame(nil, TypeReset, 0, append(nonce[:16:16], epoch...))},
		{"resetAck", Host, AppendFrame(nil, TypeResetAck, 0, append(append(nonce[:16:16], "fedcba9876543210"...), epoch...))},
		{"hello-host", Guest, frame(TypeHello, 0, `{"protocol":1,"nonce":"66","settings":{"pids":128}}`)},
		{"hello-guest", Host, frame(TypeHello, 0, `{"protocol":1,"version":"v1","next_id":1}`)},
		{"call", Guest, frame(TypeCall, 1, `{"op":"exec","exec":{"argv":["true"]}}`)},
		{"reply", Host, frame(TypeReply, 1, `{"process":{"id":1,"pid":9,"started":"2026-01-01T00:00:00Z"}}`)},
		{"reply-error", Host, frame(TypeReply, 2, `{"error":{"kind":"not_found","message":"no program"}}`)},
		{"cancel", Guest, AppendFrame(nil, TypeCancel, 2, nil)},
		{"stdin", Guest, data(TypeStdin, 1, 0, "in")},
		{"stdout", Host, data(TypeStdout, 1, 0, "hello\n")},
		{"stderr", Host, data(TypeStderr, 1, 1<<40, "oops\n")},
		{"file-down", Host, data(TypeFile, 3, 0, "content")},
		{"file-up", Guest, data(TypeFile, 4, 0, "content")},
		{"window", Guest, AppendMark(nil, TypeWindow, 1, TypeStdout, 6)},
		{"end", Host, AppendMark(nil, TypeEnd, 1, TypeStdout, 6)},
		{"exit", Host, frame(TypeExit, 1, `{"code":137,"signal":9,"reason":"timeout","duration_ns":2000000000}`)},
		{"exitAck", Guest, AppendFrame(nil, TypeExitAck, 1, nil)},
		{"call-pty", Guest, frame(TypeCall, 2, `{"op":"exec","exec":{"argv":["sh"],"stdin":true,"pty":{"cols":80,"rows":24}}}`)},
		{"call-resize", Guest, frame(TypeCall, 3, `{"op":"resize","process":{"id":1,"size":{"cols":132,"rows":43}}}`)},
	}
}

// TestGoldenFrames pins the wire format: a changed line is a new protocol
// version, because sandboxes outlive the host program.
func TestGoldenFrames(t *testing.T) {
	var b strings.Builder
	for _, g := range golden() {
		fmt.Fprintf(&b, "%s %x\n", g.name, g.frame)
	}
	if *update {
		if err := os.WriteFile(goldenFile, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("frames differ from %s:\n%s", goldenFile, b.String())
	}
}

// corpus is the golden frames as read from the file.
func corpus(f *testing.F) map[string][]byte {
	b, err := os.ReadFile(goldenFile)
	if err != nil {
		f.Fatal(err)
	}
	frames := map[string][]byte{}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		name, text, _ := strings.Cut(s.Text(), " ")
		if frames[name], err = hex.DecodeString(text); err != nil {
			f.Fatal(err)
		}
	}
	return frames
}

func TestDecode(t *testing.T) {
	for _, g := range golden() {
		// Byte by byte, with another frame behind it.
		stream := append(append([]byte(nil), g.frame...), g.frame...)
		d := NewDecoder(iotest.OneByteReader(bytes.NewReader(stream)), g.role)
		for range 2 {
			h, err := d.Next()
			if err != nil {
				t.Fatalf("%s: %v", g.name, err)
			}
			if _, err := d.Payload(h); err != nil {
				t.Fatalf("%s: %v", g.name, err)
			}
		}
		if _, err := d.Next(); err != io.EOF {
			t.Errorf("%s: at the end: %v", g.name, err)
		}
		// The wrong end.
		if g.name != "window" && g.name != "end" && !strings.HasPrefix(g.name, "hello") && !strings.HasPrefix(g.name, "file") {
			if _, err := NewDecoder(bytes.NewReader(g.frame), 1-g.role).Next(); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s accepted by the wrong end: %v", g.name, err)
			}
		}
		// Any bit flipped.
		for i := range g.frame {
			bad := append([]byte(nil), g.frame...)
			bad[i] ^= 1 << (i % 8)
			d := NewDecoder(bytes.NewReader(append(bad, make([]byte, 512)...)), g.role)
			h, err := d.Next()
			if err == nil {
				_, err = d.Payload(h)
			}
			if err == nil {
				t.Errorf("%s: byte %d flipped and accepted", g.name, i)
			}
		}
	}
}

func TestDecodeCaps(t *testing.T) {
	for _, c := range []struct {
		role Role
		t    Type
		n    int
	}{
		{Host, TypeReply, MaxControl + 1}, {Host, TypeExit, MaxControl + 1}, {Host, TypeStdout, MaxData + 9},
		{Guest, TypeCall, MaxCall + 1}, {Guest, TypeFile, MaxData + 9}, {Host, TypeStdout, 7}, {Host, 0x77, 10},
	} {
		b := AppendFrame(nil, c.t, 1, make([]byte, c.n))
		if _, err := NewDecoder(bytes.NewReader(b), c.role).Next(); !errors.Is(err, ErrProtocol) {
			t.Errorf("type %#x of %d bytes: %v", c.t, c.n, err)
		}
	}
}

func TestHunt(t *testing.T) {
	reset := golden()[0].frame
	for n := range 300 {
		junk := bytes.Repeat([]byte{0xfb, 0x1e, 1, 1, 0}, n)[:n]
		d := NewDecoder(iotest.HalfReader(bytes.NewReader(append(append(junk, reset...), reset...))), Guest)
		for range 2 {
			p, err := d.Hunt(TypeReset, func([]byte) bool { return true })
			if err != nil || string(p[:NonceSize]) != "0123456789abcdef" {
				t.Fatalf("behind %d bytes: %v", n, err)
			}
		}
	}
}

func TestRing(t *testing.T) {
	var r Ring
	next, seen := byte(0), byte(0)
	for i := range 10_000 {
		if n := i * 7 % 1500; r.Len()+n < 20_000 {
			r.Grow(n)
			a, b := r.Free(n)
			for _, p := range [][]byte{a, b} {
				for j := range p {
					p[j] = next
					next++
				}
			}
			r.Commit(n)
		}
		n := min(r.Len(), i*11%1300)
		a, b := r.Data(0, n)
		if len(a)+len(b) != n {
			t.Fatalf("%d+%d of %d", len(a), len(b), n)
		}
		for _, p := range [][]byte{a, b} {
			for _, v := range p {
				if v != seen {
					t.Fatalf("step %d: %d, want %d", i, v, seen)
				}
				seen++
			}
		}
		r.Consume(n)
	}
}

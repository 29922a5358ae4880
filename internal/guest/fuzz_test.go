package guest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// FuzzHostDecode feeds a running session what a guest may send: after any
// bytes it ends typed, and it holds no more than its windows.
func FuzzHostDecode(f *testing.F) {
	frames := corpus(f)
	var all []byte
	for _, b := range frames {
		f.Add(b)
		f.Add(b[:len(b)-1])
		all = append(all, b...)
	}
	f.Add(all)
	f.Add(append(append(append([]byte(nil), frames["stdout"]...), frames["end"]...), frames["exit"]...))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &Session{window: MinWindow, done: make(chan struct{}), nextID: 9, allowance: baseAllowance,
			calls: map[uint32]*call{}, procs: map[uint32]*Process{}}
		s.out.init()
		s.procs[1] = newProcess(s, 1, Position{})
		s.calls[2] = &call{reply: make(chan Reply, 1)}
		s.calls[3] = &call{reply: make(chan Reply, 1), in: s.newStream(3, TypeFile, FileWindow, 0), open: true}
		s.calls[4] = &call{reply: make(chan Reply, 1), up: newOutflow(s, TypeFile, FileWindow)}
		p := s.procs[1]
		err := s.readLoop(NewDecoder(bytes.NewReader(in), Host))
		if err == nil {
			t.Fatal("the reader ended without an error")
		}
		if !errors.Is(err, ErrProtocol) && err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Fatalf("untyped: %v", err)
		}
		if k := sandbox.KindOf(sessionError("session", err)); k != sandbox.KindProtocol && k != sandbox.KindUnavailable {
			t.Fatalf("kind %s", k)
		}
		if n := p.stdout.ring.Len(); n > MinWindow {
			t.Fatalf("%d bytes of a window of %d", n, MinWindow)
		}
		if len(s.out.small) > len(in)+1024 {
			t.Fatalf("%d bytes of answers to %d bytes", len(s.out.small), len(in))
		}
	})
}

// FuzzListing: a listing is at most as long as was asked for, or refused.
func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"path":"a","size":1,"mode":420,"mod_time":"2020-01-01T00:00:00Z","uid":0,"gid":0}`+"\n"), 1)
	f.Add([]byte("{}\n{}\n{}\n"), 2)
	f.Add([]byte("\n"), 5)
	f.Add(bytes.Repeat([]byte("["), MaxControl+1), 5)
	f.Fuzz(func(t *testing.T, body []byte, most int) {
		most = max(0, min(most, MaxEntries))
		list, err := decodeListing(bytes.NewReader(body), most)
		if k := sandbox.KindOf(err); err != nil && k != sandbox.KindProtocol && k != sandbox.KindTooLarge {
			t.Fatalf("%s: %v", k, err)
		}
		if len(list) > most {
			t.Fatalf("%d entries, %d asked for", len(list), most)
		}
		for _, e := range list {
			if len(e.Path) > 3*MaxPath || e.Size < 0 {
				t.Fatalf("%+v", e)
			}
		}
	})
}

// FuzzHunt: hunting survives anything, and finds what is there.
func FuzzHunt(f *testing.F) {
	ack := corpus(f)["resetAck"]
	f.Add([]byte{})
	f.Add(ack[:len(ack)-1])
	f.Add(bytes.Repeat([]byte{0xfb}, 100))
	f.Fuzz(func(t *testing.T, junk []byte) {
		d := NewDecoder(bytes.NewReader(append(append([]byte(nil), junk...), ack...)), Host)
		_, err := d.Hunt(TypeResetAck, func(p []byte) bool { return string(p[:NonceSize]) == "0123456789abcdef" })
		if err != nil {
			t.Fatalf("missed: %v", err)
		}
	})
}

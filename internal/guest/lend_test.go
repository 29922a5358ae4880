package guest

import (
	"encoding/json"
	"io"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// reading answers reads as an agent with capabilities does, and tells the window
// of each.
func reading(t *testing.T, capabilities ...string) (s *Session, f *fake, windows chan int) {
	s, f = open(t, Config{})
	s.agent.Capabilities = capabilities // before any call
	windows = make(chan int, 100)
	go func() {
		for {
			h, body := f.next()
			var c Call
			switch {
			case h.Type == 0:
				return
			case h.Type == TypeCall && json.Unmarshal(body, &c) == nil && c.Op == OpRead:
				windows <- c.File.Window
				f.json(TypeReply, h.Stream, Reply{File: &FileInfo{Path: c.File.Path}})
			}
		}
	}()
	return s, f, windows
}

// However many downloads nobody reads, what may be held for them is little: few
// get a large window, and one that is closed leaves its own to the next.
func TestManyDownloads(t *testing.T) {
	s, f, windows := reading(t, CapabilityWindow)
	var open []*FileReader
	total := 0
	for range 60 {
		r, err := s.ReadFile(short(t), "/x", ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, r)
		total += <-windows
	}
	if most := downloads*FileWindow + 52*DefaultWindow; total != most {
		t.Errorf("%d MiB of windows for 60 downloads, want %d", total>>20, most>>20)
	}
	open[0].Close()
	open[0].Close()
	again, err := s.ReadFile(short(t), "/x", ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if w := <-windows; w != FileWindow {
		t.Errorf("after one has ended, the next gets %d", w)
	}
	for _, r := range append(open[1:], again) {
		r.Close()
	}
	s.mu.Lock()
	if s.lent != 0 {
		t.Errorf("%d windows are lent for no download", s.lent)
	}
	s.mu.Unlock()
	// An agent that sends more than it was lent breaks the protocol.
	for range downloads + 1 {
		if again, err = s.ReadFile(short(t), "/x", ReadOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	f.data(TypeFile, again.id, 0, make([]byte, DefaultWindow))
	f.data(TypeFile, again.id, DefaultWindow, []byte("x"))
	ends(t, s, sandbox.KindProtocol)
}

// An agent that does not know of windows sends what it always did.
func TestManyDownloadsOfAnOldAgent(t *testing.T) {
	s, f, windows := reading(t)
	var last *FileReader
	for range downloads + 3 {
		r, err := s.ReadFile(short(t), "/x", ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if w := <-windows; w != 0 {
			t.Errorf("it was told of a window of %d", w)
		}
		last = r
	}
	for i := range FileWindow / MaxData {
		f.data(TypeFile, last.id, uint64(i*MaxData), make([]byte, MaxData))
	}
	got, err := io.CopyN(io.Discard, last, FileWindow) // all of it has come, and the session lives
	if err != nil || s.Err() != nil {
		t.Errorf("%d bytes of a window: %v; the session: %v", got, err, s.Err())
	}
}

// What was answered before the session ended is the answer, whichever of the two
// is seen first.
func TestAnsweredBeforeTheEnd(t *testing.T) {
	s, _ := open(t, Config{})
	s.Close()
	for range 200 {
		c := &call{reply: make(chan Reply, 1)}
		c.reply <- Reply{More: true}
		if r, err := s.await(t.Context(), OpStat, 1, c); err != nil || !r.More {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	c := &call{reply: make(chan Reply, 1)}
	if _, err := s.await(t.Context(), OpStat, 1, c); sandbox.KindOf(err) != sandbox.KindCanceled {
		t.Errorf("without an answer: %v", err)
	}
}

package event

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, dir string, o Options) *Hub {
	t.Helper()
	h, err := Open(dir, o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func publish(t testing.TB, h *Hub, id sandbox.ID, e Event) uint64 {
	t.Helper()
	n, err := h.Publish(id, e)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// all reads to the end, or until want events when it is not 0.
func all(t testing.TB, h *Hub, id sandbox.ID, after uint64, want int) []*Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	sub, err := h.Subscribe(ctx, id, after)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	var got []*Event
	for want == 0 || len(got) < want {
		batch, err := sub.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d events: %v", len(got), err)
		}
		got = append(got, batch...)
	}
	return got
}

func TestReplay(t *testing.T) {
	dir, id := t.TempDir(), sandbox.NewID()
	h := open(t, dir, Options{RingEvents: 4})
	for i := range 20 {
		typ := Stdout
		if i%3 == 0 {
			typ = StateChange
		}
		if n := publish(t, h, id, Event{Type: typ, Process: "7", Data: fmt.Append(nil, i)}); n != uint64(i+1) {
			t.Fatalf("event %d has id %d", i, n)
		}
	}
	publish(t, h, id, Event{Type: Exit, Final: true})
	check := func(name string, h *Hub) {
		for after := range uint64(22) {
			got := all(t, h, id, after, 0)
			if len(got) != int(21-after) {
				t.Fatalf("%s: after %d: %d events", name, after, len(got))
			}
			for i, e := range got {
				if e.ID != after+uint64(i)+1 || e.ID <= 20 && (string(e.Data) != fmt.Sprint(e.ID-1) || e.Process != "7") {
					t.Errorf("%s: after %d: event %d is %+v", name, after, i, e)
				}
			}
		}
	}
	check("live", h)
	if _, err := h.Publish(id, Event{Type: Exit}); sandbox.KindOf(err) != sandbox.KindGone {
		t.Errorf("publish after the end: %v", err)
	}
	h.Close()
	check("restarted", open(t, dir, Options{}))
}

// TestFollow: many readers of different speed see every event in order, and
// none of them delays the publisher.
func TestFollow(t *testing.T) {
	h, id := open(t, t.TempDir(), Options{RingEvents: 8}), sandbox.NewID()
	publish(t, h, id, Event{Type: StateChange})
	const n = 2000
	var wg sync.WaitGroup
	for reader := range 8 {
		wg.Go(func() {
			sub, err := h.Subscribe(t.Context(), id, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer sub.Close()
			var last uint64
			for {
				batch, err := sub.Next(t.Context())
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range batch {
					if e.ID != last+1 {
						t.Errorf("reader %d: %d after %d", reader, e.ID, last)
					}
					last = e.ID
				}
				time.Sleep(time.Duration(reader) * 50 * time.Microsecond)
			}
			if last != n+2 {
				t.Errorf("reader %d stopped at %d", reader, last)
			}
		})
	}
	for range n {
		publish(t, h, id, Event{Type: Stdout, Data: []byte("some text")})
	}
	publish(t, h, id, Event{Type: StateChange, Final: true})
	wg.Wait()
}

// TestBehindTheRing: a reader that comes to the end of the files just when its
// batch is full has not missed what is written next, wherever it is.
func TestBehindTheRing(t *testing.T) {
	h, id := open(t, t.TempDir(), Options{RingEvents: 1, OutputBytes: 5 << 10}), sandbox.NewID()
	publish(t, h, id, Event{Type: StateChange})
	sub, err := h.Subscribe(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	last := uint64(0)
	for round := range 20 {
		for n := maxBatch; n > 0; n-- {
			e := Event{Type: Stdout}
			if n == maxBatch/2 {
				e.Type = StateChange
			}
			if publish(t, h, id, e)-last >= maxBatch {
				break
			}
		}
		more := func() ([]*Event, error) { // two, so that the ring does not have both
			publish(t, h, id, Event{Type: Stdout})
			publish(t, h, id, Event{Type: Stdout})
			return sub.Next(t.Context())
		}
		for _, next := range []func() ([]*Event, error){sub.Ready, more} {
			batch, err := next()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range batch {
				if e.ID != last+1 || e.Type == Truncated {
					t.Fatalf("round %d: %d (%s) after %d", round, e.ID, e.Type, last)
				}
				last = e.ID
			}
		}
	}
}

// TestOutputIsBounded: old output goes, its place is marked, all else stays.
func TestOutputIsBounded(t *testing.T) {
	dir, id := t.TempDir(), sandbox.NewID()
	h := open(t, dir, Options{OutputBytes: 64 << 10})
	publish(t, h, id, Event{Type: StateChange, Data: []byte("first")})
	for range 100 {
		publish(t, h, id, Event{Type: Stdout, Data: bytes.Repeat([]byte("x"), 4<<10)})
	}
	publish(t, h, id, Event{Type: StateChange, Data: []byte("last"), Final: true})
	got := all(t, h, id, 0, 0)
	if string(got[0].Data) != "first" || string(got[len(got)-1].Data) != "last" {
		t.Errorf("state events were dropped: %v … %v", got[0], got[len(got)-1])
	}
	if got[1].Type != Truncated {
		t.Errorf("no mark where output is missing: %+v", got[1])
	}
	if next := got[2]; next.ID != got[1].ID+1 || next.Type != Stdout {
		t.Errorf("after the mark %d comes %+v", got[1].ID, next)
	}
	// Whoever resumes in the middle of what is missing learns of it, too.
	if e := all(t, h, id, 5, 0)[0]; e.Type != Truncated || e.ID != got[1].ID {
		t.Errorf("resumed: %+v", e)
	}
	var size int64
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if size > 70<<10 {
		t.Errorf("%d bytes on disk", size)
	}
}

// TestTornTail: a crash in the middle of a write loses that event only.
func TestTornTail(t *testing.T) {
	dir, id := t.TempDir(), sandbox.NewID()
	h := open(t, dir, Options{})
	for range 3 {
		publish(t, h, id, Event{Type: StateChange, Data: []byte("whole")})
	}
	h.Close()
	path := filepath.Join(dir, string(id)+eventSuffix)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole) - 1; cut > len(whole)*2/3; cut-- {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		h := open(t, dir, Options{})
		if n := publish(t, h, id, Event{Type: StateChange, Data: []byte("again")}); n != 3 {
			t.Fatalf("cut at %d: the next id is %d", cut, n)
		}
		if got := all(t, h, id, 0, 3); string(got[2].Data) != "again" {
			t.Fatalf("cut at %d: %s", cut, got[2].Data)
		}
		h.Close()
	}
}

func TestErrors(t *testing.T) {
	h, id := open(t, t.TempDir(), Options{}), sandbox.NewID()
	if _, err := h.Subscribe(t.Context(), id, 0); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("unknown sandbox: %v", err)
	}
	if _, err := h.Subscribe(t.Context(), "../etc", 0); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("no id: %v", err)
	}
	for _, e := range []Event{{Type: "novel"}, {Type: Truncated}, {Type: Stdout, Data: make([]byte, MaxData+1)}} {
		if _, err := h.Publish(id, e); err == nil {
			t.Errorf("%s with %d bytes was taken", e.Type, len(e.Data))
		}
	}
	publish(t, h, id, Event{Type: StateChange})
	sub, err := h.Subscribe(t.Context(), id, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sub.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled wait: %v", err)
	}
	h.Close()
	if _, err := sub.Next(t.Context()); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("after close: %v", err)
	}
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := open(t, dir, Options{Retain: time.Hour})
		ended, live := sandbox.NewID(), sandbox.NewID()
		publish(t, h, ended, Event{Type: StateChange, Final: true})
		publish(t, h, live, Event{Type: StateChange})
		h.Close()
		old := time.Now().Add(-2 * time.Hour)
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, f := range files {
			if err := os.Chtimes(f, old, old); err != nil {
				t.Fatal(err)
			}
		}
		h = open(t, dir, Options{Retain: time.Hour})
		if _, err := h.Subscribe(t.Context(), ended, 0); sandbox.KindOf(err) != sandbox.KindNotFound {
			t.Errorf("the ended sandbox's events: %v", err)
		}
		sub, err := h.Subscribe(t.Context(), live, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Close()
		if got, err := sub.Ready(); err != nil || len(got) != 1 {
			t.Errorf("the live sandbox has %d events, %v", len(got), err)
		}
		if got, err := sub.Ready(); err != nil || len(got) != 0 {
			t.Errorf("and then %d more, %v", len(got), err)
		}
	})
}

// TestPrinted: what has been published of a process's output is known, also
// after a restart, until its end has been.
func TestPrinted(t *testing.T) {
	dir, id := t.TempDir(), sandbox.NewID()
	h := open(t, dir, Options{})
	publish(t, h, id, Event{Type: Started, Process: "7"})
	publish(t, h, id, Event{Type: Stdout, Process: "7", Data: []byte("abc")})
	publish(t, h, id, Event{Type: Stderr, Process: "7", Data: []byte("e")})
	publish(t, h, id, Event{Type: Stdout, Process: "7", Offset: 3, Data: []byte("def")})
	publish(t, h, id, Event{Type: Started, Process: "8"})
	publish(t, h, id, Event{Type: Stdout, Process: "8", Data: []byte("x")})
	publish(t, h, id, Event{Type: Exit, Process: "8"})
	for range 2 {
		for process, want := range map[string]Printed{"7": {Stdout: 6, Stderr: 1, Known: true}, "8": {Known: true, Ended: true}, "9": {}} {
			if p, err := h.Printed(id, process); err != nil || p != want {
				t.Errorf("%s: %+v, %v; want %+v", process, p, err, want)
			}
		}
		h.Close()
		h = open(t, dir, Options{})
	}
	publish(t, h, id, Event{Type: Started, Process: "8"}) // the number is used again
	if p, err := h.Printed(id, "8"); err != nil || p != (Printed{Known: true}) {
		t.Errorf("8 again: %+v, %v", p, err)
	}
}

// FuzzFile: no file content makes the decoder fail in another way than ending,
// or allocate more than an event.
func FuzzFile(f *testing.F) {
	e := Event{ID: 3, Time: time.Unix(1, 2), Type: Stdout, Process: "12", Data: []byte("data"), Final: true}
	f.Add(e.appendTo(nil))
	f.Add(e.appendTo(e.appendTo(nil))[:60])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openReader(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		var again []byte
		for {
			e, err := r.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if e.Type.output() && b[len(again)+frameHeader+17]&offset == 0 {
				return // as the first version wrote it: read, not written any more
			}
			again = e.appendTo(again)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("decoded and encoded again it differs:\n%x\n%x", again, b)
		}
	})
}

// TestPrepare: events that were prepared are as others, from the first one on, and files
// that were made for none are nobody's.
func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir, Options{})
	id, none := sandbox.NewID(), sandbox.NewID()
	for _, output := range []bool{false, true, true} {
		for _, id := range []sandbox.ID{id, none} {
			if err := h.Prepare(id, output); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, string(id)+outSuffix)); err != nil {
		t.Error(err)
	}
	if n := publish(t, h, id, Event{Type: StateChange, Data: []byte("{}")}); n != 1 {
		t.Errorf("the first event is %d", n)
	}
	publish(t, h, id, Event{Type: Stdout, Process: "1", Data: []byte("x")})
	h.Close()
	h = open(t, dir, Options{})
	if last, err := h.Last(id); err != nil || last != 2 {
		t.Error(last, err)
	}
	nobody := func(context.Context, []sandbox.ID) (map[sandbox.ID]bool, error) {
		return map[sandbox.ID]bool{id: true}, nil
	}
	if _, err := h.Expire(t.Context(), time.Now().Add(time.Hour), nobody); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, string(none)+"*")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	if err := h.Prepare(id, false); err != nil {
		t.Error(err)
	}
}

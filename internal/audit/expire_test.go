package audit

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// aged makes a log of several segments, all but the newest two hours old.
func aged(t *testing.T) (*Log, string) {
	t.Helper()
	dir := t.TempDir()
	l := open(t, dir, Options{SegmentBytes: 1 << 10})
	for range 40 {
		mustRecord(t, l, sandbox.Record{Class: sandbox.Gate, Action: "a", Object: strings.Repeat("x", 100)})
	}
	list, err := segments(dir)
	if err != nil || len(list) < 4 {
		t.Fatal(list, err)
	}
	old := time.Now().Add(-2 * time.Hour)
	for _, first := range list[:len(list)-2] {
		if err := os.Chtimes(segmentPath(dir, first), old, old); err != nil {
			t.Fatal(err)
		}
	}
	return l, dir
}

// TestExpire: old segments go, what is left verifies and says since when; that
// something was removed by hand is still noticed.
func TestExpire(t *testing.T) {
	l, dir := aged(t)
	all0, _ := segments(dir)
	n, err := l.Expire(t.Context(), time.Now().Add(-time.Hour))
	if err != nil || n != len(all0)-2 {
		t.Fatal(n, err)
	}
	if n, err := l.Expire(t.Context(), time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Error("again:", n, err)
	}
	es := all(t, dir)
	if first := es[0].Position; first != all0[len(all0)-2] {
		t.Errorf("the log begins at %d", first)
	}
	if last := es[len(es)-1]; last.Record.Action != "audit.expire" || last.Record.Detail["through"] == "" || len(last.Record.Digest) != 64 {
		t.Errorf("%+v", last.Record)
	}
	if h, err := Verify(dir); err != nil || h != l.Head() {
		t.Error(h, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, Options{SegmentBytes: 1 << 10}) // and it goes on
	mustRecord(t, l, gate("b"))
	if h, err := Verify(dir); err != nil || h != l.Head() {
		t.Error(h, err)
	}
	if _, err := NewReader(dir, 2); sandbox.KindOf(err) != sandbox.KindInternal {
		t.Errorf("a position that expired: %v", err)
	}
	left, _ := segments(dir)
	if err := os.Remove(segmentPath(dir, left[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(dir); err == nil {
		t.Error("a removed segment is not noticed")
	}
}

// TestExpireInterrupted: wherever it stops, the log verifies and the next Open
// finishes.
func TestExpireInterrupted(t *testing.T) {
	for i := 1; ; i++ {
		l, dir := aged(t)
		done, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			n := 0
			restore := failpoint.Intercept(func(name string) {
				if !strings.HasPrefix(name, "audit/expire") {
					return
				}
				if n++; n == i {
					runtime.Goexit()
				}
			})
			defer restore()
			_, _ = l.Expire(context.Background(), time.Now().Add(-time.Hour))
			done = true
		}()
		<-ended
		h, err := Verify(dir)
		if err != nil || h != l.Head() {
			t.Errorf("point %d: %v, %v", i, h, err)
		}
		if _, h, err := Prefix(dir); err != nil || h != l.Head() {
			t.Errorf("point %d: prefix %v, %v", i, h, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, dir, Options{SegmentBytes: 1 << 10})
		begin, err := readExpired(dir)
		if list, _ := segments(dir); err != nil || i > 1 && list[0] != begin.Position+1 {
			t.Errorf("point %d: the log begins at %d, %+v, %v", i, list[0], begin, err)
		}
		if h, err := Verify(dir); err != nil || h != l.Head() {
			t.Errorf("point %d: %v, %v", i, h, err)
		}
		if done {
			if i < 4 {
				t.Errorf("only %d points", i-1)
			}
			return
		}
	}
}

// TestPrefix: what Prefix names, cut at the sizes it gives, is a log that
// verifies up to the head it gives, also while the log grows.
func TestPrefix(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{SegmentBytes: 4 << 10, Interval: time.Millisecond}) // tiles are written all the time
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for range 2000 { // more, and the log outgrows whoever reads it
			select {
			case <-stop:
				return
			default:
				l.Record(context.Background(), sandbox.Record{Class: sandbox.Gate, Action: "a", Object: strings.Repeat("x", 300)})
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 20 {
		mustRecord(t, l, gate("mine"))
		least := l.Head()
		files, head, err := Prefix(dir)
		if err != nil || head.Position < least.Position {
			t.Fatal(head, least, err)
		}
		to := t.TempDir()
		for _, f := range files {
			b, err := f.Data, error(nil)
			if b == nil {
				b, err = os.ReadFile(filepath.Join(dir, f.Name))
			}
			if err != nil || int64(len(b)) < f.Size {
				t.Fatal(f, len(b), err)
			}
			path := filepath.Join(to, f.Name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b[:f.Size], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range files {
			if tile, err := tlog.ParseTilePath(f.Name); err == nil && (tile.N*tileWidth+int64(tile.W))<<(tileHeight*tile.L) > int64(head.Position) {
				t.Fatalf("%s is about records behind %d", f.Name, head.Position)
			}
		}
		if got, err := Verify(to); err != nil || got != head {
			t.Fatal(got, head, err)
		}
		c := open(t, to, Options{}) // nothing is there to be repaired
		if c.Head() != head {
			t.Fatal(c.Head(), head)
		}
	}
}

// TestVerifyWhileWritten: whoever verifies a log that is being written sees the records
// of one moment, and tiles of later ones are no reason to call it damaged.
func TestVerifyWhileWritten(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{Interval: time.Millisecond}) // tiles are written all the time
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for range 4000 {
			select {
			case <-stop:
				return
			default:
				l.Record(context.Background(), sandbox.Record{Class: sandbox.Gate, Action: "a"})
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 60 {
		if _, err := Verify(dir); err != nil {
			t.Fatal(err)
		}
	}
}

package audit

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// frameOf encodes one record behind head, as the writer does.
func frameOf(head Head, e *Entry) ([]byte, Head) {
	e.Position = head.Position + 1
	b := appendPayload(make([]byte, frameLen), e)
	binary.BigEndian.PutUint32(b, uint32(len(b)-frameLen))
	_, hash := new(chainer).seal(b, head.Hash)
	return b, Head{e.Position, hash}
}

// build makes a first segment, and fills in positions and links.
func build(list ...*Entry) []byte {
	var head Head
	b, l := segmentHeader(1, head.Hash), newLinks()
	for _, e := range list {
		var frame []byte
		e.Position = head.Position + 1
		if e.Version == version {
			e.Previous = l.follow(appendPayload(nil, e))
		}
		frame, head = frameOf(head, e)
		b = append(b, frame...)
	}
	return b
}

// FuzzRecover opens a log whose only segment was changed in one place, cut
// short, or has something behind it: either it is refused, or what is there are
// the first records as they were written, and the log goes on behind them.
func FuzzRecover(f *testing.F) {
	f.Add("object", uint16(0), byte(0), uint16(0), []byte{})
	f.Add("object", uint16(70), byte(1), uint16(0), []byte{})
	f.Add("object", uint16(0), byte(0), uint16(11), []byte("\x00\x00\x00\x40"))
	f.Add("", uint16(3), byte(0xff), uint16(500), bytes.Repeat([]byte{1}, 100))
	f.Fuzz(func(t *testing.T, object string, at uint16, flip byte, cut uint16, tail []byte) {
		if len(object) > 1000 {
			return
		}
		var want []*Entry
		for i := range 3 {
			want = append(want, &Entry{Version: version, Record: sandbox.Record{Time: time.Unix(int64(i), 0).UTC(), Action: "a", Object: object}})
		}
		b := build(want...)
		whole := len(b)
		b[int(at)%whole] ^= flip
		b = append(b[:whole-int(cut)%whole], tail...)
		dir := write(t, b)
		signAt(t, dir, 0)
		l, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
		if err != nil {
			return
		}
		pos, err := l.Record(t.Context(), sandbox.Record{Action: "after"})
		if cerr := l.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		n := sandbox.Position(0)
		for e, err := range Scan(dir, 1) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			if e.Record.Action == "audit.repair" && n == pos-1 {
				continue // says that something was cut off
			}
			if n < pos && !reflect.DeepEqual(e.Record, want[n-1].Record) {
				t.Fatalf("record %d is %+v, want %+v", n, e.Record, want[n-1].Record)
			}
		}
		if n != pos || flip == 0 && int(cut)%whole == 0 && len(tail) == 0 && pos != 4 {
			t.Fatalf("%d records, the new one is at %d", n, pos)
		}
	})
}

package event

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// FuzzDamage: a file that was cut short or changed in one place yields the
// events before that, as they were, and none that was never published.
func FuzzDamage(f *testing.F) {
	f.Add([]byte("output"), "3", uint16(0), byte(0), uint16(0))
	f.Add([]byte{}, "", uint16(40), byte(0x80), uint16(7))
	f.Add([]byte("x"), "12", uint16(9), byte(1), uint16(60))
	path := filepath.Join(f.TempDir(), "x")
	f.Fuzz(func(t *testing.T, data []byte, process string, at uint16, flip byte, cut uint16) {
		var all []*Event
		var b []byte
		for i, typ := range []Type{StateChange, Stdout, Stderr, Receipt} {
			e := &Event{ID: uint64(i + 1), Time: time.Unix(int64(i), 5).UTC(), Type: typ, Process: process, Data: append([]byte{}, data...), Final: i == 3}
			if e.check() != nil {
				return
			}
			all = append(all, e)
			b = e.appendTo(b)
		}
		damaged := append([]byte(nil), b...)
		damaged[int(at)%len(b)] ^= flip
		damaged = damaged[:len(b)-int(cut)%len(b)]
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openReader(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		n := 0
		for ; ; n++ {
			e, err := r.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if n >= len(all) || !reflect.DeepEqual(e, all[n]) {
				t.Fatalf("event %d was never published: %+v", n, e)
			}
		}
		if flip == 0 && int(cut)%len(b) == 0 && n != len(all) {
			t.Fatalf("%d of %d events of a whole file", n, len(all))
		}
	})
}

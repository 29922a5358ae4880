package audit

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// tight is a disk that can be full: then nothing grows beyond what was
// allocated.
type tight struct {
	file
	full *atomic.Bool
	room *atomic.Int64
}

func (f tight) Allocate(off, n int64) error {
	if f.full.Load() {
		return syscall.ENOSPC
	}
	f.room.Store(off + n)
	return nil
}

func (f tight) WriteAt(b []byte, off int64) (int, error) {
	if f.full.Load() && off+int64(len(b)) > f.room.Load() {
		return 0, syscall.ENOSPC
	}
	return f.file.WriteAt(b, off)
}

// TestReserve: on a full disk what is about to be done is refused, and what
// ends is recorded, for as long as the reserve lasts.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	var full atomic.Bool
	var room atomic.Int64
	l := open(t, dir, Options{Reserve: 32 << 10, wrap: func(f file) file { return tight{f, &full, &room} }})
	mustRecord(t, l, gate("before"))
	full.Store(true)
	var err error
	accepted := 0
	for ; err == nil; accepted++ {
		if accepted > 1000 {
			t.Fatal("never refused")
		}
		_, err = l.Record(t.Context(), gate("go"+strings.Repeat("x", 200)))
	}
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Kind != sandbox.KindNoSpace || e.Hint == "" || strings.Contains(e.Error(), dir) {
		t.Errorf("refused with %v", err)
	}
	for _, r := range []sandbox.Record{
		{Action: "end", Outcome: sandbox.OutcomeAllowed, Reason: sandbox.ReasonOperator},
		{Action: "done", Outcome: sandbox.OutcomeDone},
		{Action: "failed", Outcome: sandbox.OutcomeFailed},
	} {
		mustRecord(t, l, r)
	}
	for _, r := range []sandbox.Record{gate("still refused"), {Action: "denied", Outcome: sandbox.OutcomeDenied}} {
		if _, err := l.Record(t.Context(), r); sandbox.KindOf(err) != sandbox.KindNoSpace {
			t.Errorf("%s on a full disk: %v", r.Action, err)
		}
	}
	for n := 0; ; n++ { // until the reserve is used up, too
		if _, err := l.Record(t.Context(), sandbox.Record{Action: fmt.Sprint("end", n), Outcome: sandbox.OutcomeDone}); err != nil {
			if n < 50 {
				t.Errorf("the reserve took %d ends: %v", n, err)
			}
			break
		}
	}
	full.Store(false)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err = l.Record(t.Context(), gate("after")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("still refused with space again:", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if head, err := Verify(dir); err != nil || head != l.Head() {
		t.Error(head, err)
	}
	for _, e := range all(t, dir) {
		if e.Record.Action == "still refused" {
			t.Error("a refused record was written")
		}
	}
}

// TestReserveIsGivenBack: a closed log takes no more of the disk than it shows.
func TestReserveIsGivenBack(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{Reserve: 4 << 20})
	mustRecord(t, l, gate("one"))
	used := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(segmentPath(dir, 1), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	before := used()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if after := used(); after > 64<<10 {
		t.Errorf("%d bytes are taken by a closed log, %d by the open one", after, before)
	} else if before < 4<<20 {
		t.Logf("this file system does not allocate ahead: %d", before)
	}
}

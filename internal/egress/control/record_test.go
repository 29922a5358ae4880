//go:build linux

package control

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
)

// TestRecorderLag: as many events as may lag, no older than they may be, and a
// denial in bounded time.
func TestRecorderLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []up
		r := newRecorder(func(m up) error { sent = append(sent, m); return nil })
		for range maxLag {
			if err := r.record(egress.Event{}); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		if err := r.record(egress.Event{}); !errors.Is(err, errUnrecorded) || time.Since(begun) != recordWait {
			t.Fatalf("one more: %v after %v", err, time.Since(begun))
		}
		must(t, r.ack(ack{Seq: maxLag}))
		must(t, r.record(egress.Event{}))
		time.Sleep(maxAge)
		if err := r.record(egress.Event{}); !errors.Is(err, errUnrecorded) {
			t.Fatalf("after an old one: %v", err)
		}
		if len(sent) != maxLag+1 || sent[maxLag].Seq != maxLag+1 {
			t.Errorf("%d sent, the last is %d", len(sent), sent[len(sent)-1].Seq)
		}
		var waiting sync.WaitGroup // what waits goes on when there is room
		for range 3 {
			waiting.Go(func() {
				if err := r.record(egress.Event{}); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(recordWait / 2)
		must(t, r.ack(ack{Seq: maxLag + 1}))
		waiting.Wait()
	})
}

// TestRecorderStrict: after a failure each event is waited for, until one is
// recorded.
func TestRecorderStrict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failing, n := true, 0
		acks := make(chan ack, 10)
		r := newRecorder(func(m up) error {
			a := ack{Seq: m.Seq}
			if n++; failing {
				a.Failed = []uint64{m.Seq}
			}
			acks <- a
			return nil
		})
		go func() {
			for a := range acks {
				time.Sleep(time.Millisecond)
				if err := r.ack(a); err != nil {
					t.Error(err)
				}
			}
		}()
		defer close(acks)
		must(t, r.record(egress.Event{})) // nobody knows yet
		time.Sleep(2 * time.Millisecond)
		for range 3 {
			if err := r.record(egress.Event{}); !errors.Is(err, errUnrecorded) {
				t.Errorf("while it fails: %v", err)
			}
		}
		failing = false
		for range 3 {
			must(t, r.record(egress.Event{}))
		}
		time.Sleep(10 * time.Millisecond)
		r.shut()
		if err := r.record(egress.Event{}); !errors.Is(err, errUnrecorded) || n != 7 {
			t.Errorf("after the end: %v, %d sent", err, n)
		}
	})
}

// TestAcknowledgements: those of what was not sent are not taken.
func TestAcknowledgements(t *testing.T) {
	r := newRecorder(func(up) error { return nil })
	must(t, r.record(egress.Event{}))
	must(t, r.record(egress.Event{}))
	for _, a := range []ack{{}, {Seq: 3}, {Seq: 1 << 63}, {Seq: 1, Failed: []uint64{2}}, {Seq: 1, Failed: []uint64{0}}, {Seq: 2, Failed: make([]uint64, maxLag+1)}} {
		if err := r.ack(a); err == nil {
			t.Errorf("%+v was taken", a)
		}
	}
	must(t, r.ack(ack{Seq: 2, Failed: []uint64{1, 2}}))
	if err := r.ack(ack{Seq: 2}); err == nil {
		t.Error("acknowledged twice")
	}
}

// TestTidy: what an honest router says of hostile bytes is something that its
// keeper takes.
func TestTidy(t *testing.T) {
	for _, text := range []string{"", "\x1b[2J\r\n", "\xff\xfe", strings.Repeat("ä", 40_000), "a\x00b"} {
		e := egress.Event{Wire: "in1", Kind: egress.KindDNS, Decision: egress.Deny, Host: text, Address: text, Protocol: text, Rule: text, Reason: text, Hint: text}
		tidy(&e)
		if err := checkEvent(&e); err != nil {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

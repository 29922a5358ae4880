//go:build linux

package egress

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestLedger: what is denied again and again is told at once, then once per
// window, and nothing is lost while it cannot be recorded.
func TestLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		l := newLedger(slog.New(slog.DiscardHandler), j.record)
		deny := func(host string, n int) {
			for range n {
				l.deny(Event{Kind: KindConnect, Host: host, Reason: "no_rule"})
			}
		}
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, e := range j.all() {
				got = append(got, fmt.Sprint(e.Host, e.Count))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%v, want %v", got, want)
			}
		}
		deny("a", 5)
		expect("a1")
		time.Sleep(window + time.Second)
		expect("a1", "a4")
		deny("a", 2)
		expect("a1", "a4", "a1")
		time.Sleep(window + time.Second) // the next is twice as long
		expect("a1", "a4", "a1")
		time.Sleep(window)
		expect("a1", "a4", "a1", "a1")
		j.fail.Store(true)
		deny("b", 3)
		time.Sleep(longest)
		j.fail.Store(false)
		time.Sleep(longest + time.Second)
		if all := j.all(); all[len(all)-1].Host != "b" || all[len(all)-1].Count != 3 {
			t.Errorf("%+v", all)
		}
		for i := range 10 * distinct {
			deny(fmt.Sprint("many", i), 1)
		}
		l.end()
		deny("late", 1)
		all := j.all()
		last := all[len(all)-2]
		if last.Host != "" || last.Reason != ReasonLimit || last.Count != 9*distinct || all[len(all)-1].Host != "late" {
			t.Errorf("%+v", all[len(all)-2:])
		}
	})
}

// TestLedgerAtOnce: many tell at once, and the sum is right.
func TestLedgerAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sum, calls atomic.Int64
		l := newLedger(slog.New(slog.DiscardHandler), func(e Event) error {
			if calls.Add(1)%7 == 3 && e.Count > 1 {
				return errors.New("not now")
			}
			sum.Add(int64(e.Count))
			return nil
		})
		for i := range 50 {
			go func() {
				for k := range 200 {
					l.deny(Event{Kind: KindConnect, Host: fmt.Sprint((i + k) % 100)})
					time.Sleep(100 * time.Millisecond)
				}
			}()
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		l.end()
		if sum.Load() != 10_000 {
			t.Error(sum.Load())
		}
	})
}

// TestLedgerKinds: a flood of queries does not hide what a sandbox wanted to connect
// to, nor the inspect.
func TestLedgerKinds(t *testing.T) {
	for _, kinds := range [][2]string{{KindDNS, KindConnect}, {KindConnect, KindDNS}} {
		synctest.Test(t, func(t *testing.T) {
			j := new(journal)
			l := newLedger(slog.New(slog.DiscardHandler), j.record)
			for i := range 2 * distinct {
				l.deny(Event{Kind: kinds[0], Host: fmt.Sprint("flood", i)})
			}
			l.deny(Event{Kind: kinds[1], Host: "169.254.169.254"})
			if all := j.all(); len(all) != distinct+1 || all[distinct].Host != "169.254.169.254" || all[distinct].Kind != kinds[1] {
				t.Errorf("%d events, the last is %+v", len(all), all[len(all)-1])
			}
			l.end()
		})
	}
}

// TestLedgerAllows: of requests the first in a window is recorded before it is
// sent, the rest is counted, and while that fails none is sent.
func TestLedgerAllows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		l := newLedger(slog.New(slog.DiscardHandler), j.record)
		sent := 0
		allow := func(n int) {
			for i := range n {
				if l.allow(Event{Kind: KindRequest, Host: "a", Binding: "b", Method: []string{"GET", "POST"}[i%2], Reason: ReasonBinding}) == nil {
					sent++
				}
			}
		}
		recorded := func() (n int) {
			for _, e := range j.all() {
				if e.Decision != Allow || e.Binding != "b" || e.Method == "" {
					t.Errorf("%+v", e)
				}
				n += e.Count
			}
			return n
		}
		allow(10)
		if sent != 10 || len(j.all()) != 2 {
			t.Errorf("%d sent, %d recorded", sent, len(j.all()))
		}
		j.fail.Store(true)
		allow(4) // counted with those that were recorded
		time.Sleep(window + time.Second)
		synctest.Wait()
		before := sent
		allow(10)
		if sent != before {
			t.Errorf("%d were sent that could not be recorded", sent-before)
		}
		j.fail.Store(false)
		allow(10)
		if sent != before+10 || len(j.all()) != 4 {
			t.Errorf("%d sent, %d recorded", sent-before, len(j.all()))
		}
		l.end()
		if recorded() != sent {
			t.Errorf("%d sent and %d on record", sent, recorded())
		}
	})
}

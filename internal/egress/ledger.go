//go:build linux

package egress

import (
	"log/slog"
	"slices"
	"sync"
	"time"
)

// What a sandbox is denied is told at once when it is new, and once for all of a
// while when it goes on, so that a flood of denials is no flood of records.
const (
	window  = 5 * time.Second
	longest = time.Minute // of windows that follow each other, each is twice as long
	// Denials of one wire and kind that are told one by one in a window. A flood of
	// queries does not hide a connection, nor the inspect.
	distinct = 64
)

// ledger tells of the denials of one wire, and of requests through its bindings.
// All methods may be called at once.
type ledger struct {
	log    *slog.Logger
	record func(Event) error

	flushing sync.Mutex // held while folded events are recorded
	allowing sync.Mutex // held while the first of several requests is recorded

	mu    sync.Mutex
	seen  map[alike]*Event  // guarded by mu; Count is how many were not told yet
	kinds map[string]int    // guarded by mu; how many of seen are of a kind
	more  map[string]*Event // guarded by mu; by kind, what was beyond distinct
	owed  map[alike]bool    // guarded by mu; requests of seen of which the last record failed
	timer *time.Timer       // guarded by mu; of the window; nil: there is none
	span  time.Duration     // guarded by mu; of the window
	last  time.Time         // guarded by mu; the end of the last window
	ended bool              // guarded by mu
}

func newLedger(log *slog.Logger, record func(Event) error) *ledger {
	return &ledger{log: log, record: record, seen: map[alike]*Event{}, kinds: map[string]int{}, more: map[string]*Event{}, owed: map[alike]bool{}}
}

// alike is what folded events have in common.
type alike struct {
	kind, protocol, host, reason, binding, method, rule string
	port                                                uint16
}

// common are methods by which requests are told apart; how many others there are is
// up to the sandbox.
var common = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

func (e *Event) alike() alike {
	a := alike{e.Kind, e.Protocol, e.Host, e.Reason, e.Binding, e.Method, e.Rule, e.Port}
	if !slices.Contains(common, a.method) && a.method != "" {
		a.method = "other"
	}
	return a
}

// deny tells of e, now or later.
func (l *ledger) deny(e Event) {
	e.Decision, e.Count = Deny, 1
	if l.fold(e) {
		l.tell(e)
	}
}

// allow tells of a request that is about to be sent on: at once of the first of
// its binding or rule, host and method in a window, whose error is returned, and
// later how many more there were. Bindings and methods are few, and each host took
// a connection, which was recorded.
func (l *ledger) allow(e Event) error {
	if e.Count = 1; e.Decision == "" {
		e.Decision = Allow
	}
	l.allowing.Lock() // nobody is counted with one that is not recorded
	defer l.allowing.Unlock()
	if !l.fold(e) {
		return nil
	}
	err := l.record(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch was := l.seen[e.alike()]; {
	case err == nil:
		delete(l.owed, e.alike())
	case was != nil && was.Count > 0:
		l.owed[e.alike()] = true
	default:
		delete(l.seen, e.alike())
	}
	return err
}

// tell records e, which stands for one. What cannot be recorded now is told with
// what is folded.
func (l *ledger) tell(e Event) {
	if err := l.record(e); err != nil {
		l.log.Warn("a denial is not recorded", "wire", e.Wire, "host", e.Host, "port", e.Port, "err", err)
		l.keep(&e)
	}
}

// fold notes e and reports whether it is to be told now.
func (l *ledger) fold(e Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return true
	}
	if l.timer == nil {
		if l.span = min(2*l.span, longest); l.span == 0 || time.Since(l.last) > l.span {
			l.span = window
		}
		l.timer = time.AfterFunc(l.span, l.flush)
	}
	k := e.alike()
	if was := l.seen[k]; was != nil {
		if l.owed[k] {
			return true
		}
		e.Count += was.Count
		*was = e
		return false
	}
	if e.Decision == Deny && l.kinds[e.Kind] >= distinct {
		was := l.more[e.Kind]
		if was == nil {
			was = &Event{}
			l.more[e.Kind] = was
		}
		*was = Event{Wire: e.Wire, Time: e.Time, Kind: e.Kind, Decision: Deny, Reason: ReasonLimit, Generation: e.Generation, Count: was.Count + 1}
		return false
	}
	now := e
	now.Count = 0
	l.seen[k] = &now
	if e.Decision == Deny {
		l.kinds[e.Kind]++
	}
	return true
}

// flush ends a window: what was folded is told, and what could not be is kept.
func (l *ledger) flush() {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	l.mu.Lock()
	seen, more := l.seen, l.more
	l.seen, l.kinds, l.more, l.timer, l.last = map[alike]*Event{}, map[string]int{}, map[string]*Event{}, nil, time.Now()
	l.owed = map[alike]bool{}
	l.mu.Unlock()
	for _, e := range more {
		seen[alike{kind: e.Kind, reason: e.Reason}] = e
	}
	for _, e := range seen {
		if e.Count == 0 {
			continue
		}
		if err := l.record(*e); err != nil {
			l.log.Warn("decisions are not recorded", "wire", e.Wire, "host", e.Host, "port", e.Port, "count", e.Count, "err", err)
			l.keep(e)
		}
	}
}

// keep folds what could not be recorded into the window that is open, or the next
// one. What there is no room for is counted without its name.
func (l *ledger) keep(e *Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	k := e.alike()
	switch was, more := l.seen[k], l.more[e.Kind]; {
	case was != nil:
		was.Count += e.Count
		if e.Decision != Deny {
			l.owed[k] = true
		}
	case e.Decision != Deny:
		l.seen[k], l.owed[k] = e, true
	case e.Host != "" && l.kinds[e.Kind] < distinct:
		now := *e
		l.seen[k] = &now
		l.kinds[e.Kind]++
	case more != nil:
		more.Count += e.Count
	default:
		l.more[e.Kind] = &Event{Wire: e.Wire, Time: e.Time, Kind: e.Kind, Decision: Deny, Reason: ReasonLimit, Generation: e.Generation, Count: e.Count}
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(longest, l.flush)
	}
}

// end tells what is left. What is denied afterwards is told one by one.
func (l *ledger) end() {
	l.mu.Lock()
	l.ended = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.flush()
}

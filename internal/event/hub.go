package event

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options tunes a Hub; zero values are the defaults.
type Options struct {
	RingEvents  int           // newest events kept in memory per sandbox; default 256
	RingBytes   int           // and their bytes; default 64 KiB
	OutputBytes int64         // what processes did, output above all, kept on disk per sandbox; default 8 MiB
	Retain      time.Duration // how long the events of an ended sandbox are kept; default 24 h
}

func (o *Options) defaults() {
	if o.RingEvents <= 0 {
		o.RingEvents = 256
	}
	if o.RingBytes <= 0 {
		o.RingBytes = 64 << 10
	}
	if o.OutputBytes <= 0 {
		o.OutputBytes = 8 << 20
	}
	if o.Retain <= 0 {
		o.Retain = 24 * time.Hour
	}
}

// maxBatch is the most events one Next returns.
const maxBatch = 64

// sweepEvery is how often publishing looks for events past their retention.
const sweepEvery = 10 * time.Minute

// Hub owns the events of all sandboxes below one directory. It is safe for
// concurrent use.
type Hub struct {
	dir string
	o   Options
	log *slog.Logger

	mu      sync.Mutex
	streams map[sandbox.ID]*stream // loaded ones; guarded by mu
	closed  bool                   // guarded by mu
	done    chan struct{}          // closed by Close
	swept   time.Time              // guarded by mu
	opened  time.Time
}

// Open makes a hub over dir, which it creates if need be, and drops events past
// their retention. A directory belongs to one hub at a time.
func Open(dir string, o Options, log *slog.Logger) (*Hub, error) {
	o.defaults()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, sandbox.Wrap("open events", dir, err)
	}
	h := &Hub{dir: dir, o: o, log: log, streams: map[sandbox.ID]*stream{}, done: make(chan struct{}), opened: time.Now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h, h.sweep(time.Now())
}

// stream returns the stream of id, loading it from disk where create is false
// and it is not in memory. Errors: KindNotFound when there are no such events.
func (h *Hub) stream(op string, id sandbox.ID, create bool) (*stream, error) {
	if !id.Valid() {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "%q is no sandbox id", id)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "the events are closed").WithID(string(id))
	}
	if s := h.streams[id]; s != nil {
		return s, nil
	}
	s := newStream(h.dir, id, &h.o)
	if err := s.load(); err != nil {
		return nil, sandbox.Wrap(op, string(id), err)
	}
	if s.last == 0 && !create {
		return nil, sandbox.Errorf(op, sandbox.KindNotFound, "there are no events of %s", id).WithID(string(id)).
			WithHint("the events of an ended sandbox are kept for %v", h.o.Retain)
	}
	h.streams[id] = s
	return s, nil
}

// Publish appends e, with Time now where it is zero, and returns its id.
//
// Errors: KindInvalid and KindTooLarge for an event that cannot be stored,
// KindGone after a Final event, KindNoSpace on a full disk. Output is never
// refused for want of space: it is dropped, and readers get a Truncated event.
// Cost: one write to the page cache.
func (h *Hub) Publish(id sandbox.ID, e Event) (uint64, error) {
	if err := e.check(); err != nil {
		return 0, err
	}
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	s, err := h.stream("publish", id, true)
	if err != nil {
		return 0, err
	}
	if err := s.publish(&e); err != nil {
		return 0, err
	}
	if e.Final {
		h.mu.Lock()
		if time.Since(h.swept) > sweepEvery {
			if err := h.sweep(time.Now()); err != nil {
				h.log.Warn("events past their retention could not be removed", "error", err)
			}
		}
		h.mu.Unlock()
	}
	return e.ID, nil
}

// Prepare makes ready what the first event of a sandbox needs, or with output the first
// that has some, its file: who calls it beside something else that takes its time does
// not wait for that in Publish. A file without events is removed by Expire, if none ever
// come.
func (h *Hub) Prepare(id sandbox.ID, output bool) error {
	s, err := h.stream("publish", id, true)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.removed {
		return nil
	}
	l := &s.state
	if output {
		l = &s.out
	}
	return sandbox.Wrap("publish", string(id), l.open())
}

// Printed returns what has been published of a process. What was dropped for
// want of space counts as published.
//
// After a restart it is read from the files, so it costs reading what is kept
// of the sandbox's events, once.
func (h *Hub) Printed(id sandbox.ID, process string) (Printed, error) {
	s, err := h.stream("position", id, true)
	if err != nil {
		return Printed{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has(process), nil
}

// Last is the id of the newest event of a sandbox; 0 if there is none.
func (h *Hub) Last(id sandbox.ID) (uint64, error) {
	s, err := h.stream("position", id, true)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

// Subscribe follows a sandbox's events with ids greater than after. The caller
// closes the subscription.
//
// Errors: KindNotFound when the sandbox has no events or they were removed.
func (h *Hub) Subscribe(ctx context.Context, id sandbox.ID, after uint64) (*Subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap("subscribe", string(id), err)
	}
	s, err := h.stream("subscribe", id, false)
	if err != nil {
		return nil, err
	}
	return &Subscription{s: s, done: h.done, after: after}, nil
}

// sweep removes the events of sandboxes that ended too long ago, and forgets
// ended streams, which are found on disk again. Preconditions: h.mu is held.
func (h *Hub) sweep(now time.Time) error {
	h.swept = now
	// A wall clock that was set ahead forgets nothing.
	if steady := h.opened.Round(0).Add(time.Since(h.opened)); steady.Before(now) {
		now = steady
	}
	for id, s := range h.streams {
		s.mu.Lock()
		if s.ended {
			delete(h.streams, id)
		}
		s.mu.Unlock()
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return sandbox.Wrap("sweep events", h.dir, err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), eventSuffix)
		fi, err := e.Info()
		if !ok || err != nil || h.streams[sandbox.ID(id)] != nil || now.Sub(fi.ModTime()) < h.o.Retain {
			continue
		}
		// Live sandboxes are loaded by their next event, so an old file may
		// still be one's: only an ended stream is removed.
		s := newStream(h.dir, sandbox.ID(id), &h.o)
		if err := s.load(); err != nil || !s.ended {
			continue
		}
		if err := s.remove(); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all subscriptions and stops the hub. It is idempotent.
func (h *Hub) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	close(h.done)
	var errs []error
	for _, s := range h.streams {
		s.mu.Lock()
		errs = append(errs, s.state.close(), s.out.close())
		s.removed = true // what comes now has nowhere to go
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Subscription is one reader. It is for use by one goroutine at a time.
type Subscription struct {
	s     *stream
	done  <-chan struct{}
	after uint64
	disk  *merged // open while the reader is behind the ring
	upTo  uint64  // the newest event when disk was opened
}

// Next waits for events and returns what is ready: at least one, at most 64.
// Where output was dropped, a Truncated event carries the id of the last one
// that is missing. io.EOF follows the sandbox's last event.
//
// Errors: ctx's, KindUnavailable when the hub was closed.
func (s *Subscription) Next(ctx context.Context) ([]*Event, error) {
	for {
		select {
		case <-s.done:
			return nil, s.stopping()
		default:
		}
		batch, ok, wake := s.s.recent(s.after)
		switch {
		case !ok:
			batch, err := s.fromDisk()
			if err != nil || len(batch) > 0 {
				return batch, err
			}
			continue
		case len(batch) > 0:
			s.closeDisk()
			s.after = batch[len(batch)-1].ID
			return batch, nil
		case wake == nil:
			return nil, io.EOF
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, sandbox.Wrap("next event", string(s.s.id), ctx.Err())
		case <-s.done:
			return nil, s.stopping()
		}
	}
}

func (s *Subscription) stopping() error {
	return sandbox.Errorf("next event", sandbox.KindUnavailable, "the server is stopping").WithID(string(s.s.id)).
		WithHint("subscribe again after event %d", s.after)
}

// Ready is Next without waiting: it returns no events, and no io.EOF, when there
// are none now.
func (s *Subscription) Ready() ([]*Event, error) {
	for {
		batch, ok, _ := s.s.recent(s.after)
		if !ok {
			if batch, err := s.fromDisk(); err != nil || len(batch) > 0 {
				return batch, err
			}
			continue // what was opened is read: the rest is newer
		}
		if len(batch) > 0 {
			s.after = batch[len(batch)-1].ID
		}
		return batch, nil
	}
}

// fromDisk returns the next events from the files. At their end it returns
// what is missing up to the stream's position, as a Truncated event.
func (s *Subscription) fromDisk() ([]*Event, error) {
	if s.disk == nil {
		// Everything up to here is in the files that are opened now, unless it
		// was dropped. What comes later may be in other files, or behind an
		// end that was read too early: it is left to the next opening.
		s.upTo = s.s.position()
		m, err := s.s.open()
		if err != nil {
			return nil, sandbox.Wrap("next event", string(s.s.id), err)
		}
		s.disk = m
	}
	var batch []*Event
	for size := 0; len(batch) < maxBatch && size < 256<<10; {
		e, err := s.disk.next()
		if err == io.EOF || err == nil && e.ID > s.upTo {
			if s.closeDisk(); s.after < s.upTo {
				batch = s.gap(batch, s.upTo+1)
			}
			break
		}
		if err != nil {
			return batch, sandbox.Wrap("next event", string(s.s.id), err)
		}
		if e.ID <= s.after {
			continue
		}
		if e.ID > s.after+1 {
			batch = s.gap(batch, e.ID)
		}
		batch, size = append(batch, e), size+e.size()
		s.after = e.ID
	}
	return batch, nil
}

// gap appends a Truncated event for the ids after s.after and before next.
func (s *Subscription) gap(batch []*Event, next uint64) []*Event {
	s.after = next - 1
	return append(batch, &Event{ID: s.after, Time: time.Now().UTC(), Type: Truncated})
}

func (s *Subscription) closeDisk() {
	if s.disk != nil {
		s.disk.close()
		s.disk = nil
	}
}

// Close ends the subscription. It is idempotent.
func (s *Subscription) Close() error {
	s.closeDisk()
	return nil
}

package event

import (
	"context"
	"log/slog"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Type says what an event is about.
type Type string

// The types. Stdout and Stderr are output: bulky, and dropped oldest first
// when a sandbox exceeds its budget. All others are kept.
const (
	StateChange Type = "state"  // Data: JSON
	Stdout      Type = "stdout" // Data: bytes as the process wrote them
	Stderr      Type = "stderr"
	Exit        Type = "exit"
	Result      Type = "result"
	Limit       Type = "limit"
	Egress      Type = "egress"
	Truncated   Type = "truncated" // made by the hub: output was dropped here
)

// Event is one event. It is immutable once published; subscribers share it.
type Event struct {
	ID      uint64 // from 1 per sandbox; set by Publish
	Time    time.Time
	Type    Type
	Process string // the process concerned, if any
	Data    []byte
	Final   bool // nothing follows: the sandbox has ended
}

// Options tunes a Hub; zero values are the defaults.
type Options struct {
	RingEvents  int           // newest events kept in memory per sandbox; default 256
	RingBytes   int           // and their bytes; default 64 KiB
	OutputBytes int64         // output kept on disk per sandbox; default 8 MiB
	MaxLag      int64         // bytes a live reader may fall behind; default 4 MiB
	Retain      time.Duration // how long the events of an ended sandbox are kept; default 24 h
}

// Hub owns the events of all sandboxes.
type Hub struct{}

// Open makes a hub over dir, which it creates if need be.
func Open(dir string, o Options, log *slog.Logger) (*Hub, error) { return nil, errSkeleton }

// Publish appends e and returns its id.
func (h *Hub) Publish(id sandbox.ID, e Event) (uint64, error) { return 0, errSkeleton }

// Subscribe follows a sandbox's events with ids greater than after.
func (h *Hub) Subscribe(ctx context.Context, id sandbox.ID, after uint64) (*Subscription, error) {
	return nil, errSkeleton
}

// Remove forgets a sandbox's events and ends its subscriptions.
func (h *Hub) Remove(id sandbox.ID) error { return errSkeleton }

// Close ends all subscriptions and stops the hub.
func (h *Hub) Close() error { return errSkeleton }

// Subscription is one reader. It is for use by one goroutine.
type Subscription struct{}

// Next waits for events and returns all that are ready, at least one, at most
// a bounded number. io.EOF follows a Final event; a reader that fell too far
// behind gets KindUnavailable wrapping *SlowError.
func (s *Subscription) Next(ctx context.Context) ([]*Event, error) { return nil, errSkeleton }

// Close ends the subscription.
func (s *Subscription) Close() error { return errSkeleton }

// SlowError ends the subscription of a reader that fell too far behind; it may
// subscribe again after Last.
type SlowError struct{ Last uint64 }

// Error implements error.
func (e *SlowError) Error() string { return "" }

// JSON is the event's wire form, encoded once and shared by all readers.
func (e *Event) JSON() []byte { return nil }

var errSkeleton = sandbox.Errorf("event", sandbox.KindUnsupported, "not written yet")

package guest

import (
	"sync"
	"unicode/utf8"
)

// FileEvent is one change in a watched directory. Everything in it is the guest's
// claim.
type FileEvent struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"` // relative to the watched directory; "" is itself
}

// The types of a FileEvent. A rename names the old path; if the new one is
// watched too, a create names that. An overflow says that changes were lost:
// whoever needs to know lists the directory again.
const (
	EventCreate   = "create"
	EventWrite    = "write"
	EventRemove   = "remove"
	EventRename   = "rename"
	EventChmod    = "chmod"
	EventOverflow = "overflow"
)

// Bounds of what a FileEvents holds.
const (
	maxEvents    = 4096
	maxEventText = 1 << 20 // bytes of paths
)

// FileEvents is a queue of changes. It holds a bounded number and says when it
// dropped some: an overflow stands where they would. Put never waits. It is safe
// for concurrent use.
type FileEvents struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	events []FileEvent // guarded by mu
	text   int         // guarded by mu; bytes of paths in events
	lost   bool        // guarded by mu; something was dropped after events
	over   bool        // guarded by mu; nothing more comes
	err    error       // guarded by mu; why
}

// NewFileEvents returns an empty queue.
func NewFileEvents() *FileEvents { return &FileEvents{wake: make(chan struct{}, 1)} }

// Put appends an event. One that equals the one before it adds nothing, and is
// dropped.
func (q *FileEvents) Put(e FileEvent) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch n := len(q.events); {
	case q.lost || q.over:
	case n > 0 && q.events[n-1] == e:
	case n >= maxEvents || q.text+len(e.Path) > maxEventText:
		q.lost = true
	default:
		q.events = append(q.events, e)
		q.text += len(e.Path)
	}
	signal(q.wake)
}

// Lose says that a change was missed.
func (q *FileEvents) Lose() { q.Put(FileEvent{Type: EventOverflow}) }

// End says that nothing more comes, with err or because the watch is over.
func (q *FileEvents) End(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.over {
		q.over, q.err = true, err
	}
	signal(q.wake)
}

// Take returns what is queued, without waiting, and empties the queue. over says
// that nothing follows it, and err why, if that is no ordinary end.
func (q *FileEvents) Take() (events []FileEvent, over bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	events = q.events
	if q.lost {
		events = append(events, FileEvent{Type: EventOverflow})
	}
	q.events, q.text, q.lost = nil, 0, false
	return events, q.over, q.err
}

// Ready yields something when Take may have something to return.
func (q *FileEvents) Ready() <-chan struct{} { return q.wake }

// valid says whether a guest may send e.
func (e FileEvent) valid() bool {
	switch e.Type {
	case EventCreate, EventWrite, EventRemove, EventRename, EventChmod:
		return len(e.Path) <= 3*MaxPath && utf8.ValidString(e.Path) // what is no UTF-8 grows when it is shown
	case EventOverflow:
		return e.Path == ""
	}
	return false
}

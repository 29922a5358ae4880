package control

import (
	"errors"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
)

const (
	// maxLag is how many events may be on their way to be recorded, and maxAge for
	// how long the oldest of them before nothing more is decided.
	maxLag = 256
	maxAge = 100 * time.Millisecond
	// recordWait is how long a decision waits for others to be recorded before it is
	// a denial, and how long a packet may wait for the keeper to read.
	recordWait = 2 * time.Second
)

var errUnrecorded = errors.New("it could not be recorded")

// recorder sends events up and lets few of them lag. All methods may be called at
// once.
type recorder struct {
	send func(up) error

	mu      sync.Mutex
	closed  bool          // guarded by mu
	strict  bool          // guarded by mu; a record failed: each is waited for
	acked   uint64        // guarded by mu; the last one that was
	failed  uint64        // guarded by mu; the last one that was not recorded
	sent    []time.Time   // guarded by mu; when those after acked were sent
	changed chan struct{} // guarded by mu; closed and made anew with each change
}

func newRecorder(send func(up) error) *recorder {
	return &recorder{send: send, changed: make(chan struct{})}
}

// record is egress.Config's Record. It waits for at most recordWait for those
// before, and as long again for its own where a record has failed. Errors: that
// it took longer, that it could not be recorded.
func (r *recorder) record(e egress.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	tidy(&e)
	deadline := time.Now().Add(recordWait)
	for !r.closed && !r.room(time.Now()) {
		if !r.wait(deadline) {
			return errUnrecorded
		}
	}
	if r.closed {
		return errUnrecorded
	}
	r.sent = append(r.sent, time.Now())
	seq := r.acked + uint64(len(r.sent))
	if err := r.send(up{Seq: seq, Event: &e}); err != nil { // nothing is between the numbers
		r.close()
		return err
	}
	if !r.strict {
		return nil
	}
	for deadline = time.Now().Add(recordWait); r.acked < seq; {
		if r.closed || !r.wait(deadline) {
			return errUnrecorded
		}
	}
	if r.failed == seq {
		return errUnrecorded
	}
	return nil
}

// room reports whether one more event may be on its way. The caller holds mu.
func (r *recorder) room(now time.Time) bool {
	switch n := len(r.sent); {
	case n == 0:
		return true
	case r.strict || n >= maxLag:
		return false
	}
	return now.Sub(r.sent[0]) < maxAge
}

// wait waits for a change, without mu, which the caller holds before and after.
// It reports whether there was one before the deadline.
func (r *recorder) wait(deadline time.Time) bool {
	changed := r.changed
	r.mu.Unlock()
	defer r.mu.Lock()
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-changed:
		return true
	case <-t.C:
		return false
	}
}

// wake tells whoever waits to look again. The caller holds mu.
func (r *recorder) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// ack takes the keeper's word for what is recorded. Errors: it cannot be.
func (r *recorder) ack(a ack) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.Seq <= r.acked || a.Seq-r.acked > uint64(len(r.sent)) || len(a.Failed) > maxLag {
		return errors.New("an acknowledgement of what was not sent")
	}
	for _, f := range a.Failed {
		if f <= r.acked || f > a.Seq {
			return errors.New("a failure of what was not sent")
		}
		r.failed = f
	}
	r.strict = len(a.Failed) > 0
	r.sent = r.sent[a.Seq-r.acked:]
	r.acked = a.Seq
	if len(r.sent) == 0 {
		r.sent = nil // the array behind it
	}
	r.wake()
	return nil
}

// close makes everything fail from now on that is not recorded. The caller holds
// mu.
func (r *recorder) close() {
	r.closed = true
	r.wake()
}

// shut is close for who does not hold mu.
func (r *recorder) shut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.close()
}

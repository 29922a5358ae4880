package event

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// stream is the events of one sandbox.
type stream struct {
	id  sandbox.ID
	dir string
	o   *Options

	mu      sync.Mutex
	last    uint64        // id of the newest event; guarded by mu
	ended   bool          // a Final event was published; guarded by mu
	removed bool          // guarded by mu
	ring    []*Event      // the newest events, ids contiguous, the newest is last; guarded by mu
	bytes   int           // of ring; guarded by mu
	state   log           // guarded by mu
	out     log           // guarded by mu
	wake    chan struct{} // closed at the next publish; nil while nobody waits; guarded by mu
	touched time.Time     // of the newest event; guarded by mu
	// printed is how much of each open process's output has been published,
	// exited the latest that ended. Guarded by mu.
	printed map[string]Printed
	exited  []string
}

// Printed is what has been published of a process.
type Printed struct {
	Stdout, Stderr int64 // bytes; Stdout of what a terminal shows, too
	Known          bool  // there are events of it; they may have been dropped
	Ended          bool  // its Exit, too
}

// maxExited bounds stream.exited: whoever asks does so soon after the end.
const maxExited = 64

// note keeps printed current. Preconditions: s.mu is held, or nobody else has s.
func (s *stream) note(e *Event) {
	if s.printed == nil {
		s.printed = map[string]Printed{}
	}
	p := s.printed[e.Process]
	p.Known = true
	end := int64(e.Offset) + int64(len(e.Data))
	switch e.Type {
	case Started:
		p = Printed{Known: true}
		s.exited = slices.DeleteFunc(s.exited, func(x string) bool { return x == e.Process })
	case Stdout, PTY:
		p.Stdout = end
	case Stderr:
		p.Stderr = end
	case Exit:
		delete(s.printed, e.Process)
		if len(s.exited) == maxExited {
			s.exited = slices.Delete(s.exited, 0, 1)
		}
		s.exited = append(s.exited, e.Process)
		return
	default:
		return
	}
	s.printed[e.Process] = p
}

// has is Printed. Preconditions: s.mu is held.
func (s *stream) has(process string) Printed {
	if slices.Contains(s.exited, process) {
		return Printed{Known: true, Ended: true}
	}
	return s.printed[process]
}

func newStream(dir string, id sandbox.ID, o *Options) *stream {
	return &stream{
		id: id, dir: dir, o: o, touched: time.Now(),
		state: log{path: filepath.Join(dir, string(id)+eventSuffix)},
		out:   log{path: filepath.Join(dir, string(id)+outSuffix)},
	}
}

// load restores a stream from its files, after a restart. What a crash left
// half written is cut off.
func (s *stream) load() error {
	for _, l := range []*log{{path: s.out.path + ".old"}, &s.out, &s.state} {
		r, err := openReader(l.path)
		if err != nil {
			return err
		}
		for {
			e, err := r.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				r.close()
				return err
			}
			s.last = max(s.last, e.ID)
			s.ended = s.ended || e.Final
			s.touched = e.Time
			s.note(e) // what matters to it is in one file, in order
		}
		r.close()
		l.size = r.good
		if fi, err := os.Stat(l.path); err == nil && fi.Size() > r.good {
			if err := os.Truncate(l.path, r.good); err != nil {
				return err
			}
		}
	}
	return nil
}

// publish stores e and wakes readers. Output that cannot be stored is dropped:
// its id stays unused, which readers are told.
func (s *stream) publish(e *Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.removed {
		return sandbox.Errorf("publish", sandbox.KindGone, "the events of %s have ended", s.id)
	}
	e.ID = s.last + 1
	if err := s.store(e); err != nil {
		if !e.Type.output() {
			return sandbox.Wrap("publish", string(s.id), err)
		}
	}
	s.last, s.ended, s.touched = e.ID, e.Final, e.Time
	s.note(e)
	s.remember(e)
	if s.wake != nil {
		close(s.wake)
		s.wake = nil
	}
	if s.ended {
		s.ring, s.bytes = nil, 0 // readers go on from the files
		return errors.Join(s.state.close(), s.out.close())
	}
	return nil
}

// store writes e to its file. Preconditions: s.mu is held.
func (s *stream) store(e *Event) error {
	l := &s.state
	if !e.Type.kept() {
		l = &s.out
		if l.size > 0 && l.size+int64(e.size()) > s.o.OutputBytes/2 {
			if err := l.close(); err != nil {
				return err
			}
			failpoint.Hit("event/before-rotate")
			if err := os.Rename(l.path, l.path+".old"); err != nil {
				return err
			}
			failpoint.Hit("event/after-rotate")
			l.size = 0
		}
	}
	return l.append(e.appendTo(make([]byte, 0, frameHeader+bodyHeader+len(e.Process)+len(e.Data))))
}

// remember puts e into the ring and drops what is over its budget.
// Preconditions: s.mu is held.
func (s *stream) remember(e *Event) {
	s.ring = append(s.ring, e)
	s.bytes += e.size()
	drop := 0
	for drop < len(s.ring)-1 && (len(s.ring)-drop > s.o.RingEvents || s.bytes > s.o.RingBytes) {
		s.bytes -= s.ring[drop].size()
		drop++
	}
	if drop > 0 {
		s.ring = append(s.ring[:0:0], s.ring[drop:]...)
	}
	if s.bytes > s.o.RingBytes { // one large event: readers find it on disk
		s.ring, s.bytes = nil, 0
	}
}

// recent returns the events after the id, up to maxBatch, when the ring has
// them all. Otherwise ok is false and they are on disk. With nothing to return
// it returns a channel that is closed at the next publish, or nil at the end.
func (s *stream) recent(after uint64) (batch []*Event, ok bool, wake <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if after >= s.last {
		if s.ended || s.removed {
			return nil, true, nil
		}
		if s.wake == nil {
			s.wake = make(chan struct{})
		}
		return nil, true, s.wake
	}
	if len(s.ring) == 0 || s.ring[0].ID > after+1 {
		return nil, false, nil
	}
	from := s.ring[after+1-s.ring[0].ID:]
	return append([]*Event(nil), from[:min(len(from), maxBatch)]...), true, nil
}

// open opens the files for reading, at a moment when none is being replaced.
func (s *stream) open() (*merged, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return openMerged(s.dir, s.id)
}

// position returns the id of the newest event.
func (s *stream) position() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// remove deletes the files and ends all subscriptions.
func (s *stream) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = true
	s.ring, s.bytes = nil, 0
	err := errors.Join(s.state.close(), s.out.close())
	for _, suffix := range []string{eventSuffix, outSuffix, oldSuffix} {
		if e := os.Remove(filepath.Join(s.dir, string(s.id)+suffix)); e != nil && !os.IsNotExist(e) {
			err = errors.Join(err, e)
		}
	}
	if s.wake != nil {
		close(s.wake)
		s.wake = nil
	}
	return err
}

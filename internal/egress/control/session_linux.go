package control

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// session is the keeper's side of the socket to one router.
type session struct {
	process *process
	link    *link
	begun   time.Time

	mu      sync.Mutex
	last    uint64              // guarded by mu; of pending
	pending map[uint64]chan *up // guarded by mu; what was asked and not answered; nil when the router is lost

	events chan egress.Event // decided and not recorded, in order; at most maxLag
	seen   uint64            // the last one's number; of the reader alone
	acked  atomic.Uint64     // the last one whose record, or failure, the router was told of

	lost  chan struct{} // closed when nothing comes from it any more
	cause error         // why; before lost is closed
}

func newSession(p *process, begun time.Time) *session {
	return &session{
		process: p, link: newLink(p.conn, false), begun: begun, pending: map[uint64]chan *up{},
		events: make(chan egress.Event, maxLag), lost: make(chan struct{}),
	}
}

// errLost says that the router died before it answered.
var errLost = errors.New("the router is gone")

// Timeouts of what a router is asked. One that does not answer in time is killed.
const (
	answerWait = 10 * time.Second
	detachWait = 30 * time.Second
	sendWait   = 2 * time.Second
)

// call asks for something and waits for the answer, with a descriptor unless it is
// -1. Errors: errLost, ctx's, the router's own.
func (s *session) call(ctx context.Context, m *down, descriptor int, wait time.Duration) (*up, error) {
	answer := make(chan *up, 1)
	s.mu.Lock()
	if s.pending == nil {
		s.mu.Unlock()
		return nil, errLost
	}
	s.last++
	m.Ref = s.last
	s.pending[m.Ref] = answer
	s.mu.Unlock()
	if err := s.link.send(m, descriptor, sendWait); err != nil {
		if sandbox.KindOf(err) == sandbox.KindTooLarge {
			s.forget(m.Ref)
			return nil, err
		}
		s.fail(err)
		return nil, errLost
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case a := <-answer:
		if a.Error != nil {
			return nil, a.Error.err("egress "+m.Op, m.ID)
		}
		return a, nil
	case <-s.lost:
		return nil, errLost
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		s.fail(errors.New("it does not answer"))
		return nil, errLost
	}
}

func (s *session) forget(ref uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, ref)
}

// fail ends the router, because of err.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.cause == nil {
		s.cause = err
	}
	s.mu.Unlock()
	s.process.kill()
}

// gone reports whether the router is lost.
func (s *session) gone() bool {
	select {
	case <-s.lost:
		return true
	default:
		return false
	}
}

// read takes what the router says until it is gone, or says what cannot be. What
// it says of wires goes to hear.
func (s *session) read(hear func(*up)) {
	defer close(s.lost)
	defer close(s.events)
	pace := pace{burst: 16 << 20, rate: 8 << 20}
	for {
		b, _, err := s.link.receive()
		if err == nil {
			pace.spend(1<<10 + len(b))
			err = s.take(b, hear)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			err = errors.Join(errors.New("it said what cannot be"), err)
		}
		s.fail(err)
		s.mu.Lock()
		s.pending = nil
		s.mu.Unlock()
		return
	}
}

func (s *session) take(b []byte, hear func(*up)) error {
	m, err := decodeUp(b)
	if err != nil {
		return err
	}
	switch {
	case m.Ref != 0:
		s.mu.Lock()
		answer := s.pending[m.Ref]
		delete(s.pending, m.Ref)
		s.mu.Unlock()
		if answer == nil {
			return errors.New("an answer to nothing")
		}
		answer <- m
	case m.Event != nil:
		if s.seen++; m.Seq != s.seen || s.seen-s.acked.Load() > maxLag {
			return errors.New("an event out of order, or too many")
		}
		hear(m)
		s.events <- *m.Event // has room: no more are on their way
	default:
		hear(m)
	}
	return nil
}

// settle records events until there are no more, and says so to the router. keep
// takes one; its error is told.
func (s *session) settle(keep func(egress.Event) error) {
	var a ack
	for e := range s.events {
		a.Seq++
		if err := keep(e); err != nil {
			a.Failed = append(a.Failed, a.Seq)
		}
		if len(s.events) > 0 && a.Seq%32 != 0 {
			continue
		}
		s.acked.Store(a.Seq)
		if err := s.link.send(&down{Op: opAck, Ack: &a}, -1, sendWait); err != nil {
			s.fail(err) // the rest is recorded all the same
		}
		a.Failed = nil
	}
}

// pace bounds how many bytes a second are read from a router, whatever it sends.
type pace struct {
	burst, rate float64
	debt        float64
	at          time.Time
}

// spend waits until n bytes more may have been read.
func (p *pace) spend(n int) {
	now := time.Now()
	p.debt = max(0, p.debt-now.Sub(p.at).Seconds()*p.rate) + float64(n)
	p.at = now
	if over := p.debt - p.burst; over > 0 {
		time.Sleep(time.Duration(over / p.rate * float64(time.Second)))
	}
}

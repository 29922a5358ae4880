package orchestrator

import (
	"context"
	"errors"
	"sync/atomic"
)

// maxTurns is how many may wait in one context.
const maxTurns = 32

// What ends waiting in a queue, beside its turn and the waiter's own context.
var (
	errQueueFull = errors.New("too many wait")
	errQueueDead = errors.New("nobody's turn comes any more")
)

// queue decides whose turn it is: one at a time, in order of arrival.
type queue struct {
	turn    chan struct{} // holds the one whose turn it is
	waiting atomic.Int32
}

func newQueue() *queue { return &queue{turn: make(chan struct{}, 1)} }

// enter waits until it is the caller's turn and ready is closed. The turn is the
// caller's until leave. Errors: errQueueFull at once, errQueueDead once dead is
// closed, ctx's.
func (q *queue) enter(ctx context.Context, ready, dead <-chan struct{}) error {
	if q.waiting.Add(1) > maxTurns {
		q.waiting.Add(-1)
		return errQueueFull
	}
	defer q.waiting.Add(-1)
	select {
	case <-dead:
		return errQueueDead
	default:
	}
	select {
	case q.turn <- struct{}{}: // whoever waits longest is the first
	case <-dead:
		return errQueueDead
	case <-ctx.Done():
		return ctx.Err()
	}
	var err error
	select {
	case <-ready:
		return nil
	default:
	}
	select {
	case <-ready:
		return nil
	case <-dead:
		err = errQueueDead
	case <-ctx.Done():
		err = ctx.Err()
	}
	q.leave()
	return err
}

// hold takes the turn of a queue that nobody else has yet.
func (q *queue) hold() { q.turn <- struct{}{} }

// leave gives the turn to the next.
func (q *queue) leave() { <-q.turn }

// length is how many wait.
func (q *queue) length() int { return int(q.waiting.Load()) }

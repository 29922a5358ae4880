package orchestrator

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, ready, dead := newQueue(), make(chan struct{}), make(chan struct{})
		q.hold()
		var mu sync.Mutex
		var order []int
		var waiting sync.WaitGroup
		for i := range maxTurns {
			waiting.Go(func() {
				if err := q.enter(t.Context(), ready, dead); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				q.leave()
			})
			synctest.Wait() // it stands in line
		}
		if err := q.enter(t.Context(), ready, dead); err != errQueueFull || q.length() != maxTurns {
			t.Errorf("one more: %v; %d wait", err, q.length())
		}
		q.leave()
		synctest.Wait()
		if len(order) > 0 {
			t.Errorf("before it is ready: %v", order)
		}
		close(ready)
		waiting.Wait()
		if !slices.IsSorted(order) || len(order) != maxTurns || q.length() != 0 {
			t.Errorf("%v; %d wait", order, q.length())
		}
	})
}

// TestQueueEnds: whoever leaves the line early leaves it as it was.
func TestQueueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, ready, never := newQueue(), make(chan struct{}), make(chan struct{})
		close(ready)
		q.hold()
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() { gone <- q.enter(ctx, ready, never) }()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) || q.length() != 0 {
			t.Errorf("%v; %d wait", err, q.length())
		}
		q.leave()
		dead := make(chan struct{})
		go func() { gone <- q.enter(t.Context(), never, dead) }() // its turn, and not ready
		synctest.Wait()
		close(dead)
		if err := <-gone; err != errQueueDead {
			t.Error(err)
		}
		if err := q.enter(t.Context(), ready, dead); err != errQueueDead {
			t.Error(err)
		}
		if err := q.enter(t.Context(), ready, never); err != nil { // the turn was given back
			t.Error(err)
		}
		q.leave()
	})
}

package control

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	lookEvery = 5 * time.Second // at whether the router answers, and at the files about names
	stopWait  = 3 * time.Second // for the router to end connections when the keeper is closed
	// A router that lived shorter than steady has failed. After promptly failures
	// the next one has to wait, longer each time.
	steady      = time.Second
	promptly    = 3
	longestWait = time.Second
)

// run looks after routers, of which s is the first, until ctx ends.
func (k *Keeper) run(ctx context.Context, s *session) {
	failures := 0
	for {
		k.attend(ctx, s)
		k.mu.Lock()
		k.current = nil
		k.announce()
		k.mu.Unlock()
		k.bury(s)
		if ctx.Err() != nil {
			return
		}
		k.log.Error("the router ended; the next one is started", "how", s.process.end, "why", s.why(), "after", time.Since(s.begun))
		if time.Since(s.begun) > steady {
			failures = 0
		}
		for s = nil; s == nil; {
			var err error
			if failures++; !pause(ctx, failures) {
				return
			}
			if s, err = k.begin(ctx); err != nil && ctx.Err() == nil {
				k.log.Error("there is no router, and nothing leaves", "error", err)
			}
		}
	}
}

// pause waits before a router is started after so many failures. It reports
// whether one is to be.
func pause(ctx context.Context, failures int) bool {
	wait := time.Duration(0)
	if failures > promptly {
		wait = min(10*time.Millisecond<<min(failures-promptly, 10), longestWait)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}

// attend waits until the router is lost or ctx ends, and looks after it: one that
// does not answer is as good as dead.
func (k *Keeper) attend(ctx context.Context, s *session) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	missed := 0
	for {
		select {
		case <-s.lost:
			return
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
			defer cancel()
			s.call(end, &down{Op: opStop}, -1, stopWait) // and what it does not do is done by its end
			return
		case <-t.C:
		}
		if err := k.tell(s); err != nil {
			s.fail(err)
			continue
		}
		// Twice, since this process may have been stopped for as long.
		asked, cancel := context.WithTimeout(ctx, lookEvery)
		_, err := s.call(asked, &down{Op: opStats}, -1, answerWait)
		cancel()
		if missed++; err == nil {
			missed = 0
		} else if missed == 2 && ctx.Err() == nil {
			s.fail(errors.New("it does not answer"))
		}
	}
}

// tell tells the router how names are resolved, if that has changed.
func (k *Keeper) tell(s *session) error {
	n := k.names()
	k.mu.Lock()
	same := bytes.Equal(n.Resolv, k.told.Resolv) && bytes.Equal(n.Hosts, k.told.Hosts)
	k.told = n
	k.mu.Unlock()
	if same {
		return nil
	}
	return s.link.send(&down{Op: opNames, Names: &n}, -1, sendWait)
}

// resume gives a router that has just begun all wires. One that it does not take
// is told of in the log and serves nobody; the others do. Errors: the router was
// lost, ctx's.
func (k *Keeper) resume(ctx context.Context, s *session) error {
	k.mu.Lock()
	var wires []*kept
	for _, w := range k.wires {
		if w.tap != nil {
			wires = append(wires, w)
		}
	}
	k.mu.Unlock()
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		lost error
		next = make(chan *kept)
	)
	for range min(8, len(wires)) { // the router's answers, not its number of processors, take the time
		all.Go(func() {
			for w := range next {
				err := k.give(ctx, s, w)
				if err == nil {
					continue
				}
				if errors.Is(err, errLost) || ctx.Err() != nil {
					mu.Lock()
					lost = err
					mu.Unlock()
					continue
				}
				k.log.Error("a wire is not served any more", "wire", w.id, "error", err)
			}
		})
	}
	for _, w := range wires {
		next <- w
	}
	close(next)
	all.Wait()
	if errors.Is(lost, errLost) {
		lost = sandbox.Errorf("router", sandbox.KindUnavailable, "it ended while it was given its wires: %s", s.why())
	}
	return lost
}

// give attaches a wire to a router. It is nothing if the wire is being detached.
func (k *Keeper) give(ctx context.Context, s *session, w *kept) error {
	k.mu.Lock()
	if w.tap == nil {
		k.mu.Unlock()
		return nil
	}
	tap, err := duplicate(w.tap) // the wire may be detached while this is sent
	m := w.next(s)
	k.mu.Unlock()
	if err != nil {
		m.forget()
		return err
	}
	defer tap.Close()
	defer m.forget()
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		_, err = s.call(ctx, &down{Op: opAttach, ID: w.id, Wire: m}, int(fd), answerWait)
	}); e != nil {
		return e
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if w.by == s {
		w.err = err
	}
	return err
}

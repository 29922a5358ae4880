package pool

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// makers is how many places are made at once: a fork that comes next waits for them.
const makers = 2

// fill keeps the places as they should be.
func (p *Places) fill() {
	for p.ctx.Err() == nil {
		p.mu.Lock()
		lacks, surplus, wait := p.next(time.Now())
		var x *site
		if lacks != nil {
			x = p.site(lacks)
		}
		p.mu.Unlock()
		switch {
		case surplus != nil:
			<-surplus.made
			p.discard(surplus)
			continue
		case x != nil:
			p.work.Go(func() { p.make(x) })
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-p.wake:
		case <-t.C:
		case <-p.ctx.Done():
		}
		t.Stop()
	}
}

// site is a new place of a spot, to be made. Preconditions: p.mu is held.
func (p *Places) site(s *spot) *site {
	x := &site{spot: s.spotKey, made: make(chan struct{}), gone: make(chan struct{}), claimed: Claimed{Instance: sandbox.NewInstanceID(), Sandbox: s.sandbox}}
	if s.sandbox == "" {
		x.claimed.Sandbox = sandbox.NewID()
	}
	s.ready = append(s.ready, x)
	p.places[x.claimed.Instance] = x
	p.making++
	return x
}

// next chooses what to make, or to end. Preconditions: p.mu is held.
func (p *Places) next(now time.Time) (lacks *spot, surplus *site, wait time.Duration) {
	wait = time.Minute
	var oldest *spot // that has one
	for k, s := range p.spots {
		if now.After(s.until) {
			s.want = 0
		}
		if s.want == 0 && len(s.ready) == 0 {
			delete(p.spots, k)
			continue
		}
		if len(s.ready) > s.want {
			return nil, s.pop(), 0
		}
		wait = min(wait, max(s.until.Sub(now), time.Millisecond))
		if len(s.ready) > 0 && (oldest == nil || s.until.Before(oldest.until)) {
			oldest = s
		}
		if left := s.pause.Sub(now); len(s.ready) < s.want && left > 0 {
			wait = min(wait, left)
		} else if len(s.ready) < s.want && (lacks == nil || s.until.After(lacks.until)) {
			lacks = s
		}
	}
	if lacks == nil || p.making >= makers {
		return nil, nil, wait
	}
	if left := p.rest.Sub(now); left > 0 {
		return nil, nil, min(wait, left)
	}
	if len(p.places) < p.o.Max {
		return lacks, nil, wait
	}
	if oldest != nil && oldest != lacks && oldest.until.Before(lacks.until) {
		oldest.want--
		return nil, oldest.pop(), 0
	}
	return nil, nil, wait
}

// pop takes the oldest place of a spot. Preconditions: there is one.
func (s *spot) pop() *site {
	x := s.ready[0]
	s.ready = s.ready[1:]
	return x
}

// make makes a place. On an error nothing is left of it.
func (p *Places) make(x *site) {
	x.blank, x.release, x.err = p.prepare(x)
	close(x.made)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making--
	p.poke()
	s := p.spots[x.spot]
	if x.err == nil || s == nil {
		return
	}
	if k := slices.Index(s.ready, x); k >= 0 { // whoever has claimed it will see
		s.ready = slices.Delete(s.ready, k, k+1)
		p.drop(x)
	}
	if p.ctx.Err() == nil {
		s.pause = time.Now().Add(failPause)
		p.o.Log.Warn("a place cannot be made", "template", x.spot.shape.Digest, "err", x.err)
	}
}

func (p *Places) prepare(x *site) (sandbox.Blank, func(), error) {
	ctx, cancel := context.WithTimeout(p.ctx, makeWait)
	defer cancel()
	s := x.spot.shape
	st, err := p.o.Stock(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	hostname := x.spot.hostname
	if x.spot.sandbox == "" {
		hostname = string(x.claimed.Sandbox)
	}
	b, err := p.from.Prepare(ctx, sandbox.Spec{Instance: x.claimed.Instance, Sandbox: x.claimed.Sandbox, Tenant: s.Tenant, Hostname: hostname,
		Root: st.Root, ReadonlyRoot: s.ReadonlyRoot, Limits: s.Limits})
	if err != nil {
		st.Release()
		return nil, nil, err
	}
	return b, sync.OnceFunc(st.Release), nil
}

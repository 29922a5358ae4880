package pool

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// demand is how often a shape is asked for.
type demand struct {
	last time.Time // that it was
	rate float64   // per second, forgotten by half in halfLife
}

const halfLife = 30 * time.Second

// note notes that somebody asks.
func (d *demand) note(now time.Time) {
	d.rate = d.at(now) + float64(time.Second)/float64(halfLife)
	d.last = now
}

// at is the rate now.
func (d *demand) at(now time.Time) float64 {
	if d.last.IsZero() {
		return 0
	}
	rate := d.rate
	for age := now.Sub(d.last); age > 0 && rate > 1e-6; age -= halfLife {
		rate *= 1 - 0.5*min(1, float64(age)/float64(halfLife))
	}
	return rate
}

// want is how many entries of a shelf there should be: what is asked for within a
// few seconds, in which as many can be made, and no fewer than Size while it is
// asked for at all. Preconditions: p.mu is held.
func (p *Pool) want(s *shelf, now time.Time) int {
	const ahead = 3 // seconds
	asked := !s.demand.last.IsZero() && now.Sub(s.demand.last) <= p.o.Idle
	if !asked {
		s.least = 0
	}
	if !asked && !s.pinned {
		return 0
	}
	return min(p.o.Max, max(p.o.Size, s.least, int(ahead*s.demand.at(now)+0.5)))
}

// next chooses what to make, or to end: the shelf that lacks most of what it should
// have, among those there is room for, and before all others one whose tenant has less
// than his share. For such a one somebody gives back what he has above his.
// Preconditions: p.mu is held.
func (p *Pool) next(now time.Time) (lacks *shelf, surplus *entry, wait time.Duration) {
	wait = time.Minute
	worst, all, crowded := 0.0, p.shares(now), false
	for _, s := range p.shelves {
		want := p.want(s, now)
		have := len(s.ready) + s.making
		if want+have == 0 {
			delete(p.shelves, s.shape)
			continue
		}
		if len(s.ready) > want {
			return nil, p.pop(s), 0
		}
		if have >= want {
			continue
		}
		if left := s.pause.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		if p.full(s) {
			crowded = crowded || all.below(s)
			continue
		}
		lack := float64(want-have) / float64(want)
		if all.below(s) {
			lack++
		}
		if lack > worst {
			lacks, worst = s, lack
		}
	}
	if crowded && worst <= 1 {
		if s := p.above(&all); s != nil {
			return nil, p.pop(s), 0
		}
	}
	return lacks, nil, wait
}

// fill keeps the shelves as they should be, one entry at a time: whoever waits for a
// sandbox comes first, and one core is enough for what nobody waits for.
func (p *Pool) fill() {
	for p.ctx.Err() == nil {
		p.mu.Lock()
		now := time.Now()
		lacks, surplus, wait := p.next(now)
		if left := p.yield(lacks, now); left > 0 {
			lacks, wait = nil, min(wait, left)
		}
		var e *entry
		if lacks != nil {
			e = &entry{shape: lacks.shape, claimed: Claimed{Instance: sandbox.NewInstanceID(), Sandbox: sandbox.NewID()}, cost: lacks.shape.Limits.Memory}
			lacks.making++
			p.making = e
			p.total++
			p.memory += e.cost
		}
		p.mu.Unlock()
		switch {
		case surplus != nil:
			p.discard(surplus, "nobody asks for it")
			continue
		case e != nil:
			p.made(lacks, e, p.make(e))
			p.rest(time.Since(now))
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

const (
	// quiet is how long nobody may have claimed anything before what lacks is made:
	// what was just claimed is about to be used, and a boot beside it would slow it.
	quiet = 30 * time.Millisecond
	// patience is how long that is waited for: those who claim all the time need
	// more to claim.
	patience = 250 * time.Millisecond
)

// yield is how long to make nothing for s, which lacks something or is nil: while
// others wait for as many boots as there can well be, while the share is used up, and while whoever has just claimed something is at work, as
// long as there is more to claim. Preconditions: p.mu is held.
func (p *Pool) yield(s *shelf, now time.Time) time.Duration {
	if s == nil {
		p.lacking = time.Time{}
		return 0
	}
	if p.lacking.IsZero() {
		p.lacking = now
	}
	if p.waiting >= p.o.Busy {
		return time.Second // or until one of them is there
	}
	left := p.resting.Sub(now)
	if len(s.ready) > 0 {
		left = max(left, min(p.claimed.Add(quiet).Sub(now), p.lacking.Add(patience).Sub(now)))
	}
	return max(0, left)
}

// rest keeps fill within its share of the time, after it was at work for took.
func (p *Pool) rest(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.o.Share; s > 0 && s < 1 {
		p.resting = time.Now().Add(time.Duration(float64(took) * (1/s - 1)))
	}
}

// make makes an entry. On an error nothing is left of it.
func (p *Pool) make(e *entry) (err error) {
	ctx, cancel := context.WithTimeout(p.ctx, makeWait)
	defer cancel()
	st, err := p.o.Stock(ctx, e.shape)
	if err != nil {
		return err
	}
	e.release = st.Release
	spec := sandbox.Spec{Instance: e.claimed.Instance, Sandbox: e.claimed.Sandbox, Tenant: e.shape.Tenant, Hostname: string(e.claimed.Sandbox),
		Root: st.Root, ReadonlyRoot: e.shape.ReadonlyRoot, Limits: e.shape.Limits}
	info, err := p.Backend.Info(ctx) // before: what is made after it is no weaker
	if err == nil {
		e.strong = info.Isolation
		e.claimed.Inst, err = p.Backend.Create(ctx, spec)
	}
	if err == nil {
		if err = prepare(ctx, &e.claimed, st); err != nil {
			_, left := e.claimed.Inst.Destroy(context.WithoutCancel(ctx))
			err = errors.Join(err, left)
		}
	}
	if err != nil {
		st.Release()
		return err
	}
	return nil
}

// made puts an entry on its shelf, or notes why there is none.
func (p *Pool) made(s *shelf, e *entry, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making = nil
	s.making--
	if err == nil {
		s.ready = append(s.ready, e)
		watching, gone := context.WithCancel(p.ctx)
		e.gone = gone
		p.work.Go(func() { p.watch(watching, e) }) // fill is at work
		return
	}
	p.forget(e)
	if p.ctx.Err() != nil {
		return
	}
	s.failed++
	s.pause = time.Now().Add(failPause)
	p.o.Log.Warn("an entry of the pool cannot be made", "template", s.shape.Digest, "err", err)
}

// watch takes an entry away that ends while it waits.
func (p *Pool) watch(ctx context.Context, e *entry) {
	exit, err := e.claimed.Inst.Wait(ctx)
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	mine := false
	if s := p.shelves[e.shape]; s != nil { // with an entry it stays
		if i := slices.Index(s.ready, e); i >= 0 {
			s.ready = slices.Delete(s.ready, i, i+1)
			s.failed++
			p.taken[e.claimed.Instance], e.leaving = e, true
			mine = true
		}
	}
	p.mu.Unlock()
	if mine { // who has claimed it will see
		p.o.Log.Warn("an entry of the pool has ended", "instance", e.claimed.Instance, "reason", exit.Reason, "detail", exit.Detail, "err", err)
		p.discard(e, "it has ended")
	}
}

// LookEvery is how often Options.Look is called.
const LookEvery = 400 * time.Millisecond

// look calls Options.Look while something is ready.
func (p *Pool) look() {
	t := time.NewTicker(LookEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-p.ctx.Done():
			return
		}
		p.mu.Lock()
		ready := false
		for _, s := range p.shelves {
			ready = ready || len(s.ready) > 0
		}
		p.mu.Unlock()
		if ready {
			p.o.Look()
		}
	}
}

package pool

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Nothing is made beside those who have just claimed something, as long as there is
// more, and not for longer than they can use it up; nor more than the share allows.
func TestYield(t *testing.T) {
	p := &Pool{o: Options{Share: 0.25, Busy: 2}}
	s, now := &shelf{ready: []*entry{{}}}, time.Now()
	p.claimed = now.Add(-10 * time.Millisecond)
	if d := p.yield(s, now); d != 20*time.Millisecond {
		t.Errorf("beside a claim: %s", d)
	}
	for range 40 { // they go on claiming
		now = now.Add(5 * time.Millisecond)
		p.claimed = now
	}
	if d := p.yield(s, now); d <= 0 || d > quiet {
		t.Errorf("after 200 ms: %s", d)
	}
	now = now.Add(60 * time.Millisecond)
	p.claimed = now
	if d := p.yield(s, now); d != 0 {
		t.Errorf("after 260 ms: %s", d)
	}
	p.yield(nil, now) // nothing lacks
	if d := p.yield(s, now); d != quiet {
		t.Errorf("when something lacks again: %s", d)
	}
	s.ready = nil
	p.waiting = 2
	if d := p.yield(s, now); d == 0 {
		t.Error("beside as many boots as there can be, for those who wait")
	}
	p.waiting = 1
	if d := p.yield(s, now); d != 0 {
		t.Errorf("with nothing ready: %s", d)
	}
	p.rest(time.Second)
	if d := p.yield(s, time.Now()); d < 2900*time.Millisecond || d > 3*time.Second {
		t.Errorf("after a second's work with a quarter of the time: %s", d)
	}
}

// While a burst is booted nothing else is, and what lacks is made after it.
func TestBurst(t *testing.T) {
	slow := &slowly{Backend: sim.New(sim.Config{}), gate: make(chan struct{})}
	s := &stock{}
	p := New(slow, Options{Size: 1, Max: 1, Busy: 2, Stock: s.find})
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	var made sync.WaitGroup
	var insts [2]sandbox.Instance
	for k := range insts {
		as := spec()
		as.Instance, as.Sandbox = sandbox.NewInstanceID(), sandbox.NewID()
		made.Go(func() {
			var err error
			if insts[k], err = p.Create(context.Background(), as); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "both boot", func() bool { return slow.booting.Load() == 2 })
	p.Claim(spec())
	time.Sleep(50 * time.Millisecond)
	if n := slow.booting.Load(); n != 2 {
		t.Errorf("%d boot", n)
	}
	close(slow.gate)
	made.Wait()
	p.ready(t, spec(), 1)
	for _, inst := range insts {
		if inst != nil {
			if _, err := inst.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// slowly makes nothing until its gate is open.
type slowly struct {
	sandbox.Backend
	gate    chan struct{}
	booting atomic.Int64
}

func (b *slowly) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	b.booting.Add(1)
	<-b.gate
	return b.Backend.Create(ctx, spec)
}

package pool

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Places is a Backend that keeps places ready: instances without a guest, into which
// what was saved is restored in half the time. It is over a Backend that prepares
// them, below a Pool if there is one.
//
//	p.Expect(spec, 1)                    // somebody will want to restore this
//	if c, ok := p.Claim(spec); ok {      // later
//		spec.Instance, spec.Sandbox = c.Instance, c.Sandbox
//	}
//	inst, err := p.Restore(ctx, spec, snapshot)
//
// Nothing is made that nobody has given a reason for: a sandbox that was paused, or
// one that was forked. A place is for one tenant's sandboxes of one template with one
// set of limits, as a Pool's entries are; its guest's name is that of one sandbox, or of
// one that is to be.
type Places struct {
	sandbox.Backend
	from sandbox.Preparer
	o    PlacesOptions

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // added to under mu while not closed
	wake chan struct{}  // capacity 1: there may be something to make

	mu     sync.Mutex
	closed bool                         // guarded by mu
	spots  map[spotKey]*spot            // guarded by mu
	places map[sandbox.InstanceID]*site // guarded by mu; until they are handed out, or gone
	making int                          // guarded by mu
	rest   time.Time                    // guarded by mu; nothing is made before
}

// PlacesOptions say what Places keep.
type PlacesOptions struct {
	// Stock is Options'.
	Stock func(ctx context.Context, s Shape) (Stock, error)
	Max   int // places at once
	// Idle is how long what nobody uses is kept; 10 min.
	Idle time.Duration
	Log  *slog.Logger
}

// spotKey is what makes places alike. Without a sandbox they are for new ones, which
// take the names that were made with the place.
type spotKey struct {
	shape    Shape
	sandbox  sandbox.ID
	hostname string
}

// spot is the places of a kind.
type spot struct {
	spotKey
	want  int
	until time.Time // that it wants them
	pause time.Time // nothing is made before, since it failed
	ready []*site   // made or being made, the oldest first
}

// site is a place.
type site struct {
	claimed Claimed
	spot    spotKey
	made    chan struct{} // closed when it is, or cannot be
	gone    chan struct{} // closed when it is no place any more
	taken   bool          // guarded by Places.mu; somebody has claimed it
	// Set before made is closed.
	blank   sandbox.Blank
	err     error
	release func()
}

// NewPlaces returns Places over b, which Close closes too; b itself if it prepares
// nothing, or nothing is to be kept.
func NewPlaces(b sandbox.Backend, o PlacesOptions) sandbox.Backend {
	from, ok := b.(sandbox.Preparer)
	if !ok || o.Max <= 0 {
		return b
	}
	if o.Idle <= 0 {
		o.Idle = 10 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Places{Backend: b, from: from, o: o, wake: make(chan struct{}, 1), spots: map[spotKey]*spot{}, places: map[sandbox.InstanceID]*site{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.work.Go(p.fill)
	return p
}

// Places are the backend's; nil: it has none.
func (p *Pool) Places() *Places {
	q, _ := p.Backend.(*Places)
	return q
}

// Release is sandbox.Preparer's, where the backend is one.
func (p *Pool) Release(s sandbox.Snapshot) {
	if r, ok := p.Backend.(sandbox.Preparer); ok {
		r.Release(s)
	}
}

// Places are p.
func (p *Places) Places() *Places { return p }

// kindOf is what serves spec: a place of its own or, if anew, one for sandboxes that
// have no name yet. Not ok: no place can.
func kindOf(spec sandbox.Spec, anew bool) (k spotKey, ok bool) {
	k.shape, ok = ShapeOf(spec)
	if !anew {
		k.sandbox, k.hostname = spec.Sandbox, spec.Hostname
	}
	return k, ok
}

// Expect has places for spec made, n if there is room for so many; anew: for n
// sandboxes that are to be. Those that were expected last come first. It returns at
// once.
func (p *Places) Expect(spec sandbox.Spec, anew bool, n int) {
	k, ok := kindOf(spec, anew)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.spot(k, n); s != nil {
		p.rest = time.Time{}
		p.poke()
	}
}

// spot is that of a kind, which wants n places at least; nil: there are too many
// others. Preconditions: p.mu is held.
func (p *Places) spot(k spotKey, n int) *spot {
	s := p.spots[k]
	if s == nil {
		if len(p.spots) >= maxShelves {
			return nil
		}
		s = &spot{spotKey: k}
		p.spots[k] = s
	}
	s.want, s.until = min(max(n, s.want), p.o.Max), time.Now().Add(p.o.Idle)
	return s
}

// Forgo gives up the place of a sandbox that will not want it.
func (p *Places) Forgo(spec sandbox.Spec) {
	k, _ := kindOf(spec, false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.spots[k]; s != nil {
		s.want = 0
		p.poke()
	}
}

// Claim reserves a place for spec, for one Restore or Vacate. It may be one that is
// still being made: Restore waits for it. Who asks anew makes others likely to, for
// whom one is made. Not ok: there is none.
func (p *Places) Claim(spec sandbox.Spec, anew bool) (c Claimed, ok bool) {
	k, ok := kindOf(spec, anew)
	if !ok {
		return c, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.spots[k]
	if anew {
		s = p.spot(k, 1)
		p.rest = time.Now().Add(calm)
		p.poke()
	}
	if s == nil || len(s.ready) == 0 || p.closed {
		return c, false
	}
	if !anew {
		s.want = 0 // it runs soon, and there is one of it
	}
	x := s.pop()
	x.taken = true
	return x.claimed, true
}

// calm is for how long nothing is made in place of what was claimed: whoever claimed
// it has the CPUs.
const calm = 500 * time.Millisecond

// Restore implements sandbox.Restorer: into the place that was claimed, if one was and
// it is good.
func (p *Places) Restore(ctx context.Context, spec sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	p.mu.Lock()
	x := p.places[spec.Instance]
	p.mu.Unlock()
	if x == nil {
		return p.from.Restore(ctx, spec, from)
	}
	defer p.forget(x)
	select {
	case <-x.made:
	case <-ctx.Done():
		p.Vacate(spec.Instance)
		return nil, sandbox.Wrap("restore", string(spec.Sandbox), ctx.Err())
	}
	if k, _ := kindOf(spec, x.spot.sandbox == ""); k != x.spot || spec.Sandbox != x.claimed.Sandbox {
		p.discard(x)
		return nil, sandbox.Errorf("restore", sandbox.KindInternal, "the place that was claimed is for something else").WithID(string(spec.Sandbox))
	}
	if x.err != nil {
		return p.from.Restore(ctx, spec, from)
	}
	defer x.release()
	inst, err := x.blank.Restore(ctx, from)
	switch kind := sandbox.KindOf(err); {
	case err == nil || ctx.Err() != nil || kind == sandbox.KindConflict || kind == sandbox.KindNotFound:
		return inst, err
	}
	p.o.Log.Warn("a place that was ready cannot be used", "instance", spec.Instance, "error", err)
	return p.from.Restore(ctx, spec, from)
}

// PlaceStat is what there is of places of a shape, whoever they are for.
type PlaceStat struct {
	Shape  Shape
	Ready  int
	Making int
	Want   int
	Used   int64 // bytes of memory that the ready ones use, as far as their backend measures it
}

// Stats says what there is, by template. Places that somebody has claimed are not among it.
func (p *Places) Stats(ctx context.Context) []PlaceStat {
	var blanks []*site
	by := map[Shape]*PlaceStat{}
	p.mu.Lock()
	now := time.Now()
	for k, s := range p.spots {
		st := by[k.shape]
		if st == nil {
			st = &PlaceStat{Shape: k.shape}
			by[k.shape] = st
		}
		if now.Before(s.until) {
			st.Want += s.want
		}
		for _, x := range s.ready {
			select {
			case <-x.made:
				st.Ready++
				blanks = append(blanks, x)
			default:
				st.Making++
			}
		}
	}
	p.mu.Unlock()
	for _, x := range blanks {
		if m, ok := x.blank.(interface {
			Status(context.Context) (sandbox.Status, error)
		}); ok {
			if u, err := m.Status(ctx); err == nil {
				by[x.spot.shape].Used += u.Usage.Memory
			}
		}
	}
	out := make([]PlaceStat, 0, len(by))
	for _, st := range by {
		if st.Ready+st.Making+st.Want > 0 {
			out = append(out, *st)
		}
	}
	slices.SortFunc(out, func(a, b PlaceStat) int {
		return cmp.Or(cmp.Compare(a.Shape.Tenant, b.Shape.Tenant), cmp.Compare(a.Shape.Digest, b.Shape.Digest), cmp.Compare(a.Shape.Limits.Memory, b.Shape.Limits.Memory), cmp.Compare(a.Ready, b.Ready))
	})
	return out
}

// Vacate destroys a place that was claimed and will not be used. Of what was handed
// out, or is none: nothing.
func (p *Places) Vacate(id sandbox.InstanceID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.places[id]
	if x == nil || p.closed { // Close destroys it
		return
	}
	p.work.Go(func() { // fill is at work
		<-x.made
		p.discard(x)
	})
}

// Release implements sandbox.Preparer.
func (p *Places) Release(s sandbox.Snapshot) { p.from.Release(s) }

// Prepare implements sandbox.Preparer.
func (p *Places) Prepare(ctx context.Context, spec sandbox.Spec) (sandbox.Blank, error) {
	return p.from.Prepare(ctx, spec)
}

// List implements sandbox.Backend. Places are not among it, as a Pool's entries are
// not.
func (p *Places) List(ctx context.Context) ([]sandbox.Status, error) {
	before := p.mine()
	list, err := p.Backend.List(ctx)
	after := p.mine()
	return slices.DeleteFunc(list, func(st sandbox.Status) bool { return before[st.Instance] || after[st.Instance] }), err
}

// mine are the places at this moment.
func (p *Places) mine() map[sandbox.InstanceID]bool {
	all := map[sandbox.InstanceID]bool{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.places {
		all[id] = true
	}
	return all
}

// Drain destroys the places of a tenant, or of all, that nobody has claimed, and
// returns how many there were. None is made until there is reason to again.
func (p *Places) Drain(tenant sandbox.TenantID) int {
	of := func(k spotKey) bool { return tenant == "" || k.shape.Tenant == tenant }
	p.mu.Lock()
	var all, going []*site
	for k, s := range p.spots {
		if of(k) {
			all = append(all, s.ready...)
			delete(p.spots, k)
		}
	}
	for _, x := range p.places {
		if of(x.spot) && !x.taken && !slices.Contains(all, x) {
			going = append(going, x)
		}
	}
	p.mu.Unlock()
	for _, x := range all {
		<-x.made
		p.discard(x)
	}
	for _, x := range going { // fill destroys them
		select {
		case <-x.gone:
		case <-p.ctx.Done():
		}
	}
	return len(all)
}

// Close destroys what was not handed out, and closes the backend.
func (p *Places) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	p.stop()
	p.work.Wait()
	p.mu.Lock()
	var left []*site
	for _, x := range p.places {
		left = append(left, x)
	}
	p.mu.Unlock()
	var errs []error
	for _, x := range left {
		p.discard(x)
	}
	return errors.Join(append(errs, p.Backend.Close())...)
}

// discard destroys a place that has been made, or could not be.
func (p *Places) discard(x *site) {
	defer p.forget(x)
	if x.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), destroyWait)
	defer cancel()
	if r, err := x.blank.Destroy(ctx); err != nil || !r.Clean {
		p.o.Log.Error("a place is not gone", "instance", x.claimed.Instance, "clean", r.Clean, "err", err) // the reaper finds it
	}
	x.release()
}

// forget drops a place that is no more, or is an instance now.
func (p *Places) forget(x *site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(x)
	p.poke()
}

// drop is forget for who holds p.mu.
func (p *Places) drop(x *site) {
	if p.places[x.claimed.Instance] == x {
		delete(p.places, x.claimed.Instance)
		close(x.gone)
	}
}

// poke has fill look again.
func (p *Places) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

package pool

import (
	"cmp"
	"context"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Shape is what instances have in common that can stand in for each other.
type Shape struct {
	Tenant       sandbox.TenantID // whose sandboxes they become
	Digest       string           // of the template
	ReadonlyRoot bool
	Limits       sandbox.Limits
}

// ShapeOf is the shape that serves spec. Not ok: no instance that was made before
// can.
func ShapeOf(spec sandbox.Spec) (s Shape, ok bool) {
	return Shape{spec.Tenant, spec.Root.Digest, spec.ReadonlyRoot, spec.Limits}, spec.Wire == nil
}

// Stock is what is to be kept ready of one shape.
type Stock struct {
	Shape Shape
	Root  sandbox.Root
	// Env is the environment that programs will have, of Pack, of which an interpreter
	// waits in each entry; no pack, none.
	Env  []string
	Pack string
	// Release lets go of the template, once for each entry.
	Release func()
}

// Options say what a Pool keeps.
type Options struct {
	// Stock finds what is to be kept of a shape, anew for each entry. Errors: it cannot
	// be kept now.
	Stock func(ctx context.Context, s Shape) (Stock, error)
	// Look, unless nil, is called every LookEvery while something is ready: what a claim
	// is decided by is looked at before it comes.
	Look  func()
	Size  int   // entries kept of a shape that is wanted, at least
	Max   int   // entries at once, of all shapes
	Limit int64 // bytes of memory that all entries together may come to use; 0: no bound
	// Share is the part of the time that may be spent making entries, of which one is
	// made at a time; 0 or 1: all of it.
	Share float64
	// Busy is how many instances are being made at once, for those who wait for them,
	// when no entry is; twice the processors.
	Busy int
	// Idle is how long a shape that nobody asks for is kept; 10 min.
	Idle time.Duration
	Log  *slog.Logger
}

// Claimed is an entry that nobody else gets any more.
type Claimed struct {
	Instance sandbox.InstanceID
	Sandbox  sandbox.ID // whose name the guest has
	Inst     sandbox.Instance
	// Session is with its agent, idle, and the taker's from Create on.
	Session *guest.Session
	Status  sandbox.Status // as of when it was made
}

// Stat is what there is of a shape.
type Stat struct {
	Shape  Shape
	Ready  int // entries
	Making int // of them
	Want   int // of them, as demand is now
	Hits   int // claims served since this process began
	Misses int // that were not
	Failed int // entries that could not be made, or died before they were claimed
	Pinned bool
}

// entry is an instance that waits.
type entry struct {
	shape   Shape
	claimed Claimed
	release func()
	cost    int64             // bytes it may come to use
	strong  sandbox.Isolation // what its boundary was called when it was made
	leaving bool              // guarded by Pool.mu; it is being destroyed
	gone    context.CancelFunc
}

// Pool is a Backend. Safe for concurrent use.
type Pool struct {
	sandbox.Backend
	o Options

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // added to under mu while not closed
	wake chan struct{}  // capacity 1: there may be something to make

	mu      sync.Mutex
	closed  bool                          // guarded by mu
	shelves map[Shape]*shelf              // guarded by mu
	taken   map[sandbox.InstanceID]*entry // guarded by mu; claimed and not handed out
	making  *entry                        // guarded by mu; nil: none
	total   int                           // guarded by mu; entries, the one being made among them
	memory  int64                         // guarded by mu; their cost
	claimed time.Time                     // guarded by mu; when an entry last was
	lacking time.Time                     // guarded by mu; since when something lacks; zero: nothing
	resting time.Time                     // guarded by mu; nothing is made before
	waiting int                           // guarded by mu; instances being made for those who wait
}

// shelf is the entries of a shape.
type shelf struct {
	shape  Shape
	ready  []*entry // oldest first
	making int
	pinned bool // wanted whether or not somebody asks
	least  int  // entries there are to be while it is asked for, where Size is less
	demand demand
	hits   int
	misses int
	failed int
	pause  time.Time // nothing is made before, since it failed
}

// New returns a Pool over b, which Close closes too.
func New(b sandbox.Backend, o Options) *Pool {
	if o.Idle <= 0 {
		o.Idle = 10 * time.Minute
	}
	if o.Busy <= 0 {
		o.Busy = 2 * runtime.NumCPU()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pool{Backend: b, o: o, wake: make(chan struct{}, 1), shelves: map[Shape]*shelf{}, taken: map[sandbox.InstanceID]*entry{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.work.Go(p.fill)
	if o.Look != nil {
		p.work.Go(p.look)
	}
	return p
}

// Claim reserves an entry that can serve spec, for one Create or Return. Not ok:
// there is none, which is noted as demand; one whose boundary is weaker than spec
// demands is none. It takes microseconds and touches no disk.
func (p *Pool) Claim(spec sandbox.Spec) (c Claimed, ok bool) {
	shape, ok := ShapeOf(spec)
	if !ok {
		return c, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return c, false
	}
	s := p.shelf(shape)
	if s == nil {
		return c, false
	}
	s.demand.note(time.Now())
	p.poke()
	i := slices.IndexFunc(s.ready, func(e *entry) bool { return e.strong >= spec.MinIsolation })
	if i < 0 {
		s.misses++
		return c, false
	}
	e := s.ready[i]
	s.ready = slices.Delete(s.ready, i, i+1)
	s.hits++
	p.claimed = time.Now()
	p.taken[e.claimed.Instance] = e
	return e.claimed, true
}

// maxShelves bounds what is known of shapes: whoever asks for a new one each time is
// not waited for.
const maxShelves = 256

// shelf is that of a shape; nil: there are too many others. Preconditions: p.mu is
// held.
func (p *Pool) shelf(shape Shape) *shelf {
	s := p.shelves[shape]
	if s == nil && len(p.shelves) < maxShelves {
		s = &shelf{shape: shape}
		p.shelves[shape] = s
	}
	return s
}

// poke has fill look again.
func (p *Pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// GiveBack puts back an entry that was claimed, for the next one who asks: nobody has
// touched it. Of what was handed out, returned or is none: nothing.
func (p *Pool) GiveBack(id sandbox.InstanceID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.taken[id]
	if e == nil || e.leaving || p.closed {
		return
	}
	s := p.shelf(e.shape)
	if s == nil { // Close destroys it
		return
	}
	delete(p.taken, id)
	s.ready = slices.Insert(s.ready, 0, e)
	s.hits--
	p.poke()
}

// Return destroys an entry that was claimed and will not be used. Of what was handed
// out by Create, or is none: nothing.
func (p *Pool) Return(id sandbox.InstanceID) {
	p.mu.Lock()
	e := p.taken[id]
	if e == nil || e.leaving || p.closed { // Close destroys it
		p.mu.Unlock()
		return
	}
	e.leaving = true
	p.work.Add(1)
	p.mu.Unlock()
	go func() {
		defer p.work.Done()
		p.discard(e, "it was claimed and not used")
	}()
}

// Create implements sandbox.Backend. An instance that was claimed is there already.
func (p *Pool) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	p.mu.Lock()
	e := p.taken[spec.Instance]
	if e != nil && e.leaving {
		e = nil // the backend says that it is there
	}
	if e != nil && !p.closed {
		delete(p.taken, spec.Instance)
		p.forget(e)
	}
	p.mu.Unlock()
	if e == nil {
		return p.cold(ctx, spec)
	}
	e.gone()
	e.release()
	p.poke()
	return e.claimed.Inst, nil
}

// cold has an instance made for somebody who waits for it.
func (p *Pool) cold(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	p.mu.Lock()
	p.waiting++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.waiting--
		p.poke()
	}()
	return p.Backend.Create(ctx, spec)
}

// forget takes an entry off the account. Preconditions: p.mu is held.
func (p *Pool) forget(e *entry) {
	p.total--
	p.memory -= e.cost
}

// List implements sandbox.Backend. Entries are not among it: they are nobody's yet,
// and no orphans either. One that ends or is handed out meanwhile is left out, too.
func (p *Pool) List(ctx context.Context) ([]sandbox.Status, error) {
	before := p.mine()
	list, err := p.Backend.List(ctx)
	after := p.mine()
	return slices.DeleteFunc(list, func(st sandbox.Status) bool { return before[st.Instance] || after[st.Instance] }), err
}

// mine are the entries at this moment.
func (p *Pool) mine() map[sandbox.InstanceID]bool {
	all := map[sandbox.InstanceID]bool{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.taken {
		all[id] = true
	}
	if p.making != nil {
		all[p.making.claimed.Instance] = true
	}
	for _, s := range p.shelves {
		for _, e := range s.ready {
			all[e.claimed.Instance] = true
		}
	}
	return all
}

// Prewarm has n entries of a shape made, and kept as if somebody had asked for it
// now. It returns at once.
func (p *Pool) Prewarm(shape Shape, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.shelf(shape); s != nil {
		s.least, s.demand.last = n, time.Now()
		p.poke()
	}
}

// Pin has size entries of a shape kept whether or not somebody asks for them; none
// of a size of zero. It returns at once.
func (p *Pool) Pin(shape Shape, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.shelf(shape); s != nil {
		s.pinned = on
		p.poke()
	}
}

// Stats says what there is, by template.
func (p *Pool) Stats() []Stat {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	var out []Stat
	for _, s := range p.shelves {
		out = append(out, Stat{Shape: s.shape, Ready: len(s.ready), Making: s.making, Want: p.want(s, now), Hits: s.hits, Misses: s.misses, Failed: s.failed, Pinned: s.pinned})
	}
	slices.SortFunc(out, func(a, b Stat) int {
		return cmp.Or(cmp.Compare(a.Shape.Tenant, b.Shape.Tenant), cmp.Compare(a.Shape.Digest, b.Shape.Digest), cmp.Compare(a.Shape.Limits.Memory, b.Shape.Limits.Memory), cmp.Compare(a.Hits, b.Hits))
	})
	return out
}

// Drain destroys all entries; what is asked for afterwards is kept again. It returns
// how many there were.
func (p *Pool) Drain() int { return p.drain(func(Shape) bool { return true }) }

// DrainTenant is Drain of what is kept for a tenant.
func (p *Pool) DrainTenant(t sandbox.TenantID) int {
	return p.drain(func(s Shape) bool { return s.Tenant == t })
}

func (p *Pool) drain(which func(Shape) bool) int {
	p.mu.Lock()
	var all []*entry
	for _, s := range p.shelves {
		if !which(s.shape) {
			continue
		}
		all = append(all, s.ready...)
		s.ready, s.demand, s.pinned, s.least = nil, demand{}, false, 0
	}
	for _, e := range all {
		p.taken[e.claimed.Instance], e.leaving = e, true
	}
	p.mu.Unlock()
	for _, e := range all {
		p.discard(e, "the pool was drained")
	}
	return len(all)
}

// discard destroys an entry that is among those taken.
func (p *Pool) discard(e *entry, why string) {
	e.gone()
	e.claimed.Session.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), destroyWait)
	defer cancel()
	if r, err := e.claimed.Inst.Destroy(ctx); err != nil || !r.Clean {
		p.o.Log.Error("an entry of the pool is not gone", "instance", e.claimed.Instance, "clean", r.Clean, "err", err) // the reaper finds it
	} else {
		p.o.Log.Debug("an entry of the pool ends", "instance", e.claimed.Instance, "why", why)
	}
	e.release()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, e.claimed.Instance)
	p.forget(e)
	p.poke()
}

const (
	destroyWait = 30 * time.Second
	makeWait    = time.Minute
	failPause   = 5 * time.Second
)

// Close destroys what nobody has claimed, and closes the backend. Instances that
// were handed out live on.
func (p *Pool) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	p.stop()
	p.work.Wait()
	p.Drain()
	p.mu.Lock()
	var left []*entry
	for _, e := range p.taken {
		left = append(left, e)
	}
	p.mu.Unlock()
	for _, e := range left {
		p.discard(e, "the pool is closed")
	}
	return p.Backend.Close()
}

// prepare makes a started instance ready: its agent has answered, an interpreter
// waits in it, and what its backend looks up once has been looked up.
func prepare(ctx context.Context, c *Claimed, st Stock) error {
	conn, err := c.Inst.Dial(ctx)
	if err != nil {
		return err
	}
	s, err := guest.Open(ctx, conn, guest.Config{PIDs: st.Shape.Limits.PIDs, Memory: st.Shape.Limits.Memory})
	if err != nil {
		return err
	}
	if st.Pack != "" {
		if err = s.Standby(ctx, st.Env, ""); sandbox.KindOf(err) == sandbox.KindUnsupported {
			err = nil // programs start there as they do elsewhere
		}
	}
	if err == nil {
		c.Status, err = c.Inst.Status(ctx)
	}
	if err != nil {
		s.Close()
		return err
	}
	c.Session = s
	return nil
}

// Restore implements sandbox.Restorer, where the backend does.
func (p *Pool) Restore(ctx context.Context, spec sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	r, ok := p.Backend.(sandbox.Restorer)
	if !ok {
		return nil, sandbox.Errorf("restore", sandbox.KindUnsupported, "the backend restores nothing").WithID(string(spec.Sandbox))
	}
	return r.Restore(ctx, spec, from)
}

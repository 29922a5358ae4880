package orchestrator

import (
	"cmp"
	"context"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ahead is a Backend that has instances ready: package pool's.
type ahead interface {
	Claim(sandbox.Spec) (pool.Claimed, bool)
	GiveBack(sandbox.InstanceID)
	Return(sandbox.InstanceID)
}

// claim finds an instance that is ready for the plan, unless Reserve has. It has the
// name of its sandbox already and no network device, so whoever brings an id or a name
// for the guest, or network rules, gets one of his own.
func (p *plan) claim(req *CreateRequest) (ok bool) {
	b, ok := p.backend.(ahead)
	if r := req.reserved; r != nil {
		shape, fits := pool.ShapeOf(p.spec)
		if !ok || b != r.from || !fits || shape != r.shape { // the template's name means another one by now
			r.discard() // the id is another's now
			return false
		}
		p.ready = &r.claimed
		return true
	}
	if !ok || req.ID != "" || req.Hostname != "" || p.sb.Details.Network != nil || p.from != nil {
		return false
	}
	c, ok := b.Claim(p.spec)
	p.ready = &c
	return ok
}

// reservation is an instance that was claimed for a sandbox whose id had to be known
// before it is made.
type reservation struct {
	claimed pool.Claimed
	shape   pool.Shape
	from    ahead
}

// giveBack lets somebody else have it, unless it was made the sandbox; discard ends
// it, which is for when its id has become known. Of nil: nothing.
func (r *reservation) giveBack() {
	if r != nil {
		r.from.GiveBack(r.claimed.Instance)
	}
}

func (r *reservation) discard() {
	if r != nil {
		r.from.Return(r.claimed.Instance)
	}
}

// Reserve gives a request without an id one: that of a sandbox which is ready for it,
// or a new one. Whoever calls it calls giveBack once the sandbox was made, or will not
// be. What is wrong with the request Create says.
func (o *Orchestrator) Reserve(ctx context.Context, who Caller, req *CreateRequest) (giveBack func()) {
	if p, err := o.plan(ctx, who, *req); err == nil {
		p.release()
		p.reserve(req)
	}
	req.ID = pickID(req.ID)
	return req.reserved.giveBack
}

// reserve claims an instance for a request that the plan was made of, if one is ready.
func (p *plan) reserve(req *CreateRequest) {
	if p.claim(req) {
		shape, _ := pool.ShapeOf(p.spec)
		req.ID, req.reserved = p.ready.Sandbox, &reservation{*p.ready, shape, p.backend.(ahead)}
	}
	req.ID = pickID(req.ID)
}

func pickID(id sandbox.ID) sandbox.ID {
	if id == "" {
		return sandbox.NewID()
	}
	return id
}

// take makes the sandbox of the plan one that was claimed for it. Not met: it cannot
// be used, is gone, and nothing has happened. The sandbox is there before its intent
// is journalled, in one step with what is journalled of its start elsewhere: it has
// run nothing, and while no record is about it it is the pool's, or an orphan.
func (o *Orchestrator) take(ctx context.Context, who Caller, p *plan, a *admission, begun time.Time) (_ Sandbox, met bool, err error) {
	b := p.backend.(ahead)
	cold := *p
	p.spec.Instance, p.spec.Sandbox, p.spec.Hostname = p.ready.Instance, p.ready.Sandbox, string(p.ready.Sandbox)
	p.sb.ID, p.sb.Instance, p.sb.Details.Hostname = p.ready.Sandbox, p.ready.Instance, p.spec.Hostname
	l := o.newLive(p.sb, p.release, func() {})
	close(l.booted)
	l.inst, l.sess = p.ready.Inst, p.ready.Session
	st, err := p.ready.Status, lives(ctx, l.inst)
	if err = cmp.Or(err, l.sess.Err()); err == nil {
		err = o.Templates.Check(ctx, p.sb.TemplateDigest)
	}
	if err != nil {
		b.Return(p.ready.Instance)
		o.Log.Warn("a sandbox that was ready cannot be used", "instance", p.ready.Instance, "error", err)
		*p = cold
		return Sandbox{}, false, nil
	}
	p.sb.started(st, begun)
	failpoint.Hit("create/before-intent")
	q := store.Quota{Tenant: int(o.Quota.Of(who.Tenant).Sandboxes), Host: o.Quota.Host}
	told := make(chan struct{})
	go func() { defer close(told); o.tellSoon(p.sb.ID, false) }()
	var evidence error
	recorded := false
	rec, err := o.Store.Tenant(who.Tenant).CreateBeside(ctx, p.sb.Sandbox, q, func() {
		evidence = o.record(ctx, who, &p.sb, createRecord(p))
		recorded = true
	})
	<-told
	if err != nil {
		b.Return(p.ready.Instance)
		p.release()
		if recorded && evidence == nil {
			err = o.unmade(ctx, who, p, err)
		}
		return Sandbox{}, true, err
	}
	failpoint.Hit("create/after-running")
	a.kept = true
	p.sb.Sandbox = rec
	o.add(l)
	_, err = p.backend.Create(ctx, p.spec) // which is not the pool's any more
	if err = cmp.Or(evidence, err); err == nil {
		if p.sb.Details.Run == "" { // a run has said so already
			l.publishState(store.Creating, "", "", false)
		}
		err = l.run(ctx, l.inst, st, p.sb)
		l.mu.Lock()
		l.sampled = time.Time{} // its use is as of when it was made: who asks has it measured
		l.mu.Unlock()
	}
	if err != nil {
		return Sandbox{}, true, l.failed(who, failure(ctx, err), err)
	}
	failpoint.Hit("create/before-answer")
	return l.snapshot(), true, nil
}

// tellSoon has the events of a sandbox prepared, or those of what is printed in it.
// What goes wrong the first of them meets again.
func (o *Orchestrator) tellSoon(id sandbox.ID, output bool) {
	if e, ok := o.Events.(interface{ Prepare(sandbox.ID, bool) error }); ok {
		_ = e.Prepare(id, output)
	}
}

// lives is an error if an instance has ended. One that can tell without more is not asked
// for all that its Status says.
func lives(ctx context.Context, inst sandbox.Instance) error {
	if i, ok := inst.(interface{ Alive() bool }); ok && i.Alive() {
		return nil
	}
	st, err := inst.Status(ctx)
	if err == nil && !st.Alive {
		err = sandbox.Errorf("create", sandbox.KindGone, "it has ended: %s", st.Exit.Reason).WithID(string(inst.ID()))
	}
	return err
}

// Shelf is what a backend has ready of one shape.
type Shelf struct {
	Backend string
	pool.Stat
}

// Ready tells what is ready. Not enabled: no backend keeps anything.
func (o *Orchestrator) Ready(ctx context.Context) (shelves []Shelf, enabled bool, err error) {
	for _, b := range o.Backends {
		p, ok := b.(interface{ Stats() []pool.Stat })
		if !ok {
			continue
		}
		enabled = true
		info, err := b.Info(ctx)
		if err != nil {
			return nil, true, sandbox.Wrap("pool", "", err)
		}
		for _, st := range p.Stats() {
			shelves = append(shelves, Shelf{info.Name, st})
		}
	}
	return shelves, enabled, nil
}

// Spare is where a backend's saved sandboxes of one shape can go on at once.
type Spare struct {
	Backend string
	pool.PlaceStat
}

// Places tells what there is of places, that nobody has claimed.
func (o *Orchestrator) Places(ctx context.Context) (all []Spare, err error) {
	for _, b := range o.Backends {
		p, ok := b.(interface{ Places() *pool.Places })
		if !ok || p.Places() == nil {
			continue
		}
		info, err := b.Info(ctx)
		if err != nil {
			return nil, sandbox.Wrap("pool", "", err)
		}
		for _, st := range p.Places().Stats(ctx) {
			all = append(all, Spare{info.Name, st})
		}
	}
	return all, nil
}

// Stock is pool.Options' Stock, for the templates that sandboxes are made of here.
// Errors: KindNotFound for a template that is gone.
func (o *Orchestrator) Stock(ctx context.Context, s pool.Shape) (pool.Stock, error) {
	t, err := o.Templates.Resolve(ctx, s.Digest)
	if err != nil {
		return pool.Stock{}, err
	}
	release, err := o.Templates.Acquire(t.Digest)
	if err != nil {
		return pool.Stock{}, err
	}
	st := pool.Stock{Shape: s, Root: t.Root, Release: release}
	if r := runners[t.Default]; r.standby {
		st.Pack, st.Env = t.Default, environment(t.Env, r.env, nil)
	}
	return st, nil
}

// Look looks at what creates are decided by and what changes by itself, as if one came
// now: the host's template, and what the host has left. One that comes within a second
// does not look again. The pool calls it while something is ready.
func (o *Orchestrator) Look() {
	o.room.look()
	if t, ok := o.Templates.(interface{ Look() }); ok {
		t.Look()
	}
}

// Shape is what a tenant's sandbox that is asked for by req has in common with
// others. Errors: as Create; KindUnsupported for one that cannot be made before.
func (o *Orchestrator) Shape(ctx context.Context, tenant sandbox.TenantID, req CreateRequest) (pool.Shape, error) {
	p, err := o.plan(ctx, Caller{Tenant: tenant}, req)
	if err != nil {
		return pool.Shape{}, err
	}
	p.release()
	s, ok := pool.ShapeOf(p.spec)
	if !ok || p.sb.Details.Network != nil || p.from != nil || req.Hostname != "" {
		return s, sandbox.Errorf("pool", sandbox.KindUnsupported, "a sandbox with a network, a host name or a snapshot cannot be ready before it is asked for")
	}
	return s, nil
}

// stocked is a backend that has instances ready and is told what to have.
type stocked interface {
	Prewarm(shape pool.Shape, n int)
	DrainTenant(sandbox.TenantID) int
}

// Prewarm has n sandboxes like req made ready for the caller's tenant. It returns at
// once. Errors: those of Shape, KindUnsupported where nothing is kept ready.
func (o *Orchestrator) Prewarm(ctx context.Context, who Caller, req CreateRequest, n int) error {
	p, err := o.plan(ctx, who, req)
	if err != nil {
		return err
	}
	p.release()
	b, ok := p.backend.(stocked)
	if !ok {
		return noPool()
	}
	shape, err := o.Shape(ctx, who.Tenant, req)
	if err != nil {
		return err
	}
	if err := o.record(ctx, who, &Sandbox{Sandbox: store.Sandbox{Tenant: who.Tenant}}, sandbox.Record{Action: "pool.prewarm",
		Outcome: sandbox.OutcomeAllowed, Object: shape.Digest, Detail: map[string]string{"count": strconv.Itoa(n)}}); err != nil {
		return err
	}
	b.Prewarm(shape, n)
	return nil
}

// Drain ends what is ready for the caller's tenant, places for what was saved
// included, and returns how many that were.
// Errors: KindUnsupported where nothing is kept ready.
func (o *Orchestrator) Drain(ctx context.Context, who Caller) (n int, err error) {
	var all []func(sandbox.TenantID) int
	for _, b := range o.Backends {
		if p, ok := b.(stocked); ok {
			all = append(all, p.DrainTenant)
		}
		if p, ok := b.(interface{ Places() *pool.Places }); ok && p.Places() != nil {
			all = append(all, p.Places().Drain)
		}
	}
	if len(all) == 0 {
		return 0, noPool()
	}
	if err := o.record(ctx, who, &Sandbox{Sandbox: store.Sandbox{Tenant: who.Tenant}}, sandbox.Record{Action: "pool.drain",
		Outcome: sandbox.OutcomeAllowed}); err != nil {
		return 0, err
	}
	for _, drain := range all {
		n += drain(who.Tenant)
	}
	return n, nil
}

func noPool() error {
	return sandbox.Errorf("pool", sandbox.KindUnsupported, "this server keeps nothing ready").WithHint("pool_size in firebreak.yaml says how many")
}

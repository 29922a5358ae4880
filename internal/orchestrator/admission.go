package orchestrator

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// gate lets a bounded number of boots, or of starts, run at once. The others
// wait, for a bounded time and in a bounded queue.
//
// Tenants take turns, so that one's burst does not make the others wait behind
// all of it. Nor does a burst fill the queue: a tenant may have no more waiting
// than there are places left, so that alone it gets half of the queue, with one
// other a third, and there is a place for whoever comes next.
type gate struct {
	op    string                     // in errors
	what  string                     // that is waited for
	limit func(sandbox.TenantID) int // places one tenant may hold; 0: any number
	max   int                        // waiting at most
	wait  time.Duration              // for error messages

	mu      sync.Mutex
	free    int                            // guarded by mu
	queued  int                            // guarded by mu
	active  map[sandbox.TenantID]int       // guarded by mu; places held
	queues  map[sandbox.TenantID][]*ticket // guarded by mu; in order of arrival
	tenants []sandbox.TenantID             // guarded by mu; those with a queue, next turn first
	refused int64                          // guarded by mu; for want of a place in the queue, or of patience
}

// ticket is one caller's place, or its place in the queue.
type ticket struct {
	g      *gate
	tenant sandbox.TenantID
	turn   chan struct{} // closed when the place is had
	held   bool          // guarded by g.mu; it has a place
	left   bool          // guarded by g.mu; leave was called
}

func newGate(op, what string, places, waiting int, wait time.Duration, limit func(sandbox.TenantID) int) *gate {
	if limit == nil {
		limit = func(sandbox.TenantID) int { return 0 }
	}
	return &gate{op: op, what: what, limit: limit, max: waiting, wait: wait, free: places,
		active: map[sandbox.TenantID]int{}, queues: map[sandbox.TenantID][]*ticket{}}
}

// queue takes a place, or one in the queue. It does not wait. The ticket must
// be left, whatever comes. Errors: KindCapacity when the tenant's share of the
// queue is full.
func (g *gate) queue(tenant sandbox.TenantID) (*ticket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &ticket{g: g, tenant: tenant, turn: make(chan struct{})}
	if g.free > 0 && len(g.queues[tenant]) == 0 && g.may(tenant) {
		g.give(t)
		return t, nil
	}
	own := len(g.queues[tenant])
	if own >= g.max-g.queued {
		g.refused++
		return nil, full(g.op, g.wait, "%d wait for their %s already, %d of them of this tenant", g.queued, g.what, own).
			WithHint("retry, or do fewer at once")
	}
	if own == 0 {
		g.tenants = append(g.tenants, tenant)
	}
	g.queues[tenant] = append(g.queues[tenant], t)
	g.queued++
	return t, nil
}

// enter is queue and wait together.
func (g *gate) enter(ctx context.Context, tenant sandbox.TenantID, patience time.Duration) (leave func(), err error) {
	t, err := g.queue(tenant)
	if err != nil {
		return nil, err
	}
	if err := t.wait(ctx, patience); err != nil {
		t.leave()
		return nil, err
	}
	return t.leave, nil
}

// may reports whether the tenant may hold one more place. Preconditions: g.mu
// is held.
func (g *gate) may(tenant sandbox.TenantID) bool {
	n := g.limit(tenant)
	return n <= 0 || g.active[tenant] < n
}

// give hands t a free place. Preconditions: g.mu is held.
func (g *gate) give(t *ticket) {
	g.free--
	g.active[t.tenant]++
	t.held = true
	close(t.turn)
}

// next gives free places to the oldest waiters of the tenants whose turn it is.
// Preconditions: g.mu is held.
func (g *gate) next() {
	for g.free > 0 {
		i := slices.IndexFunc(g.tenants, g.may)
		if i < 0 {
			return
		}
		tenant := g.tenants[i]
		g.tenants = slices.Delete(g.tenants, i, i+1)
		t := g.queues[tenant][0]
		if g.queues[tenant] = g.queues[tenant][1:]; len(g.queues[tenant]) > 0 {
			g.tenants = append(g.tenants, tenant)
		} else {
			delete(g.queues, tenant)
		}
		g.queued--
		g.give(t)
	}
}

// places is how many places the tenant holds.
func (g *gate) places(tenant sandbox.TenantID) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.active[tenant]
}

// waiting is how many wait, and refusals how many did in vain.
func (g *gate) waiting() (n, refusals int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return int64(g.queued), g.refused
}

// wait waits for the ticket's turn. Errors: KindCapacity when that takes too
// long, or ctx's.
func (t *ticket) wait(ctx context.Context, patience time.Duration) error {
	select {
	case <-t.turn:
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-t.turn:
		return nil
	case <-ctx.Done():
		return sandbox.Wrap(t.g.op, "", ctx.Err())
	case <-timer.C:
	}
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	if t.held { // it came just now
		return nil
	}
	t.g.refused++
	return full(t.g.op, patience, "no turn for a %s within %s", t.g.what, patience).WithHint("retry, or do fewer at once")
}

// leave gives the place, or the place in the queue, to the next. It is
// idempotent.
func (t *ticket) leave() {
	g := t.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.left {
		return
	}
	t.left = true
	if t.held {
		g.free++
		if g.active[t.tenant]--; g.active[t.tenant] == 0 {
			delete(g.active, t.tenant)
		}
		g.next()
		return
	}
	q := slices.DeleteFunc(g.queues[t.tenant], func(o *ticket) bool { return o == t })
	g.queued--
	if g.queues[t.tenant] = q; len(q) == 0 {
		delete(g.queues, t.tenant)
		g.tenants = slices.DeleteFunc(g.tenants, func(o sandbox.TenantID) bool { return o == t.tenant })
	}
}

// admission is a create that has been let in: what it needs is promised, and
// its boot is queued. It is for use by one goroutine.
type admission struct {
	o       *Orchestrator
	promise promise
	ticket  *ticket
	waits   time.Duration // for its turn, at most
	kept    bool          // the promise is the sandbox's now
}

// runWaits is how long an accepted run waits for its boot: nobody's connection
// hangs on it, and it was promised to be carried out.
const runWaits = 5 * time.Minute

// admit lets a create in, or says at once why not: it does not wait. What it
// returns must be settled. Errors: KindCapacity, KindNoSpace, with RetryAfter.
func (o *Orchestrator) admit(tenant sandbox.TenantID, l sandbox.Limits) (*admission, error) {
	if err := o.room.check("create"); err != nil {
		return nil, err
	}
	p := promiseOf(tenant, l)
	if err := o.ledger.reserve(p); err != nil {
		return nil, err
	}
	t, err := o.gate.queue(tenant)
	if err != nil {
		o.ledger.release(p)
		return nil, err
	}
	return &admission{o: o, promise: p, ticket: t, waits: o.Quota.Wait}, nil
}

// turn waits until the boot may begin. Errors: KindCapacity, or ctx's.
func (a *admission) turn(ctx context.Context) error {
	if err := a.ticket.wait(ctx, a.waits); err != nil {
		return err
	}
	return a.o.ledger.recheck(a.promise)
}

// again queues once more, after the ticket was left. Errors: KindCapacity.
func (a *admission) again() error {
	t, err := a.o.gate.queue(a.promise.tenant)
	if err == nil {
		a.ticket = t
	}
	return err
}

// settle gives the boot's place back and, unless a sandbox has it now, what was
// promised.
func (a *admission) settle() {
	a.ticket.leave()
	if !a.kept {
		a.o.ledger.release(a.promise)
	}
}

// admitExec counts a program until done is called. One of a run was admitted
// with the run. Errors: KindCapacity.
func (o *Orchestrator) admitExec(tenant sandbox.TenantID, ofRun bool) (done func(), err error) {
	return o.ledger.take("exec", tenant, "execs", !ofRun)
}

// startHold bounds how long a start counts as one: a guest that never answers
// must not keep everybody's programs from starting.
const startHold = 2 * time.Second

// startTurn waits until a program may be started; started, which is idempotent,
// lets the next one. Errors: KindCapacity, or ctx's.
func (o *Orchestrator) startTurn(ctx context.Context, tenant sandbox.TenantID, ofRun bool) (started func(), err error) {
	patience := o.Quota.Wait
	if ofRun {
		patience = runWaits
	}
	leave, err := o.starts.enter(ctx, tenant, patience)
	if err != nil {
		return nil, err
	}
	t := time.AfterFunc(startHold, leave)
	return func() { t.Stop(); leave() }, nil
}

// BeginBuild admits a template build, which lasts until done is called, once.
// Errors: KindCapacity, KindNoSpace, with RetryAfter.
func (o *Orchestrator) BeginBuild(tenant sandbox.TenantID) (done func(), err error) {
	if err := o.room.check("template build"); err != nil {
		return nil, err
	}
	return o.ledger.take("template build", tenant, "builds", true)
}

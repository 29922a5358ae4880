package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Orchestrator owns every sandbox of a data directory. It is safe for
// concurrent use.
type Orchestrator struct {
	Config
	gate    *gate // of boots
	starts  *gate // of programs
	ledger  *ledger
	room    *room
	journal journal
	images  images
	// messages is what contexts may hold of what their drivers are saying.
	messages messages

	ctx  context.Context // ends at Close; bounds what runs on its own
	stop context.CancelFunc
	work sync.WaitGroup // operations, watchers, ends, runs, the reaper

	adopting chan struct{} // holds as many as may look for their agent at once

	born  time.Time // by the wall clock
	began time.Time // the same moment, by the steady one

	flows flowCounts

	// granting is held for reading while a sandbox that has bindings becomes known,
	// and for writing while a binding is removed that none has.
	granting sync.RWMutex

	lost       atomic.Int64 // events that could not be published
	complained atomic.Int64 // when the log said so last, in seconds

	mu     sync.Mutex
	closed bool                   // guarded by mu
	silent bool                   // guarded by mu; no decision is recorded any more
	lives  map[sandbox.ID]*live   // guarded by mu
	names  map[nameKey]*live      // guarded by mu; those with a name
	runs   map[sandbox.RunID]*run // guarded by mu; those that have not ended
	// instances are lives by their instances.
	instances map[sandbox.InstanceID]*live // guarded by mu
}

type nameKey struct {
	tenant sandbox.TenantID
	name   string
}

// New returns an Orchestrator that does nothing until Start.
func New(c Config) (*Orchestrator, error) {
	c.fill()
	switch {
	case c.Store == nil, c.Recorder == nil, c.Events == nil, c.Templates == nil:
		return nil, errors.New("orchestrator: store, recorder, events and templates are needed")
	case c.Runs == "":
		return nil, errors.New("orchestrator: a directory for runs is needed")
	}
	if err := c.Defaults.Limits.Validate(); err != nil {
		return nil, fmt.Errorf("default limits: %w", err)
	}
	for _, dir := range []string{c.Runs, c.Processes} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	o := &Orchestrator{Config: c, born: c.Clock(), began: time.Now(), journal: journal{c.Processes}, images: images{c.Snapshots}, adopting: make(chan struct{}, c.Quota.Creating), lives: map[sandbox.ID]*live{}, names: map[nameKey]*live{}, runs: map[sandbox.RunID]*run{}, instances: map[sandbox.InstanceID]*live{}}
	o.messages.left.Store(maxMessages)
	q := &o.Quota
	o.gate = newGate("create", "boot", q.Creating, q.Waiting, q.Wait, func(t sandbox.TenantID) int { return int(q.Of(t).Boots) })
	o.starts = newGate("exec", "start", q.Starting, q.Waiting, q.Wait, nil)
	o.ledger = newLedger(q, c.Memory)
	o.room = &room{ask: c.Room, reserve: q.DiskReserve, ledger: o.ledger}
	o.ctx, o.stop = context.WithCancel(context.Background())
	return o, nil
}

// Start recovers what an earlier process left and begins to reap. It is
// idempotent in effect: a crash in the middle of it loses nothing. Errors: the
// store's, or a backend's that cannot list; nothing is served then.
func (o *Orchestrator) Start(ctx context.Context) error {
	if err := o.recover(ctx); err != nil {
		return err
	}
	if err := o.begin(); err != nil {
		return err
	}
	o.work.Add(1) // not from zero
	go func() {
		defer o.work.Done()
		o.measure()
	}()
	go func() {
		defer o.work.Done()
		o.reap()
	}()
	return nil
}

// Close stops serving: sandboxes, and the processes and runs in them, are left
// running for the next process or, with DestroyOnClose, ended. A run whose
// program has not started is ended either way. It waits until
// everything this process began is over, or for ctx. It is idempotent.
func (o *Orchestrator) Close(ctx context.Context) error {
	o.mu.Lock()
	o.closed = true
	lives := make([]*live, 0, len(o.lives))
	for _, l := range o.lives {
		lives = append(lives, l)
	}
	runs := make([]*run, 0, len(o.runs))
	for _, r := range o.runs {
		runs = append(runs, r)
	}
	o.mu.Unlock()
	for _, r := range runs {
		r.stop()
	}
	for _, r := range runs {
		waitFor(ctx, r.done)
	}
	var errs []error
	for _, l := range lives {
		if o.DestroyOnClose {
			l.end(system(l.tenant), sandbox.ReasonOperator, "the program that made it has ended", nil)
		}
	}
	for _, l := range lives {
		if o.DestroyOnClose {
			waitFor(ctx, l.dying)
			if !waitFor(ctx, l.ending.done) {
				continue
			}
			err := l.ending.err
			if err != nil && o.find(l.tenant, string(l.id)) == l {
				_, err = l.retry(ctx) // there may be space by now
			}
			errs = append(errs, err)
		}
	}
	for _, l := range lives {
		l.keepFlows(ctx)
	}
	o.mu.Lock()
	o.silent = true
	o.mu.Unlock()
	o.stop()
	for _, l := range lives {
		l.detach()
	}
	all := make(chan struct{})
	go func() { o.work.Wait(); close(all) }() // ends with the work
	if !waitFor(ctx, all) {
		errs = append(errs, sandbox.Wrap("close", "", ctx.Err()))
	}
	return errors.Join(errs...)
}

// detach lets go of a sandbox without ending it.
func (l *live) detach() {
	l.mu.Lock()
	if l.timer != nil {
		l.timer.Stop()
	}
	s := l.sess
	ending := l.ending != nil
	l.mu.Unlock()
	if s != nil {
		s.Close()
	}
	if !ending {
		l.release()
	}
}

// waitFor reports whether c was closed before ctx ended.
func waitFor(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

// begin registers an operation, which ends with o.work.Done. Errors:
// KindUnavailable once the Orchestrator is closed.
func (o *Orchestrator) begin() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return stopping("orchestrate")
	}
	o.work.Add(1)
	return nil
}

func stopping(op string) *sandbox.Error {
	return sandbox.Errorf(op, sandbox.KindUnavailable, "the server is shutting down").WithHint("retry in a moment")
}

// find returns the live sandbox that ref names for tenant: an id, or a name.
func (o *Orchestrator) find(tenant sandbox.TenantID, ref string) *live {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.lives[sandbox.ID(ref)]; l != nil && l.tenant == tenant {
		return l
	}
	return o.names[nameKey{tenant, ref}]
}

// Holding is a live sandbox and whose it is.
type Holding struct {
	ID     sandbox.ID
	Tenant sandbox.TenantID
}

// Whose tells which tenant's sandbox has the id, while it lives. It is for
// callers that come with a sandbox's own token, not with a tenant's key.
func (o *Orchestrator) Whose(id sandbox.ID) (Holding, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.lives[id]
	if l == nil {
		return Holding{}, false
	}
	return Holding{l.id, l.tenant}, true
}

// Holdings lists what lives, of all tenants.
func (o *Orchestrator) Holdings() []Holding {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]Holding, 0, len(o.lives))
	for _, l := range o.lives {
		list = append(list, Holding{l.id, l.tenant})
	}
	return list
}

// add makes a sandbox known; remove forgets it.
func (o *Orchestrator) add(l *live) {
	o.granting.RLock()
	defer o.granting.RUnlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lives[l.id], o.instances[l.instance] = l, l
	if l.name != "" {
		o.names[nameKey{l.tenant, l.name}] = l
	}
}

func (o *Orchestrator) remove(l *live) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.lives, l.id)
	delete(o.instances, l.instance)
	if k := (nameKey{l.tenant, l.name}); o.names[k] == l {
		delete(o.names, k)
	}
}

// Recording says why evidence cannot be recorded now; nil while it can. What is
// done on the strength of a record that follows is not done meanwhile: whatever
// lets a running sandbox's traffic pass has to deny it as long as this is not
// nil. It costs a lock.
func (o *Orchestrator) Recording() error {
	if r, ok := o.Recorder.(interface{ Err() error }); ok {
		return r.Err()
	}
	return nil
}

// record writes evidence about one sandbox and remembers where.
func (o *Orchestrator) record(ctx context.Context, who Caller, sb *Sandbox, r sandbox.Record) error {
	r.Tenant, r.Principal = sb.Tenant, who.Principal
	r.Sandbox, r.Instance = sb.ID, sb.Instance
	pos, err := o.Recorder.Record(ctx, r)
	if err != nil {
		return sandbox.Wrap("record "+r.Action, string(sb.ID), err)
	}
	if pos != 0 {
		if sb.Details.First == 0 {
			sb.Details.First = pos
		}
		sb.Details.Last = max(sb.Details.Last, pos)
	}
	return nil
}

// Get returns one sandbox by id, dead or alive, or by the name of a live one,
// with its use measured at most a second ago. What it says is what the store
// says, as in List: nobody sees a sandbox go back to an earlier state. Errors:
// KindNotFound.
//
// Cost: by id about a microsecond, by name a query.
func (o *Orchestrator) Get(ctx context.Context, tenant sandbox.TenantID, ref string) (Sandbox, error) {
	var usage sandbox.Usage
	var details Details
	l := o.find(tenant, ref)
	if l != nil {
		usage, details = l.sample(ctx), l.snapshot().Details
	}
	t := o.Store.Tenant(tenant)
	rec, err := t.Sandbox(ctx, sandbox.ID(ref))
	if sandbox.KindOf(err) == sandbox.KindNotFound && !sandbox.ID(ref).Valid() {
		rec, err = t.SandboxByName(ctx, ref)
	}
	switch {
	case sandbox.KindOf(err) == sandbox.KindNotFound:
		return Sandbox{}, notFound(ref)
	case err != nil:
		return Sandbox{}, err
	case l == nil || l.id != rec.ID || rec.State == store.Ended:
		return unpack(rec).clone(), nil
	}
	rec.Usage = usage
	return Sandbox{Sandbox: rec, Details: details}.clone(), nil
}

// locate returns the live sandbox that ref names for tenant or, where there is
// none, the record of the one that has ended. Errors: KindNotFound, or ctx's.
//
// A sandbox is in the store an instant before it is in this process's maps, and
// ended there an instant before it leaves them: locate waits that long.
func (o *Orchestrator) locate(ctx context.Context, tenant sandbox.TenantID, ref string) (*live, Sandbox, error) {
	for {
		if l := o.find(tenant, ref); l != nil {
			return l, Sandbox{}, nil
		}
		sb, err := o.Get(ctx, tenant, ref)
		if err != nil || sb.State == store.Ended {
			return nil, sb, err
		}
		ref = string(sb.ID)
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, Sandbox{}, sandbox.Wrap("find", ref, ctx.Err())
		}
	}
}

// notFound is the one answer to an id that does not exist for the caller,
// whether it exists for another tenant or not.
func notFound(ref string) error {
	return sandbox.Errorf("find", sandbox.KindNotFound, "no such sandbox").WithID(ref).
		WithHint("list yours with `firebreak ls`; the name of a sandbox is good only while it lives")
}

// List returns one page of the tenant's sandboxes, newest first. Use is only
// measured for sandboxes asked for one by one.
func (o *Orchestrator) List(ctx context.Context, tenant sandbox.TenantID, f store.Filter, p store.Page) ([]Sandbox, string, error) {
	recs, next, err := o.Store.Tenant(tenant).ListSandboxes(ctx, f, p)
	if err != nil {
		return nil, "", err
	}
	out := make([]Sandbox, len(recs))
	for i, rec := range recs {
		out[i] = unpack(rec).clone()
	}
	return out, next, nil
}

// SetTimeout moves the moment the sandbox ends by itself to d from now; 0 is
// never. With extendOnly it is not moved closer. Errors: KindNotFound, KindGone.
func (o *Orchestrator) SetTimeout(ctx context.Context, who Caller, ref string, d time.Duration, extendOnly bool) (Sandbox, error) {
	l, done, err := o.look(ctx, who.Tenant, ref)
	if err != nil {
		return Sandbox{}, err
	}
	defer done()
	if err := l.record(ctx, who, sandbox.Record{Action: "sandbox.timeout", Outcome: sandbox.OutcomeAllowed, Object: d.String()}); err != nil {
		return Sandbox{}, err
	}
	now := o.Clock()
	at := now.Add(d)
	if err := l.follow(ctx); err != nil {
		return Sandbox{}, err
	}
	rec, err := o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		if extendOnly && (rec.ExpiresAt.IsZero() || d > 0 && at.Before(rec.ExpiresAt)) {
			return nil
		}
		lasts(rec, now, d)
		if details := unpack(*rec).Details; details.Pause == nil || details.Pause.Life == nil {
			details.Life = d
			rec.Extra = details.pack()
		}
		return nil
	})
	if err != nil {
		return Sandbox{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if rec.Version > l.sb.Version { // else somebody else's later change is known already
		l.sb.ExpiresAt, l.sb.MaxLife, l.sb.Version = rec.ExpiresAt, rec.MaxLife, rec.Version
		l.sb.Details.Life = unpack(rec).Details.Life
		l.arm()
	}
	return Sandbox{Sandbox: rec, Details: l.sb.Details}.clone(), nil
}

// record writes evidence about l.
func (l *live) record(ctx context.Context, who Caller, r sandbox.Record) error {
	l.mu.Lock()
	sb := Sandbox{Sandbox: l.sb.Sandbox, Details: l.sb.Details}
	l.mu.Unlock()
	if err := l.o.record(ctx, who, &sb, r); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sb.Details.First == 0 {
		l.sb.Details.First = sb.Details.First
	}
	l.sb.Details.Last = max(l.sb.Details.Last, sb.Details.Last)
	return nil
}

// Keep counts the sandbox as used until release is called, once: somebody
// watches it. For one that has ended it does nothing.
func (o *Orchestrator) Keep(ctx context.Context, tenant sandbox.TenantID, ref string) (release func()) {
	if l := o.find(tenant, ref); l != nil {
		if done, err := l.hold(ctx); err == nil {
			return done
		}
	}
	return func() {}
}

// use finds a live sandbox, holds it, and resumes it if it is paused. Errors:
// KindNotFound, KindGone, KindUnavailable at shutdown, those of Resume.
func (o *Orchestrator) use(ctx context.Context, tenant sandbox.TenantID, ref string) (*live, func(), error) {
	l, done, err := o.look(ctx, tenant, ref)
	if err == nil {
		if err = l.wake(ctx); err != nil {
			done()
			return nil, nil, err
		}
	}
	return l, done, err
}

// look is use for what needs nothing of the sandbox itself: one that is paused stays
// so.
func (o *Orchestrator) look(ctx context.Context, tenant sandbox.TenantID, ref string) (*live, func(), error) {
	if err := o.begin(); err != nil {
		return nil, nil, err
	}
	l, sb, err := o.locate(ctx, tenant, ref)
	if l == nil {
		o.work.Done()
		if err == nil {
			err = goneError(sb.ID, sb.Reason, sb.Detail, sb.Ended)
		}
		return nil, nil, err
	}
	done, err := l.hold(ctx)
	if err != nil {
		o.work.Done()
		return nil, nil, err
	}
	return l, func() { done(); o.work.Done() }, nil
}

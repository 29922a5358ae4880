package orchestrator

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// sighting is an instance as a backend listed it.
type sighting struct {
	backend sandbox.Backend
	status  sandbox.Status
}

// recover brings records and instances together again. What the records say
// was meant decides:
//
//	creating            nobody ever learned of it: destroyed, lost
//	running, alive      adopted: its processes are followed on, overdue deadlines
//	                    are enforced at once
//	running, of a run   adopted if the run's program had started, and the run goes
//	                    on; destroyed otherwise, lost
//	running, Abandoned  destroyed, lost
//	running, dead       ended for the backend's reason
//	running, not there  lost
//	paused              stays so, if what it is restored from is there; lost otherwise
//	stopping            ended for the reason journalled
//	no living record    destroyed
//
// It may be interrupted anywhere and repeated.
func (o *Orchestrator) recover(ctx context.Context) error {
	recs, err := o.Store.System().LiveSandboxes(ctx)
	if err != nil {
		return err
	}
	seen, err := o.sightings(ctx, recs)
	if err != nil {
		return err
	}
	procs, err := o.journal.read()
	if err != nil {
		return sandbox.Wrap("recover", o.Processes, err)
	}
	runs, err := o.unfinishedRuns(ctx)
	if err != nil {
		return err
	}
	// Before anything is adopted: what is overdue is paused at once, into an image that
	// no record names yet.
	if err := o.sweepImages(ctx, recs); err != nil {
		return err
	}
	var work sync.WaitGroup
	slots := make(chan struct{}, o.Quota.Creating)
	for _, rec := range recs {
		s, there := seen[rec.Instance]
		if rec.State != store.Paused { // of one that is paused no instance is to be there
			delete(seen, rec.Instance)
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			o.reconcile(ctx, unpack(rec), s, there, procs[rec.ID], runs)
		})
	}
	work.Wait()
	failpoint.Hit("recover/after-records")
	for _, s := range seen {
		if err := o.destroyOrphan(ctx, s); err != nil {
			o.Log.Error("orphan", "instance", s.status.Instance, "error", err) // the reaper tries again
		}
	}
	o.recoverWires(ctx)
	failpoint.Hit("recover/after-orphans")
	o.recoverRuns(ctx, runs)
	failpoint.Hit("recover/after-runs")
	if err := o.journal.sweep(o.knows); err != nil {
		return sandbox.Wrap("recover", o.Processes, err)
	}
	return o.countKept(ctx)
}

// knows reports whether a sandbox is alive, as far as this process knows.
func (o *Orchestrator) knows(id sandbox.ID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lives[id] != nil
}

// sightings lists all instances of all backends. Of one that does not work here
// and cannot look, nothing is known: where a record says that something of it
// lives, that is an error, because calling it lost would be a lie.
func (o *Orchestrator) sightings(ctx context.Context, recs []store.Sandbox) (map[sandbox.InstanceID]sighting, error) {
	seen := map[sandbox.InstanceID]sighting{}
	for _, b := range o.Backends {
		info, err := b.Info(ctx)
		if err != nil {
			return nil, sandbox.Wrap("recover", "", err)
		}
		list, err := b.List(ctx)
		used := slices.ContainsFunc(recs, func(r store.Sandbox) bool { return r.Backend == info.Name })
		if err != nil && (info.Available || used) {
			var e *sandbox.Error
			if err = sandbox.Wrap("recover", info.Name, err); errors.As(err, &e) && e.Hint == "" {
				e.Hint = "its sandboxes may be running; `firebreak doctor` says what it needs"
			}
			return nil, err
		}
		for _, st := range list {
			seen[st.Instance] = sighting{b, st}
		}
	}
	return seen, nil
}

// reconcile adopts or ends one sandbox. There is nobody to return an error to:
// whatever fails leads to an end, whose record says why.
func (o *Orchestrator) reconcile(ctx context.Context, sb Sandbox, s sighting, there bool, procs []*entry, runs map[sandbox.RunID]*run) {
	release, err := o.Templates.Acquire(sb.TemplateDigest)
	if err != nil {
		release = func() {} // it is mounted already; what matters is the sandbox
		o.Log.Warn("template of a live sandbox", "sandbox", sb.ID, "error", err)
	}
	l := o.newLive(sb, release, func() {})
	close(l.booted)
	if there && sb.State != store.Paused {
		if l.inst, err = s.backend.Attach(ctx, sb.Instance); err != nil {
			there, l.inst = false, nil
			o.Log.Warn("attach", "sandbox", sb.ID, "instance", sb.Instance, "error", err)
		}
	}
	o.ledger.adopt(l.promised)
	o.add(l)
	bury := func(reason sandbox.Reason, detail string, exit *sandbox.Exit) {
		l.loseProcesses(ctx, procs, reason, detail)
		<-l.end(system(sb.Tenant), reason, detail, exit).done
	}
	switch {
	case sb.State == store.Stopping && sb.Reason != "":
		bury(sb.Reason, sb.Detail, sb.Exit)
	case sb.State == store.Creating:
		bury(sandbox.ReasonLost, "the server stopped while it was being created", nil)
	case sb.State == store.Paused && o.Abandoned:
		bury(sandbox.ReasonLost, "the program that made it has died", nil)
	case sb.State == store.Paused:
		if err := l.stayPaused(ctx, procs); err != nil {
			bury(sandbox.ReasonLost, clip(err.Error()), nil)
		}
	case !there:
		bury(sandbox.ReasonLost, "gone while the server was not running", nil)
	case !s.status.Alive:
		exit := s.status.Exit
		if exit.Reason == "" {
			exit.Reason = sandbox.ReasonLost
		}
		bury(exit.Reason, exit.Detail, &exit)
	case sb.Details.Run != "" && !runs[sb.Details.Run].goesOn(procs):
		bury(sandbox.ReasonLost, "the server stopped while its run was under way", nil)
	case o.Abandoned:
		bury(sandbox.ReasonLost, "the program that made it has died", nil)
	default:
		l.adoptWire(ctx)
		o.adopt(ctx, l, procs)
	}
}

// recoverWires removes the wires that no living record knows. What fails is tried
// again by the reaper.
func (o *Orchestrator) recoverWires(ctx context.Context) {
	stray, err := o.strayWires(ctx)
	if err != nil {
		o.Log.Error("list wires", "error", err)
	}
	for _, id := range stray {
		if err := o.destroyOrphan(ctx, sighting{status: sandbox.Status{Instance: id}}); err != nil {
			o.Log.Error("orphan", "instance", id, "error", err)
		}
	}
}

// adopt takes a living sandbox over: a watcher, its deadlines, its processes,
// and in the background a session. Its agent is not waited for: it may be as
// overloaded as the machine is after a restart.
func (o *Orchestrator) adopt(ctx context.Context, l *live, procs []*entry) {
	l.adoptProcesses(ctx, procs)
	l.mu.Lock()
	inst := l.inst // which a pause that is overdue takes away
	l.arm()
	l.mu.Unlock()
	o.work.Go(func() { l.watch(inst) })
	o.work.Go(func() { // kills what nobody follows, finds out whether the agent lives
		o.adopting <- struct{}{}
		defer func() { <-o.adopting }()
		_, _ = l.sessionLater(o.ctx) // what is wrong with it ends the sandbox
	})
	o.Log.Info("adopted", "sandbox", l.id, "instance", l.instance, "processes", len(procs))
}

// adoptProcesses follows on what runs in a sandbox that is taken over, and
// remembers what has ended in it.
func (l *live) adoptProcesses(ctx context.Context, procs []*entry) {
	o := l.o
	l.recall(ctx, procs)
	for _, e := range procs {
		if e.End != nil {
			continue
		}
		x := l.adopted(e)
		l.mu.Lock()
		l.execs[e.ID] = x
		l.mu.Unlock()
		if e.Context != nil {
			l.adoptContext(x)
		}
	}
	l.mu.Lock()
	l.used = time.Now().Add(-time.Since(o.journal.used(l.id, l.sb.Started))) // by the steady clock from here on
	execs := slices.Collect(maps.Values(l.execs))
	l.mu.Unlock()
	for _, x := range execs {
		switch {
		case x.entry.Run != "" && x.entry.Context == nil:
			continue // its run follows it
		case x.entry.Context != nil: // waiting for a turn is no use of the sandbox
			w := x.warm
			o.work.Go(func() { w.over(x.resume(o.ctx, w)) })
			continue
		}
		if done, err := l.hold(o.ctx); err == nil {
			o.work.Go(func() {
				defer done()
				x.resume(o.ctx, nobody{})
			})
		}
	}
}

// stayPaused takes over a sandbox that is paused. Whatever instance there is of it
// is none: either it was about to be destroyed, or nobody has heard of it.
func (l *live) stayPaused(ctx context.Context, procs []*entry) error {
	p := l.sb.Details.Pause
	if p == nil || !l.o.images.there(p.Image.Name) {
		return errors.New("what it is restored from is not there")
	}
	l.o.unbind(l.instance)
	l.o.ledger.park(l.promised)
	l.o.ledger.store(l.tenant, p.Image.Size)
	l.mu.Lock()
	l.still = &standstill{since: time.Now().Add(min(0, -l.o.Clock().Sub(p.Since))), over: make(chan struct{}), image: p}
	l.usage = l.sb.Details.Spent
	l.mu.Unlock()
	l.adoptProcesses(ctx, procs)
	l.mu.Lock()
	l.arm()
	l.mu.Unlock()
	l.o.Log.Info("stays paused", "sandbox", l.id, "processes", len(procs))
	return nil
}

// adopted is a process that an earlier server began.
func (l *live) adopted(e *entry) *execution {
	x := l.execution(Caller{Tenant: e.Tenant, Principal: e.Principal}, nobody{}, e)
	x.adopted, x.announced = true, true
	if e.Stdin == stdinOpen && e.End == nil { // now: callers may write to it as soon as they can see it
		in, err := l.o.journal.reopen(e)
		if err != nil {
			e.Stdin = stdinLive // as good as lost
		} else {
			x.stdin = in
		}
	}
	return x
}

// destroyOrphan removes an instance that no living record knows, and its wire;
// without a backend there is only that.
func (o *Orchestrator) destroyOrphan(ctx context.Context, s sighting) error {
	id := s.status.Instance
	var inst sandbox.Instance
	if s.backend != nil {
		var err error
		inst, err = s.backend.Attach(ctx, id)
		if sandbox.KindOf(err) == sandbox.KindNotFound {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
	}
	sb := Sandbox{Sandbox: store.Sandbox{Instance: id, Tenant: sandbox.DefaultTenant}}
	if rec, err := o.Store.System().SandboxByInstance(ctx, id); err == nil {
		sb.ID, sb.Tenant = rec.ID, rec.Tenant
	}
	// As with every end: what fails here must not keep it alive.
	evidence := o.record(ctx, system(sb.Tenant), &sb, sandbox.Record{Action: "sandbox.orphan", Outcome: sandbox.OutcomeAllowed, Reason: sandbox.ReasonLost})
	receipt, err := sandbox.Receipt{Instance: id}.Seal(), error(nil)
	if inst != nil {
		receipt, err = inst.Destroy(ctx)
	}
	if err == nil && o.Network != nil {
		receipt, err = o.closeWire(ctx, receipt)
	}
	if err == nil {
		err = o.record(ctx, system(sb.Tenant), &sb, receiptRecord(receipt, sandbox.ReasonLost))
	}
	if err == nil {
		err = evidence
	}
	return err
}

package orchestrator

import (
	"context"
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
//	running, alive      adopted; overdue deadlines are enforced at once
//	running, of a run   nobody collects its result any more: destroyed, lost
//	running, Abandoned  the same
//	running, dead       ended for the backend's reason
//	running, not there  lost
//	stopping            ended for the reason journalled
//	no living record    destroyed
//
// It may be interrupted anywhere and repeated.
func (o *Orchestrator) recover(ctx context.Context) error {
	recs, err := o.Store.System().LiveSandboxes(ctx)
	if err != nil {
		return err
	}
	seen, err := o.sightings(ctx)
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	slots := make(chan struct{}, o.Quota.Creating)
	for _, rec := range recs {
		s, there := seen[rec.Instance]
		delete(seen, rec.Instance)
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			o.reconcile(ctx, unpack(rec), s, there)
		})
	}
	work.Wait()
	failpoint.Hit("recover/after-records")
	for _, s := range seen {
		if err := o.destroyOrphan(ctx, s); err != nil {
			o.Log.Error("orphan", "instance", s.status.Instance, "error", err) // the reaper tries again
		}
	}
	failpoint.Hit("recover/after-orphans")
	return o.recoverRuns(ctx)
}

// sightings lists all instances of all backends that work here. An instance of
// one that does not cannot be seen: it is dealt with as an orphan once it can.
func (o *Orchestrator) sightings(ctx context.Context) (map[sandbox.InstanceID]sighting, error) {
	seen := map[sandbox.InstanceID]sighting{}
	for _, b := range o.Backends {
		info, err := b.Info(ctx)
		if err != nil {
			return nil, sandbox.Wrap("recover", "", err)
		}
		list, err := b.List(ctx)
		if err != nil && info.Available {
			return nil, sandbox.Wrap("recover", info.Name, err)
		}
		for _, st := range list {
			seen[st.Instance] = sighting{b, st}
		}
	}
	return seen, nil
}

// reconcile adopts or ends one sandbox. There is nobody to return an error to:
// whatever fails leads to an end, whose record says why.
func (o *Orchestrator) reconcile(ctx context.Context, sb Sandbox, s sighting, there bool) {
	release, err := o.Templates.Acquire(sb.TemplateDigest)
	if err != nil {
		release = func() {} // it is mounted already; what matters is the sandbox
		o.Log.Warn("template of a live sandbox", "sandbox", sb.ID, "error", err)
	}
	l := o.newLive(sb, release, func() {})
	close(l.booted)
	if there {
		if l.inst, err = s.backend.Attach(ctx, sb.Instance); err != nil {
			there, l.inst = false, nil
			o.Log.Warn("attach", "sandbox", sb.ID, "instance", sb.Instance, "error", err)
		}
	}
	o.ledger.adopt(sb.Limits.Memory)
	o.add(l)
	bury := func(reason sandbox.Reason, detail string, exit *sandbox.Exit) {
		<-l.end(system(sb.Tenant), reason, detail, exit).done
	}
	switch {
	case sb.State == store.Stopping && sb.Reason != "":
		bury(sb.Reason, sb.Detail, sb.Exit)
	case sb.State == store.Creating:
		bury(sandbox.ReasonLost, "the server stopped while it was being created", nil)
	case !there:
		bury(sandbox.ReasonLost, "gone while the server was not running", nil)
	case !s.status.Alive:
		exit := s.status.Exit
		if exit.Reason == "" {
			exit.Reason = sandbox.ReasonLost
		}
		bury(exit.Reason, exit.Detail, &exit)
	case sb.Details.Run != "":
		bury(sandbox.ReasonLost, "the server stopped while its run was under way", nil)
	case o.Abandoned:
		bury(sandbox.ReasonLost, "the program that made it has died", nil)
	default:
		o.adopt(ctx, l)
	}
}

// adopt takes a living sandbox over: a session, a watcher, its deadlines.
func (o *Orchestrator) adopt(ctx context.Context, l *live) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s, err := l.redial(l.inst)
	if err != nil {
		l.lost(l.inst, err)
		if waitFor(ctx, l.dying) {
			waitFor(ctx, l.ending.done)
		}
		return
	}
	l.mu.Lock()
	l.sess, l.used = s, time.Now()
	l.arm()
	l.mu.Unlock()
	o.work.Go(func() { l.watch(l.inst) })
	o.Log.Info("adopted", "sandbox", l.id, "instance", l.instance)
}

// destroyOrphan removes an instance that no living record knows.
func (o *Orchestrator) destroyOrphan(ctx context.Context, s sighting) error {
	id := s.status.Instance
	inst, err := s.backend.Attach(ctx, id)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	sb := Sandbox{Sandbox: store.Sandbox{Instance: id, Tenant: sandbox.DefaultTenant}}
	if rec, err := o.Store.System().SandboxByInstance(ctx, id); err == nil {
		sb.ID, sb.Tenant = rec.ID, rec.Tenant
	}
	// As with every end: what fails here must not keep it alive.
	evidence := o.record(ctx, system(sb.Tenant), &sb, sandbox.Record{Action: "sandbox.orphan", Outcome: sandbox.OutcomeAllowed, Reason: sandbox.ReasonLost})
	receipt, err := inst.Destroy(ctx)
	if err == nil {
		err = o.record(ctx, system(sb.Tenant), &sb, receiptRecord(receipt, sandbox.ReasonLost))
	}
	if err == nil {
		err = evidence
	}
	return err
}

package orchestrator

import (
	"cmp"
	"context"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// resume makes a paused sandbox run again; why says what for, where nobody asked
// for it by name. It does not end with its caller: others may be waiting for the
// same. Preconditions: the caller is alone, and the sandbox is paused.
func (l *live) resume(who Caller, req ResumeRequest, why string) error {
	o, begun := l.o, time.Now()
	ctx, cancel := context.WithTimeout(o.ctx, o.Defaults.CreateTimeout)
	defer cancel()
	ctx, cancelToo := l.whileAlive(ctx)
	defer cancelToo()
	l.mu.Lock()
	st := l.still
	l.mu.Unlock()
	if err := o.room.check("resume"); err != nil {
		return err
	}
	if err := l.strong(ctx, "resume"); err != nil {
		return err
	}
	if err := o.ledger.unpark(l.promised, true); err != nil {
		return err
	}
	err := l.admitted(ctx, who, req, why, st)
	if err != nil {
		o.ledger.park(l.promised)
		return l.unchanged(ctx, who, "sandbox.resume", err)
	}
	failpoint.Hit("resume/after-record")
	l.publishState(store.Running, "", "", false)
	image := st.image.Image
	o.work.Go(func() { // nobody waits for it: no other image is ever called that
		if err := o.images.remove(image.Name); err != nil { // the next start does
			o.Log.Error("what a sandbox was restored from is left", "sandbox", l.id, "error", err)
		}
		o.ledger.store(l.tenant, -image.Size)
	})
	return l.record(context.WithoutCancel(ctx), who, sandbox.Record{Class: sandbox.Flow, Action: "sandbox.resume", Outcome: sandbox.OutcomeDone,
		Detail: map[string]string{"took": short(time.Since(begun)), "paused": short(time.Since(st.since))}})
}

// admitted waits for the turn of a boot and makes it.
func (l *live) admitted(ctx context.Context, who Caller, req ResumeRequest, why string, st *standstill) error {
	leave, err := l.o.gate.enter(ctx, l.tenant, l.o.Quota.Wait)
	if err != nil {
		return err
	}
	defer leave()
	detail := spans("timeout", req.Timeout, why)
	detail["bytes"] = strconv.FormatInt(st.image.Image.Size, 10)
	id, vacate := l.place(ctx) // what is made is on record by its own id
	defer vacate()
	next := Sandbox{Sandbox: store.Sandbox{ID: l.id, Tenant: l.tenant, Instance: id}}
	if err := l.o.record(ctx, who, &next, sandbox.Record{Action: "sandbox.resume", Outcome: sandbox.OutcomeAllowed, Digest: st.image.Image.Digest, Detail: detail}); err != nil {
		return err
	}
	failpoint.Hit("resume/after-evidence")
	l.wiring.Lock() // the policy stays what its wire is opened with
	defer l.wiring.Unlock()
	inst, s, err := l.incarnate(ctx, id, st)
	if err == nil {
		if err = l.markRunning(context.WithoutCancel(ctx), inst, s, st, req); err == nil {
			return nil
		}
		s.Close()
	}
	if inst != nil {
		if _, e := inst.Destroy(context.WithoutCancel(ctx)); e != nil {
			l.o.Log.Error("an instance that was not to be; it is tried again", "sandbox", l.id, "instance", inst.ID(), "error", e)
		}
	}
	if l.network() != nil && l.o.Network != nil {
		if _, e := l.o.Network.Close(ctx, id); e != nil {
			l.o.Log.Error("a wire that was not to be; it is tried again", "sandbox", l.id, "instance", id, "error", e)
		}
	}
	l.o.unbind(id)
	return err
}

// incarnate makes an instance of what was saved and meets its agent. The instance it
// returns with an error is to be destroyed.
func (l *live) incarnate(ctx context.Context, id sandbox.InstanceID, st *standstill) (sandbox.Instance, *guest.Session, error) {
	o := l.o
	sb := l.snapshotWithEnv()
	backend, _, err := o.made(ctx, sb.Backend)
	restorer, can := backend.(sandbox.Restorer)
	if err == nil && !can {
		err = sandbox.Errorf("resume", sandbox.KindUnsupported, "backend %s restores nothing", sb.Backend)
	}
	if err != nil {
		return nil, nil, err
	}
	t, err := o.Templates.Resolve(ctx, sb.TemplateDigest)
	if err != nil {
		return nil, nil, err
	}
	checked := make(chan error, 2)
	go func() { checked <- o.Templates.Check(ctx, sb.TemplateDigest) }()
	// While the record says that the sandbox is paused each instance of it is an orphan:
	// whose the new one is to be need not be known before it is there, only before the
	// record says otherwise. What it has of a network is journalled before it is made.
	intend := func() error {
		err := l.intendAnother(ctx, id)
		failpoint.Hit("resume/after-intent")
		return err
	}
	o.bind(l, id)
	var w *sandbox.Wire
	if l.network() == nil {
		go func() { checked <- intend() }()
	} else {
		if err := intend(); err != nil {
			return nil, nil, err
		}
		if w, err = l.openWire(ctx); err != nil {
			return nil, nil, err
		}
		failpoint.Hit("resume/after-wire")
		checked <- nil
	}
	spec := sb.incarnation()
	spec.Instance, spec.Root, spec.Wire = id, t.Root, w
	inst, err := restorer.Restore(ctx, spec, o.images.snapshot(st.image.Image, sb))
	if err = cmp.Or(<-checked, <-checked, err); err != nil {
		return inst, nil, err
	}
	failpoint.Hit("resume/after-restore")
	s, err := l.open(ctx, inst)
	if err != nil {
		return inst, nil, err
	}
	if err := l.killStrays(ctx, s); err != nil {
		s.Close()
		return inst, nil, err
	}
	failpoint.Hit("resume/after-session")
	l.trustAgain(ctx, s) // the policy may be another one
	return inst, s, nil
}

// intendAnother journals the instance that a paused sandbox is about to be, and its
// wire.
func (l *live) intendAnother(ctx context.Context, id sandbox.InstanceID) error {
	n := l.network()
	if n != nil {
		next := *n
		next.Epoch++
		next.Problem, next.Unbound, next.Untrusted = "", "", ""
		n = &next
	}
	if _, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		d := unpack(*rec).Details
		d.Network = n
		rec.Instance, rec.Extra = id, d.pack()
		return nil
	}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sb.Details.Network = n
	return nil
}

// snapshotWithEnv is the sandbox as it stands, for this package.
func (l *live) snapshotWithEnv() Sandbox {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sb
}

// markRunning is the moment after which the sandbox is inst: nothing fails behind it.
func (l *live) markRunning(ctx context.Context, inst sandbox.Instance, s *guest.Session, st *standstill, req ResumeRequest) error {
	l.clocks(st)
	status, err := inst.Status(ctx)
	if err != nil {
		return err
	}
	var life time.Duration
	rec, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		d := unpack(*rec).Details
		if d.Pause != nil { // else another version wrote it
			d.unpark(rec, l.o.Clock(), req.Timeout)
		}
		d.Pause, life = nil, d.Life
		rec.State, rec.Enforced, rec.Extra = store.Running, status.Enforced, d.pack()
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.inst, l.sess = inst, s
	l.sb.Sandbox, l.sb.Details.Pause, l.sb.Details.Life = rec, nil, life
	l.usage, l.sampled = l.total(status.Usage), time.Now()
	l.mu.Unlock()
	l.move(st)
	l.o.work.Go(func() { l.watch(inst) }) // never from zero: whoever waits for this is at work
	return nil
}

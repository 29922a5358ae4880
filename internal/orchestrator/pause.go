package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// PauseRequest says how a sandbox is kept while it is paused.
type PauseRequest struct {
	// Keep ends it this long after; 0: never. Its life stands still meanwhile, and it
	// has all of it again when it goes on. nil: its life goes on.
	Keep *time.Duration
}

// ResumeRequest says how a sandbox goes on.
type ResumeRequest struct {
	// Timeout ends it this long after; 0: never. One whose life went on is not ended
	// earlier for that. nil: what it was last given, 5 minutes at least, if that
	// stood still.
	Timeout *time.Duration
}

func inRange(op, name string, d *time.Duration) error {
	if d != nil && (*d < 0 || *d > maxTimeout) {
		return sandbox.Errorf(op, sandbox.KindInvalid, "%s %s is out of range", name, *d).WithHint("between 0 (never) and 10 years")
	}
	return nil
}

// Pause saves a sandbox to disk and ends its boundary: it needs no memory and no
// CPU, and goes on where it was when it is resumed, or when anybody wants something
// of it. Files, programs and interpreters stay; what connects them to the outside
// does not. Its life goes on and it ends when it would have, unless the request says
// how long to keep it, or it was to be paused at its end. Of one that is paused it
// returns the record.
//
// A server that is killed meanwhile leaves the sandbox as it was or paused.
//
// Its connections to the outside end before it is saved: what it did there is done
// once, and it knows what came of it or finds the connection broken.
//
// Errors: KindNotFound, KindGone; KindUnsupported for a backend that saves nothing;
// KindConflict for a run's; KindCapacity for the quota of snapshots; KindNoSpace. The
// sandbox runs on then.
//
// Cost: what the guest uses of memory and disk is written, flushed and read once.
func (o *Orchestrator) Pause(ctx context.Context, who Caller, ref string, req PauseRequest) (Sandbox, error) {
	if err := inRange("pause", "keep", req.Keep); err != nil {
		return Sandbox{}, err
	}
	l, done, err := o.change(ctx, who.Tenant, ref)
	if err != nil {
		return Sandbox{}, err
	}
	defer done()
	if !l.paused() {
		if err := l.pause(ctx, who, req, ""); err != nil {
			return Sandbox{}, err
		}
	}
	return l.snapshot(), nil
}

// Resume makes a paused sandbox run again. Of one that runs it returns the record.
//
// Errors: KindNotFound, KindGone; KindCapacity and KindNoSpace where the host, or
// the tenant, has no room for it now; KindConflict when what was saved was changed
// or does not fit any more. It stays paused then.
//
// Cost: reads what was saved twice, and what a boot costs.
func (o *Orchestrator) Resume(ctx context.Context, who Caller, ref string, req ResumeRequest) (Sandbox, error) {
	if err := inRange("resume", "timeout", req.Timeout); err != nil {
		return Sandbox{}, err
	}
	l, done, err := o.change(ctx, who.Tenant, ref)
	if err != nil {
		return Sandbox{}, err
	}
	defer done()
	if l.paused() {
		if err := l.resume(who, req, ""); err != nil {
			return Sandbox{}, err
		}
	}
	return l.snapshot(), nil
}

// change finds a live sandbox and keeps others from changing it until done is
// called.
func (o *Orchestrator) change(ctx context.Context, tenant sandbox.TenantID, ref string) (*live, func(), error) {
	if err := o.begin(); err != nil {
		return nil, nil, err
	}
	l, sb, err := o.locate(ctx, tenant, ref)
	if l == nil {
		o.work.Done()
		return nil, nil, cmp.Or(err, goneError(sb.ID, sb.Reason, sb.Detail, sb.Ended))
	}
	done, err := l.alone(ctx)
	if err != nil {
		o.work.Done()
		return nil, nil, err
	}
	return l, func() { done(); o.work.Done() }, nil
}

// saver is the instance, if what it is can be saved at all. Errors: KindUnsupported,
// KindConflict, KindGone, KindCapacity, KindNoSpace.
func (l *live) saver(ctx context.Context, op string) (sandbox.Snapshotter, error) {
	l.mu.Lock()
	inst, sb := l.inst, l.sb
	l.mu.Unlock()
	refuse := func(k sandbox.Kind, hint, format string, args ...any) error {
		return sandbox.Errorf(op, k, format, args...).WithID(string(l.id)).WithHint("%s", hint)
	}
	_, info, err := l.o.made(ctx, sb.Backend)
	s, can := inst.(sandbox.Snapshotter)
	switch {
	case err != nil:
		return nil, err
	case l.o.Alone:
		return nil, refuse(sandbox.KindUnsupported, "a server keeps them: `firebreak serve`", "sandboxes of this command end with it")
	case sb.Details.Run != "":
		return nil, refuse(sandbox.KindConflict, "it ends with its run", "the sandbox belongs to a run")
	case !can || !info.Capabilities.Snapshot:
		return nil, refuse(sandbox.KindUnsupported, "`firebreak doctor` says what each backend can do here", "backend %s saves no sandboxes here", sb.Backend)
	}
	st, err := inst.Status(ctx)
	if err != nil {
		return nil, err
	}
	size := st.Usage.Memory + st.Usage.Disk
	if err := l.o.room.holds(op, size); err != nil {
		return nil, err
	}
	return s, l.o.ledger.storable(op, l.tenant, size)
}

// made is the backend that a sandbox was made with.
func (o *Orchestrator) made(ctx context.Context, name string) (sandbox.Backend, sandbox.Info, error) {
	for _, b := range o.Backends {
		i, err := b.Info(ctx)
		if err != nil || i.Name == name {
			return b, i, err
		}
	}
	return nil, sandbox.Info{}, sandbox.Errorf("find backend", sandbox.KindUnavailable, "this server has no backend %s", name)
}

// pause saves the sandbox and ends its boundary; why says what for, where nobody asked
// for it. Preconditions: the caller is alone, and it runs.
func (l *live) pause(ctx context.Context, who Caller, req PauseRequest, why string) error {
	o, begun, keep := l.o, time.Now(), l.keeps(req.Keep)
	saver, err := l.saver(ctx, "pause")
	if err != nil {
		return err
	}
	if err := l.record(ctx, who, sandbox.Record{Action: "sandbox.pause", Outcome: sandbox.OutcomeAllowed, Detail: spans("keep", keep, why)}); err != nil {
		return err
	}
	failpoint.Hit("pause/after-evidence")
	ctx, cancel := l.whileAlive(ctx)
	defer cancel()
	l.wiring.Lock() // before it stands still: who has it may need the agent
	defer l.wiring.Unlock()
	st, err := l.stand(ctx)
	if err != nil {
		return err
	}
	failpoint.Hit("pause/after-stand")
	state, err := l.putToSleep(ctx, saver, keep, st)
	if err != nil {
		l.clocks(st)
		l.reconnect(context.WithoutCancel(ctx))
		l.move(st)
		return l.unchanged(ctx, who, "sandbox.pause", err)
	}
	failpoint.Hit("pause/after-record")
	o.ledger.store(l.tenant, state.Size)
	receipt := l.leave(context.WithoutCancel(ctx))
	failpoint.Hit("pause/after-destroy")
	o.ledger.park(l.promised)
	reason := sandbox.Reason("")
	if why == "timeout" {
		reason = sandbox.ReasonTimeout
	}
	l.publishState(store.Paused, reason, "", false)
	l.expect(ctx)
	err = l.record(context.WithoutCancel(ctx), who, receiptRecord(receipt, ""))
	return errors.Join(err, l.record(context.WithoutCancel(ctx), who, sandbox.Record{Class: sandbox.Flow, Action: "sandbox.pause", Outcome: sandbox.OutcomeDone,
		Digest: state.Digest, Detail: map[string]string{"bytes": strconv.FormatInt(state.Size, 10), "took": short(time.Since(begun))}}))
}

// putToSleep makes a sandbox that stands still what was saved of it. On an error it
// is what it was, and its wire may be cut.
func (l *live) putToSleep(ctx context.Context, saver sandbox.Snapshotter, keep *time.Duration, st *standstill) (ImageState, error) {
	if err := l.cutWire(ctx); err != nil {
		return ImageState{}, err
	}
	state, err := l.save(ctx, saver, string(l.instance))
	if err != nil {
		return ImageState{}, err
	}
	failpoint.Hit("pause/after-save")
	err = l.markPaused(context.WithoutCancel(ctx), &PauseState{Image: state, Since: l.o.Clock().UTC()}, keep, st)
	if err != nil {
		err = errors.Join(err, l.o.images.remove(state.Name))
	}
	return state, err
}

// save writes the image called name. On an error nothing of it is left.
func (l *live) save(ctx context.Context, saver sandbox.Snapshotter, name string) (ImageState, error) {
	if err := l.o.images.make(name); err != nil {
		return ImageState{}, sandbox.Wrap("save", string(l.id), err)
	}
	s, err := saver.Snapshot(ctx, l.o.images.snapshot(ImageState{Name: name}, Sandbox{}).Dir)
	if err != nil {
		return ImageState{}, errors.Join(err, l.o.images.remove(name))
	}
	return ImageState{Name: name, Digest: s.Digest, Size: s.Size, Created: s.Created, Held: s.Dir == ""}, nil
}

// markPaused is the moment after which the sandbox is what was saved.
func (l *live) markPaused(ctx context.Context, p *PauseState, keep *time.Duration, st *standstill) error {
	l.mu.Lock()
	inst := l.inst
	l.mu.Unlock()
	spent := sandbox.Usage{}
	if status, err := inst.Status(ctx); err == nil {
		l.mu.Lock()
		spent = l.total(status.Usage)
		l.mu.Unlock()
		spent.Memory, spent.Disk, spent.PIDs = 0, 0, 0 // it holds none any more
	}
	l.mu.Lock()
	n, flows := l.sb.Details.Network, l.kept.report()
	l.mu.Unlock()
	rec, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		d := unpack(*rec).Details
		d.Pause, d.Spent, d.Network, d.Flows = p, spent, n, flows
		d.park(rec, l.o.Clock(), keep)
		rec.State, rec.Extra = store.Paused, d.pack()
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sb.Sandbox, l.sb.Details.Pause, l.sb.Details.Spent = rec, p, spent
	l.usage = spent
	st.image = p
	l.arm()
	return nil
}

// leave ends the boundary of a sandbox that is paused, and its wire. What resists is an
// orphan, which the reaper destroys.
func (l *live) leave(ctx context.Context) sandbox.Receipt {
	ctx, cancel := context.WithTimeout(ctx, teardown)
	defer cancel()
	l.mu.Lock()
	inst := l.inst
	l.inst = nil // from here on its end is nobody's news
	l.mu.Unlock()
	receipt, err := inst.Destroy(ctx)
	if l.network() != nil {
		var werr error
		receipt, werr = l.o.closeWire(ctx, receipt)
		err = errors.Join(err, werr)
	}
	if err != nil {
		l.o.Log.Error("the boundary of a paused sandbox; it is tried again", "sandbox", l.id, "instance", inst.ID(), "error", err)
	}
	l.o.unbind(inst.ID())
	return receipt
}

// unchanged records that what was to be done was not, and returns why.
func (l *live) unchanged(ctx context.Context, who Caller, action string, err error) error {
	if dead := l.dead(); dead {
		err = l.gone()
	}
	e := l.record(context.WithoutCancel(ctx), who, sandbox.Record{Class: sandbox.Flow, Action: action, Outcome: sandbox.OutcomeFailed,
		Detail: map[string]string{"error": clip(err.Error())}})
	if e != nil {
		l.o.Log.Error("what failed could not be recorded", "sandbox", l.id, "action", action, "error", e)
	}
	return sandbox.Wrap(action, string(l.id), err)
}

// spans are the details of a record about how long a sandbox is to be what it becomes.
func spans(name string, d *time.Duration, why string) map[string]string {
	out := map[string]string{}
	if d != nil {
		out[name] = d.String()
	}
	if why != "" {
		out["why"] = why
	}
	return out
}

// pausable refuses a sandbox that is to be paused and could not be.
func (r *CreateRequest) pausable(info sandbox.Info) error {
	const hint = "let idle_action and expire_action end it"
	switch {
	case r.IdleAction != IdlePause && r.ExpireAction != ExpirePause:
	case !info.Capabilities.Pause:
		return sandbox.Errorf("create", sandbox.KindUnsupported, "backend %s pauses no sandboxes here", info.Name).WithHint(hint)
	}
	return nil
}

// pauseIdle pauses a sandbox that nobody has used for d. One that cannot be paused
// now is tried again when it has been idle once more.
func (l *live) pauseIdle(d time.Duration) {
	done, err := l.alone(l.o.ctx)
	if err != nil {
		return
	}
	defer done()
	if l.paused() {
		return
	}
	if err := l.pause(l.o.ctx, system(l.tenant), PauseRequest{}, "idle"); err != nil && !l.dead() {
		l.o.Log.Warn("an idle sandbox could not be paused", "sandbox", l.id, "idle", d, "error", err)
	}
}

// unbind and bind tell the reaper whose an instance is.
func (o *Orchestrator) unbind(id sandbox.InstanceID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.instances, id)
}

func (o *Orchestrator) bind(l *live, id sandbox.InstanceID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.instance, l.sb.Instance = id, id
	o.instances[id] = l
}

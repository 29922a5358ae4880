package orchestrator

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Destroy ends a sandbox and returns its record with the receipt. Concurrent
// calls share one teardown; on a sandbox that has ended it returns the same
// record again.
//
// It goes on if ctx ends. Errors: KindNotFound; KindInternal when an object
// resisted, which the receipt names and the reaper keeps trying to remove.
func (o *Orchestrator) Destroy(ctx context.Context, who Caller, ref string) (Sandbox, error) {
	if err := o.begin(); err != nil {
		return Sandbox{}, err
	}
	defer o.work.Done()
	l, sb, err := o.locate(ctx, who.Tenant, ref)
	if l == nil {
		return sb, err
	}
	e := l.end(who, sandbox.ReasonOperator, "destroyed by "+who.Principal, nil)
	select {
	case <-e.done:
	case <-ctx.Done():
		return Sandbox{}, sandbox.Wrap("destroy", string(l.id), ctx.Err())
	}
	if e.err != nil && o.find(who.Tenant, string(l.id)) == l {
		return l.retry(ctx)
	}
	return e.sb.clone(), e.err
}

// end begins the sandbox's end, unless it has begun, and returns it. It does
// not wait.
func (l *live) end(who Caller, reason sandbox.Reason, detail string, exit *sandbox.Exit) *ending {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending != nil {
		return l.ending
	}
	if detail == "" {
		detail = limitDetail(reason, l.sb.Limits)
	}
	l.ending = &ending{who: who, reason: reason, detail: detail, exit: exit, done: make(chan struct{})}
	if l.timer != nil {
		l.timer.Stop()
	}
	l.cancel()
	close(l.dying)
	l.o.work.Add(1) // never from zero: whoever calls is at work
	go func() {
		defer l.o.work.Done()
		l.finish(l.ending)
	}()
	return l.ending
}

// watch waits for the boundary to end by itself.
func (l *live) watch(inst sandbox.Instance) {
	exit, err := inst.Wait(l.o.ctx)
	l.mu.Lock()
	mine := l.inst != nil && l.inst.ID() == inst.ID() // else it is not the sandbox any more
	l.mu.Unlock()
	switch {
	case !mine:
	case l.o.ctx.Err() != nil && err != nil: // Close: somebody else will watch
	case err != nil:
		l.end(system(l.tenant), sandbox.ReasonLost, clip(err.Error()), nil)
	default:
		l.end(system(l.tenant), exit.Reason, exit.Detail, &exit)
	}
}

// teardown bounds an end. A backend finishes a Destroy regardless.
const teardown = 2 * time.Minute

// finish carries an end out: evidence, intent, teardown, receipt, record. It
// destroys whatever else fails, and reports the rest in e.err.
func (l *live) finish(e *ending) {
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	select {
	case <-l.booted: // a boot that is cancelled cleans up after itself first
	case <-ctx.Done():
	}
	select {
	case l.changing <- struct{}{}: // who changes it gives up for an end
	case <-ctx.Done():
	}
	var notes []string
	note := func(what string, err error) {
		if err != nil {
			notes = append(notes, what+": "+clip(err.Error()))
			l.o.Log.Error(what, "sandbox", l.id, "error", err)
			if e.err == nil {
				e.err = err
			}
		}
	}
	note("the end could not be recorded as evidence", l.record(ctx, e.who, sandbox.Record{
		Action: "sandbox.destroy", Outcome: sandbox.OutcomeAllowed, Reason: e.reason, Detail: detailOf(e.detail)}))
	failpoint.Hit("end/before-intent")
	_, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		rec.State, rec.Reason, rec.Detail = store.Stopping, e.reason, e.detail
		return nil
	})
	note("the end could not be journalled", err)
	failpoint.Hit("end/after-intent")
	l.publishState(store.Stopping, e.reason, e.detail, false)

	receipt, usage, err := l.destroy(ctx)
	l.awaitExecs()
	note("teardown", err)
	failpoint.Hit("end/after-destroy")
	err = l.record(ctx, e.who, receiptRecord(receipt, e.reason))
	note("the receipt could not be recorded as evidence", err)
	e.recorded = err == nil
	failpoint.Hit("end/after-evidence")

	l.mu.Lock()
	sb := l.sb
	l.mu.Unlock()
	sb.State, sb.Reason, sb.Detail, sb.Exit = store.Ended, e.reason, e.detail, e.exit
	sb.Ended, sb.Usage, sb.Receipt = time.Now().UTC(), usage, &receipt
	sb.Details.Env, sb.Details.Pause = nil, nil
	sb.Details.Flows = l.snapshot().Details.Flows
	sb.Details.Series = l.lastSeries(usage)
	sb.Kept = l.o.Events.Size(l.id)
	sb.Details.Notes = append(sb.Details.Notes[:len(sb.Details.Notes):len(sb.Details.Notes)], notes...)
	if e.sb, err = l.bury(ctx, sb); err != nil && e.err == nil {
		e.err = err
	}
	l.o.ledger.keep(l.tenant, sb.Kept)
	l.mu.Lock()
	l.sb = e.sb
	l.mu.Unlock()
	l.publishReceipt(receipt)
	l.publishState(store.Ended, e.reason, e.detail, true)
	note("journal", l.o.journal.forget(l.id, l.entries()))
	failpoint.Hit("end/before-answer")
	if l.paused() {
		_ = l.o.ledger.unpark(l.promised, false) // it was given back when it was paused
	}
	l.o.ledger.release(l.promised)
	l.release()
	close(e.done)
}

// execsWait is how long an end waits for its processes to be reported, so that
// their ends come before it among the events. A reader that does not read could
// hold them up.
const execsWait = time.Second

func (l *live) awaitExecs() {
	l.mu.Lock()
	none := make(chan struct{})
	if len(l.execs) == 0 {
		close(none)
	} else {
		l.none = none
	}
	l.mu.Unlock()
	t := time.NewTimer(execsWait)
	defer t.Stop()
	select {
	case <-none:
	case <-t.C:
	}
}

// bury writes the final record. When that fails the sandbox stays known to this
// process, which tries again; the next one would find the record stopping and
// come to the same end.
func (l *live) bury(ctx context.Context, sb Sandbox) (Sandbox, error) {
	rec, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		final := sb.Sandbox
		final.Extra, final.Version = sb.Details.pack(), rec.Version
		*rec = final
		return nil
	})
	if err != nil {
		l.o.Log.Error("the final record could not be written; it is tried again", "sandbox", l.id, "error", err)
		return sb, err
	}
	failpoint.Hit("end/after-record")
	sb.Sandbox = rec
	l.o.remove(l)
	return sb, nil
}

// retry writes what an end could not, because of a full disk: the receipt's
// evidence and then the final record. Whoever asks for the sandbox's end again
// does it, and the reaper. Preconditions: the end is over.
func (l *live) retry(ctx context.Context) (Sandbox, error) {
	e := l.ending
	e.again.Lock()
	defer e.again.Unlock()
	if l.o.find(l.tenant, string(l.id)) != l { // somebody else was faster
		return l.snapshot(), nil
	}
	if !e.recorded {
		if err := l.record(ctx, e.who, receiptRecord(*e.sb.Receipt, e.reason)); err != nil {
			return Sandbox{}, err
		}
		e.recorded = true
	}
	sb, err := l.bury(ctx, e.sb)
	if err == nil && !sb.Receipt.Clean {
		err = e.err
	}
	return sb.clone(), err
}

// destroy removes the instance and returns what it had used.
func (l *live) destroy(ctx context.Context) (sandbox.Receipt, sandbox.Usage, error) {
	l.mu.Lock()
	inst, sess, usage := l.inst, l.sess, l.usage
	l.mu.Unlock()
	if sess != nil {
		defer sess.Close()
	}
	receipt, err := sandbox.Receipt{Instance: l.instance}.Seal(), error(nil) // a backend leaves nothing of a boot that failed
	if inst != nil {
		if st, err := inst.Status(ctx); err == nil {
			l.mu.Lock()
			usage = l.total(st.Usage)
			l.mu.Unlock()
		}
		receipt, err = inst.Destroy(ctx)
	}
	if p := l.image(); p != nil {
		l.forgo(ctx)
		receipt.Objects = append(receipt.Objects, l.o.images.gone(p.Image.Name))
		receipt = receipt.Seal()
		l.o.ledger.store(l.tenant, -p.Image.Size)
	}
	if l.network() != nil && !l.paused() { // of one that is, the wire is gone
		l.wiring.Lock()
		defer l.wiring.Unlock()
		var werr error
		if receipt, werr = l.o.closeWire(ctx, receipt); err == nil {
			err = werr
		}
	}
	if err == nil && !receipt.Clean {
		err = sandbox.Errorf("destroy", sandbox.KindInternal, "an object could not be removed").WithID(string(l.id)).
			WithHint("the receipt names it; it is tried again every minute")
	}
	return receipt, usage, err
}

func detailOf(detail string) map[string]string {
	if detail == "" {
		return nil
	}
	return map[string]string{"detail": clip(detail)}
}

// receiptRecord is the evidence of a teardown: the digest covers the receipt as
// the API returns it.
func receiptRecord(r sandbox.Receipt, reason sandbox.Reason) sandbox.Record {
	outcome := sandbox.OutcomeDone
	if !r.Clean {
		outcome = sandbox.OutcomeFailed
	}
	return sandbox.Record{Action: "sandbox.receipt", Outcome: outcome, Reason: reason, Digest: r.Digest(),
		Detail: map[string]string{"objects": strconv.Itoa(len(r.Objects)), "clean": strconv.FormatBool(r.Clean)}}
}

// The JSON bodies of events that are not output. Absent fields are empty.
type (
	// StateEvent is the body of a "state" event.
	StateEvent struct {
		State  store.State    `json:"state"`
		Reason sandbox.Reason `json:"reason,omitempty"`
		Detail string         `json:"detail,omitempty"`
	}
	// ExitEvent is the body of an "exit" or "limit" event.
	ExitEvent struct {
		Code   int            `json:"exit_code"`
		Reason sandbox.Reason `json:"reason"`
		Detail string         `json:"detail,omitempty"`
		// Duration is the wall clock, in milliseconds.
		Duration float64 `json:"duration_ms,omitempty"`
	}
	// ArtifactEvent is the body of an "artifact" event.
	ArtifactEvent struct {
		Path  string `json:"path"`
		Size  int64  `json:"size"`
		Error string `json:"error,omitempty"`
	}
	// ReceiptEvent is the body of a "receipt" event.
	ReceiptEvent struct {
		Clean   bool `json:"clean"`
		Objects int  `json:"objects"`
	}
)

// publish tells whoever watches, and returns the event's id. Events are a
// convenience, never evidence: one that cannot be kept is logged and nothing
// else stops for it. Its id is 0.
func (o *Orchestrator) publish(id sandbox.ID, e event.Event) uint64 {
	n, err := o.Events.Publish(id, e)
	if err != nil {
		lost := o.lost.Add(1)
		if now, last := time.Now().Unix(), o.complained.Load(); now > last && o.complained.CompareAndSwap(last, now) {
			o.Log.Warn("events lost", "sandbox", id, "type", e.Type, "lost", lost, "error", err)
		}
		return 0
	}
	return n
}

func (o *Orchestrator) publishJSON(id sandbox.ID, t event.Type, process string, body any, final bool) uint64 {
	b, err := json.Marshal(body)
	if err != nil {
		b = []byte("{}") // unreachable: the bodies above always encode
	}
	return o.publish(id, event.Event{Type: t, Process: process, Data: b, Final: final})
}

func (l *live) publishState(s store.State, r sandbox.Reason, detail string, final bool) {
	l.o.publishJSON(l.id, event.StateChange, "", StateEvent{State: s, Reason: r, Detail: detail}, final)
}

func (l *live) publishReceipt(r sandbox.Receipt) {
	l.o.publishJSON(l.id, event.Receipt, "", ReceiptEvent{Clean: r.Clean, Objects: len(r.Objects)}, false)
}

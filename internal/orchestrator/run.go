package orchestrator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Phase is where a run is, finer than its stored state.
type Phase string

// The phases.
const (
	PhaseCreating   Phase = "creating"
	PhaseAwaiting   Phase = "awaiting_inputs"
	PhaseRunning    Phase = "running"
	PhaseCollecting Phase = "collecting"
	PhaseEnded      Phase = "ended"
)

// Input is a file put into the sandbox before the program starts.
type Input struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// RunRequest says what to run, in what, and what to keep.
type RunRequest struct {
	ID        sandbox.RunID // generated if empty
	Sandbox   CreateRequest // its Timeout bounds the whole run
	Exec      ExecRequest   // Stdin is left nil
	Stdin     []byte
	Inputs    []Input
	Artifacts []string // files or directories to collect at the end
	// Await keeps the program from starting until StartRun, so that inputs
	// can be written with the file operations first.
	Await bool
	// Spec is the request as it is kept, without environment and inputs.
	Spec json.RawMessage
}

// Run is a run's record and what this package keeps beside it.
type Run struct {
	store.Run
	Report Report
}

// Report is what is known of a run beyond its record.
type Report struct {
	Phase           Phase             `json:"phase"`
	Backend         string            `json:"backend,omitempty"`
	Isolation       sandbox.Isolation `json:"isolation,omitempty"`
	TemplateDigest  string            `json:"template_digest,omitempty"`
	Limits          sandbox.Limits    `json:"limits,omitzero"`
	Explicit        sandbox.LimitSet  `json:"explicit,omitempty"`
	Enforced        sandbox.LimitSet  `json:"enforced,omitempty"`
	Artifacts       []Artifact        `json:"artifacts,omitempty"`
	StdoutTruncated bool              `json:"stdout_truncated,omitempty"`
	StderrTruncated bool              `json:"stderr_truncated,omitempty"`
	Usage           sandbox.Usage     `json:"usage,omitzero"`
	Receipt         *sandbox.Receipt  `json:"receipt,omitempty"`
	Notes           []string          `json:"notes,omitempty"`
	Error           *RunError         `json:"error,omitempty"`
	Egress          FlowReport        `json:"egress,omitzero"`
	// What the next server needs to go on with it.
	User   string    `json:"user,omitempty"`   // who its program runs as
	Wanted []string  `json:"wanted,omitempty"` // artifacts
	Exit   *ExecExit `json:"exit,omitempty"`   // once the program has ended

	First sandbox.Position `json:"first,omitempty"`
	Last  sandbox.Position `json:"last,omitempty"`
}

// RunError says why a run could not be carried out.
type RunError struct {
	Kind    sandbox.Kind `json:"kind"`
	Message string       `json:"message"`
	Hint    string       `json:"hint,omitempty"`
}

// exitFirebreak is a run's exit code when Firebreak itself failed.
const exitFirebreak = 125

// run is a run under way. Its goroutine belongs to the Orchestrator, not to
// whoever asked for it.
type run struct {
	o      *Orchestrator
	id     sandbox.RunID
	who    Caller
	req    RunRequest
	ctx    context.Context // the run's own; see cancelWith
	cancel context.CancelCauseFunc
	start  chan struct{} // closed by StartRun
	done   chan struct{} // closed when the final record is written, or cannot be

	mu     sync.Mutex
	rec    Run            // guarded by mu
	began  bool           // guarded by mu; start is closed
	reason sandbox.Reason // guarded by mu; why it was cancelled
	detail string         // guarded by mu
	left   bool           // guarded by mu; to the next server

	adopted bool // its sandbox was; written by the recovery only
}

// CreateRun begins a run and returns at once; the run goes on whatever happens
// to the caller. What would be refused for the request's own sake is refused
// here; what fails later is in the record.
func (o *Orchestrator) CreateRun(ctx context.Context, who Caller, req RunRequest) (Run, error) {
	p, err := o.plan(ctx, who, req.Sandbox) // Create does it again, when it is this run's turn
	if err != nil {
		return Run{}, err
	}
	p.release()
	req.Exec.ofRun = true
	if _, err := req.Exec.program(p.sb.Details); err != nil {
		return Run{}, err
	}
	if err := o.checkUser(req.Exec.User); err != nil {
		return Run{}, err
	}
	if err := o.begin(); err != nil {
		return Run{}, err
	}
	// Whether there is room for it is said now: it is not accepted and refused
	// later, when nobody listens.
	a, err := o.admit(who.Tenant, p.sb.Limits)
	if err != nil {
		o.work.Done()
		return Run{}, err
	}
	a.waits, req.Sandbox.admitted = runWaits, a
	p.reserve(&req.Sandbox)
	r, err := o.newRun(ctx, who, req)
	if err != nil {
		req.Sandbox.reserved.discard()
		a.settle()
		o.work.Done()
		return Run{}, err
	}
	go func() {
		defer o.work.Done()
		defer a.settle()
		defer req.Sandbox.reserved.discard() // unless it is the sandbox
		r.carryOut()
	}()
	return r.snapshot(), nil
}

func (o *Orchestrator) makeRun(id sandbox.RunID, who Caller, req RunRequest) *run {
	r := &run{o: o, id: id, who: who, req: req, start: make(chan struct{}), done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(o.ctx)
	return r
}

// newRun records and journals a run.
func (o *Orchestrator) newRun(ctx context.Context, who Caller, req RunRequest) (*run, error) {
	if req.ID == "" {
		req.ID = sandbox.NewRunID()
	}
	r := o.makeRun(req.ID, who, req)
	r.req.Sandbox.run = r.id
	about := Sandbox{Sandbox: store.Sandbox{ID: r.req.Sandbox.ID, Tenant: who.Tenant}}
	err := o.record(ctx, who, &about, sandbox.Record{Action: "run.create", Outcome: sandbox.OutcomeAllowed, Object: string(r.id)})
	if err != nil {
		r.cancel(nil)
		return nil, err
	}
	r.rec.Report = Report{Phase: PhaseCreating, User: req.Exec.User, Wanted: req.Artifacts, First: about.Details.First, Last: about.Details.Last}
	r.rec.Run, err = o.Store.Tenant(who.Tenant).CreateRun(ctx, store.Run{ID: r.id, Sandbox: r.req.Sandbox.ID,
		State: store.RunPending, Spec: req.Spec, Principal: who.Principal, Extra: r.rec.Report.pack()})
	if err == nil {
		err = os.Mkdir(r.dir(), 0o700)
	}
	if err != nil {
		r.cancel(nil)
		return nil, sandbox.Wrap("run", string(r.id), err)
	}
	// Whoever watches from now on finds something to wait for.
	o.publishJSON(r.req.Sandbox.ID, event.StateChange, "", StateEvent{State: store.Creating}, false)
	o.mu.Lock()
	o.runs[r.id] = r
	o.mu.Unlock()
	return r, nil
}

func (r *run) dir() string { return filepath.Join(r.o.Runs, string(r.id)) }

func (rep Report) pack() json.RawMessage {
	b, err := json.Marshal(rep)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return b
}

func (r *run) snapshot() Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec
}

// phase notes where the run is, for whoever asks, and in the store.
func (r *run) phase(p Phase) error {
	r.mu.Lock()
	r.rec.Report.Phase = p
	rep := r.rec.Report
	r.mu.Unlock()
	_, err := r.o.Store.Tenant(r.who.Tenant).EditRun(r.ctx, r.id, func(rec *store.Run) error {
		rec.State, rec.Extra = store.RunRunning, rep.pack()
		return nil
	})
	return err
}

// carryOut does the run: create, inputs, execute, artifacts, destroy, record.
func (r *run) carryOut() {
	defer r.cancel(nil)
	begun := time.Now()
	sb, err := r.o.Create(r.ctx, r.who, r.req.Sandbox)
	timings := map[string]time.Duration{"create": time.Since(begun)}
	var exit ExecExit
	if err == nil {
		r.mu.Lock()
		rep := &r.rec.Report
		rep.Backend, rep.Isolation, rep.TemplateDigest = sb.Backend, sb.Isolation, sb.TemplateDigest
		rep.Limits, rep.Explicit, rep.Enforced, rep.Notes = sb.Limits, sb.Explicit, sb.Enforced, sb.Details.Notes
		r.mu.Unlock()
		if err = r.prepare(); err == nil {
			begun = time.Now()
			exit, err = r.execute()
			timings["execute"] = time.Since(begun)
		}
	}
	r.finish(exit, err, sb.ID != "", timings)
}

// finish does what comes after the program: artifacts, destroy, record.
func (r *run) finish(exit ExecExit, err error, made bool, timings map[string]time.Duration) {
	if r.leaving() {
		close(r.done)
		return
	}
	failpoint.Hit("run/after-exec")
	if err == nil && exit.Reason != sandbox.ReasonOperator {
		r.collect()
		if len(r.req.Artifacts) > 0 {
			// What was collected outlives the sandbox, so its list has to be kept
			// before that goes. If it cannot be, only a crash now would matter.
			_ = r.phase(PhaseCollecting)
		}
	}
	failpoint.Hit("run/after-artifacts")
	if r.leaving() {
		close(r.done)
		return
	}
	begun := time.Now()
	final, destroyErr := r.destroy(exit.Reason, made)
	timings["destroy"] = time.Since(begun)
	if !made && final.ID == "" { // there never was a sandbox: its watchers wait for an end
		r.o.publishJSON(r.req.Sandbox.ID, event.StateChange, "", StateEvent{State: store.Ended, Reason: sandbox.ReasonCrashed}, true)
	}
	failpoint.Hit("run/after-destroy")
	r.conclude(exit, err, destroyErr, final, timings)
	failpoint.Hit("run/after-record")
}

// prepare writes the inputs and waits for the start.
func (r *run) prepare() error {
	ref := string(r.req.Sandbox.ID)
	for _, in := range r.req.Inputs {
		if _, err := r.o.WriteFile(r.ctx, r.who, ref, in.Path, guest.WriteOptions{User: r.req.Exec.User, Mode: in.Mode}, bytes.NewReader(in.Data)); err != nil {
			return err
		}
	}
	r.req.Inputs = nil // a run may be long, and they large
	if !r.req.Await {
		return nil
	}
	if err := r.phase(PhaseAwaiting); err != nil {
		return err
	}
	l := r.o.find(r.who.Tenant, ref)
	if l == nil {
		return notFound(ref)
	}
	select {
	case <-r.start:
		return nil
	case <-l.dying:
		return l.gone()
	case <-r.ctx.Done():
		return sandbox.Wrap("run", string(r.id), r.ctx.Err())
	}
}

// execute runs the program and keeps what it prints.
func (r *run) execute() (ExecExit, error) {
	if err := r.phase(PhaseRunning); err != nil {
		return ExecExit{}, err
	}
	req := r.req.Exec
	if len(r.req.Stdin) > 0 {
		req.Stdin = bytes.NewReader(r.req.Stdin)
	}
	return r.watch(func(s Sink) (ExecExit, error) { return r.o.Exec(r.ctx, r.who, string(r.req.Sandbox.ID), req, s) })
}

// watch keeps what the program prints, behind what has been kept before.
func (r *run) watch(exec func(Sink) (ExecExit, error)) (ExecExit, error) {
	keep, err := newKeeper(r.dir())
	if err != nil {
		return ExecExit{}, sandbox.Wrap("run", string(r.id), err)
	}
	exit, err := exec(runSink{keep, r})
	truncated, closeErr := keep.close()
	r.mu.Lock()
	r.rec.Report.StdoutTruncated, r.rec.Report.StderrTruncated = truncated[0], truncated[1]
	r.mu.Unlock()
	return exit, errors.Join(err, sandbox.Wrap("run", string(r.id), closeErr))
}

// destroy ends the run's sandbox, for the run's reason, and returns its final
// record; nothing if there was none.
func (r *run) destroy(reason sandbox.Reason, made bool) (Sandbox, error) {
	ref := string(r.req.Sandbox.ID)
	if l := r.o.find(r.who.Tenant, ref); l != nil {
		detail := "its run is over"
		if reason == "" {
			reason = sandbox.ReasonCrashed
		}
		if why, text := r.cancelled(); why != "" {
			reason, detail = why, text
		}
		e := l.end(r.who, reason, detail, nil)
		<-e.done // bounded
		return e.sb, e.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openWait)
	defer cancel()
	sb, err := r.o.Get(ctx, r.who.Tenant, ref)
	if sandbox.KindOf(err) == sandbox.KindNotFound && !made {
		return Sandbox{}, nil
	}
	return sb, err
}

// conclude writes the final record.
func (r *run) conclude(exit ExecExit, err, destroyErr error, sb Sandbox, timings map[string]time.Duration) {
	defer close(r.done)
	why, text := r.cancelled()
	r.mu.Lock()
	rec := r.rec
	r.mu.Unlock()
	rep := &rec.Report
	rep.Phase, rep.Usage, rep.Receipt = PhaseEnded, sb.Usage, sb.Receipt
	rep.Last, rep.Egress = max(rep.Last, sb.Details.Last), sb.Details.Flows
	switch {
	case why != "":
		exit.Code, exit.Reason, exit.Detail = exitKilled, why, text
	case sandbox.KindOf(err) == sandbox.KindGone && sb.Reason != "": // it died under us
		exit.Code, exit.Reason, exit.Detail = exitKilled, sb.Reason, sb.Detail
		if sb.Reason == sandbox.ReasonTimeout {
			exit.Code = exitTimeout
		}
	case err != nil:
		exit.Code, exit.Reason, rep.Error = exitFirebreak, sandbox.ReasonCrashed, runError(err)
	}
	if destroyErr != nil {
		rep.Notes = append(rep.Notes[:len(rep.Notes):len(rep.Notes)], "teardown: "+clip(destroyErr.Error()))
	}
	if exit.ResultError != "" {
		rep.Notes = append(rep.Notes[:len(rep.Notes):len(rep.Notes)], exit.ResultError)
	}
	rec.State, rec.Result, rec.ExitCode, rec.Reason, rec.Detail = store.RunEnded, exit.Result, exit.Code, exit.Reason, exit.Detail
	rec.Timings, rec.Ended = timings, time.Now().UTC()
	for _, a := range rep.Artifacts {
		if a.Error == "" {
			rec.Artifacts = append(rec.Artifacts, store.Artifact{Path: a.Path, Size: a.Size, SHA256: a.SHA256})
		}
	}
	rec.Extra, rec.Kept = rep.pack(), diskUse(r.dir())
	r.o.buryRun(rec)
	r.o.ledger.keep(r.who.Tenant, rec.Kept)
	r.mu.Lock()
	r.rec = rec
	r.mu.Unlock()
	r.o.mu.Lock()
	delete(r.o.runs, r.id)
	r.o.mu.Unlock()
}

// buryRun writes a run's final record. Should that fail, the next start finds
// the run unfinished and calls it lost.
func (o *Orchestrator) buryRun(rec Run) {
	ctx, cancel := context.WithTimeout(context.Background(), openWait)
	defer cancel()
	_, err := o.Store.Tenant(rec.Tenant).EditRun(ctx, rec.ID, func(r *store.Run) error {
		version := r.Version
		*r = rec.Run
		r.Version = version
		return nil
	})
	if err != nil {
		o.Log.Error("the final record of a run could not be written", "run", rec.ID, "error", err)
	}
}

func runError(err error) *RunError {
	e := &RunError{Kind: sandbox.KindOf(err), Message: clip(err.Error())}
	var typed *sandbox.Error
	if errors.As(err, &typed) {
		e.Message, e.Hint = clip(typed.Message()), typed.Hint
	}
	if e.Kind == sandbox.KindNoSpace && e.Hint == "" { // what the run leaves could not be kept
		e.Message, e.Hint = syscall.ENOSPC.Error(), "free space on the disk of the server's data directory"
	}
	return e
}

// cancelWith ends the run early, once, for that reason.
func (r *run) cancelWith(reason sandbox.Reason, detail string) {
	r.mu.Lock()
	if r.reason == "" {
		r.reason, r.detail = reason, detail
	}
	r.mu.Unlock()
	r.cancel(nil)
}

// stop ends the run's goroutine because the server stops. A run whose program
// has started is left to the next server, where there will be one.
func (r *run) stop() {
	r.mu.Lock()
	p := r.rec.Report.Phase
	r.left = !r.o.DestroyOnClose && r.reason == "" && (p == PhaseRunning || p == PhaseCollecting)
	left := r.left
	r.mu.Unlock()
	if left {
		r.cancel(stopping("run"))
		return
	}
	r.cancelWith(sandbox.ReasonLost, "the server was stopped")
}

// leaving reports whether the run is left to the next server: also where this
// one was cut off from everything.
func (r *run) leaving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left
}

func (r *run) cancelled() (sandbox.Reason, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason, r.detail
}

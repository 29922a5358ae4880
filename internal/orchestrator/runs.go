package orchestrator

import (
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxKept is how much of each output stream a run keeps.
const maxKept = 8 << 20

// keeper is a Sink that keeps a run's output in files, the first maxKept bytes
// of each stream. What is beyond is still seen by whoever watches. One that is
// opened again goes on where it was.
type keeper struct {
	files [2]*os.File
	sizes [2]int64
	cut   [2]bool
}

var keptNames = [2]string{"stdout", "stderr"}

func newKeeper(dir string) (*keeper, error) {
	k := &keeper{}
	for i, name := range keptNames {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			k.close()
			return nil, err
		}
		k.files[i] = f
		st, err := f.Stat()
		if err != nil {
			k.close()
			return nil, err
		}
		k.sizes[i] = st.Size()
		k.cut[i] = st.Size() > maxKept-utf8.UTFMax
	}
	return k, nil
}

func (k *keeper) keep(i int, data []byte) error {
	if k.cut[i] {
		return nil
	}
	if room := maxKept - k.sizes[i]; int64(len(data)) > room {
		data, k.cut[i] = data[:room-int64(partial(data[:room]))], true
	}
	n, err := k.files[i].Write(data)
	k.sizes[i] += int64(n)
	return err
}

func (k *keeper) Started(int, uint64) error          { return nil }
func (k *keeper) Stdout(data []byte, _ uint64) error { return k.keep(0, data) }
func (k *keeper) Stderr(data []byte, _ uint64) error { return k.keep(1, data) }

// Taken implements positioned.
func (k *keeper) Taken() (at [2]int64) {
	for i := range at {
		if at[i] = k.sizes[i]; k.cut[i] {
			at[i] = -1
		}
	}
	return at
}

// runSink is the Sink of a run's program.
type runSink struct {
	*keeper
	r *run
}

var (
	_ witness    = runSink{}
	_ positioned = runSink{}
)

// Ended implements witness: from here on the run goes on with its artifacts,
// whichever server does it.
func (s runSink) Ended(exit ExecExit) error {
	s.r.mu.Lock()
	s.r.rec.Report.Exit = &exit
	s.r.mu.Unlock()
	return s.r.phase(PhaseCollecting)
}

// close reports which streams were cut short.
func (k *keeper) close() (cut [2]bool, err error) {
	for _, f := range k.files {
		if f != nil {
			if e := f.Close(); e != nil {
				err = e
			}
		}
	}
	return k.cut, err
}

// run returns a run under way, or nil.
func (o *Orchestrator) run(id sandbox.RunID) *run {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.runs[id]
}

func (o *Orchestrator) runOf(tenant sandbox.TenantID, id string) *run {
	if r := o.run(sandbox.RunID(id)); r != nil && r.who.Tenant == tenant {
		return r
	}
	return nil
}

func noRun(id string) error {
	return sandbox.Errorf("find", sandbox.KindNotFound, "no such run").WithID(id).
		WithHint("run ids begin with \"rn\"; records are kept for a while and then forgotten")
}

// GetRun returns a run, also while it goes on. With wait it returns once the
// run has ended or the wait is over. Errors: KindNotFound.
func (o *Orchestrator) GetRun(ctx context.Context, tenant sandbox.TenantID, id string, wait time.Duration) (Run, error) {
	if r := o.runOf(tenant, id); r != nil {
		if wait > 0 {
			t := time.NewTimer(wait)
			defer t.Stop()
			select {
			case <-r.done:
			case <-t.C:
			case <-ctx.Done():
				return Run{}, sandbox.Wrap("run", id, ctx.Err())
			}
		}
		return r.snapshot(), nil
	}
	if !sandbox.RunID(id).Valid() {
		return Run{}, noRun(id)
	}
	rec, err := o.Store.Tenant(tenant).Run(ctx, sandbox.RunID(id))
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return Run{}, noRun(id)
	}
	return unpackRun(rec), err
}

func unpackRun(rec store.Run) Run {
	r := Run{Run: rec}
	if len(rec.Extra) > 0 {
		if err := json.Unmarshal(rec.Extra, &r.Report); err != nil {
			r.Report = Report{Notes: []string{"details of this record cannot be read: " + err.Error()}}
		}
	}
	return r
}

// StartRun lets a run that awaits its inputs begin. Errors: KindNotFound;
// KindConflict when it does not wait; KindGone when it has ended.
func (o *Orchestrator) StartRun(ctx context.Context, who Caller, id string) (Run, error) {
	r := o.runOf(who.Tenant, id)
	if r == nil {
		rec, err := o.GetRun(ctx, who.Tenant, id, 0)
		if err == nil {
			err = sandbox.Errorf("start", sandbox.KindGone, "the run has ended: %s", rec.Reason).WithID(id).WithHint("create another one")
		}
		return Run{}, err
	}
	if !r.req.Await {
		return Run{}, sandbox.Errorf("start", sandbox.KindConflict, "the run did not ask to await inputs").WithID(id).
			WithHint("create it with await_inputs")
	}
	about := Sandbox{Sandbox: store.Sandbox{ID: r.req.Sandbox.ID, Tenant: who.Tenant}}
	if err := o.record(ctx, who, &about, sandbox.Record{Action: "run.start", Outcome: sandbox.OutcomeAllowed, Object: id}); err != nil {
		return Run{}, err
	}
	r.mu.Lock()
	if !r.began {
		r.began = true
		close(r.start)
	}
	r.mu.Unlock()
	return r.snapshot(), nil
}

// CancelRun ends a run early and returns it when it has ended, or at the end
// of ctx. A run that has ended stays as it is. Errors: KindNotFound; ctx's; those
// of the audit log, with the run ended nevertheless.
func (o *Orchestrator) CancelRun(ctx context.Context, who Caller, id string) (Run, error) {
	r := o.runOf(who.Tenant, id)
	if r == nil {
		return o.GetRun(ctx, who.Tenant, id, 0)
	}
	about := Sandbox{Sandbox: store.Sandbox{ID: r.req.Sandbox.ID, Tenant: who.Tenant}}
	// An end is done all the same, and whoever asked for it is told.
	evidence := o.record(ctx, who, &about, sandbox.Record{Action: "run.cancel", Outcome: sandbox.OutcomeAllowed, Object: id, Reason: sandbox.ReasonOperator})
	r.cancelWith(sandbox.ReasonOperator, "cancelled by "+who.Principal)
	if !waitFor(ctx, r.done) {
		return Run{}, sandbox.Wrap("cancel", id, ctx.Err())
	}
	return r.snapshot(), evidence
}

// RunOutput returns what a run has printed so far, up to 8 MiB of each stream.
// Preconditions: the caller has seen the run, so it may.
func (o *Orchestrator) RunOutput(id sandbox.RunID) (stdout, stderr []byte, err error) {
	var out [2][]byte
	for i, name := range keptNames {
		out[i], err = o.readKept(id, name)
		if err != nil {
			return nil, nil, sandbox.Wrap("run", string(id), err)
		}
	}
	return out[0], out[1], nil
}

func (o *Orchestrator) readKept(id sandbox.RunID, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(o.Runs, string(id), name))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxKept))
}

// OpenArtifact opens what a run left behind, by the path its record gives.
// Errors: KindNotFound.
func (o *Orchestrator) OpenArtifact(ctx context.Context, who Caller, id, path string) (*os.File, Artifact, error) {
	r, err := o.GetRun(ctx, who.Tenant, id, 0)
	if err != nil {
		return nil, Artifact{}, err
	}
	// It concerns what a sandbox left, not the sandbox, whose evidence has ended.
	if _, err := o.Recorder.Record(ctx, sandbox.Record{Class: sandbox.Flow, Tenant: who.Tenant, Principal: who.Principal, Action: "artifact.read",
		Outcome: sandbox.OutcomeAllowed, Object: clip(path), Detail: map[string]string{"run": id, "sandbox": string(r.Sandbox)}}); err != nil {
		return nil, Artifact{}, sandbox.Wrap("artifact", id, err)
	}
	missing := sandbox.Errorf("artifact", sandbox.KindNotFound, "the run has no artifact %.200q", path).WithID(id)
	for _, a := range r.Report.Artifacts {
		if a.Path != path {
			continue
		}
		if a.Error != "" {
			return nil, a, missing.WithHint("it was not collected: %s", a.Error)
		}
		root, err := os.OpenRoot(filepath.Join(o.Runs, id, artifactDir))
		if err != nil {
			return nil, a, sandbox.Wrap("artifact", id, err)
		}
		defer root.Close()
		f, err := root.Open(filepath.FromSlash(path))
		if err != nil {
			return nil, a, sandbox.Wrap("artifact", id, err)
		}
		if info, err := f.Stat(); err != nil || info.Mode().Type() != fs.FileMode(0) {
			f.Close()
			return nil, a, missing
		}
		return f, a, nil
	}
	return nil, Artifact{}, missing.WithHint("the run's artifacts are listed in its record")
}

// unfinishedRuns returns the runs an earlier server did not see to their end.
func (o *Orchestrator) unfinishedRuns(ctx context.Context) (map[sandbox.RunID]*run, error) {
	recs, err := o.Store.System().UnfinishedRuns(ctx)
	if err != nil {
		return nil, err
	}
	runs := map[sandbox.RunID]*run{}
	for _, rec := range recs {
		rep := unpackRun(rec)
		r := o.makeRun(rec.ID, Caller{Tenant: rec.Tenant, Principal: rec.Principal},
			RunRequest{ID: rec.ID, Sandbox: CreateRequest{ID: rec.Sandbox, run: rec.ID}, Exec: ExecRequest{User: rep.Report.User}, Artifacts: rep.Report.Wanted})
		r.rec = rep
		runs[rec.ID] = r
	}
	return runs, nil
}

// goesOn reports whether the run can go on in its sandbox, if that lives: its
// program is one of procs, or has ended. Its answer is remembered.
func (r *run) goesOn(procs []*entry) bool {
	if r != nil {
		rep := r.rec.Report
		r.adopted = rep.Phase == PhaseCollecting && rep.Exit != nil ||
			rep.Phase == PhaseRunning && slices.ContainsFunc(procs, func(e *entry) bool { return e.Run == r.id })
	}
	return r != nil && r.adopted
}

// recoverRuns goes on with the runs whose sandboxes were adopted, and ends the
// others.
func (o *Orchestrator) recoverRuns(ctx context.Context, runs map[sandbox.RunID]*run) {
	for _, r := range runs {
		l := o.find(r.who.Tenant, string(r.req.Sandbox.ID))
		if r.adopted && l != nil {
			o.mu.Lock()
			o.runs[r.id] = r
			o.mu.Unlock()
			o.work.Go(func() { r.carryOn(l) })
			continue
		}
		r.cancel(nil)
		if r.rec.Report.Exit != nil {
			r.conclude(o.outcome(ctx, r))
		} else {
			o.loseRun(ctx, r.rec)
		}
	}
}

// outcome is how a run ended whose program had ended when the server stopped,
// and whose sandbox is gone by now: with the program's own exit, unless the
// sandbox's end says that somebody cancelled the run.
func (o *Orchestrator) outcome(ctx context.Context, r *run) (exit ExecExit, err, destroyErr error, sb Sandbox, timings map[string]time.Duration) {
	exit = *r.rec.Report.Exit
	sb, destroyErr = o.Get(ctx, r.who.Tenant, string(r.req.Sandbox.ID))
	if sb.Reason == sandbox.ReasonOperator && exit.Reason != sb.Reason {
		exit.Code, exit.Reason, exit.Detail = exitKilled, sb.Reason, sb.Detail
	}
	if rep := &r.rec.Report; len(rep.Wanted) > 0 && rep.Artifacts == nil {
		rep.Notes = append(slices.Clip(rep.Notes), "artifacts were not collected: the sandbox ended while the server was stopped")
	}
	return exit, nil, destroyErr, sb, map[string]time.Duration{"create": sb.Details.Boot, "execute": exit.Duration}
}

// carryOn is carryOut for a run that an earlier server began.
func (r *run) carryOn(l *live) {
	defer r.cancel(nil)
	timings := map[string]time.Duration{"create": l.snapshot().Details.Boot}
	var exit ExecExit
	done, err := l.hold(r.ctx)
	if err == nil {
		defer done()
		if e := r.rec.Report.Exit; e != nil {
			exit = *e
			if x := l.execOf(r.id); x != nil {
				err = x.settle(r.ctx, exit)
			}
		} else {
			exit, err = r.watch(func(s Sink) (ExecExit, error) {
				x := l.execOf(r.id)
				if x == nil {
					return ExecExit{}, sandbox.Errorf("run", sandbox.KindGone, "the run's program is not known any more").WithID(string(r.id))
				}
				return x.resume(r.ctx, s)
			})
		}
		timings["execute"] = exit.Duration
	}
	r.finish(exit, err, true, timings)
}

// execOf returns the execution of a run's program, or nil.
func (l *live) execOf(id sandbox.RunID) *execution {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.execs {
		if x.entry.Run == id {
			return x
		}
	}
	return nil
}

// loseRun writes the final record of a run that cannot go on.
func (o *Orchestrator) loseRun(ctx context.Context, r Run) {
	r.State, r.Reason, r.Detail = store.RunEnded, sandbox.ReasonLost, "the server stopped while it was under way"
	r.ExitCode, r.Ended, r.Report.Phase = exitFirebreak, time.Now().UTC(), PhaseEnded
	r.Report.Error = &RunError{Kind: sandbox.KindUnavailable, Message: r.Detail, Hint: "run it again"}
	if sb, err := o.Get(ctx, r.Tenant, string(r.Sandbox)); err == nil {
		r.Report.Usage, r.Report.Receipt, r.Report.Last = sb.Usage, sb.Receipt, max(r.Report.Last, sb.Details.Last)
	} else { // it never had a sandbox, whose end would end what is watched
		o.publishJSON(r.Sandbox, event.StateChange, "", StateEvent{State: store.Ended, Reason: r.Reason, Detail: r.Detail}, true)
	}
	r.Extra, r.Kept = r.Report.pack(), diskUse(filepath.Join(o.Runs, string(r.ID)))
	o.buryRun(r)
}

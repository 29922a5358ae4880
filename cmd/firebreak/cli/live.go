package cli

import (
	"context"
	"errors"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// grace is how much longer than its program a sandbox may live: for its inputs
// and artifacts, and in case we die before we remove it.
const grace = 10 * time.Minute

// abandoned is when a server takes a sandbox for ours no longer: a live run is
// always using it, so this only counts once we have died.
const abandoned = time.Minute

// What is kept of one run, as the server does it.
const (
	maxArtifact  = 64 << 20
	maxArtifacts = 256 << 20
)

// destroyWait bounds the removal of a sandbox that nobody waits for any more.
const destroyWait = 30 * time.Second

// liveRun is a run whose output goes straight from the program to our stdout.
// It is put together from the sandbox's own operations and not a run of the
// server's: a run's output travels as events, which drop what a slow reader
// misses, while an exec waits for its reader, so no byte is ever lost.
type liveRun struct {
	app  *App
	sb   *client.Sandbox
	tail *lastByte

	exit      client.Exit
	destroyed *v1.DestroySandboxResponse
	destroyMS float64
	flows     []*v1.EgressFlow // what it wanted to reach
	more      int64
}

func (a *App) runLive(ctx context.Context, s *session, o client.RunOptions, keep artifacts, verbose bool) (end func() error, err error) {
	if t := o.Program.Timeout; t > 0 {
		o.Sandbox.Timeout = t + grace
	}
	o.Sandbox.IdleTimeout = abandoned
	if o.Sandbox.Language == "" { // so that the template is one that can run it
		o.Sandbox.Language = o.Program.Language
	}
	r := &liveRun{app: a, tail: &lastByte{w: a.Err}}
	if r.sb, err = s.Create(ctx, o.Sandbox); err != nil {
		return nil, err
	}
	err = r.execute(ctx, o)
	if err == nil {
		err = r.collect(ctx, keep)
	}
	if derr := r.destroy(ctx); derr != nil {
		return nil, errors.Join(err, derr)
	}
	if sandbox.KindOf(err) == sandbox.KindGone && r.destroyed.GetReason() != "" {
		err = r.diedBefore() // the sandbox did, before or between our calls
	}
	if o.Sandbox.Network != nil || len(o.Sandbox.Bindings) > 0 {
		r.report(ctx)
	}
	if err != nil {
		r.tail.newline()
		r.app.tellDenied(r.flows, r.more)
		return nil, err
	}
	return func() error { return r.end(verbose) }, nil
}

func (r *liveRun) execute(ctx context.Context, o client.RunOptions) error {
	for _, in := range o.Inputs {
		switch err := r.sb.Put(ctx, in); {
		case sandbox.KindOf(err) == sandbox.KindDenied:
			return sandbox.Errorf("--input", sandbox.KindDenied, "%s cannot be written in the sandbox", in.Path).
				WithHint("its user may write in the home, where relative paths start, and in /tmp")
		case err != nil:
			return err
		}
	}
	var err error
	r.exit, err = r.sb.Exec(ctx, o.Program, r.app.Out, r.tail)
	return unstarted(o.Program, err)
}

// collect copies artifacts out of the sandbox. One that is not there is said so
// and changes nothing: the program's exit code is what tells how it went. A
// sandbox that a limit ended has none.
func (r *liveRun) collect(ctx context.Context, keep artifacts) error {
	d := &downloader{app: r.app, sb: r.sb, caps: &caps{file: maxArtifact, total: maxArtifacts, entries: 1000}}
	for _, t := range keep {
		st, err := r.sb.Stat(ctx, t.src)
		if err == nil {
			err = d.save(ctx, st.GetType(), t.src, t.dst)
		}
		switch kind := sandbox.KindOf(err); {
		case err == nil:
		case kind == sandbox.KindNotFound, kind == sandbox.KindDenied, kind == sandbox.KindInvalid, kind == sandbox.KindTooLarge,
			kind == sandbox.KindGone && r.exit.Reason != sandbox.ReasonDone:
			var se *sandbox.Error
			errors.As(err, &se)
			r.tail.newline()
			r.app.say("artifact %s: %s", t.src, oneLine(se.Message()))
		default:
			return err
		}
	}
	return nil
}

// destroy removes the sandbox, also when ctx has ended.
func (r *liveRun) destroy(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWait)
	defer cancel()
	start := time.Now()
	r.destroyed, err = r.sb.Destroy(ctx)
	r.destroyMS = float64(time.Since(start)) / float64(time.Millisecond)
	return err
}

// report asks what the program wanted to reach, now that all of it has been told.
// Without an answer there is nothing to say about it.
func (r *liveRun) report(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWait)
	defer cancel()
	if sb, err := r.sb.Info(ctx); err == nil {
		r.flows, r.more = sb.GetEgress(), sb.GetEgressMore()
	}
}

// diedBefore takes the sandbox's own end for the program's.
func (r *liveRun) diedBefore() error {
	reason := r.destroyed.GetReason()
	r.exit = client.Exit{Code: exitKilled, Reason: sandbox.Reason(reason)}
	if r.exit.Reason == sandbox.ReasonDone {
		return sandbox.Errorf("run", sandbox.KindGone, "the sandbox ended before the program").WithID(r.sb.ID())
	}
	return nil
}

// end says how it went, once nothing is left.
func (r *liveRun) end(verbose bool) error {
	code := exitCode(string(r.exit.Reason), r.exit.Code)
	if verbose {
		r.tail.newline()
		sb, u := r.sb.Created(), r.destroyed.GetUsage()
		r.app.say("%s (%s): create %.0f ms, execute %.0f ms, destroy %.0f ms; cpu %.0f ms, memory peak %s", sb.GetBackend(), sb.GetIsolation(),
			sb.GetCreateMs(), float64(r.exit.Duration)/float64(time.Millisecond), r.destroyMS, u.GetCpuMs(), sandbox.FormatSize(u.GetMemoryPeakBytes()))
		for _, n := range sb.GetNotes() {
			r.app.say("note: %s", n)
		}
	}
	if len(r.flows) > 0 {
		r.tail.newline()
		r.app.tellDenied(r.flows, r.more)
	}
	if line := endLine(string(r.exit.Reason), r.exit.Detail, code); line != "" {
		r.tail.newline()
		r.app.say("%s", line)
	}
	return r.app.verdict(code, r.destroyed.GetReceipt())
}

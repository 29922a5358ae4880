package orchestrator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// conclude makes the end of the process known: to the sink if it must know
// first, to the evidence, to whoever watches; then nothing remembers it. err is
// why it was given up, if it was.
func (x *execution) conclude(ctx context.Context, exit ExecExit, err error) (ExecExit, error) {
	if err == nil {
		exit.Result, exit.ResultError = x.result(ctx)
		if w, ok := x.sink.(witness); ok {
			err = w.Ended(exit)
		}
	}
	failpoint.Hit("exec/after-exit")
	if x.remembered() {
		end := exit
		if len(end.Result) > maxNotedJSON {
			end = *end.without("it was larger than " + sandbox.FormatSize(maxNotedJSON) + ", and the server was restarted; the events have it")
		}
		if err := x.amend(func(e *entry) { e.End = &end }); err != nil {
			x.l.o.Log.Warn("the next server will not know how a process ended", "sandbox", x.l.id, "pid", x.entry.PID, "error", err)
		}
		failpoint.Hit("exec/after-noted")
	}
	err = errors.Join(err, x.report(ctx, &exit))
	failpoint.Hit("exec/after-report")
	x.l.mu.Lock()
	x.end = &exit
	x.l.mu.Unlock()
	x.delist()
	x.over.Do(func() { close(x.gone) })
	failpoint.Hit("exec/after-end")
	if x.proc != nil {
		x.proc.Release()
	}
	x.tidy(x.s)
	return exit, err
}

// remembered reports whether the end is to be known after this server's: nobody
// else is told of it.
func (x *execution) remembered() bool {
	return x.entry.Background && x.entry.Context == nil && x.entry.Run == "" && !x.l.o.Alone
}

// tidy removes what the process left for us in the guest. What it cannot remove
// goes with the sandbox.
func (x *execution) tidy(s *guest.Session) {
	if c, ok := x.stdin.(io.Closer); ok && x.adopted {
		c.Close()
	}
	if s == nil || s.Err() != nil || x.entry.Dir == "" && !x.results {
		return
	}
	ctx, cancel := context.WithTimeout(x.l.o.ctx, openWait)
	defer cancel()
	if x.entry.Dir != "" {
		_ = s.Remove(ctx, x.entry.Dir, guest.RemoveOptions{User: x.entry.User, Recursive: true, Force: true})
	}
	if x.results {
		_ = s.Remove(ctx, guest.ResultPath(x.entry.ID), guest.RemoveOptions{User: x.entry.User, Force: true})
	}
}

// oomKills is how often the kernel has killed for memory in this sandbox so
// far; -1 when unknown.
func (l *live) oomKills(ctx context.Context) int {
	l.mu.Lock()
	inst := l.inst
	l.mu.Unlock()
	if inst == nil {
		return -1
	}
	if i, ok := inst.(interface{ OOMKills() int }); ok { // it need not look at all the rest
		return i.OOMKills()
	}
	st, err := inst.Status(ctx)
	if err != nil {
		return -1
	}
	return st.Usage.OOMKills
}

// classify turns how the guest says the process ended into what callers are
// told, with the host's own evidence where the guest cannot know.
func (x *execution) classify(ctx context.Context, g guest.Exit, err error) ExecExit {
	exit := ExecExit{Code: g.Code, Reason: g.Reason, Detail: g.Detail, Duration: time.Since(x.entry.Begun)}
	if x.adopted && g.Duration > 0 {
		exit.Duration = g.Duration // nobody here saw it end
	}
	x.l.mu.Lock()
	limits, killer, verdict := x.l.sb.Limits, x.killer, x.verdict
	x.l.mu.Unlock()
	switch {
	case err != nil && g.Reason == sandbox.ReasonTimeout: // the guest did not keep its deadline
		x.s.Close()
	case err != nil:
		return x.broken(exit, err)
	case g.Reason == "":
		exit.Reason = sandbox.ReasonDone
	}
	switch {
	case verdict != nil && g.Signal == sigKill:
		exit.Reason, exit.Detail = verdict.Reason, verdict.Detail
		return exit
	case exit.Reason != sandbox.ReasonDone || g.Code != exitKilled:
	case killer != "" && g.Signal == sigKill:
		exit.Reason, exit.Detail = sandbox.ReasonOperator, "killed by "+killer
	case x.outOfMemory(ctx, g):
		exit.Reason = sandbox.ReasonMemory
	}
	switch exit.Reason {
	case sandbox.ReasonTimeout:
		exit.Code, exit.Detail = exitTimeout, "limit "+short(x.entry.Timeout)
	case sandbox.ReasonMemory, sandbox.ReasonPIDs:
		exit.Code = exitKilled
		exit.Detail = limitDetail(exit.Reason, limits)
	case sandbox.ReasonDisk:
		exit.Detail = pick(limitDetail(exit.Reason, limits), exit.Detail)
	}
	return exit
}

// outOfMemory decides whether a process that ended with 137 was the kernel's
// victim. One killed by a signal nobody sent was, if the kernel ever killed here:
// the victim may have been a process that gVisor kept ready for the next program.
// One that only returns 137, as a shell does for its child, was if the kernel
// killed in its time.
func (x *execution) outOfMemory(ctx context.Context, g guest.Exit) bool {
	kills := x.l.oomKills(ctx)
	return kills > 0 && (g.Signal == sigKill || x.entry.OOM >= 0 && kills > x.entry.OOM)
}

// broken explains a process whose session ended before it did: by the end of
// the sandbox, whose reason is then the process's, or by itself.
func (x *execution) broken(exit ExecExit, err error) ExecExit {
	exit.Code, exit.Reason, exit.Detail = exitKilled, sandbox.ReasonCrashed, "the connection to the agent broke: "+clip(err.Error())
	t := time.NewTimer(settleWait)
	defer t.Stop()
	select {
	case <-x.l.dying:
		x.l.mu.Lock()
		defer x.l.mu.Unlock()
		exit.Reason, exit.Detail = x.l.ending.reason, x.l.ending.detail
		if exit.Reason == sandbox.ReasonTimeout {
			exit.Code = exitTimeout
		}
	case <-x.l.o.ctx.Done():
		exit.Reason, exit.Detail = sandbox.ReasonLost, "the server was stopped"
	case <-t.C:
	}
	return exit
}

// result reads what the program reported. Nothing it does wrong is an error of
// the exec: why says what.
func (x *execution) result(ctx context.Context) (result json.RawMessage, why string) {
	if !x.results || x.s == nil || x.s.Err() != nil {
		return nil, ""
	}
	ctx, cancel := context.WithTimeout(ctx, openWait)
	defer cancel()
	b, err := x.s.ReadAll(ctx, guest.ResultPath(x.entry.ID), x.entry.User, guest.MaxResult)
	switch kind := sandbox.KindOf(err); {
	case kind == sandbox.KindNotFound:
		return nil, ""
	case kind == sandbox.KindTooLarge:
		why = "it is larger than " + sandbox.FormatSize(guest.MaxResult)
	case err != nil:
		why = clip(err.Error())
	case len(bytes.TrimSpace(b)) == 0:
		return nil, ""
	default:
		if err := checkResult(b); err != nil {
			why = err.Error()
		}
	}
	if why != "" {
		return nil, "the reported result was ignored: " + why
	}
	return bytes.TrimSpace(b), ""
}

// report records the end, a kill as a gate, an ordinary exit as flow, and then
// publishes it.
func (x *execution) report(ctx context.Context, exit *ExecExit) error {
	body := ExitEvent{Code: exit.Code, Reason: exit.Reason, Detail: exit.Detail, Duration: float64(exit.Duration) / float64(time.Millisecond)}
	r := sandbox.Record{Class: sandbox.Flow, Action: "process.exit", Outcome: sandbox.OutcomeDone, Reason: exit.Reason,
		Detail: map[string]string{"exit_code": strconv.Itoa(exit.Code), "duration": exit.Duration.Round(time.Microsecond).String()}}
	limit := exit.Reason != sandbox.ReasonDone
	if limit {
		r.Class, r.Action = sandbox.Gate, "process.kill"
		r.Detail["detail"] = clip(exit.Detail)
	}
	err := x.l.record(context.WithoutCancel(ctx), x.who, r)
	failpoint.Hit("exec/after-exit-evidence")
	if exit.Result != nil {
		x.l.o.publish(x.l.id, event.Event{Type: event.Result, Process: x.process(), Data: exit.Result})
	}
	if limit {
		x.l.o.publishJSON(x.l.id, event.Limit, x.process(), body, false)
	}
	exit.Event = x.l.o.publishJSON(x.l.id, event.Exit, x.process(), body, false)
	return err
}

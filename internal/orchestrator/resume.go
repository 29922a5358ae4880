package orchestrator

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// nobody is the Sink of a process whose caller went away with the server that
// began it. What it prints goes on among the sandbox's events.
type nobody struct{}

func (nobody) Started(int, uint64) error   { return nil }
func (nobody) Stdout([]byte, uint64) error { return nil }
func (nobody) Stderr([]byte, uint64) error { return nil }

// positioned is a Sink that remembers what it has taken before; -1 for a channel
// of which it takes no more.
type positioned interface {
	Taken() [2]int64
}

// resume follows a process that an earlier server began, from the first byte it
// had not dealt with, to its end.
func (x *execution) resume(ctx context.Context, sink Sink) (ExecExit, error) {
	failpoint.Hit("resume/begin")
	free, err := x.l.o.admitExec(x.l.tenant, true) // counted, never refused
	if err != nil {
		return ExecExit{}, err
	}
	defer free()
	x.sink = sink
	has, err := x.l.o.Events.Printed(x.l.id, x.process())
	switch {
	case err != nil:
		x.l.o.Log.Warn("events of a process", "sandbox", x.l.id, "error", err)
		fallthrough
	case !has.Known: // dropped; what the guest still has is the best there is
		x.published = [2]int64{-1, -1}
	case has.Ended: // all is said and done, but for forgetting it
		x.delist()
		x.over.Do(func() { close(x.gone) })
		return ExecExit{}, sandbox.Errorf("exec", sandbox.KindGone, "the process has ended").WithID(string(x.l.id))
	default:
		x.published = [2]int64{has.Stdout, has.Stderr}
	}
	x.at = x.published
	if p, ok := sink.(positioned); ok {
		for c, at := range p.Taken() {
			if at >= 0 && (at < x.at[c] || x.at[c] < 0) {
				x.at[c] = at
			}
		}
	}
	if x.entry.Stdin == stdinKept {
		f, err := x.l.o.journal.stdin(x.entry)
		if err != nil {
			x.entry.Stdin = stdinLive // as good as lost
		} else {
			x.stdin = spool{f}
		}
	}
	exit, err := x.run(ctx)
	if err == nil || sandbox.KindOf(err) != sandbox.KindUnavailable {
		x.l.o.Log.Info("process of an earlier server ended", "sandbox", x.l.id, "pid", x.entry.PID, "reason", exit.Reason, "error", err)
	}
	return exit, err
}

// settle makes an end known, as far as it is not, that an earlier server saw.
func (x *execution) settle(ctx context.Context, exit ExecExit) error {
	has, err := x.l.o.Events.Printed(x.l.id, x.process())
	if err == nil && !has.Ended {
		err = x.report(ctx, &exit)
	}
	x.l.mu.Lock()
	x.end = &exit
	x.l.mu.Unlock()
	x.delist()
	x.over.Do(func() { close(x.gone) })
	return err
}

// loseProcesses says how the processes of a sandbox ended that died, or is
// about to, while nobody followed them.
func (l *live) loseProcesses(ctx context.Context, procs []*entry, reason sandbox.Reason, detail string) {
	l.recall(ctx, procs)
	for _, e := range procs {
		if e.End != nil {
			continue
		}
		x := l.adopted(e)
		exit := ExecExit{Code: exitKilled, Reason: reason, Detail: detail, Duration: time.Since(e.Begun)}
		if reason == sandbox.ReasonTimeout {
			exit.Code = exitTimeout
		}
		if err := x.settle(ctx, exit); err != nil {
			l.o.Log.Error("the end of a process could not be recorded", "sandbox", l.id, "error", err)
		}
	}
}

// recall remembers how the processes ended that an earlier server saw end, and
// makes that known as far as it had not got there.
func (l *live) recall(ctx context.Context, procs []*entry) {
	over := slices.DeleteFunc(slices.Clone(procs), func(e *entry) bool { return e.End == nil })
	slices.SortFunc(over, func(a, b *entry) int { return a.Begun.Add(a.End.Duration).Compare(b.Begun.Add(b.End.Duration)) })
	for _, e := range over {
		if err := l.adopted(e).settle(ctx, *e.End); err != nil {
			l.o.Log.Error("the end of a process could not be recorded", "sandbox", l.id, "error", err)
		}
	}
}

// spool is a standard input that the journal kept.
type spool struct{ *os.File }

// Size implements inMemory. One that cannot be measured is empty.
func (s spool) Size() int64 {
	st, err := s.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

package orchestrator

import (
	"context"
	"strconv"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// terminal is the size of the process's terminal; nil without one.
func (x *execution) terminal() *guest.Size {
	x.l.mu.Lock()
	defer x.l.mu.Unlock()
	return x.entry.PTY
}

// eventType is of what the process prints on a channel.
func (x *execution) eventType(channel int) event.Type {
	if channel == chanStdout && x.terminal() != nil {
		return event.PTY
	}
	return eventTypes[channel]
}

// ResizeProcess changes the size of the terminal of the process that which names;
// what runs in its foreground gets SIGWINCH. Errors: KindNotFound, KindGone when it
// has ended, KindConflict for one without a terminal, KindInvalid.
func (o *Orchestrator) ResizeProcess(ctx context.Context, who Caller, ref, which string, size guest.Size) (Process, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Process{}, err
	}
	defer done()
	x, p, err := l.alive(which)
	if err == nil {
		err = size.Check()
	}
	if err == nil && p.PTY == nil {
		err = sandbox.Errorf("resize", sandbox.KindConflict, "process %d has no terminal", p.PID).WithHint("start it with one")
	}
	if err != nil {
		return p, sandbox.Wrap("resize", string(l.id), err)
	}
	if err := l.record(ctx, who, sandbox.Record{Action: "process.resize", Outcome: sandbox.OutcomeAllowed, Object: strconv.Itoa(p.PID),
		Detail: map[string]string{"terminal": sizeText(size)}}); err != nil {
		return p, err
	}
	s, err := l.session(ctx)
	if err == nil {
		err = l.settle(s, s.Resize(ctx, x.entry.ID, size))
	}
	if err != nil {
		return p, err
	}
	l.mu.Lock() // not in the journal: the terminal itself keeps its size
	x.entry.PTY, p.PTY = &size, &size
	l.mu.Unlock()
	return p, nil
}

func sizeText(s guest.Size) string { return strconv.Itoa(s.Cols) + "x" + strconv.Itoa(s.Rows) }

package orchestrator

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Process is a program of a sandbox, running or lately ended, as callers see it.
type Process struct {
	PID        int    // in the sandbox
	Tag        string // the caller's own name for it
	Program    string // without arguments: they may hold secrets
	User       string
	Begun      time.Time
	Timeout    time.Duration // 0: none
	Background bool          // begun by StartProcess
	Stdin      bool          // WriteStdin works
	PTY        *guest.Size   // of its terminal; nil without one
	Event      uint64        // id of its first event; 0 where that is not known any more
	Exit       *ExecExit     // nil while it runs
}

// StartRequest starts a program in the background.
type StartRequest struct {
	ExecRequest // Stdin is not used; Timeout nil is none
	Tag         string
	// Follower takes its output from the first byte, and slows it if it is slow;
	// nil: nobody does. One that fails is let go of, and the program goes on.
	Follower Follower
}

// Follower is a Sink that is told of the end, too: what the program's exit was,
// or why this server cannot tell.
type Follower interface {
	Sink
	Over(ExecExit, error)
}

// leaving is a Sink that may go away: from its first error on it is nobody.
type leaving struct {
	to   Sink
	gone bool
}

// Started implements Sink.
func (t *leaving) Started(pid int, id uint64) error { return t.pass(t.to.Started(pid, id)) }

// Stdout implements Sink.
func (t *leaving) Stdout(data []byte, id uint64) error {
	if t.gone {
		return nil
	}
	return t.pass(t.to.Stdout(data, id))
}

// Stderr implements Sink.
func (t *leaving) Stderr(data []byte, id uint64) error {
	if t.gone {
		return nil
	}
	return t.pass(t.to.Stderr(data, id))
}

func (t *leaving) pass(err error) error {
	t.gone = t.gone || err != nil
	return nil
}

// What is remembered of a sandbox's ended processes: how many, how much of what
// they reported, and the largest of that which the next server is told, too. All of
// it is among the events besides.
const (
	maxEnded     = 256
	maxReported  = 2 << 20
	maxNotedJSON = 16 << 10
)

// StartProcess starts a program and returns when it runs. Nobody needs to stay:
// what it prints is among the sandbox's events, a bounded amount, oldest dropped
// first, and it goes on over broken connections and restarts of the server, to
// its end, its deadline or the sandbox's. While it runs the sandbox is not idle.
//
// A Follower's Over is called exactly if StartProcess returned no error.
//
// Errors: those of Exec; KindConflict when a running process has the tag.
func (o *Orchestrator) StartProcess(ctx context.Context, who Caller, ref string, req StartRequest) (Process, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Process{}, err
	}
	free, err := o.admitExec(who.Tenant, false)
	if err != nil {
		done()
		return Process{}, err
	}
	end := func() { free(); done() }
	x, err := l.start(ctx, who, req)
	if err != nil {
		end()
		return Process{}, err
	}
	shown := x.show()
	o.work.Go(func() {
		defer end()
		exit, err := x.run(o.ctx) // its end is evidence and an event
		if req.Follower != nil {
			req.Follower.Over(exit, err)
		}
	})
	return shown, nil
}

// start begins a program in the background.
func (l *live) start(ctx context.Context, who Caller, req StartRequest) (*execution, error) {
	if err := l.claim(req.Tag); err != nil {
		return nil, err
	}
	defer l.unclaim(req.Tag)
	req.Stdin = nil
	if req.Timeout == nil {
		req.Timeout = new(time.Duration)
	}
	var sink Sink = nobody{}
	if req.Follower != nil {
		sink = &leaving{to: req.Follower}
	}
	x := l.execution(who, sink, &entry{Tag: req.Tag, Background: true})
	if err := l.prepare(ctx, req.ExecRequest, x); err != nil {
		return nil, err
	}
	return x, x.announce()
}

// claim reserves a tag while a process with it starts. Errors: KindConflict.
func (l *live) claim(tag string) error {
	if tag == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.claimed[tag]
	for _, x := range l.execs {
		taken = taken || x.entry.Tag == tag
	}
	if taken {
		return sandbox.Errorf("start", sandbox.KindConflict, "a running process has the tag %q", clip(tag)).WithID(string(l.id)).
			WithHint("choose another tag, or end that one first")
	}
	if l.claimed == nil {
		l.claimed = map[string]bool{}
	}
	l.claimed[tag] = true
	return nil
}

func (l *live) unclaim(tag string) {
	l.mu.Lock()
	delete(l.claimed, tag)
	l.mu.Unlock()
}

// show is x for callers.
func (x *execution) show() Process {
	x.l.mu.Lock()
	defer x.l.mu.Unlock()
	return x.showLocked()
}

func (x *execution) showLocked() Process {
	e := x.entry
	return Process{PID: e.PID, Tag: e.Tag, Program: e.Program, User: e.User, Begun: e.Begun, Timeout: e.Timeout,
		Background: e.Background, Stdin: e.Stdin == stdinOpen && !e.Closed && e.Context == nil, PTY: e.PTY, Event: x.first}
}

// past is a process that has ended.
type past struct {
	Process
	entry *entry
}

// retire remembers x as ended, once, and returns those that it does not remember
// any more for that. Preconditions: l.mu is held.
func (l *live) retire(x *execution) (stale []*entry) {
	if x.end == nil || x.retired {
		return nil
	}
	x.retired = true
	p := x.showLocked()
	p.Stdin, p.Exit = false, x.end
	if len(l.ended) >= maxEnded {
		stale = append(stale, l.ended[0].entry)
		l.ended = l.ended[1:]
	}
	l.ended = append(slices.Clip(l.ended), past{p, x.entry})
	left := maxReported
	for i, p := range slices.Backward(l.ended) {
		if left -= len(p.Exit.Result); left < 0 && p.Exit.Result != nil {
			l.ended[i].Exit = p.Exit.without("more was reported since; the events have it")
		}
	}
	return stale
}

// without is the exit without what was reported, and why.
func (e ExecExit) without(why string) *ExecExit {
	e.Result, e.ResultError = nil, "the reported result is not kept: "+why
	return &e
}

// entries are the processes that may be in the journal.
func (l *live) entries() (all []*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.ended {
		all = append(all, p.entry)
	}
	for _, x := range l.execs {
		all = append(all, x.entry)
	}
	return all
}

// ListProcesses returns the programs of a live sandbox that run, oldest first, and
// before them those that ended lately: of those in the background also what an
// earlier server saw end, of others what this one did. Errors:
// those of finding the sandbox.
func (o *Orchestrator) ListProcesses(ctx context.Context, tenant sandbox.TenantID, ref string) ([]Process, error) {
	l, done, err := o.look(ctx, tenant, ref)
	if err != nil {
		return nil, err
	}
	defer done()
	l.mu.Lock()
	defer l.mu.Unlock()
	var running []Process
	for _, x := range l.execs {
		running = append(running, x.showLocked())
	}
	slices.SortFunc(running, func(a, b Process) int { return cmp.Or(a.Begun.Compare(b.Begun), a.PID-b.PID) })
	all := make([]Process, 0, len(l.ended)+len(running))
	for _, p := range l.ended {
		all = append(all, p.Process)
	}
	return append(all, running...), nil
}

// GetProcess returns the process that which names, by pid or tag: the running one
// or, without that, the one that ended last. With wait, it is asked for once the
// process has ended or that time is over. Errors: KindNotFound, those of finding
// the sandbox, ctx's.
func (o *Orchestrator) GetProcess(ctx context.Context, tenant sandbox.TenantID, ref, which string, wait time.Duration) (Process, error) {
	l, done, err := o.look(ctx, tenant, ref)
	if err != nil {
		return Process{}, err
	}
	defer done()
	x, p, err := l.process(which)
	if err != nil || x == nil || wait <= 0 {
		return p, err
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-x.gone:
		l.mu.Lock()
		defer l.mu.Unlock()
		p = x.showLocked()
		p.Exit = x.end
	case <-t.C:
	case <-ctx.Done():
		return Process{}, sandbox.Wrap("wait", string(l.id), ctx.Err())
	}
	return p, nil
}

// process finds one; x is nil when it has ended.
func (l *live) process(which string) (x *execution, p Process, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	match := func(p Process) bool { return which == strconv.Itoa(p.PID) || p.Tag != "" && p.Tag == which }
	for _, x := range l.execs {
		if p := x.showLocked(); match(p) {
			return x, p, nil
		}
	}
	for _, p := range slices.Backward(l.ended) {
		if match(p.Process) {
			return nil, p.Process, nil
		}
	}
	return nil, Process{}, sandbox.Errorf("find process", sandbox.KindNotFound, "no process %q in this sandbox", clip(which)).
		WithID(string(l.id)).WithHint("list the sandbox's processes; an ended one is remembered for a while")
}

// SignalProcess sends a signal, by its Linux number, to the process group of the
// process that which names. SIGKILL also reaches descendants that left the group;
// the process's reason is then operator. Errors: KindNotFound, KindGone when it
// has ended, KindInvalid.
func (o *Orchestrator) SignalProcess(ctx context.Context, who Caller, ref, which string, sig int) (Process, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Process{}, err
	}
	defer done()
	x, p, err := l.alive(which)
	if err != nil {
		return p, err
	}
	if err := l.record(ctx, who, sandbox.Record{Action: "process.signal", Outcome: sandbox.OutcomeAllowed, Object: strconv.Itoa(p.PID),
		Detail: map[string]string{"signal": strconv.Itoa(sig)}}); err != nil {
		return p, err
	}
	if sig == sigKill {
		l.mu.Lock()
		x.killer = who.Principal
		l.mu.Unlock()
	}
	s, err := l.session(ctx)
	if err == nil {
		err = l.settle(s, s.Signal(ctx, x.entry.ID, sig))
	}
	if err != nil && sig == sigKill { // whatever ends it now, it was not this
		l.mu.Lock()
		x.killer = ""
		l.mu.Unlock()
	}
	return p, err
}

// alive is process for one that has not ended.
func (l *live) alive(which string) (*execution, Process, error) {
	x, p, err := l.process(which)
	if err == nil && x == nil {
		err = sandbox.Errorf("find process", sandbox.KindGone, "process %d has ended: %s", p.PID, p.Exit.Reason).WithID(string(l.id))
	}
	return x, p, err
}

// WriteStdin appends to the standard input of a process that was started with it
// open, and with end closes that. To one with a terminal it is what is typed, ^C
// and ^D included, and end hangs up. What it has accepted reaches the process, also
// over a restart of the server, as far as the process reads it. Errors:
// KindNotFound, KindGone, KindConflict for a process without an open standard
// input, KindTooLarge beyond 64 MiB in all.
//
// It is not idempotent: a caller that got no answer does not know.
func (o *Orchestrator) WriteStdin(ctx context.Context, who Caller, ref, which string, data []byte, end bool) (Process, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Process{}, err
	}
	defer done()
	x, p, err := l.alive(which)
	if err != nil {
		return p, err
	}
	in, ok := x.stdin.(*input)
	if !ok || !p.Stdin {
		return p, sandbox.Errorf("stdin", sandbox.KindConflict, "the standard input of process %d is not open", p.PID).WithID(string(l.id)).
			WithHint("start it with its standard input open, and do not close that")
	}
	r := sandbox.Record{Action: "process.stdin", Outcome: sandbox.OutcomeAllowed, Object: strconv.Itoa(p.PID),
		Detail: map[string]string{"bytes": strconv.Itoa(len(data)), "end": strconv.FormatBool(end)}}
	if p.PTY == nil { // the digest of a single key is as good as the key, and passwords are typed
		r.Digest = digestOf(data)
	}
	if err := l.record(ctx, who, r); err != nil {
		return p, err
	}
	if err := in.append(data); err != nil {
		return p, sandbox.Wrap("stdin", string(l.id), err)
	}
	if end {
		if err := x.closeStdin(in); err != nil {
			return p, err
		}
		p.Stdin = false
	}
	return p, nil
}

// closeStdin makes the end of the standard input known, in the journal first.
func (x *execution) closeStdin(in *input) error {
	if err := x.amend(func(e *entry) { e.Closed = true }); err != nil {
		return err
	}
	in.end()
	return nil
}

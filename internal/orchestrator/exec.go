package orchestrator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ExecRequest names code or a command.
type ExecRequest struct {
	Code    *string // source text for Pack
	Command *string // a program, with Args
	Args    []string
	Pack    string // default the sandbox's
	Dir     string // default the user's home
	Env     map[string]string
	Stdin   io.Reader // nil: end of file at once
	User    string    // default "user"
	Timeout *time.Duration
}

// Sink takes what a process produces, as it comes. Its methods are called from
// the goroutine that called Exec. One that is slow slows the process, by the window of its output,
// and nobody else; one that fails kills it. Data must not be changed; it ends
// between characters where it is UTF-8.
type Sink interface {
	Started(pid int) error
	Stdout(data []byte) error
	Stderr(data []byte) error
}

// ExecExit is how a process ended.
type ExecExit struct {
	// Code is the program's own; 124 after its deadline, 137 when another
	// limit, or the end of the sandbox, killed it.
	Code     int
	Reason   sandbox.Reason
	Detail   string
	Duration time.Duration
	// Result is what the program reported, as valid JSON, or nil. ResultError
	// says why something that was reported is not here.
	Result      json.RawMessage
	ResultError string
}

// The exit codes of killed programs, as the shell and timeout(1) have them.
const (
	exitTimeout = 124
	exitKilled  = 137
)

// Exec runs a process to its end and returns how it ended: also by a limit, and
// by the end of the sandbox itself. When ctx ends, or the sink fails, the
// process is killed: nobody is there to use its result.
//
// Errors: KindNotFound, KindGone, KindInvalid (pack, arguments), KindNotFound
// (program, directory, user), KindCapacity, ctx's, the sink's; KindUnavailable
// when the connection to the agent broke while the sandbox lives on.
//
// Cost: one disk flush (the evidence), two round trips, and what fork and exec
// cost inside.
func (o *Orchestrator) Exec(ctx context.Context, who Caller, ref string, req ExecRequest, sink Sink) (ExecExit, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return ExecExit{}, err
	}
	defer done()
	return l.exec(ctx, who, req, sink)
}

func (l *live) exec(ctx context.Context, who Caller, req ExecRequest, sink Sink) (ExecExit, error) {
	l.mu.Lock()
	det := l.sb.Details
	l.mu.Unlock()
	p, err := req.program(det)
	if err == nil {
		err = l.o.checkUser(req.User)
	}
	if err != nil {
		return ExecExit{}, sandbox.Wrap("exec", string(l.id), err)
	}
	timeout := given(req.Timeout, l.o.Defaults.ExecTimeout)
	if err := l.record(ctx, who, execRecord(req, p, timeout)); err != nil {
		return ExecExit{}, err
	}
	failpoint.Hit("exec/after-evidence")
	s, err := l.session(ctx)
	if err != nil {
		return ExecExit{}, err
	}
	if p.path != "" {
		if err := l.placeCode(ctx, s, req, p); err != nil {
			return ExecExit{}, l.settle(s, err)
		}
		defer l.removeCode(s, req, p)
	}
	x := &execution{l: l, s: s, sink: sink, timeout: timeout, begun: time.Now()}
	x.side.Go(func() { x.oom = l.oomKills(ctx) }) // beside the start, not before it
	defer x.side.Wait()
	x.proc, err = s.Exec(ctx, guest.Command{Argv: p.argv, Env: p.env, Dir: req.Dir, User: req.User, Stdin: req.Stdin != nil, Timeout: timeout})
	if err != nil {
		return ExecExit{}, l.startError(s, err)
	}
	exit, err := x.run(ctx, req.Stdin)
	if err != nil {
		exit.Reason = sandbox.ReasonOperator
		exit.Detail = clip(err.Error())
	} else {
		exit.Result, exit.ResultError = x.result(ctx, req.User, exit)
	}
	return exit, errors.Join(err, x.report(ctx, who, exit))
}

// startError is fileError for a program that did not start.
func (l *live) startError(s *guest.Session, err error) error {
	err = l.settle(s, err)
	e, ok := err.(*sandbox.Error)
	if !ok {
		return err
	}
	if e.ID == "" {
		e.ID = string(l.id)
	}
	if e.Hint != "" {
		return e
	}
	switch e.Kind {
	case sandbox.KindNotFound:
		e.Hint = "check the program, the working directory and the user; they must exist in the sandbox, not here"
	case sandbox.KindDenied:
		e.Hint = "the user must be allowed to execute it and to enter the working directory"
	case sandbox.KindCapacity:
		e.Hint = "limits.pids allows more tasks"
	}
	return e
}

// execRecord is the evidence of an exec: what was run by its digest only, since
// code and arguments may hold secrets.
func execRecord(req ExecRequest, p program, timeout time.Duration) sandbox.Record {
	r := sandbox.Record{Action: "process.exec", Outcome: sandbox.OutcomeAllowed, Detail: map[string]string{"timeout": timeout.String()}}
	var content []byte
	if req.Code != nil {
		r.Object, content = p.pack, []byte(*req.Code)
	} else {
		r.Object, content = clip(*req.Command), fmt.Appendf(nil, "%q", p.argv)
	}
	if req.User != "" {
		r.Detail["user"] = clip(req.User)
	}
	r.Detail["args"] = strconv.Itoa(len(req.Args))
	sum := sha256.Sum256(content)
	r.Digest = hex.EncodeToString(sum[:])
	return r
}

func (l *live) placeCode(ctx context.Context, s *guest.Session, req ExecRequest, p program) error {
	if err := s.Mkdir(ctx, p.dir, req.User, 0o700, false); err != nil {
		return err
	}
	_, err := s.WriteFile(ctx, p.path, bytes.NewReader([]byte(*req.Code)), guest.WriteOptions{User: req.User, Mode: 0o600})
	return err
}

// removeCode tidies up. What it cannot remove goes with the sandbox.
func (l *live) removeCode(s *guest.Session, req ExecRequest, p program) {
	ctx, cancel := context.WithTimeout(l.o.ctx, openWait)
	defer cancel()
	_ = s.Remove(ctx, p.dir, guest.RemoveOptions{User: req.User, Recursive: true, Force: true})
}

// oomKills is how often the kernel has killed for memory in this sandbox so
// far; -1 when unknown.
func (l *live) oomKills(ctx context.Context) int {
	l.mu.Lock()
	inst := l.inst
	l.mu.Unlock()
	st, err := inst.Status(ctx)
	if err != nil {
		return -1
	}
	return st.Usage.OOMKills
}

// execution is one process while it runs.
type execution struct {
	l       *live
	s       *guest.Session
	sink    Sink
	proc    *guest.Process
	timeout time.Duration
	side    sync.WaitGroup
	oom     int // the sandbox's OOM kills when it began; written by side
	begun   time.Time
	results bool // it left a result file
}

// output is a piece of what the process printed.
type output struct {
	to   func([]byte) error
	data []byte
}

// run moves the process's output until it has ended and everything is
// delivered. The error is ctx's or the sink's, and the process is dead then.
func (x *execution) run(ctx context.Context, stdin io.Reader) (ExecExit, error) {
	pid := strconv.Itoa(x.proc.PID())
	x.l.o.publishJSON(x.l.id, event.Started, pid, struct{}{}, false)
	out, quit := make(chan output), make(chan struct{})
	var pumps sync.WaitGroup
	pumps.Go(func() { x.pump(x.proc.Stdout(), event.Stdout, pid, x.sink.Stdout, out, quit) })
	pumps.Go(func() { x.pump(x.proc.Stderr(), event.Stderr, pid, x.sink.Stderr, out, quit) })
	go func() { pumps.Wait(); close(out) }() // ends with the pumps
	if stdin != nil {
		// Not waited for: a reader may block for ever, and what it feeds ends
		// with the process. The reader is the caller's to end.
		go feed(x.proc.Stdin(), stdin)
	}
	err := x.deliver(ctx, out)
	var exit guest.Exit
	var unknown error
	if err == nil {
		// A program may close its output and go on; a broken session ends this.
		exit, unknown = x.proc.Wait(ctx)
		err = sandbox.Wrap("exec", string(x.l.id), ctx.Err())
	}
	if err != nil {
		close(quit)
		x.kill()
		pumps.Wait()
		return ExecExit{Code: exitKilled, Duration: time.Since(x.begun)}, err
	}
	x.results = exit.Result
	return x.classify(ctx, exit, unknown), nil
}

// deliver hands everything to the sink, until the output ends, the sink fails
// or ctx ends.
func (x *execution) deliver(ctx context.Context, out <-chan output) error {
	err := x.sink.Started(x.proc.PID())
	for err == nil {
		select {
		case o, more := <-out:
			if !more {
				return nil
			}
			err = o.to(o.data)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return sandbox.Wrap("exec", string(x.l.id), err)
}

// feed copies stdin into the process, then closes it.
func feed(w io.WriteCloser, r io.Reader) {
	defer w.Close()
	_, _ = io.Copy(w, r) // fails when the program no longer reads: its own business
}

// chunk is the most that is delivered at once.
const chunk = 32 << 10

// pump passes one channel of output on until it ends, or breaks: then the
// process's Wait says why. Pieces end between characters where the output is
// UTF-8, so that every piece of text is text. After quit it only drains.
func (x *execution) pump(r io.Reader, t event.Type, pid string, to func([]byte) error, out chan<- output, quit <-chan struct{}) {
	buf := make([]byte, chunk)
	for held := 0; ; {
		n, err := r.Read(buf[held:])
		n += held
		held = 0
		if err == nil {
			held = partial(buf[:n])
		}
		if n > held {
			data := bytes.Clone(buf[:n-held]) // shared, unchanged, by the hub and the sink
			x.l.o.publish(x.l.id, event.Event{Type: t, Process: pid, Data: data})
			select {
			case out <- output{to, data}:
			case <-quit:
			}
		}
		if err != nil {
			return
		}
		copy(buf, buf[n-held:n])
	}
}

// partial is the length of the unfinished character at the end of b, or 0.
func partial(b []byte) int {
	for i := 1; i <= min(utf8.UTFMax-1, len(b)); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}

// kill ends the process for good; one that cannot be killed ends with its
// session, which is broken then.
func (x *execution) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), settleWait)
	defer cancel()
	err := x.proc.Signal(ctx, sigKill)
	if err == nil {
		_, err = x.proc.Wait(ctx)
	}
	if err != nil && sandbox.KindOf(err) != sandbox.KindNotFound && x.s.Err() == nil {
		x.s.Close() // the next session kills what this one left
	}
	x.proc.Close()
}

// classify turns how the guest says the process ended into what callers are
// told, with the host's own evidence where the guest cannot know.
func (x *execution) classify(ctx context.Context, g guest.Exit, err error) ExecExit {
	exit := ExecExit{Code: g.Code, Reason: g.Reason, Detail: g.Detail, Duration: time.Since(x.begun)}
	x.l.mu.Lock()
	limits := x.l.sb.Limits
	x.l.mu.Unlock()
	switch {
	case err != nil && g.Reason == sandbox.ReasonTimeout: // the guest did not keep its deadline
		x.s.Close()
	case err != nil:
		return x.broken(exit, err)
	case g.Reason == "":
		exit.Reason = sandbox.ReasonDone
	}
	if exit.Reason == sandbox.ReasonDone && g.Code == exitKilled && x.outOfMemory(ctx, g) {
		exit.Reason = sandbox.ReasonMemory
	}
	switch exit.Reason {
	case sandbox.ReasonTimeout:
		exit.Code, exit.Detail = exitTimeout, "limit "+short(x.timeout)
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
	x.side.Wait()
	kills := x.l.oomKills(ctx)
	return kills > 0 && (g.Signal == sigKill || x.oom >= 0 && kills > x.oom)
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
func (x *execution) result(ctx context.Context, user string, exit ExecExit) (result json.RawMessage, why string) {
	if !x.results || x.s.Err() != nil {
		return nil, ""
	}
	ctx, cancel := context.WithTimeout(ctx, openWait)
	defer cancel()
	path := x.proc.ResultPath()
	b, err := x.s.ReadAll(ctx, path, user, guest.MaxResult)
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
	_ = x.s.Remove(ctx, path, guest.RemoveOptions{User: user, Force: true}) // goes with the sandbox otherwise
	if why != "" {
		return nil, "the reported result was ignored: " + why
	}
	return bytes.TrimSpace(b), ""
}

// report publishes the end and records it: a kill as a gate, an ordinary exit
// as flow.
func (x *execution) report(ctx context.Context, who Caller, exit ExecExit) error {
	pid := strconv.Itoa(x.proc.PID())
	if exit.Result != nil {
		x.l.o.publish(x.l.id, event.Event{Type: event.Result, Process: pid, Data: exit.Result})
	}
	body := ExitEvent{Code: exit.Code, Reason: exit.Reason, Detail: exit.Detail}
	r := sandbox.Record{Class: sandbox.Flow, Action: "process.exit", Outcome: sandbox.OutcomeDone, Reason: exit.Reason,
		Detail: map[string]string{"exit_code": strconv.Itoa(exit.Code), "duration": exit.Duration.Round(time.Microsecond).String()}}
	if exit.Reason != sandbox.ReasonDone {
		x.l.o.publishJSON(x.l.id, event.Limit, pid, body, false)
		r.Class, r.Action = sandbox.Gate, "process.kill"
		r.Detail["detail"] = clip(exit.Detail)
	}
	x.l.o.publishJSON(x.l.id, event.Exit, pid, body, false)
	return x.l.record(context.WithoutCancel(ctx), who, r)
}

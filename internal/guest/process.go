package guest

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Command is a program to start in a sandbox.
type Command struct {
	Argv    []string      // Argv[0] is a path or looked up in PATH
	Env     []string      // KEY=VALUE, on top of the base environment
	Dir     string        // "" is the user's home; a relative path starts there
	User    string        // name or number; "" is the default user. Whether root is allowed is the caller's to decide
	Stdin   bool          // make Process.Stdin; otherwise it reads /dev/null
	Timeout time.Duration // wall clock, enforced by the guest and again by the host; 0: none
	// PTY makes the standard streams a terminal: Stdin is what is typed, as it is
	// (^C is 0x03, ^D 0x04), and closing it hangs up; Stdout is what the terminal
	// shows; Stderr is at its end. TERM is set unless Env has it. nil: none.
	PTY *Size
	// Hold makes the guest keep the process for a Reattach until Release, too.
	Hold bool
	// Sent, unless nil, is called with the process's id once the guest is being asked,
	// before its answer is waited for: what is done there costs no time while the guest
	// is slower.
	Sent func(id uint32)
}

// grace is how much longer than the guest the host waits to enforce a deadline.
const grace = time.Second

var (
	errAnswered    = errors.New("the call was answered")
	errStdinClosed = &sandbox.Error{Op: "stdin", Kind: sandbox.KindGone, Err: syscall.EPIPE}
)

// Process is a program started by Exec, running or ended. It is safe for
// concurrent use, one reader for each stream.
//
// What it writes must be read, or closed: a program that is a window ahead of
// its reader blocks, as it would on a pipe. The guest keeps the process for a
// Reattach until its outputs have been read to the end (or closed) and Wait has
// returned, so do both, or Close it; one that is held, until Release as well.
type Process struct {
	s       *Session
	id      uint32
	info    ProcessInfo
	in      *stdin
	stdin   *outflow
	stdout  *Stream
	stderr  *Stream
	waited  chan struct{} // closed when exit or err is set
	killing *time.Timer   // enforces the deadline; nil without one

	mu   sync.Mutex
	exit Exit  // guarded by mu until waited is closed
	err  error // guarded by mu until waited is closed
	over bool  // guarded by mu; waited is closed
	open int   // guarded by mu; output channels not yet consumed, 1 until Wait has returned the end, 1 while held
	held bool  // guarded by mu
	seen bool  // guarded by mu; Wait has returned the end
	told bool  // guarded by mu; the guest may forget it, or it is no longer followed
}

// Exec starts a program and returns once it runs. ctx bounds the start only;
// the end of ctx before that kills it.
//
// Errors: KindNotFound for a missing program, directory or user, KindDenied,
// KindInvalid, KindTooLarge when arguments and environment exceed 256 KiB,
// KindCapacity when the sandbox can make no more tasks or terminals,
// KindUnsupported where it makes no terminals at all, and the session's.
// Cost: a round trip and what fork and exec cost inside.
func (s *Session) Exec(ctx context.Context, c Command) (*Process, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	var p *Process
	if c.PTY != nil && !s.can(CapabilityPTY) {
		return nil, unsupported("exec", "cannot make terminals")
	}
	c.Stdin = c.Stdin || c.PTY != nil
	m := Call{Exec: &ExecCall{Argv: c.Argv, Env: c.Env, Dir: c.Dir, User: c.User, Stdin: c.Stdin, PTY: c.PTY}}
	if c.Timeout > 0 {
		m.Exec.Timeout = max(1, c.Timeout.Milliseconds())
	}
	k := &call{}
	id, err := s.start(ctx, OpExec, m, k, func(id uint32) {
		p = newProcess(s, id, Position{Hold: c.Hold})
		if !c.Stdin {
			p.stdin.stop(errStdinClosed)
		}
		s.procs[id] = p
	})
	if err != nil {
		return nil, err
	}
	if c.Sent != nil {
		c.Sent(id)
	}
	r, err := s.await(ctx, OpExec, id, k)
	if err == nil && r.Process == nil {
		err = lying("exec", "the guest's answer lacks the process")
	}
	if err != nil {
		s.unfollow(p, 2*s.window+MaxControl)
		return nil, err
	}
	p.info = *r.Process
	p.info.ID, p.info.Argv = id, c.Argv
	p.enforce(c.Timeout)
	return p, nil
}

func (c Command) validate() error {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return sandbox.Errorf("exec", sandbox.KindInvalid, "no program given")
	}
	for _, s := range [][]string{c.Argv, c.Env, {c.Dir, c.User}} {
		for _, v := range s {
			if strings.IndexByte(v, 0) >= 0 {
				return sandbox.Errorf("exec", sandbox.KindInvalid, "an argument holds a NUL byte")
			}
		}
	}
	for _, e := range c.Env {
		if strings.IndexByte(e, '=') < 1 {
			return sandbox.Errorf("exec", sandbox.KindInvalid, "environment entry %q is not KEY=VALUE", clean(e, 64))
		}
	}
	if c.Timeout < 0 {
		return sandbox.Errorf("exec", sandbox.KindInvalid, "negative timeout")
	}
	if c.PTY != nil {
		return c.PTY.Check()
	}
	return nil
}

// unsupported is the error for what the agent of an older version does not do.
func unsupported(op, what string) error {
	return sandbox.Errorf(op, sandbox.KindUnsupported, "the agent in this sandbox %s", what).
		WithHint("an older version made the sandbox; make a new one")
}

// Position is what a host already has of a process, for Reattach.
type Position struct {
	Stdout, Stderr int64         // bytes; -1: whatever the guest still keeps
	Timeout        time.Duration // what is left of it; 0: none. The guest enforces its own either way
	Hold           bool          // as in Command
}

// Reattach follows the process id, started by an earlier session, from where
// that one left off. Its streams begin at the first byte not yet had: see
// Stream.Offset, which is above Position when the guest has forgotten bytes
// because an earlier session acknowledged them.
//
// Errors: KindNotFound when the guest does not know id, or has already been
// told to forget it; KindConflict when this session follows it; KindInvalid for
// a position beyond what the process has written.
func (s *Session) Reattach(ctx context.Context, id uint32, at Position) (*Process, error) {
	c := &call{}
	cid, err := s.start(ctx, OpAttach, Call{Process: &ProcCall{ID: id, Stdout: at.Stdout, Stderr: at.Stderr}}, c, nil)
	if err != nil {
		return nil, err
	}
	// Nothing of the process arrives before the guest has seen the go, so the
	// streams can be made from the answer.
	r, err := s.await(ctx, OpAttach, cid, c)
	if err != nil {
		return nil, err
	}
	i := r.Process
	if i == nil || i.Stdin < 0 || i.Stdout < max(0, at.Stdout) || i.Stderr < max(0, at.Stderr) {
		return nil, lying("attach", "the guest's answer makes no sense")
	}
	p := newProcess(s, id, Position{Stdout: i.Stdout, Stderr: i.Stderr, Hold: at.Hold})
	p.info = *i
	p.info.ID = id
	p.stdin.sent = uint64(i.Stdin)
	p.stdin.limit = p.stdin.sent // until the guest grants more
	s.mu.Lock()
	switch {
	case s.err != nil:
		err = s.err
	case s.procs[id] != nil:
		err = sandbox.Errorf("attach", sandbox.KindConflict, "process %d is already followed", id)
	default:
		s.procs[id] = p
		s.watch()
		s.out.mark(TypeWindow, id, TypeStdout, uint64(i.Stdout)) // the go
		s.out.mark(TypeWindow, id, TypeStderr, uint64(i.Stderr))
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p.enforce(at.Timeout)
	return p, nil
}

func newProcess(s *Session, id uint32, at Position) *Process {
	p := &Process{s: s, id: id, waited: make(chan struct{}), open: 3, held: at.Hold}
	if at.Hold {
		p.open++
	}
	p.stdout = s.newStream(id, TypeStdout, s.window, uint64(at.Stdout))
	p.stderr = s.newStream(id, TypeStderr, s.window, uint64(at.Stderr))
	p.stdout.onEnd, p.stderr.onEnd = p.settle, p.settle
	p.stdin = newOutflow(s, TypeStdin, DefaultWindow)
	p.stdin.id = id
	p.in = &stdin{p: p}
	return p
}

func (p *Process) output(channel Type) *Stream {
	switch channel {
	case TypeStdout:
		return p.stdout
	case TypeStderr:
		return p.stderr
	}
	return nil
}

// ID identifies the process for Reattach; unique for the life of the sandbox.
func (p *Process) ID() uint32 { return p.id }

// PID is its process id inside the sandbox, as the guest says.
func (p *Process) PID() int { return p.info.PID }

// Started is when the guest says it started.
func (p *Process) Started() time.Time { return p.info.Started }

// ResultPath is the file named by its $FIREBREAK_RESULT.
func (p *Process) ResultPath() string { return ResultPath(p.id) }

// Stdin returns its standard input. Write blocks while the program does not
// read; it fails with KindGone once the program can no longer read, and with
// the session's error. Close gives the program end of file.
func (p *Process) Stdin() io.WriteCloser { return p.in }

// StdinOffset is how many bytes of standard input the guest had received when
// this session began to follow: where to go on after a Reattach.
func (p *Process) StdinOffset() int64 { return p.info.Stdin }

// Stdout returns its standard output.
func (p *Process) Stdout() *Stream { return p.stdout }

// Stderr returns its standard error.
func (p *Process) Stderr() *Stream { return p.stderr }

type stdin struct {
	p    *Process
	mu   sync.Mutex // serialises writers, so that their bytes do not mix
	done bool       // guarded by mu
}

func (w *stdin) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return 0, io.ErrClosedPipe
	}
	return w.p.stdin.write(context.Background(), b) // ends with the process or the session
}

func (w *stdin) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.done = true
		w.p.stdin.end()
	}
	return nil
}

// Signal sends a signal (its Linux number) to the process group. Errors:
// KindNotFound when it has ended, KindInvalid, and the session's.
func (p *Process) Signal(ctx context.Context, sig int) error {
	return p.s.Signal(ctx, p.id, sig)
}

// Signal sends a signal to the process group of the process id, followed or
// not. SIGKILL also reaches descendants that left the group.
func (s *Session) Signal(ctx context.Context, id uint32, sig int) error {
	if sig < 1 || sig > 64 {
		return sandbox.Errorf("signal", sandbox.KindInvalid, "no signal %d", sig)
	}
	_, err := s.do(ctx, OpSignal, Call{Process: &ProcCall{ID: id, Signal: sig}})
	return err
}

// Limit moves the deadline that the guest enforces on the process id, followed or
// not, to left from now; 0: none. The guest's clock goes on while a sandbox is saved.
// Errors: KindNotFound when it has ended, KindUnsupported for an agent that moves
// none, and the session's.
func (s *Session) Limit(ctx context.Context, id uint32, left time.Duration) error {
	ms := left.Milliseconds()
	if left > 0 {
		ms = max(1, ms)
	}
	_, err := s.do(ctx, OpLimit, Call{Process: &ProcCall{ID: id, Left: ms}})
	return err
}

// Resize changes the size of the terminal of the process id, followed or not; the
// program in its foreground gets SIGWINCH. Errors: KindInvalid, KindConflict for
// a process without a terminal, KindNotFound when it has ended, KindUnsupported
// for an agent that makes none, and the session's.
func (s *Session) Resize(ctx context.Context, id uint32, size Size) error {
	if err := size.Check(); err != nil {
		return err
	}
	if !s.can(CapabilityPTY) {
		return unsupported("resize", "cannot make terminals")
	}
	_, err := s.do(ctx, OpResize, Call{Process: &ProcCall{ID: id, Size: &size}})
	return err
}

// Wait waits for the program to end. Its output may not have been read yet.
//
// It returns how the program ended, or an error when that is not known: ctx's,
// the session's, or KindTimeout when the guest let a deadline pass by more than
// a second; Exit.Reason is then ReasonTimeout.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.waited: // even when ctx has ended
	default:
		select {
		case <-p.waited:
		case <-ctx.Done():
			return Exit{}, sandbox.Wrap("wait", "", ctx.Err())
		}
	}
	p.mu.Lock()
	first := !p.seen
	p.seen = true
	p.mu.Unlock()
	if first {
		p.settle()
	}
	return p.exit, p.err
}

// Release lets the guest forget a process that is held, once it has ended and
// everything has been consumed. Idempotent.
func (p *Process) Release() {
	p.mu.Lock()
	held := p.held
	p.held = false
	p.mu.Unlock()
	if held {
		p.settle()
	}
}

// Close stops following the process, which runs on: a Reattach can take it up
// again. Idempotent; always nil.
func (p *Process) Close() error {
	p.mu.Lock()
	told := p.told
	p.told = true
	p.mu.Unlock()
	if told {
		return nil
	}
	body := Call{Op: OpDetach, Process: &ProcCall{ID: p.id}}
	p.s.unfollow(p, 2*p.s.window+MaxControl)
	// The answer is of no interest, but the call must be known to be forgiven.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, _ = p.s.do(ctx, body.Op, body)
	p.fail(sandbox.Errorf("process", sandbox.KindCanceled, "no longer followed"))
	return nil
}

// unfollow forgets p, forgiving that many bytes of frames under way.
func (s *Session) unfollow(p *Process, forgive int) {
	s.mu.Lock()
	if s.procs[p.id] == p {
		delete(s.procs, p.id)
		s.allowance += forgive
	}
	s.mu.Unlock()
}

// fail ends everything that waits for p with err.
func (p *Process) fail(err error) {
	p.finish(Exit{}, err)
	p.stdout.Fail(err)
	p.stderr.Fail(err)
	p.stdin.stop(err)
}

func (p *Process) finish(e Exit, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return false
	}
	p.over, p.exit, p.err = true, e, err
	if p.killing != nil {
		p.killing.Stop()
	}
	close(p.waited)
	return true
}

// exited handles an exit frame.
func (p *Process) exited(e Exit) error {
	if !p.finish(e, nil) {
		return violation("process %d ended twice", p.id)
	}
	p.stdin.stop(errStdinClosed)
	return nil
}

// settle counts what has been consumed: both outputs and the end. With the last
// of them the guest may forget the process.
func (p *Process) settle() {
	p.mu.Lock()
	p.open--
	ready := p.open == 0 && !p.told
	if ready {
		p.told = true
	}
	p.mu.Unlock()
	if !ready {
		return
	}
	p.s.unfollow(p, 4<<10) // window frames of its stdin
	p.s.out.frame(TypeExitAck, p.id, nil)
}

// enforce makes the host keep the deadline in case the guest does not.
func (p *Process) enforce(d time.Duration) {
	if d <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.killing = time.AfterFunc(min(d, 1<<62)+grace, p.overdue)
	}
}

// overdue kills a process whose deadline the guest did not keep, and gives up
// on it when even that has no effect.
func (p *Process) overdue() {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_ = p.Signal(ctx, 9) // if it works, the exit frame says so
	select {
	case <-p.waited:
		return
	case <-ctx.Done():
	}
	err := sandbox.Errorf("exec", sandbox.KindTimeout, "the deadline passed and the agent did not end the process").
		WithHint("the sandbox is not trustworthy any more; destroy it")
	p.mu.Lock()
	p.told = true
	p.mu.Unlock()
	p.s.unfollow(p, 2*p.s.window+MaxControl)
	p.finish(Exit{Code: 137, Signal: 9, Reason: sandbox.ReasonTimeout, Detail: "enforced by the host"}, err)
	p.fail(err)
}

// Processes lists the programs the guest knows: running ones, and ended ones
// whose end nobody has acknowledged. Argv and User are the guest's claims.
func (s *Session) Processes(ctx context.Context) ([]ProcessInfo, error) {
	r, err := s.do(ctx, OpProcesses, Call{})
	for i := range r.Processes {
		for j, a := range r.Processes[i].Argv {
			r.Processes[i].Argv[j] = clean(a, 4<<10)
		}
		r.Processes[i].User = clean(r.Processes[i].User, 64)
	}
	return r.Processes, err
}

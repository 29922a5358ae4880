package client

import (
	"context"
	"io"
	"iter"
	"strconv"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// StartOptions are about a program in the background.
type StartOptions struct {
	Tag       string // a name of the caller's, unique among the sandbox's running programs
	OpenStdin bool   // keep its standard input open for Process.Write; Command.Stdin is written first
}

// Process is a program of a sandbox that nobody has to stay for. It is safe for
// concurrent use.
type Process struct {
	s    *Sandbox
	info *v1.Process
}

// Start starts cmd in the background and returns when it runs. Its Timeout, where
// it is zero, is none. Errors: those of Exec, KindConflict for a tag in use.
func (s *Sandbox) Start(ctx context.Context, cmd Command, o StartOptions) (*Process, error) {
	x := cmd.exec(s.id)
	info, err := message(s.c.processes.StartProcess(ctx, connect.NewRequest(&v1.StartProcessRequest{Id: s.id, Code: x.Code, Command: x.Command,
		Args: x.Args, LanguagePack: x.LanguagePack, Cwd: x.Cwd, Env: x.Env, User: x.User, TimeoutMs: x.TimeoutMs,
		Tag: o.Tag, OpenStdin: o.OpenStdin || len(cmd.Stdin) > 0, Pty: x.Pty})))
	if err != nil {
		return nil, err
	}
	p := &Process{s, info}
	if len(cmd.Stdin) > 0 {
		if _, err := p.write(ctx, cmd.Stdin, !o.OpenStdin && cmd.PTY == nil); err != nil {
			return p, err
		}
	}
	return p, nil
}

// Processes lists the sandbox's programs: those that ended lately, then those
// that run, execs included.
func (s *Sandbox) Processes(ctx context.Context) ([]*v1.Process, error) {
	res, err := message(s.c.processes.ListProcesses(ctx, connect.NewRequest(&v1.ListProcessesRequest{Id: s.id})))
	return res.GetProcesses(), err
}

// Process finds a program by pid or tag: the one that runs, else the last one.
// Errors: KindNotFound.
func (s *Sandbox) Process(ctx context.Context, which string) (*Process, error) {
	info, err := message(s.c.processes.GetProcess(ctx, connect.NewRequest(&v1.GetProcessRequest{Id: s.id, Process: which})))
	if err != nil {
		return nil, err
	}
	return &Process{s, info}, nil
}

// Info is the process as it was when it was asked for.
func (p *Process) Info() *v1.Process { return p.info }

// PID is its number in the sandbox.
func (p *Process) PID() int64 { return p.info.GetPid() }

func (p *Process) which() string { return strconv.FormatInt(p.PID(), 10) }

// Wait waits for the end of the program, over restarts of the server.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	for {
		info, err := message(p.s.c.processes.GetProcess(ctx, connect.NewRequest(&v1.GetProcessRequest{Id: p.s.id, Process: p.which(), WaitMs: 60_000})))
		switch {
		case err != nil:
			return Exit{}, err
		case info.GetExit() != nil:
			return exitOf(info.GetExit()), nil
		}
	}
}

// Kill kills the program with all its descendants, and returns how it ended.
// Killing one that has ended changes nothing.
func (p *Process) Kill(ctx context.Context) (Exit, error) {
	info, err := message(p.s.c.processes.KillProcess(ctx, connect.NewRequest(&v1.KillProcessRequest{Id: p.s.id, Process: p.which()})))
	return exitOf(info.GetExit()), err
}

// Signal sends a signal, such as "SIGINT", to the program and its group. Errors:
// KindGone once it has ended.
func (p *Process) Signal(ctx context.Context, signal string) error {
	_, err := p.s.c.processes.SignalProcess(ctx, connect.NewRequest(&v1.SignalProcessRequest{Id: p.s.id, Process: p.which(), Signal: signal}))
	return fromConnect(ctx, err)
}

// maxWrite is how much one request carries.
const maxWrite = 1 << 20

// Write appends to the program's standard input; what it returns without an
// error is the server's to deliver, whatever happens to it. Errors: KindConflict
// where the input is not open, KindTooLarge beyond 64 MiB in all, KindGone.
func (p *Process) Write(ctx context.Context, data []byte) (int, error) {
	return p.write(ctx, data, false)
}

// Resize changes the size of the program's terminal. Errors: KindConflict where it
// has none, KindGone.
func (p *Process) Resize(ctx context.Context, size Size) error {
	_, err := p.s.c.processes.ResizeProcess(ctx, connect.NewRequest(&v1.ResizeProcessRequest{Id: p.s.id, Process: p.which(),
		Cols: int32(size.Cols), Rows: int32(size.Rows)}))
	return fromConnect(ctx, err)
}

// CloseStdin gives the program the end of its standard input; a terminal hangs up.
func (p *Process) CloseStdin(ctx context.Context) error {
	_, err := p.write(ctx, nil, true)
	return err
}

func (p *Process) write(ctx context.Context, data []byte, end bool) (n int, err error) {
	for first := true; first || len(data) > 0; first = false {
		piece := data[:min(len(data), maxWrite)]
		data = data[len(piece):]
		if _, err := p.s.c.processes.WriteStdin(ctx, connect.NewRequest(&v1.WriteStdinRequest{Id: p.s.id, Process: p.which(), Data: piece,
			Close: end && len(data) == 0})); err != nil {
			return n, fromConnect(ctx, err)
		}
		n += len(piece)
	}
	return n, nil
}

// Events replays what is kept of the program's events after an id and follows
// them until it has ended. A broken connection is taken up again where it broke.
func (p *Process) Events(ctx context.Context, after int64) iter.Seq2[*v1.Event, error] {
	return follow(ctx, after, func(ctx context.Context, after int64) (stream[v1.Event], error) {
		return p.s.c.processes.StreamProcess(ctx, connect.NewRequest(&v1.StreamProcessRequest{Id: p.s.id, Process: p.which(), AfterId: after}))
	})
}

// Attach copies what the program has printed, as far as it is kept, and prints,
// to stdout and stderr until it ends; nil discards. The end of ctx leaves it
// running. Errors: KindUnavailable where output was dropped before it was read; of a
// terminal, whose output all goes to stdout, that is none.
func (p *Process) Attach(ctx context.Context, stdout, stderr io.Writer) (Exit, error) {
	exit, err := collect(p.Events(ctx, 0), p.PID(), stdout, stderr, p.info.GetPty() != nil)
	return exit, sandbox.Wrap("attach", p.s.id, err)
}

// killTime bounds the kill of a program whose caller has gone.
const killTime = 10 * time.Second

// abandon kills the program pid, for a caller whose own context has ended.
func (s *Sandbox) abandon(ctx context.Context, pid int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	p := &Process{s, &v1.Process{Pid: pid}}
	_, _ = p.Kill(ctx) // it has a deadline of its own
}

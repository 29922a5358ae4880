package service

import (
	"context"
	"strconv"
	"strings"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// StartProcess starts a program in the background.
func (s *Service) StartProcess(ctx context.Context, req *v1.StartProcessRequest) (*v1.Process, error) {
	who, _, err := s.allow(ctx, "ProcessService.StartProcess")
	if err != nil {
		return nil, err
	}
	x, err := startRequest(req)
	if err != nil {
		return nil, err
	}
	p, err := s.Orchestrator.StartProcess(ctx, who, req.GetId(), x)
	if err != nil {
		return nil, err
	}
	return toProcess(p), nil
}

func startRequest(req *v1.StartProcessRequest) (x orchestrator.StartRequest, err error) {
	x = orchestrator.StartRequest{Tag: req.GetTag(), ExecRequest: orchestrator.ExecRequest{Open: req.GetOpenStdin(), PTY: fromPty(req.GetPty()),
		Code: req.Code, Command: req.Command, Args: req.GetArgs(), Pack: req.GetLanguagePack(), Dir: req.GetCwd(), Env: req.GetEnv(), User: req.GetUser()}}
	x.Timeout, err = optionalMillis("start", "timeout_ms", req.TimeoutMs)
	return x, err
}

// ListProcesses lists the programs of a sandbox.
func (s *Service) ListProcesses(ctx context.Context, req *v1.ListProcessesRequest) (*v1.ListProcessesResponse, error) {
	who, _, err := s.allow(ctx, "ProcessService.ListProcesses")
	if err != nil {
		return nil, err
	}
	all, err := s.Orchestrator.ListProcesses(ctx, who.Tenant, req.GetId())
	if err != nil {
		return nil, err
	}
	res := &v1.ListProcessesResponse{}
	for _, p := range all {
		res.Processes = append(res.Processes, toProcess(p))
	}
	return res, nil
}

// GetProcess returns one program of a sandbox.
func (s *Service) GetProcess(ctx context.Context, req *v1.GetProcessRequest) (*v1.Process, error) {
	who, _, err := s.allow(ctx, "ProcessService.GetProcess")
	if err != nil {
		return nil, err
	}
	p, err := s.Orchestrator.GetProcess(ctx, who.Tenant, req.GetId(), req.GetProcess(), time.Duration(req.GetWaitMs())*time.Millisecond)
	if err != nil {
		return nil, err
	}
	return toProcess(p), nil
}

// killWait is how long a kill may take to be seen.
const killWait = 10 * time.Second

// KillProcess kills a program and waits until that is over. One that has ended
// stays as it is.
func (s *Service) KillProcess(ctx context.Context, req *v1.KillProcessRequest) (*v1.Process, error) {
	who, _, err := s.allow(ctx, "ProcessService.KillProcess")
	if err != nil {
		return nil, err
	}
	p, err := s.Orchestrator.SignalProcess(ctx, who, req.GetId(), req.GetProcess(), 9)
	if err != nil && sandbox.KindOf(err) != sandbox.KindGone {
		return nil, err
	}
	p, err = s.Orchestrator.GetProcess(ctx, who.Tenant, req.GetId(), strconv.Itoa(p.PID), killWait)
	if err != nil {
		return nil, err
	}
	return toProcess(p), nil
}

// SignalProcess sends a signal.
func (s *Service) SignalProcess(ctx context.Context, req *v1.SignalProcessRequest) (*v1.Process, error) {
	who, _, err := s.allow(ctx, "ProcessService.SignalProcess")
	if err != nil {
		return nil, err
	}
	sig, err := signalNumber(req.GetSignal())
	if err != nil {
		return nil, err
	}
	p, err := s.Orchestrator.SignalProcess(ctx, who, req.GetId(), req.GetProcess(), sig)
	if err != nil {
		return nil, err
	}
	return toProcess(p), nil
}

// signals are those of Linux that programs send each other.
var signals = map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "ABRT": 6, "KILL": 9, "USR1": 10, "USR2": 12, "PIPE": 13, "ALRM": 14,
	"TERM": 15, "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "WINCH": 28}

func signalNumber(name string) (int, error) {
	if n, ok := signals[strings.TrimPrefix(strings.ToUpper(name), "SIG")]; ok {
		return n, nil
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 1 && n <= 64 {
		return n, nil
	}
	return 0, sandbox.Errorf("signal", sandbox.KindInvalid, "no signal %q", text(name)).WithHint("a name such as SIGTERM, or a number from 1 to 64")
}

// WriteStdin appends to a program's standard input.
func (s *Service) WriteStdin(ctx context.Context, req *v1.WriteStdinRequest) (*v1.Process, error) {
	who, _, err := s.allow(ctx, "ProcessService.WriteStdin")
	if err != nil {
		return nil, err
	}
	data, err := oneOf("stdin", "the input", req.GetText(), req.GetData())
	if err != nil {
		return nil, err
	}
	p, err := s.Orchestrator.WriteStdin(ctx, who, req.GetId(), req.GetProcess(), []byte(data), req.GetClose())
	if err != nil {
		return nil, err
	}
	return toProcess(p), nil
}

// ResizeProcess changes the size of a program's terminal.
func (s *Service) ResizeProcess(ctx context.Context, req *v1.ResizeProcessRequest) (*v1.Process, error) {
	who, _, err := s.allow(ctx, "ProcessService.ResizeProcess")
	if err != nil {
		return nil, err
	}
	p, err := s.Orchestrator.ResizeProcess(ctx, who, req.GetId(), req.GetProcess(), guest.Size{Cols: int(req.GetCols()), Rows: int(req.GetRows())})
	if err != nil {
		return nil, err
	}
	return toProcess(p), nil
}

// StreamProcess replays and follows the events of one program, until it has
// ended. Where output was dropped, there is an event of type truncated.
func (s *Service) StreamProcess(ctx context.Context, req *v1.StreamProcessRequest, send func(*v1.Event) error) error {
	who, _, err := s.allow(ctx, "ProcessService.StreamProcess")
	if err != nil {
		return err
	}
	p, err := s.Orchestrator.GetProcess(ctx, who.Tenant, req.GetId(), req.GetProcess(), 0)
	if err != nil {
		return err
	}
	sb, err := s.Orchestrator.Get(ctx, who.Tenant, req.GetId())
	if err != nil {
		return err
	}
	defer s.Orchestrator.Keep(ctx, who.Tenant, string(sb.ID))()
	after := max(req.GetAfterId(), int64(p.Event)-1)
	err = s.follow(ctx, sb.ID, after, p.Exit != nil, func(e *v1.Event) error {
		switch {
		case e.GetType() == "truncated":
		case e.GetPid() != int64(p.PID) || e.GetTime().AsTime().Before(p.Begun): // of another program, or an earlier one with its number
			return nil
		}
		if err := send(e); err != nil {
			return err
		}
		if e.GetType() == "exit" {
			return errOver
		}
		return nil
	})
	if err == errOver {
		return nil
	}
	return err
}

// errOver ends a stream that is complete.
var errOver = sandbox.Errorf("stream", sandbox.KindCanceled, "it is over")

func toProcess(p orchestrator.Process) *v1.Process {
	out := &v1.Process{Pid: int64(p.PID), Tag: p.Tag, Program: text(p.Program), User: p.User, StartedAt: stamp(p.Begun), TimeoutMs: p.Timeout.Milliseconds(),
		Background: p.Background, StdinOpen: p.Stdin, State: "running"}
	if p.Exit != nil {
		out.State, out.Exit = "ended", toExit(*p.Exit)
	}
	if p.PTY != nil {
		out.Pty = &v1.Pty{Cols: int32(p.PTY.Cols), Rows: int32(p.PTY.Rows)}
	}
	return out
}

// fromPty converts; nil is no terminal.
func fromPty(p *v1.Pty) *guest.Size {
	if p == nil {
		return nil
	}
	return &guest.Size{Cols: int(p.GetCols()), Rows: int(p.GetRows())}
}

package service

import (
	"context"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Exec runs a process to its end. send gets started, then output, then exit,
// from the calling goroutine; a slow send slows the process and nobody else. An
// error from send, or the end of ctx, kills the process.
//
// A process that fails, is killed by a limit or dies with its sandbox is an
// exit event, not an error.
func (s *Service) Exec(ctx context.Context, req *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
	who, _, err := s.allow(ctx, "SandboxService.Exec")
	if err != nil {
		return err
	}
	x, err := execRequest(req)
	if err != nil {
		return err
	}
	exit, err := s.Orchestrator.Exec(ctx, who, req.GetId(), x, stream{send, x.PTY != nil})
	if err != nil {
		return err
	}
	return send(&v1.ExecEvent{Event: &v1.ExecEvent_Exit{Exit: toExit(exit)}, Id: int64(exit.Event)})
}

func toExit(exit orchestrator.ExecExit) *v1.ProcessExit {
	detail := exit.Detail
	if exit.ResultError != "" {
		detail = strings.TrimPrefix(detail+"; "+exit.ResultError, "; ")
	}
	return &v1.ProcessExit{ExitCode: int32(exit.Code), DurationMs: ms(exit.Duration), Reason: string(exit.Reason),
		Detail: text(detail), ResultJson: string(exit.Result)}
}

// execRequest converts. What it runs is checked where it is known what the
// sandbox can run.
func execRequest(req *v1.ExecRequest) (x orchestrator.ExecRequest, err error) {
	x = orchestrator.ExecRequest{Code: req.Code, Command: req.Command, Args: req.GetArgs(), Pack: req.GetLanguagePack(),
		Dir: req.GetCwd(), Env: req.GetEnv(), User: req.GetUser(), PTY: fromPty(req.GetPty())}
	stdin, err := oneOf("exec", "stdin", req.GetStdin(), req.GetStdinData())
	if err != nil {
		return x, err
	}
	if len(stdin) > 0 {
		x.Stdin = strings.NewReader(stdin)
	}
	x.Timeout, err = optionalMillis("exec", "timeout_ms", req.TimeoutMs)
	return x, err
}

// oneOf returns whichever of the two forms of a content is there.
func oneOf(op, field, text string, data []byte) (string, error) {
	if text != "" && len(data) > 0 {
		return "", sandbox.Errorf(op, sandbox.KindInvalid, "%s is given both as text and as data", field).WithHint("leave one out")
	}
	return text + string(data), nil
}

// stream is an orchestrator.Sink that sends messages.
type stream struct {
	send func(*v1.ExecEvent) error
	pty  bool // what comes as standard output is a terminal's
}

var _ orchestrator.Sink = stream{}

func (t stream) Started(pid int, id uint64) error {
	return t.send(&v1.ExecEvent{Event: &v1.ExecEvent_Started{Started: &v1.ProcessStarted{Pid: int64(pid)}}, Id: int64(id)})
}

func (t stream) Stdout(data []byte, id uint64) error {
	if t.pty {
		return t.send(&v1.ExecEvent{Event: &v1.ExecEvent_Pty{Pty: toOutput(data)}, Id: int64(id)})
	}
	return t.send(&v1.ExecEvent{Event: &v1.ExecEvent_Stdout{Stdout: toOutput(data)}, Id: int64(id)})
}

func (t stream) Stderr(data []byte, id uint64) error {
	return t.send(&v1.ExecEvent{Event: &v1.ExecEvent_Stderr{Stderr: toOutput(data)}, Id: int64(id)})
}

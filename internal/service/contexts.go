package service

import (
	"context"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/guest/driver"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
)

// CreateContext starts an interpreter that stays warm.
func (s *Service) CreateContext(ctx context.Context, req *v1.CreateContextRequest) (*v1.Context, error) {
	who, _, err := s.allow(ctx, "ContextService.CreateContext")
	if err != nil {
		return nil, err
	}
	c := orchestrator.ContextRequest{Language: req.GetLanguage(), Dir: req.GetCwd(), User: req.GetUser(), Env: req.GetEnv()}
	if c.IdleTimeout, err = optionalMillis("context", "idle_timeout_ms", req.IdleTimeoutMs); err != nil {
		return nil, err
	}
	if c.MaxLife, err = optionalMillis("context", "timeout_ms", req.TimeoutMs); err != nil {
		return nil, err
	}
	return toContext(s.Orchestrator.CreateContext(ctx, who, req.GetId(), c))
}

// ListContexts lists the contexts of a sandbox.
func (s *Service) ListContexts(ctx context.Context, req *v1.ListContextsRequest) (*v1.ListContextsResponse, error) {
	who, _, err := s.allow(ctx, "ContextService.ListContexts")
	if err != nil {
		return nil, err
	}
	all, err := s.Orchestrator.ListContexts(ctx, who.Tenant, req.GetId())
	if err != nil {
		return nil, err
	}
	res := &v1.ListContextsResponse{}
	for _, c := range all {
		out, _ := toContext(c, nil)
		res.Contexts = append(res.Contexts, out)
	}
	return res, nil
}

// GetContext returns one context of a sandbox.
func (s *Service) GetContext(ctx context.Context, req *v1.GetContextRequest) (*v1.Context, error) {
	who, _, err := s.allow(ctx, "ContextService.GetContext")
	if err != nil {
		return nil, err
	}
	return toContext(s.Orchestrator.GetContext(ctx, who.Tenant, req.GetId(), req.GetContext()))
}

// DeleteContext ends a context and forgets it.
func (s *Service) DeleteContext(ctx context.Context, req *v1.DeleteContextRequest) (*v1.Context, error) {
	who, _, err := s.allow(ctx, "ContextService.DeleteContext")
	if err != nil {
		return nil, err
	}
	return toContext(s.Orchestrator.DeleteContext(ctx, who, req.GetId(), req.GetContext()))
}

// InterruptContext interrupts the turn that a context runs.
func (s *Service) InterruptContext(ctx context.Context, req *v1.InterruptContextRequest) (*v1.Context, error) {
	who, _, err := s.allow(ctx, "ContextService.InterruptContext")
	if err != nil {
		return nil, err
	}
	return toContext(s.Orchestrator.InterruptContext(ctx, who, req.GetId(), req.GetContext()))
}

// RestartContext gives a context a fresh interpreter.
func (s *Service) RestartContext(ctx context.Context, req *v1.RestartContextRequest) (*v1.Context, error) {
	who, _, err := s.allow(ctx, "ContextService.RestartContext")
	if err != nil {
		return nil, err
	}
	return toContext(s.Orchestrator.RestartContext(ctx, who, req.GetId(), req.GetContext()))
}

// Eval runs a turn to its end. send gets started, then what the turn prints and
// shows, then end, from the calling goroutine; a slow send slows the context and
// nobody else. An error from send, or the end of ctx, interrupts the turn.
//
// A turn that fails, is interrupted or dies with its interpreter has an end
// event and is no error.
func (s *Service) Eval(ctx context.Context, req *v1.EvalRequest, send func(*v1.EvalEvent) error) error {
	who, _, err := s.allow(ctx, "ContextService.Eval")
	if err != nil {
		return err
	}
	x := orchestrator.EvalRequest{Code: req.GetCode(), Context: req.GetContext(), Language: req.GetLanguage(), Env: req.GetEnv()}
	if x.Timeout, err = optionalMillis("eval", "timeout_ms", req.TimeoutMs); err != nil {
		return err
	}
	end, err := s.Orchestrator.Eval(ctx, who, req.GetId(), x, turnStream{send})
	if err != nil {
		return err
	}
	state := orchestrator.ContextReady
	if !end.Alive {
		state = orchestrator.ContextDead
	}
	return send(&v1.EvalEvent{Id: int64(end.Event), Event: &v1.EvalEvent_End{End: &v1.TurnEnd{Reason: string(end.Reason), Detail: text(end.Detail),
		ExecutionCount: int64(end.Count), DurationMs: ms(end.Duration), ContextState: string(state), Context: end.Context, Turn: int64(end.Turn)}}})
}

// turnStream is an orchestrator.TurnSink that sends messages.
type turnStream struct{ send func(*v1.EvalEvent) error }

var _ orchestrator.TurnSink = turnStream{}

func (t turnStream) Begun(id string, n, pid int, event uint64) error {
	return t.send(&v1.EvalEvent{Id: int64(event), Event: &v1.EvalEvent_Started{Started: &v1.TurnStarted{Context: id, Turn: int64(n), Pid: int64(pid)}}})
}

func (t turnStream) Stdout(data []byte, event uint64) error {
	return t.send(&v1.EvalEvent{Id: int64(event), Event: &v1.EvalEvent_Stdout{Stdout: toOutput(data)}})
}

func (t turnStream) Stderr(data []byte, event uint64) error {
	return t.send(&v1.EvalEvent{Id: int64(event), Event: &v1.EvalEvent_Stderr{Stderr: toOutput(data)}})
}

func (t turnStream) Result(r *driver.Result, event uint64) error {
	return t.send(&v1.EvalEvent{Id: int64(event), Event: &v1.EvalEvent_Result{Result: toResult(r)}})
}

func (t turnStream) Failed(e *driver.Error, event uint64) error {
	return t.send(&v1.EvalEvent{Id: int64(event), Event: &v1.EvalEvent_Exception{
		Exception: &v1.EvalError{Name: text(e.Name), Value: text(e.Value), Traceback: text(e.Traceback)}}})
}

// toResult converts. encoding/json has made what it holds valid UTF-8.
func toResult(r *driver.Result) *v1.EvalResult {
	out := &v1.EvalResult{IsMainResult: r.Main, Text: text(r.Text), Html: text(r.HTML), Markdown: text(r.Markdown), Svg: text(r.SVG), Png: text(r.PNG),
		Jpeg: text(r.JPEG), Pdf: text(r.PDF), Latex: text(r.LaTeX), Javascript: text(r.JavaScript), JsonJson: text(string(r.JSON)),
		DataJson: text(string(r.Data)), ChartJson: text(string(r.Chart))}
	for kind, v := range r.Extra {
		if out.Extra == nil {
			out.Extra = map[string]string{}
		}
		out.Extra[text(kind)] = text(v)
	}
	return out
}

func toContext(c orchestrator.Context, err error) (*v1.Context, error) {
	if err != nil {
		return nil, err
	}
	return &v1.Context{Id: c.ID, Language: c.Language, State: string(c.State), Reason: string(c.Reason), Detail: text(c.Detail), Pid: int64(c.PID),
		Cwd: text(c.Dir), User: text(c.User), EnvNames: c.EnvNames, CreatedAt: stamp(c.Created), UsedAt: stamp(c.Used),
		IdleTimeoutMs: c.IdleTimeout.Milliseconds(), TimeoutMs: c.MaxLife.Milliseconds(), Turns: int64(c.Turns), Waiting: int64(c.Waiting)}, nil
}

package client

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ContextOptions are about an interpreter that stays warm.
type ContextOptions struct {
	Language    string // python or node; default the sandbox's, else python
	Dir         string // working directory; default the user's home
	Env         map[string]string
	User        string        // default "user" (uid 1000)
	IdleTimeout time.Duration // ends it without a turn for so long; zero the server's default, Never never
	Timeout     time.Duration // ends it in any case; zero the server's default, Never with its sandbox
}

// Code is a turn of a context.
type Code struct {
	Source   string
	Context  string            // an id; empty: the language's own, which is made when it is first used
	Language string            // of that one; default the sandbox's, else python
	Env      map[string]string // during this turn only
	Timeout  time.Duration     // wall clock; zero the server's default, Never none
}

// TurnHandler takes what comes of a turn, in order. Nil functions discard. An
// error ends Eval, and interrupts the turn.
type TurnHandler struct {
	Stdout, Stderr io.Writer
	Result         func(*v1.EvalResult) error
	Error          func(*v1.EvalError) error
}

// TurnEnd is how a turn ended.
type TurnEnd struct {
	Context string
	// Reason is done, also for code that raised an exception; operator
	// (interrupted), timeout, or why the interpreter ended.
	Reason   sandbox.Reason
	Detail   string
	Count    int64 // of the context's turns, as notebooks number them
	Alive    bool  // the context takes further turns
	Duration time.Duration
	Failed   bool // it raised an exception, which TurnHandler.Error got
}

// CreateContext starts an interpreter that stays warm, and returns once it takes
// turns. Errors: KindCapacity when the sandbox has too many.
func (s *Sandbox) CreateContext(ctx context.Context, o ContextOptions) (*v1.Context, error) {
	return message(s.c.contexts.CreateContext(ctx, connect.NewRequest(&v1.CreateContextRequest{Id: s.id, Language: o.Language, Cwd: o.Dir, Env: o.Env,
		User: o.User, IdleTimeoutMs: millis(o.IdleTimeout), TimeoutMs: millis(o.Timeout)})))
}

// Contexts lists the sandbox's contexts, those that ended lately included.
func (s *Sandbox) Contexts(ctx context.Context) ([]*v1.Context, error) {
	res, err := message(s.c.contexts.ListContexts(ctx, connect.NewRequest(&v1.ListContextsRequest{Id: s.id})))
	return res.GetContexts(), err
}

// Context returns one. Errors: KindNotFound.
func (s *Sandbox) Context(ctx context.Context, id string) (*v1.Context, error) {
	return message(s.c.contexts.GetContext(ctx, connect.NewRequest(&v1.GetContextRequest{Id: s.id, Context: id})))
}

// DeleteContext ends a context with all it started, and forgets it.
func (s *Sandbox) DeleteContext(ctx context.Context, id string) error {
	_, err := s.c.contexts.DeleteContext(ctx, connect.NewRequest(&v1.DeleteContextRequest{Id: s.id, Context: id}))
	return fromConnect(ctx, err)
}

// InterruptContext interrupts the turn that a context runs; its state stays.
func (s *Sandbox) InterruptContext(ctx context.Context, id string) error {
	_, err := s.c.contexts.InterruptContext(ctx, connect.NewRequest(&v1.InterruptContextRequest{Id: s.id, Context: id}))
	return fromConnect(ctx, err)
}

// RestartContext gives a context a fresh interpreter, with empty state.
func (s *Sandbox) RestartContext(ctx context.Context, id string) (*v1.Context, error) {
	return message(s.c.contexts.RestartContext(ctx, connect.NewRequest(&v1.RestartContextRequest{Id: s.id, Context: id})))
}

// Eval runs code in a context to its end and hands over what comes of it as it
// comes. Code that raises an exception, is interrupted or ends its interpreter is
// a TurnEnd, not an error. Ending ctx interrupts the turn; the context stays.
//
// When the server is stopped or dies, the turn runs on; Eval waits for the next
// server, for some fifteen seconds, and goes on where it was.
//
// Errors: those of the server (KindNotFound, KindGone once the context has ended,
// KindCapacity, …), of the handler, and KindUnavailable when the connection broke
// and could not be made again.
func (s *Sandbox) Eval(ctx context.Context, code Code, h TurnHandler) (TurnEnd, error) {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := s.c.contexts.Eval(ctx, connect.NewRequest(&v1.EvalRequest{Id: s.id, Context: code.Context, Code: code.Source, Language: code.Language,
		Env: code.Env, TimeoutMs: millis(code.Timeout)}))
	if err != nil {
		return TurnEnd{}, fromConnect(ctx, err)
	}
	defer func() {
		cancel() // first: Close would otherwise wait for the turn
		_ = st.Close()
	}()
	t := &turnReader{h: h}
	for st.Receive() {
		if err := t.take(st.Msg()); err != nil || t.over {
			return t.end, sandbox.Wrap("eval", s.id, err)
		}
	}
	err = fromConnect(ctx, st.Err())
	switch {
	case t.after > 0 && (err == nil || broken(err)) && outer.Err() == nil:
		return t.follow(s.Events(outer, WatchOptions{After: t.after}))
	case err != nil:
		return TurnEnd{}, err
	}
	return TurnEnd{}, sandbox.Errorf("eval", sandbox.KindUnavailable, "the server ended the stream before the turn did").WithID(s.id)
}

// turnReader hands what comes of a turn to its handler.
type turnReader struct {
	h     TurnHandler
	turn  *v1.TurnStarted
	after int64 // the last event it has had
	end   TurnEnd
	over  bool
}

func (t *turnReader) take(e *v1.EvalEvent) (err error) {
	switch e := e.GetEvent().(type) {
	case *v1.EvalEvent_Started:
		t.turn = e.Started
	case *v1.EvalEvent_Stdout:
		err = write(t.h.Stdout, e.Stdout)
	case *v1.EvalEvent_Stderr:
		err = write(t.h.Stderr, e.Stderr)
	case *v1.EvalEvent_Result:
		if t.h.Result != nil {
			err = t.h.Result(e.Result)
		}
	case *v1.EvalEvent_Exception:
		t.end.Failed = true
		if t.h.Error != nil {
			err = t.h.Error(e.Exception)
		}
	case *v1.EvalEvent_End:
		x := e.End
		t.end = TurnEnd{Context: x.GetContext(), Reason: sandbox.Reason(x.GetReason()), Detail: x.GetDetail(), Count: x.GetExecutionCount(),
			Alive: x.GetContextState() != "dead", Duration: time.Duration(x.GetDurationMs() * float64(time.Millisecond)), Failed: t.end.Failed}
		t.over = true
	}
	t.after = max(t.after, e.GetId())
	return err
}

// turnBody is the text of an event about a turn.
type turnBody struct {
	Context  string        `json:"context"`
	Turn     int64         `json:"turn"`
	Reason   string        `json:"reason"`
	Detail   string        `json:"detail"`
	Count    int64         `json:"execution_count"`
	Duration float64       `json:"duration_ms"`
	Alive    bool          `json:"alive"`
	Error    *v1.EvalError `json:"error"`
	Result   *eventResult  `json:"result"`
}

// eventResult is a result as events have it.
type eventResult struct {
	Main       bool              `json:"main"`
	Text       string            `json:"text"`
	HTML       string            `json:"html"`
	Markdown   string            `json:"markdown"`
	SVG        string            `json:"svg"`
	PNG        string            `json:"png"`
	JPEG       string            `json:"jpeg"`
	PDF        string            `json:"pdf"`
	LaTeX      string            `json:"latex"`
	JavaScript string            `json:"javascript"`
	JSON       json.RawMessage   `json:"json"`
	Data       json.RawMessage   `json:"data"`
	Chart      json.RawMessage   `json:"chart"`
	Extra      map[string]string `json:"extra"`
}

// follow sees a turn to its end by the sandbox's events.
func (t *turnReader) follow(events iter.Seq2[*v1.Event, error]) (TurnEnd, error) {
	for e, err := range events {
		if err != nil {
			return TurnEnd{}, sandbox.Wrap("eval", "", err)
		}
		if e.GetType() == "truncated" {
			return TurnEnd{}, sandbox.Errorf("eval", sandbox.KindUnavailable, "output was dropped before it was read")
		}
		if err := t.replay(e); err != nil || t.over {
			return t.end, sandbox.Wrap("eval", "", err)
		}
	}
	return TurnEnd{}, sandbox.Errorf("eval", sandbox.KindGone, "the sandbox ended, and nobody saw how the turn did")
}

func (t *turnReader) replay(e *v1.Event) error {
	var b turnBody
	switch e.GetType() {
	case "turn", "display", "exception", "turn_end":
		if json.Unmarshal([]byte(e.GetText()), &b) != nil || b.Context != t.turn.GetContext() || b.Turn != t.turn.GetTurn() {
			return nil
		}
	case "stdout", "stderr", "exit":
		if e.GetPid() != t.turn.GetPid() {
			return nil
		}
	}
	item := &v1.EvalEvent{Id: e.GetId()}
	switch e.GetType() {
	case "stdout":
		item.Event = &v1.EvalEvent_Stdout{Stdout: &v1.Output{Text: e.GetText(), Data: e.GetData()}}
	case "stderr":
		item.Event = &v1.EvalEvent_Stderr{Stderr: &v1.Output{Text: e.GetText(), Data: e.GetData()}}
	case "display":
		item.Event = &v1.EvalEvent_Result{Result: b.Result.message()}
	case "exception":
		item.Event = &v1.EvalEvent_Exception{Exception: b.Error}
	case "turn_end":
		state := "ready"
		if !b.Alive {
			state = "dead"
		}
		item.Event = &v1.EvalEvent_End{End: &v1.TurnEnd{Reason: b.Reason, Detail: b.Detail, ExecutionCount: b.Count, DurationMs: b.Duration,
			ContextState: state, Context: b.Context, Turn: b.Turn}}
	case "exit": // of the interpreter, without an end of the turn
		item.Event = &v1.EvalEvent_End{End: &v1.TurnEnd{Reason: e.GetReason(), Detail: e.GetDetail(), ContextState: "dead", Context: t.turn.GetContext(), Turn: t.turn.GetTurn()}}
	default:
		return nil
	}
	return t.take(item)
}

func (r *eventResult) message() *v1.EvalResult {
	if r == nil {
		return &v1.EvalResult{}
	}
	return &v1.EvalResult{IsMainResult: r.Main, Text: r.Text, Html: r.HTML, Markdown: r.Markdown, Svg: r.SVG, Png: r.PNG, Jpeg: r.JPEG, Pdf: r.PDF,
		Latex: r.LaTeX, Javascript: r.JavaScript, JsonJson: string(r.JSON), DataJson: string(r.Data), ChartJson: string(r.Chart), Extra: r.Extra}
}

package e2b

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// portInterpreter is where E2B's code interpreter listens: what a request for it
// wants is done by this server, in the sandbox's contexts.
const portInterpreter = "49999"

// languages are E2B's names for what a context can run.
var languages = map[string]string{"": "", "python": "python", "python3": "python", "javascript": "node", "js": "node", "node": "node"}

// shownLanguages are E2B's names for our languages.
var shownLanguages = map[string]string{"python": "python", "node": "javascript"}

func language(name string) (string, error) {
	if l, ok := languages[name]; ok {
		return l, nil
	}
	return "", sandbox.Errorf("context", sandbox.KindInvalid, "the language %.40q is not supported", name).WithHint("python or javascript")
}

// interpreterRoutes are those of the code interpreter.
func (s *Server) interpreterRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /execute", s.execute)
	mux.HandleFunc("GET /contexts", s.inner(s.listContexts))
	mux.HandleFunc("POST /contexts", s.inner(s.createContext))
	mux.HandleFunc("DELETE /contexts/{context}", s.inner(s.deleteContext))
	mux.HandleFunc("POST /contexts/{context}/restart", s.inner(s.restartContext))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "OK") })
	mux.HandleFunc("/", s.noRoute)
	return mux
}

// inner is a route whose error is its answer.
func (s *Server) inner(serve func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := serve(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// codeContext is a context to E2B's clients.
type codeContext struct {
	ID       string `json:"id"`
	Language string `json:"language"`
	CWD      string `json:"cwd"`
}

func toContext(c *v1.Context) codeContext {
	out := codeContext{ID: c.GetId(), Language: c.GetLanguage(), CWD: c.GetCwd()}
	if name := shownLanguages[out.Language]; name != "" {
		out.Language = name
	}
	if out.CWD == "" {
		out.CWD = "/home/user"
	}
	return out
}

func (s *Server) listContexts(w http.ResponseWriter, r *http.Request) error {
	all, err := s.api.ListContexts(r.Context(), &v1.ListContextsRequest{Id: visitOf(r.Context()).id})
	if err != nil {
		return err
	}
	out := []codeContext{}
	for _, c := range all.GetContexts() {
		if c.GetState() != "dead" {
			out = append(out, toContext(c))
		}
	}
	answer(w, http.StatusOK, out)
	return nil
}

func (s *Server) createContext(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		Language string `json:"language"`
		CWD      string `json:"cwd"`
	}
	if err := read(w, r, &c); err != nil {
		return err
	}
	lang, err := language(c.Language)
	if err != nil {
		return err
	}
	// E2B's contexts live as long as their sandbox.
	made, err := checked(r.Context(), s, s.api.CreateContext, &v1.CreateContextRequest{Id: visitOf(r.Context()).id, Language: lang,
		Cwd: homeless(c.CWD), IdleTimeoutMs: proto.Int64(0)})
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, toContext(made))
	return nil
}

func (s *Server) deleteContext(w http.ResponseWriter, r *http.Request) error {
	if _, err := checked(r.Context(), s, s.api.DeleteContext, &v1.DeleteContextRequest{Id: visitOf(r.Context()).id, Context: r.PathValue("context")}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) restartContext(w http.ResponseWriter, r *http.Request) error {
	if _, err := checked(r.Context(), s, s.api.RestartContext, &v1.RestartContextRequest{Id: visitOf(r.Context()).id, Context: r.PathValue("context")}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// execute runs code in a context and answers a line of JSON for each thing that
// comes of it. The turn ends with the request: clients interrupt it by closing.
func (s *Server) execute(w http.ResponseWriter, r *http.Request) {
	req, err := s.executeRequest(w, r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := s.untilDrain(r.Context())
	defer cancel()
	lines := &lines{w: w}
	err = s.api.Eval(ctx, req, func(e *v1.EvalEvent) error { return lines.event(e) })
	switch {
	case err == nil:
	case lines.begun: // the answer is 200 already
		_ = lines.send(map[string]any{"type": "unexpected_end_of_execution"}) // or nobody reads any more
		s.log.WarnContext(ctx, "e2b: a turn ended early", "sandbox", req.GetId(), "error", err)
	default:
		s.fail(w, r, err)
	}
}

func (s *Server) executeRequest(w http.ResponseWriter, r *http.Request) (*v1.EvalRequest, error) {
	var c struct {
		Code      string            `json:"code"`
		ContextID *string           `json:"context_id"`
		Language  *string           `json:"language"`
		EnvVars   map[string]string `json:"env_vars"`
	}
	if err := readUpTo(w, r, &c, maxMessage); err != nil {
		return nil, err
	}
	req := &v1.EvalRequest{Id: visitOf(r.Context()).id, Code: c.Code, Env: c.EnvVars, TimeoutMs: proto.Int64(0)}
	if c.ContextID != nil && c.Language != nil {
		return nil, invalid("only one of context_id or language can be provided")
	}
	if c.Language != nil {
		lang, err := language(*c.Language)
		if err != nil {
			return nil, err
		}
		req.Language = lang
	}
	if c.ContextID != nil {
		req.Context = *c.ContextID
	}
	return req, s.rules.Check(req)
}

// lines is an answer of a line of JSON for each event.
type lines struct {
	w     http.ResponseWriter
	begun bool
}

// begin answers that the turn has begun: a client counts its time from then on.
func (l *lines) begin() error {
	if l.begun {
		return nil
	}
	l.begun = true
	l.w.Header().Set("Content-Type", "application/x-ndjson")
	l.w.Header().Set("Cache-Control", "no-store")
	l.w.WriteHeader(http.StatusOK)
	return http.NewResponseController(l.w).Flush()
}

func (l *lines) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := l.begin(); err != nil {
		return err
	}
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

func (l *lines) event(e *v1.EvalEvent) error {
	now := time.Now().UTC().Format(time.RFC3339Nano)
	switch e := e.GetEvent().(type) {
	case *v1.EvalEvent_Started:
		return l.begin()
	case *v1.EvalEvent_Stdout:
		return l.send(map[string]any{"type": "stdout", "text": string(outputOf(e.Stdout)), "timestamp": now})
	case *v1.EvalEvent_Stderr:
		return l.send(map[string]any{"type": "stderr", "text": string(outputOf(e.Stderr)), "timestamp": now})
	case *v1.EvalEvent_Result:
		return l.send(result(e.Result))
	case *v1.EvalEvent_Exception:
		return l.send(map[string]any{"type": "error", "name": e.Exception.GetName(), "value": e.Exception.GetValue(), "traceback": e.Exception.GetTraceback()})
	case *v1.EvalEvent_End:
		return l.end(e.End)
	}
	return nil
}

// end ends a turn. What ended it other than its own code is an error like one of
// the code's.
func (l *lines) end(t *v1.TurnEnd) error {
	switch sandbox.Reason(t.GetReason()) {
	case sandbox.ReasonDone:
	case sandbox.ReasonOperator:
		if err := l.send(map[string]any{"type": "error", "name": "KeyboardInterrupt", "value": t.GetDetail(), "traceback": ""}); err != nil {
			return err
		}
	default:
		if err := l.send(map[string]any{"type": "error", "name": "ContextEnded", "value": t.GetReason() + ": " + t.GetDetail(), "traceback": ""}); err != nil {
			return err
		}
	}
	if err := l.send(map[string]any{"type": "number_of_executions", "execution_count": t.GetExecutionCount()}); err != nil {
		return err
	}
	return l.send(map[string]any{"type": "end_of_execution"})
}

// result converts: only the forms that there are.
func result(r *v1.EvalResult) map[string]any {
	out := map[string]any{"type": "result", "is_main_result": r.GetIsMainResult()}
	for name, text := range map[string]string{"text": r.GetText(), "html": r.GetHtml(), "markdown": r.GetMarkdown(), "svg": r.GetSvg(), "png": r.GetPng(),
		"jpeg": r.GetJpeg(), "pdf": r.GetPdf(), "latex": r.GetLatex(), "javascript": r.GetJavascript()} {
		if text != "" {
			out[name] = text
		}
	}
	objects := map[string]string{"json": r.GetJsonJson(), "data": r.GetDataJson(), "chart": r.GetChartJson()}
	for kind, form := range r.GetExtra() {
		// E2B's own kinds, which plotting code may make by itself. The clients
		// find any other beside the forms they know.
		if name, ok := strings.CutPrefix(kind, "e2b/"); ok && (name == "chart" || name == "data") {
			objects[name] = form
		} else if _, taken := out[kind]; !taken {
			out[kind] = form
		}
	}
	for name, raw := range objects {
		if json.Valid([]byte(raw)) {
			out[name] = json.RawMessage(raw)
		}
	}
	return out
}

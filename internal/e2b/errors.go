package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// code is how a Kind reads to E2B's clients, which know fewer than ours and
// choose an exception by them.
type code struct {
	http    int
	connect connect.Code
}

// codes is E2B's vocabulary. A test demands a row for every kind.
var codes = map[sandbox.Kind]code{
	sandbox.KindInvalid:         {http.StatusBadRequest, connect.CodeInvalidArgument},
	sandbox.KindUnauthenticated: {http.StatusUnauthorized, connect.CodeUnauthenticated},
	sandbox.KindDenied:          {http.StatusForbidden, connect.CodePermissionDenied},
	sandbox.KindNotFound:        {http.StatusNotFound, connect.CodeNotFound},
	sandbox.KindExists:          {http.StatusConflict, connect.CodeAlreadyExists},
	sandbox.KindConflict:        {http.StatusConflict, connect.CodeFailedPrecondition},
	sandbox.KindGone:            {http.StatusNotFound, connect.CodeNotFound},
	sandbox.KindUnsupported:     {http.StatusNotImplemented, connect.CodeUnimplemented},
	sandbox.KindCapacity:        {http.StatusTooManyRequests, connect.CodeResourceExhausted},
	sandbox.KindTooLarge:        {http.StatusRequestEntityTooLarge, connect.CodeResourceExhausted},
	sandbox.KindNoSpace:         {http.StatusInsufficientStorage, connect.CodeResourceExhausted},
	sandbox.KindTimeout:         {http.StatusGatewayTimeout, connect.CodeDeadlineExceeded},
	sandbox.KindCanceled:        {http.StatusRequestTimeout, connect.CodeCanceled},
	sandbox.KindUnavailable:     {http.StatusServiceUnavailable, connect.CodeUnavailable},
	sandbox.KindIsDirectory:     {http.StatusBadRequest, connect.CodeInvalidArgument},
	sandbox.KindNotDirectory:    {http.StatusBadRequest, connect.CodeInvalidArgument},
	sandbox.KindProtocol:        {http.StatusBadGateway, connect.CodeDataLoss},
	sandbox.KindInternal:        {http.StatusInternalServerError, connect.CodeInternal},
}

func codeOf(k sandbox.Kind) code {
	if c, ok := codes[k]; ok {
		return c
	}
	return codes[sandbox.KindInternal]
}

// explain is what err says to a caller: what, and what to do. What was never
// meant for callers stays in the log.
func explain(err error) string {
	var e *sandbox.Error
	if !errors.As(err, &e) {
		if sandbox.KindOf(err) == sandbox.KindInternal {
			return "internal error; the server's log says more under this request's id (the X-Request-Id header)"
		}
		return string(sandbox.KindOf(err))
	}
	if e.Hint == "" {
		return e.Message()
	}
	return e.Message() + ": " + e.Hint
}

// apiError is the body of every error over plain HTTP.
type apiError struct {
	Code      int    `json:"code"`
	Message   string `json:"message"`
	SandboxID string `json:"sandboxId,omitempty"`
}

// fail answers with err.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var ce *connect.Error // of a body that stalled
	if errors.As(err, &ce) && sandbox.KindOf(err) == sandbox.KindInternal {
		err = sandbox.Errorf("read request", sandbox.KindCanceled, "%s", ce.Message())
	}
	status := codeOf(sandbox.KindOf(err)).http
	if status == http.StatusInternalServerError {
		s.log.ErrorContext(r.Context(), "e2b", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	var e *sandbox.Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(e.RetryAfter.Seconds())))))
	}
	answer(w, status, apiError{Code: status, Message: explain(err)})
}

// gone answers for a sandbox that does not live: E2B's clients take a 502 for
// its death.
func gone(w http.ResponseWriter, id string) {
	answer(w, http.StatusBadGateway, apiError{Code: http.StatusBadGateway, Message: "The sandbox was not found", SandboxID: id})
}

// answer sends v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // structs of ours always encode
		panic(err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b)
}

// rpcError turns err into what the clients' Connect code expects.
func (s *Server) rpcError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	kind := sandbox.KindOf(err)
	if kind == sandbox.KindInternal {
		s.log.ErrorContext(ctx, "e2b", "error", err)
	}
	out := connect.NewError(codeOf(kind).connect, errors.New(explain(err)))
	var e *sandbox.Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		out.Meta().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(e.RetryAfter.Seconds())))))
	}
	return out
}

func invalid(format string, args ...any) *sandbox.Error {
	return sandbox.Errorf("e2b", sandbox.KindInvalid, format, args...)
}

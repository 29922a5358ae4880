package server

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// code is how a Kind reads on the wire.
type code struct {
	http    int
	connect connect.Code
}

// statusClientClosed is nginx's "client closed request": nobody reads it, but
// logs and metrics tell it from a failure of ours.
const statusClientClosed = 499

// codes is the one table from Kind to HTTP status and Connect code. A test
// demands a row for every kind.
var codes = map[sandbox.Kind]code{
	sandbox.KindInvalid:         {http.StatusBadRequest, connect.CodeInvalidArgument},
	sandbox.KindUnauthenticated: {http.StatusUnauthorized, connect.CodeUnauthenticated},
	sandbox.KindDenied:          {http.StatusForbidden, connect.CodePermissionDenied},
	sandbox.KindNotFound:        {http.StatusNotFound, connect.CodeNotFound},
	sandbox.KindExists:          {http.StatusConflict, connect.CodeAlreadyExists},
	sandbox.KindConflict:        {http.StatusConflict, connect.CodeFailedPrecondition},
	sandbox.KindGone:            {http.StatusGone, connect.CodeFailedPrecondition},
	sandbox.KindUnsupported:     {http.StatusUnprocessableEntity, connect.CodeUnimplemented},
	sandbox.KindCapacity:        {http.StatusTooManyRequests, connect.CodeResourceExhausted},
	sandbox.KindTooLarge:        {http.StatusRequestEntityTooLarge, connect.CodeResourceExhausted},
	sandbox.KindNoSpace:         {http.StatusInsufficientStorage, connect.CodeResourceExhausted},
	sandbox.KindTimeout:         {http.StatusGatewayTimeout, connect.CodeDeadlineExceeded},
	sandbox.KindCanceled:        {statusClientClosed, connect.CodeCanceled},
	sandbox.KindUnavailable:     {http.StatusServiceUnavailable, connect.CodeUnavailable},
	sandbox.KindIsDirectory:     {http.StatusConflict, connect.CodeFailedPrecondition},
	sandbox.KindNotDirectory:    {http.StatusConflict, connect.CodeFailedPrecondition},
	sandbox.KindProtocol:        {http.StatusBadGateway, connect.CodeDataLoss},
	sandbox.KindInternal:        {http.StatusInternalServerError, connect.CodeInternal},
}

func codeOf(k sandbox.Kind) code {
	if c, ok := codes[k]; ok {
		return c
	}
	return codes[sandbox.KindInternal]
}

// httpError overrides the status of the table where HTTP has a more exact one
// for how the request itself arrived: 405, 408, 416.
type httpError struct {
	err    *sandbox.Error
	status int
}

// Error implements error.
func (e *httpError) Error() string { return e.err.Error() }

// Unwrap returns what went wrong.
func (e *httpError) Unwrap() error { return e.err }

func statusOf(err error) int {
	var he *httpError
	if errors.As(err, &he) {
		return he.status
	}
	return codeOf(sandbox.KindOf(err)).http
}

// hints say what to do where whoever met the error could not know.
var hints = map[sandbox.Kind]string{
	sandbox.KindNoSpace:  "free space on the disk of the data directory",
	sandbox.KindCapacity: "retry in a moment; if that does not help, the server's own limits are too low: descriptors, tasks or memory",
}

// errShutdown is the cause of contexts that end because the server does.
var errShutdown = sandbox.Errorf("call", sandbox.KindUnavailable, "the server is shutting down").
	WithHint("try again in a moment")

// typed makes err presentable: an *sandbox.Error, with a Kind that says whose
// fault the end of a context was, and without the text of errors that were
// never meant for callers (those are logged under the request's id).
func typed(ctx context.Context, op string, err error) *sandbox.Error {
	kind := sandbox.KindOf(err)
	if kind == sandbox.KindCanceled || kind == sandbox.KindTimeout {
		if cause := context.Cause(ctx); errors.Is(cause, errShutdown) || errors.Is(cause, errDeadline) {
			err = cause
		}
	}
	var e *sandbox.Error
	if errors.As(err, &e) {
		if hint := hints[e.Kind]; hint != "" && e.Hint == "" {
			hinted := *e
			return hinted.WithHint("%s", hint)
		}
		return e
	}
	e = &sandbox.Error{Op: op, Kind: kind, Hint: hints[kind]}
	if kind == sandbox.KindInternal {
		e.Err = errors.New("internal error")
		e.Hint = "the server's log says more under this request's id (the X-Request-Id header)"
	}
	return e
}

// retryAfter renders e.RetryAfter for the header: whole seconds, at least one.
func retryAfter(e *sandbox.Error) string {
	return strconv.Itoa(max(1, int(math.Ceil(e.RetryAfter.Seconds()))))
}

// connectError turns e into the Connect error that carries all of it.
func connectError(e *sandbox.Error) *connect.Error {
	ce := connect.NewError(codeOf(e.Kind).connect, errors.New(e.Message()))
	detail, err := connect.NewErrorDetail(&v1.ErrorDetail{
		Kind: string(e.Kind), Message: valid(e.Message()), Hint: valid(e.Hint), Op: valid(e.Op), Id: valid(e.ID),
		RetryAfterMs: e.RetryAfter.Milliseconds(),
	})
	if err == nil {
		ce.AddDetail(detail)
	}
	if e.RetryAfter > 0 {
		ce.Meta().Set("Retry-After", retryAfter(e))
	}
	return ce
}

// appendError appends the REST form of e: {"error":{…}}.
func appendError(b []byte, e *sandbox.Error) []byte {
	b = append(b, `{"error":{"kind":`...)
	b = appendString(b, string(e.Kind))
	b = append(b, `,"message":`...)
	b = appendString(b, e.Message())
	b = append(b, `,"hint":`...)
	b = appendString(b, e.Hint)
	b = append(b, `,"op":`...)
	b = appendString(b, e.Op)
	b = append(b, `,"id":`...)
	b = appendString(b, e.ID)
	return append(b, "}}"...)
}

// writeError answers with e and status.
func writeError(w http.ResponseWriter, e *sandbox.Error, status int) {
	h := w.Header()
	if e.RetryAfter > 0 {
		h.Set("Retry-After", retryAfter(e))
	}
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="firebreak"`)
	}
	writeJSON(w, status, append(appendError(nil, e), '\n'))
}

// writeJSON answers with a complete JSON document.
func writeJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = contentJSON
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	w.Write(body)
}

// Header values shared by all answers; nobody appends to them.
var (
	contentJSON = []string{"application/json"}
	noStore     = []string{"no-store"}
	noSniff     = []string{"nosniff"}
)

// errDeadline is the cause of contexts that end with their operation's time.
var errDeadline = sandbox.Errorf("call", sandbox.KindTimeout, "the operation took longer than the server allows").
	WithHint("it may still finish; look at the object before repeating the call")

// withDeadline bounds an operation; d 0 does not.
func withDeadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, d, errDeadline)
}

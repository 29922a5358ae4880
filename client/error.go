package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// fromConnect rebuilds the server's *sandbox.Error from a Connect error. What
// came from no Firebreak (a proxy, a broken connection) gets the Kind that fits
// its code.
func fromConnect(ctx context.Context, err error) error {
	var ce *connect.Error
	var se *sandbox.Error
	switch {
	case err == nil, errors.Is(err, io.EOF) && !errors.As(err, &ce), errors.As(err, &se):
		return err
	case ctx.Err() != nil:
		return sandbox.Wrap("call", "", context.Cause(ctx))
	case !errors.As(err, &ce):
		return unreachable(err)
	}
	for _, d := range ce.Details() {
		msg, err := d.Value()
		if err != nil {
			continue
		}
		if e, ok := msg.(*v1.ErrorDetail); ok {
			return fromDetail(e)
		}
	}
	if !connect.IsWireError(err) {
		return unreachable(errors.Unwrap(ce))
	}
	return &sandbox.Error{Op: "call", Kind: kindOfCode(ce.Code()), Err: errors.New(ce.Message())}
}

func fromDetail(d *v1.ErrorDetail) *sandbox.Error {
	e := &sandbox.Error{
		Op: d.GetOp(), ID: d.GetId(), Kind: sandbox.Kind(d.GetKind()), Hint: d.GetHint(),
		RetryAfter: time.Duration(d.GetRetryAfterMs()) * time.Millisecond,
	}
	if d.GetMessage() != "" {
		e.Err = errors.New(d.GetMessage())
	}
	return e
}

// kindOfCode is for errors without our detail. The server's table is the
// authority for those with one.
func kindOfCode(c connect.Code) sandbox.Kind {
	switch c {
	case connect.CodeCanceled:
		return sandbox.KindCanceled
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return sandbox.KindInvalid
	case connect.CodeDeadlineExceeded:
		return sandbox.KindTimeout
	case connect.CodeNotFound:
		return sandbox.KindNotFound
	case connect.CodeAlreadyExists:
		return sandbox.KindExists
	case connect.CodePermissionDenied:
		return sandbox.KindDenied
	case connect.CodeUnauthenticated:
		return sandbox.KindUnauthenticated
	case connect.CodeResourceExhausted:
		return sandbox.KindCapacity
	case connect.CodeFailedPrecondition, connect.CodeAborted:
		return sandbox.KindConflict
	case connect.CodeUnimplemented:
		return sandbox.KindUnsupported
	case connect.CodeUnavailable:
		return sandbox.KindUnavailable
	}
	return sandbox.KindInternal
}

// opCall is the Op of a call that was sent and got no answer.
const opCall = "call"

// unreachable is the error of a call that got no answer.
func unreachable(err error) error {
	if err == nil {
		err = errors.New("no answer")
	}
	var ue *url.Error // "Post \"http://firebreak/…\": " tells a person nothing
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var op *net.OpError
	e := sandbox.Errorf(opCall, sandbox.KindUnavailable, "%w", err)
	if errors.As(err, &op) && op.Op == "dial" {
		return sandbox.Errorf("connect", sandbox.KindUnavailable, "no server answers: %w", err).
			WithHint("start one with `firebreak serve`, or check the URL")
	}
	return e
}

// fromREST reads the error of a REST answer with a status of 400 or above.
func fromREST(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var doc struct {
		Error *struct{ Kind, Message, Hint, Op, ID string }
	}
	if err == nil && json.Unmarshal(body, &doc) == nil && doc.Error != nil && doc.Error.Kind != "" {
		d := doc.Error
		return &sandbox.Error{Op: d.Op, ID: d.ID, Kind: sandbox.Kind(d.Kind), Hint: d.Hint, Err: errors.New(d.Message)}
	}
	kind := sandbox.KindInternal
	switch res.StatusCode {
	case http.StatusUnauthorized:
		kind = sandbox.KindUnauthenticated
	case http.StatusForbidden:
		kind = sandbox.KindDenied
	case http.StatusNotFound:
		kind = sandbox.KindNotFound
	case http.StatusRequestEntityTooLarge:
		kind = sandbox.KindTooLarge
	case http.StatusTooManyRequests:
		kind = sandbox.KindCapacity
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		kind = sandbox.KindUnavailable
	}
	text := strings.TrimSpace(string(body))
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return sandbox.Errorf("call", kind, "the server answered %s: %s", res.Status, text)
}

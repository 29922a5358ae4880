package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// operation is one method of the API with everything the surfaces need.
type operation struct {
	name      string // "CreateSandbox": in logs, metrics and as operationId
	procedure string // "/firebreak.v1.SandboxService/CreateSandbox"
	method    protoreflect.MethodDescriptor
	scope     auth.Scope // empty: open to everybody
	quiet     bool       // too frequent and too dull for the access log

	success   int           // REST status
	deadline  time.Duration // of the whole operation; 0 none
	follows   bool          // an event stream: ends when a shutdown begins
	raw       bool          // REST routes carry raw bodies
	emptyOn   string        // template whose answer is 204 without the message
	aggregate func(*budget, proto.Message) aggregator
	whole     proto.Message // what an aggregate answers with
	once      bool          // honours Idempotency-Key
	plain     func(proto.Message) string

	connect http.Handler
	rest    func(*exchange) error
	routes  []*route
}

// defaultDeadline bounds unary operations that say nothing else.
const defaultDeadline = time.Minute

type option func(*operation)

// created makes REST answer 201.
func created(o *operation) { o.success = http.StatusCreated }

// deadline bounds the operation; 0 leaves it unbounded.
func deadline(d time.Duration) option { return func(o *operation) { o.deadline = d } }

// emptyOn makes REST answer 204 without a body on one template.
func emptyOn(template string) option { return func(o *operation) { o.emptyOn = template } }

// aggregated answers REST callers that do not ask for a stream with one message
// of whole's type.
func aggregated(f func(*budget, proto.Message) aggregator, whole proto.Message) option {
	return func(o *operation) { o.aggregate, o.whole = f, whole }
}

// plainText answers REST callers that ask for text with what f makes of the
// message.
func plainText(f func(proto.Message) string) option { return func(o *operation) { o.plain = f } }

// once says in the documentation that Idempotency-Key works.
func once(o *operation) { o.once = true }

// follows marks an event stream, which may end at any time: callers resume it.
func follows(o *operation) { o.follows = true }

// message is a pointer to a generated message.
type message[T any] interface {
	*T
	proto.Message
}

// unary registers an operation with one request and one answer.
func unary[Req, Res any, Q message[Req], S message[Res]](g *registry, procedure string, fn func(context.Context, Q) (S, error), opts ...option) {
	o := g.add(procedure, append([]option{deadline(defaultDeadline)}, opts...))
	call := func(ctx context.Context, req Q) (res S, err error) {
		err = g.guard(ctx, o, req, func(ctx context.Context) error {
			res, err = fn(ctx, req)
			return err
		})
		if err == nil && res == nil {
			err = sandbox.Errorf(o.name, sandbox.KindInternal, "no answer and no error")
		}
		return res, err
	}
	o.connect = connect.NewUnaryHandler(procedure, func(ctx context.Context, r *connect.Request[Req]) (*connect.Response[Res], error) {
		res, err := call(ctx, r.Msg)
		if err != nil {
			return nil, fail(ctx, o, err)
		}
		return connect.NewResponse((*Res)(res)), nil
	}, g.connectOptions(o)...)
	o.rest = func(x *exchange) error {
		req := Q(new(Req))
		if err := x.read(req); err != nil {
			return err
		}
		res, err := call(x.r.Context(), req)
		if err != nil {
			return err
		}
		return x.answer(res)
	}
}

// serverStream registers an operation with one request and a stream of items.
func serverStream[Req, Item any, Q message[Req], I message[Item]](g *registry, procedure string, fn func(context.Context, Q, func(I) error) error, opts ...option) *operation {
	o := g.add(procedure, opts)
	o.connect = connect.NewServerStreamHandler(procedure, func(ctx context.Context, r *connect.Request[Req], st *connect.ServerStream[Item]) error {
		x := exchangeFrom(ctx)
		err := g.guard(ctx, o, Q(r.Msg), func(ctx context.Context) error {
			return fn(ctx, r.Msg, func(item I) error {
				x.extendWrite(x.s.stall)
				return st.Send((*Item)(item))
			})
		})
		return fail(ctx, o, err)
	}, g.connectOptions(o)...)
	o.rest = func(x *exchange) error {
		req := Q(new(Req))
		if err := x.read(req); err != nil {
			return err
		}
		out, err := x.sink(req)
		if err != nil {
			return err
		}
		err = g.guard(x.r.Context(), o, req, func(ctx context.Context) error {
			return fn(ctx, req, func(item I) error { return out.send(item) })
		})
		return out.close(err)
	}
	return o
}

// clientStream registers an operation with a stream of requests and one answer.
// It has no REST form of its own.
func clientStream[Req, Res any, Q message[Req], S message[Res]](g *registry, procedure string, fn func(context.Context, func() (Q, error)) (S, error), opts ...option) *operation {
	o := g.add(procedure, opts)
	o.connect = connect.NewClientStreamHandler(procedure, func(ctx context.Context, st *connect.ClientStream[Req]) (*connect.Response[Res], error) {
		var res S
		err := g.guard(ctx, o, nil, func(ctx context.Context) (err error) {
			res, err = fn(ctx, func() (Q, error) {
				if !st.Receive() {
					return nil, receiveError(st.Err())
				}
				req := Q(st.Msg())
				return req, g.check(req)
			})
			return err
		})
		if err != nil {
			return nil, fail(ctx, o, err)
		}
		return connect.NewResponse((*Res)(res)), nil
	}, g.connectOptions(o)...)
	return o
}

// receiveError says why no further request message came.
func receiveError(err error) error {
	if err == nil {
		return io.EOF
	}
	kind := sandbox.KindCanceled
	switch connect.CodeOf(err) {
	case connect.CodeResourceExhausted:
		kind = sandbox.KindTooLarge
	case connect.CodeInvalidArgument:
		kind = sandbox.KindInvalid
	case connect.CodeDeadlineExceeded:
		kind = sandbox.KindTimeout
	}
	return sandbox.Errorf("read request", kind, "%s", valid(err.Error()))
}

// guard is what every call on every surface passes: rules, deadline, panics.
// req is nil where fn checks messages as they arrive.
func (g *registry) guard(ctx context.Context, o *operation, req proto.Message, fn func(context.Context) error) (err error) {
	if req != nil {
		if err := g.check(req); err != nil {
			return err
		}
	}
	x := exchangeFrom(ctx)
	if o.follows {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(x.s.draining, func() { cancel(errShutdown) })()
	}
	ctx, cancel := withDeadline(ctx, o.deadline)
	defer cancel()
	defer func() {
		if x.route == nil { // Connect writes what follows; REST sets its own
			x.extendWrite(writeTimeout)
		}
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			err = &panicError{value: p, stack: debug.Stack()}
		}
		if err != nil {
			x.err = err // as it was, for the log
			if he := (*httpError)(nil); !errors.As(err, &he) {
				err = typed(ctx, o.name, err)
			}
		}
	}()
	return fn(ctx)
}

// check refuses a message with fields or values that the proto does not allow.
func (g *registry) check(m proto.Message) error {
	if err := refuseUnknown(m.ProtoReflect()); err != nil {
		return err
	}
	return g.rules.Check(m)
}

// panicError is a panic of ours. Its text goes to the log, never to a caller.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// fail is the Connect form of an operation's error.
func fail(ctx context.Context, o *operation, err error) error {
	if err == nil {
		return nil
	}
	x := exchangeFrom(ctx)
	if x.err == nil {
		x.err = err
	}
	x.outcome = statusOf(err)
	return connectError(typed(ctx, o.name, err))
}

// connectOptions are those of every Connect handler.
func (g *registry) connectOptions(o *operation) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithSchema(o.method),
		connect.WithReadMaxBytes(maxJSON),
		connect.WithCompressMinBytes(1024),
		connect.WithCodec(strictJSON{}),
		connect.WithCodec(strictProto{}),
	}
}

// strictJSON is Connect's JSON codec with unknown fields refused, as on every
// other surface.
type strictJSON struct{}

// Name implements connect.Codec.
func (strictJSON) Name() string { return "json" }

// Marshal implements connect.Codec.
func (strictJSON) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, errors.New("not a protobuf message")
	}
	return protojson.Marshal(m)
}

// Unmarshal implements connect.Codec.
func (strictJSON) Unmarshal(b []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return errors.New("not a protobuf message")
	}
	return decodeJSON(b, m)
}

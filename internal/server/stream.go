package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// sink takes the items of a stream that has a REST caller.
type sink interface {
	// send passes one item on. Its error ends the operation.
	send(proto.Message) error
	// close ends the answer; err is the operation's. What close returns has
	// not been told to the caller yet.
	close(err error) error
}

// sink chooses the form the caller asked for: server-sent events, a line of
// JSON per item, or, where the operation has one, a single message.
func (x *exchange) sink(req proto.Message) (sink, error) {
	accept := strings.ToLower(x.r.Header.Get("Accept"))
	sse, ndjson := strings.Contains(accept, "text/event-stream"), strings.Contains(accept, "application/x-ndjson")
	if !sse && !ndjson && x.op.aggregate != nil {
		return &unarySink{x: x, aggregator: x.op.aggregate(&x.s.output, req)}, nil
	}
	resumed, err := resume(req.ProtoReflect(), x.r.Header.Get("Last-Event-ID"))
	if err != nil {
		return nil, err
	}
	out := &eventSink{x: x, ndjson: ndjson && !sse, resumed: resumed, naming: namingOf(x.op.method.Output())}
	out.stopped.Add(1)
	ctx, cancel := context.WithCancel(x.r.Context())
	out.stop = cancel
	go out.beat(ctx)
	return out, nil
}

// resume makes Last-Event-ID the request's after_id. The header wins over the
// query: a browser reconnects to the address it began with.
func resume(m protoreflect.Message, header string) (bool, error) {
	fd := m.Descriptor().Fields().ByName("after_id")
	if header == "" || fd == nil {
		return false, nil
	}
	n, err := strconv.ParseInt(header, 10, 64)
	if err != nil || n < 0 {
		return false, invalidf("Last-Event-ID %q is not an event's id", clip(valid(header), 40))
	}
	m.Set(fd, protoreflect.ValueOfInt64(n))
	return true, nil
}

// naming is how a stream's item becomes an event: a oneof's set field names the
// event and is its data, else the field "type" names it; "id" numbers it, where
// it has a number.
type naming struct {
	oneof    protoreflect.OneofDescriptor
	kind, id protoreflect.FieldDescriptor
}

func namingOf(md protoreflect.MessageDescriptor) naming {
	n := naming{kind: md.Fields().ByName("type"), id: md.Fields().ByName("id")}
	if md.Oneofs().Len() == 1 && !md.Oneofs().Get(0).IsSynthetic() {
		n.oneof = md.Oneofs().Get(0)
	}
	return n
}

// appendEvent appends m as one server-sent event.
func (n naming) appendEvent(b []byte, m protoreflect.Message) []byte {
	name, data := "", m
	if n.oneof != nil {
		if fd := m.WhichOneof(n.oneof); fd != nil && fd.Message() != nil {
			name, data = string(fd.Name()), m.Get(fd).Message()
		}
	} else if n.kind != nil {
		name = m.Get(n.kind).String()
	}
	if n.id != nil && m.Get(n.id).Int() != 0 {
		b = append(b, "id: "...)
		b = strconv.AppendInt(b, m.Get(n.id).Int(), 10)
		b = append(b, '\n')
	}
	if name != "" && !strings.ContainsAny(name, "\r\n") {
		b = append(append(append(b, "event: "...), name...), '\n')
	}
	b = append(b, "data: "...)
	b = appendReflect(b, data) // one line: the encoder escapes newlines
	return append(b, "\n\n"...)
}

// eventSink writes items as they come. Its own goroutine shows signs of life
// in between, so that proxies and callers can tell silence from death.
type eventSink struct {
	x       *exchange
	naming  naming
	ndjson  bool
	resumed bool
	stop    context.CancelFunc
	stopped sync.WaitGroup

	mu     sync.Mutex
	buf    []byte // guarded by mu
	begun  bool   // guarded by mu
	broken error  // guarded by mu
}

// firstBeat is when a stream without events starts its answer: late enough
// that an error right away still gets a status of its own.
const firstBeat = time.Second

func (s *eventSink) beat(ctx context.Context) {
	defer s.stopped.Done()
	t := time.NewTimer(min(firstBeat, s.x.s.heartbeat))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		s.mu.Lock()
		s.buf = s.buf[:0]
		if !s.ndjson {
			s.buf = append(s.buf, ": \n\n"...)
		}
		s.write()
		s.mu.Unlock()
		t.Reset(s.x.s.heartbeat)
	}
}

func (s *eventSink) send(m proto.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = s.buf[:0]
	if s.ndjson {
		s.buf = append(appendMessage(s.buf, m), '\n')
	} else {
		s.buf = s.naming.appendEvent(s.buf, m.ProtoReflect())
	}
	return s.write()
}

// write sends buf, after the header if that is still to come. Precondition: mu
// is held.
func (s *eventSink) write() error {
	if s.broken != nil {
		return s.broken
	}
	s.x.extendWrite(s.x.s.stall)
	if !s.begun {
		s.begun = true
		h := s.x.Header()
		h["Cache-Control"] = noStore
		h.Set("X-Accel-Buffering", "no") // nginx would hold events back
		h.Set("Content-Type", "text/event-stream")
		if s.ndjson {
			h.Set("Content-Type", "application/x-ndjson")
		}
		s.x.WriteHeader(http.StatusOK)
	}
	_, err := s.x.Write(s.buf)
	if err == nil {
		err = http.NewResponseController(s.x).Flush()
	}
	if err != nil {
		s.broken = sandbox.Errorf("stream", sandbox.KindCanceled, "the reader went away")
	}
	return s.broken
}

// close ends the stream. An error that comes after the first event is its last
// one, named "error".
func (s *eventSink) close(err error) error {
	s.stop()
	s.stopped.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && !s.begun:
		return err
	case err != nil:
		s.x.outcome = statusOf(err)
		doc := appendError(nil, typed(s.x.r.Context(), s.x.op.name, err))
		s.buf = s.buf[:0]
		if !s.ndjson {
			s.buf = append(s.buf, "event: error\ndata: "...)
		}
		s.buf = append(append(s.buf, doc...), '\n')
		if !s.ndjson {
			s.buf = append(s.buf, '\n')
		}
		s.write()
	case !s.begun && s.resumed:
		s.x.WriteHeader(http.StatusNoContent) // tells EventSource not to come again
	case !s.begun:
		s.buf = s.buf[:0]
		s.write()
	}
	return nil
}

// aggregator folds a stream into one message.
type aggregator interface {
	add(proto.Message)
	result() (proto.Message, error)
	release() // frees what it held, once the answer is sent
}

// unarySink answers once, at the end.
type unarySink struct {
	x          *exchange
	aggregator aggregator
}

func (s *unarySink) send(m proto.Message) error {
	s.aggregator.add(m)
	return nil
}

func (s *unarySink) close(err error) error {
	defer s.aggregator.release()
	if err != nil {
		return err
	}
	res, err := s.aggregator.result()
	if err != nil {
		return err
	}
	return s.x.answer(res)
}

// buildAggregator keeps the template a build ends with.
type buildAggregator struct{ template *v1.Template }

func newBuildAggregator(*budget, proto.Message) aggregator { return &buildAggregator{} }

func (a *buildAggregator) release() {}

func (a *buildAggregator) add(m proto.Message) {
	if t := m.(*v1.BuildTemplateEvent).GetTemplate(); t != nil {
		a.template = t
	}
}

func (a *buildAggregator) result() (proto.Message, error) {
	if a.template == nil {
		return nil, sandbox.Errorf("build template", sandbox.KindInternal, "the build ended without a template")
	}
	return a.template, nil
}

package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// exchange is one request and its answer. It is the http.ResponseWriter of the
// handlers below, so that what was sent is known to logs and metrics, and it
// travels in the request's context.
type exchange struct {
	http.ResponseWriter
	s         *Server
	r         *http.Request
	route     *route
	op        *operation
	values    params
	principal auth.Principal
	id        string // request id
	start     time.Time
	status    int
	sent      int64
	err       error     // what went wrong, for the log
	shed      bool      // refused unseen: too many of its kind
	stranger  bool      // nobody knows who calls
	outcome   int       // its status; gRPC and a stream that began say 200 even when they failed
	plainBody io.Reader // as net/http gave it
	buf       [4]string
}

type exchangeKey struct{}

// exchangeFrom returns the exchange of a request's context.
func exchangeFrom(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 && status >= 200 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(b []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.ResponseWriter.Write(b)
	x.sent += int64(n)
	return n, err
}

// Flush implements http.Flusher, which Connect's streams demand.
func (x *exchange) Flush() {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	http.NewResponseController(x.ResponseWriter).Flush()
}

// Unwrap serves http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// extendRead gives the request d from now to bring its next bytes; 0 takes the
// limit away. A writer without deadlines (a test's recorder) has none to set.
func (x *exchange) extendRead(d time.Duration) {
	http.NewResponseController(x.ResponseWriter).SetReadDeadline(after(d))
}

// extendWrite gives the caller d from now to take what is written next.
func (x *exchange) extendWrite(d time.Duration) {
	http.NewResponseController(x.ResponseWriter).SetWriteDeadline(after(d))
}

func after(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// read decodes the request into req: body, query, path.
func (x *exchange) read(req proto.Message) error {
	body, err := readBody(x.r)
	if err != nil {
		return err
	}
	if body != nil {
		x.extendRead(0) // it is complete; from here on reads only watch for the caller's end
		if err := decodeJSON(body, req); err != nil {
			return err
		}
	}
	m := req.ProtoReflect()
	if err := x.readQuery(m); err != nil {
		return err
	}
	return bindPath(m, x.route.params, x.values)
}

// readQuery decodes the query of a route that has one.
func (x *exchange) readQuery(m protoreflect.Message) error {
	switch {
	case x.r.Method == http.MethodPost, x.r.Method == http.MethodPatch, x.r.Method == http.MethodPut && !x.op.raw:
		if x.r.URL.RawQuery != "" {
			return invalidf("this route takes no query parameters").WithHint("put the fields into the JSON body")
		}
		return nil
	}
	return decodeQuery(x.r.URL.RawQuery, m)
}

// answer sends res with the operation's status.
func (x *exchange) answer(res proto.Message) error {
	x.extendWrite(writeTimeout)
	if x.route.noBody {
		x.WriteHeader(http.StatusNoContent)
		return nil
	}
	if x.op.plain != nil && strings.Contains(strings.ToLower(x.r.Header.Get("Accept")), "text/plain") {
		h := x.Header()
		h["Content-Type"], h["Cache-Control"] = []string{"text/plain; charset=utf-8"}, noStore
		_, err := io.WriteString(x, x.op.plain(res))
		return err
	}
	if proto.Size(res) > largeAnswer {
		return x.answerLarge(res.ProtoReflect())
	}
	b := answerBuffers.Get().(*[]byte)
	*b = append(appendMessage((*b)[:0], res), '\n')
	writeJSON(x, x.op.success, *b) // copies or sends before it returns
	if x.r.ProtoMajor == 1 {
		x.Flush() // it is complete: nobody waits for the log's line
	}
	if cap(*b) <= 64<<10 {
		answerBuffers.Put(b)
	}
	return nil
}

var answerBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// failed answers with err unless the answer has begun; then the connection is
// cut, because nothing else tells the caller that what it has is not all.
func (x *exchange) failed(err error) {
	if x.err == nil {
		x.err = err
	}
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	e := typed(x.r.Context(), x.opName(), err)
	var he *httpError
	if x.outcome = statusOf(e); errors.As(err, &he) {
		x.outcome = he.status
	}
	x.drain()
	x.extendWrite(writeTimeout)
	writeError(x, e, x.outcome)
}

// drain takes in what is left of the body before an error is answered. A client
// that is still sending when the connection closes sees the reset, not our
// answer. Strangers get a second, as much as net/http reads by itself.
func (x *exchange) drain() {
	if x.r.ContentLength == 0 || x.r.ProtoMajor != 1 {
		return
	}
	if x.outcome == http.StatusRequestTimeout { // it had its time
		x.extendRead(time.Millisecond)
		return
	}
	x.extendRead(time.Second)
	if x.principal.ID == "" || x.r.ContentLength > drainBytes || x.r.Header.Get("Expect") != "" {
		return
	}
	x.extendRead(drainTimeout)
	io.CopyN(io.Discard, x.plainBody, drainBytes)
	x.extendRead(time.Second)
}

func (x *exchange) opName() string {
	if x.op == nil {
		return "request"
	}
	return x.op.name
}

// body is a request body with a deadline that moves as it is read, while it
// comes at minBodyRate: who sends a byte now and then runs out of patience as one
// does who sends none. Time in which we do not read is not the caller's. It turns
// a body that stalls or breaks off into a typed error.
type body struct {
	x        *exchange
	rc       io.ReadCloser
	patience time.Duration // what is left
	extended time.Time
}

func bodyOf(x *exchange) io.ReadCloser {
	if x.r.Body == nil || x.r.ContentLength == 0 {
		return x.r.Body
	}
	return &body{x: x, rc: x.r.Body, patience: x.s.bodyTimeout}
}

// Close implements io.Closer.
func (b *body) Close() error { return b.rc.Close() }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	// Once a second is often enough, and cheaper than for every read.
	now := time.Now()
	if now.Sub(b.extended) > min(time.Second, b.x.s.bodyTimeout/4) {
		b.extended = now
		b.x.extendRead(max(b.patience, time.Millisecond))
	}
	n, err := b.rc.Read(p)
	brought := time.Duration(n) * (time.Second / minBodyRate)
	b.patience = min(b.patience+brought-time.Since(now), b.x.s.bodyTimeout)
	if err == nil {
		return n, nil
	}
	if err == io.EOF {
		b.x.extendRead(0)
		return n, err
	}
	he := &httpError{sandbox.Errorf("read request", sandbox.KindCanceled, "the request body ended early"), statusClientClosed}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		he = &httpError{errSlowBody(), http.StatusRequestTimeout}
	}
	if b.x.route == nil {
		return n, connectError(he.err) // or Connect would guess at a code
	}
	return n, he
}

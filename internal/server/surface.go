package server

import (
	"context"
	"net/http"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Serve makes h answer on l, instead of the API: another protocol, within the
// same limits on headers, bodies, connections and readers that do not read, and
// with the same log and metrics, under name. h decides who may call, and tells
// the Server (Known, Unknown), which bounds how often they may.
func (l *Listener) Serve(name string, h http.Handler) *Listener {
	l.surface = &surface{op: &operation{name: name, success: http.StatusOK}, handler: h}
	return l
}

// surface is a protocol beside the API.
type surface struct {
	op      *operation
	handler http.Handler
}

// serve answers one request of a surface.
func (s *Server) serve(f *surface, w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, s: s, op: f.op, plainBody: r.Body, start: time.Now(), id: requestID(r.Header["X-Request-Id"])}
	x.r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	w.Header()["X-Request-Id"] = []string{x.id}
	defer x.finish()
	if r.ContentLength != 0 {
		x.extendRead(s.bodyTimeout)
	}
	x.r.Body = bodyOf(x)
	f.handler.ServeHTTP(&paced{exchange: x}, x.r)
}

// paced is an answer whose reader has to take each write within the stall time.
type paced struct {
	*exchange
	extended time.Time
}

// Write implements http.ResponseWriter.
func (p *paced) Write(b []byte) (int, error) {
	p.extend()
	return p.exchange.Write(b)
}

// Flush implements http.Flusher.
func (p *paced) Flush() {
	p.extend()
	p.exchange.Flush()
}

// Unwrap serves http.ResponseController.
func (p *paced) Unwrap() http.ResponseWriter { return p.exchange.ResponseWriter }

// extend moves the deadline, at most once a second.
func (p *paced) extend() {
	if now := time.Now(); now.Sub(p.extended) > time.Second {
		p.extended = now
		p.extendWrite(p.s.stall)
	}
}

// Known says whose request it is that a surface answers, and counts it. Errors:
// KindCapacity with RetryAfter when there are too many.
func (s *Server) Known(ctx context.Context, p auth.Principal) error {
	x := exchangeFrom(ctx)
	if x == nil {
		return sandbox.Errorf("call", sandbox.KindInternal, "not a request of a surface")
	}
	x.principal = p
	err := s.throttle(x, p)
	x.err = err
	return err
}

// Unknown says that the caller of a surface could not be told, or may not call;
// it is recorded. It returns the error to answer with: err, or, to a source that
// has made too many attempts, KindCapacity.
func (s *Server) Unknown(ctx context.Context, err error) error {
	x := exchangeFrom(ctx)
	if x == nil {
		return err
	}
	kind := sandbox.KindOf(err)
	x.stranger = kind == sandbox.KindUnauthenticated || kind == sandbox.KindDenied
	x.err = s.failedAttempt(x, err)
	return x.err
}

// Draining ends when a shutdown begins: what follows something for ever stops
// then.
func (s *Server) Draining() <-chan struct{} { return s.draining.Done() }

package inspect

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// sending is a body on its way.
type sending struct {
	from   io.Reader
	leaked atomic.Bool
	why    *Refusal    // once leaked
	failed atomic.Bool // it cannot be read
	tell   func()      // that it leaked
	alive  func()      // that something of it went on
	once   sync.Once
	done   chan struct{} // closed when nobody reads it any more
}

// Read implements io.Reader.
func (s *sending) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.alive()
	switch {
	case errors.Is(err, errLeak):
		if s.why == nil {
			s.why = leaked(err)
			s.leaked.Store(true)
			s.tell()
		}
	case err != nil && err != io.EOF && !errors.Is(err, errBomb):
		s.failed.Store(true)
	}
	return n, err
}

// Close implements io.Closer. What is left is the sandbox's connection's.
func (s *sending) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// outgoingBody gives out its body, which is looked through where something could
// be in it that goes nowhere: a small one now, and others on their way.
func (x *exchange) outgoingBody(out *http.Request) (*sending, *Refusal) {
	s := &sending{tell: func() {}, alive: func() {}, done: make(chan struct{})}
	req := x.req
	var git *Git
	if x.route.binding != nil {
		git = x.route.binding.Git
	}
	pushes := git != nil && git.part(out.URL.Path) == pushing
	switch none := req.Body == http.NoBody; {
	case none && pushes:
		return s, s.over(noPush("it has no body"))
	case none:
		return s, s.over(nil)
	case git != nil && out.Method == http.MethodGet:
		return s, s.over(odd(http.StatusBadRequest, "git asks for this without a body"))
	}
	length := req.ContentLength
	if s.from = x.body; x.reads() {
		if e := req.Header.Get("Content-Encoding"); e == "gzip" || e == "x-gzip" {
			s.from, length = unpack(x.body), -1
		}
		s.from = newStream(s.from, x.with.secrets, false)
	}
	if pushes {
		if no := s.commands(git); no != nil {
			return s, s.over(no)
		}
	}
	if req.ContentLength < 0 || req.ContentLength > small {
		out.Body, out.ContentLength = s, length
		x.body.lend()
		return s, nil
	}
	b, err := io.ReadAll(io.LimitReader(s, 2*modest))
	switch {
	case errors.Is(err, errLeak):
		return s, s.over(leaked(err))
	case errors.Is(err, errBomb), len(b) == 2*modest:
		return s, s.over(x.route.why(errBomb))
	case err != nil:
		return s, s.over(odd(http.StatusBadRequest, "the body cannot be read"))
	}
	if len(b) > 0 {
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
		out.Body, _ = out.GetBody()
		out.ContentLength = int64(len(b))
	}
	return s, s.over(nil)
}

// commands reads those of a push, and refuses it before any of it is sent on.
func (s *sending) commands(g *Git) *Refusal {
	p, err := readPush(s.from)
	var no *Refusal
	switch {
	case err == nil:
		s.from = io.MultiReader(bytes.NewReader(p.head), s.from)
		return g.judge(p)
	case errors.As(err, &no), errors.Is(err, errLeak), errors.Is(err, errBomb):
		return passed(err)
	}
	return odd(http.StatusBadRequest, "the body cannot be read")
}

// over is no, of a body that nobody reads any more.
func (s *sending) over(no *Refusal) *Refusal {
	_ = s.Close()
	return no
}

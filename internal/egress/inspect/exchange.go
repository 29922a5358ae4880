package inspect

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// small is how long a body may be to be looked through before the first byte of
// its request is sent on.
const small = 64 << 10

// request is one that is being answered.
type request struct {
	*client
	head head
	req  *http.Request
	body *upload
	kept bool // another may follow, if this one was read to its end
}

// exchange sends a request on and its answer back, and reports whether another
// request may follow.
func (c *client) exchange(ctx context.Context, h head, req *http.Request) (again bool) {
	p := c.proxy
	body := &upload{client: c, from: req.Body, expects: h.expects && req.Body != http.NoBody}
	body.whole.Store(req.Body == http.NoBody)
	x := &request{client: c, head: h, req: req, body: body, kept: h.minor && !req.Close}
	out, no := c.outgoing(h, req)
	if no != nil {
		return x.deny(no)
	}
	select {
	case p.requests <- struct{}{}:
		defer func() { <-p.requests }()
	default:
		return x.deny(&Refusal{Status: http.StatusServiceUnavailable, Reason: ReasonLimit, Text: "the sandbox has too many requests to bindings at once"})
	}
	sent, no := c.body(out, req, body)
	if no != nil {
		return x.deny(no)
	}
	if no := p.o.Decide(c.route.Target, h.method); no != nil {
		return x.say(no)
	}
	return x.send(ctx, out, sent)
}

// deny tells of a refusal that has a reason, and says it.
func (x *request) deny(no *Refusal) (again bool) {
	if no.Reason != "" {
		x.proxy.o.Refused(x.route.Target, x.head.method, no)
	}
	return x.say(no)
}

func (x *request) say(no *Refusal) (again bool) {
	if no.result != nil {
		x.swallow()
	}
	return x.refuse(no, x.kept && (x.body.whole.Load() || x.drain(x.body, x.req)))
}

// send has the request go on and the answer come back.
func (x *request) send(ctx context.Context, out *http.Request, sent *sending) (again bool) {
	p := x.proxy
	ctx, cancel := context.WithCancel(ctx)
	idle := time.AfterFunc(p.o.Idle, cancel)
	defer func() {
		cancel()
		x.body.end()
		<-sent.done // who sends the request on has let go of it
		idle.Stop()
	}()
	sent.alive = func() { idle.Reset(p.o.Idle) }
	sent.tell = func() {
		p.o.Refused(x.route.Target, x.head.method, leak())
		cancel()
	}
	stop := func() {}
	if x.body.whole.Load() {
		stop = x.watch(cancel)
	}
	resp, err := x.route.transport.RoundTrip(out.WithContext(ctx))
	if err == nil {
		again = x.answer(x.head, resp, x.kept && x.body.whole.Load(), sent.alive)
	}
	stop()
	if err == nil {
		return again
	}
	idled := !idle.Stop()
	switch {
	case sent.leaked.Load():
		return x.say(leak())
	case sent.failed.Load():
		return x.say(&Refusal{Status: http.StatusBadRequest, Text: "the body cannot be read", close: true})
	case ctx.Err() == nil || idled:
		return x.deny(why(err))
	}
	x.broken = true // the sandbox has gone, or the wire
	return false
}

// drain throws away the body of a refused request that is here already.
func (c *client) drain(u *upload, req *http.Request) bool {
	if u.lent || u.expects || req.ContentLength < 0 || req.ContentLength > int64(c.in.Buffered()) {
		return false
	}
	_, err := io.Copy(io.Discard, u)
	return err == nil
}

// maxSwallow is how much of a refused push is read, and thrown away.
const maxSwallow = 256 << 20

// swallow reads what is left of a refused push: git reads no answer before it has
// sent all of it.
func (x *request) swallow() {
	_, _ = io.Copy(io.Discard, io.LimitReader(x.body, maxSwallow)) // what fails, fails again for the answer
}

// permits refuses a request that is not one of the binding's.
func (r *route) permits(method, path, query string, header http.Header) *Refusal {
	switch {
	case r.Git != nil:
		return r.Git.admit(method, path, query, header)
	case !r.allows(method):
		return &Refusal{Status: http.StatusMethodNotAllowed, Reason: ReasonMethod, Text: "the binding is not for this method"}
	case !r.holds(path):
		return &Refusal{Status: http.StatusForbidden, Reason: ReasonPath, Text: "the binding is for paths below " + r.Path}
	}
	return nil
}

// outgoing makes the request that is sent on, without its body.
func (c *client) outgoing(h head, req *http.Request) (*http.Request, *Refusal) {
	r := c.route
	target, no := h.origin(r.host)
	if no != nil {
		return nil, no
	}
	path, query, what := splitTarget(target)
	if what != "" {
		return nil, &Refusal{Status: http.StatusBadRequest, Reason: ReasonRequest, Text: what}
	}
	if no := r.permits(h.method, path, query, req.Header); no != nil {
		return nil, no
	}
	if c.leaks(path, query, req.Header) {
		return nil, leak()
	}
	switch req.Header.Get("Content-Encoding") {
	case "", "identity", "gzip", "x-gzip":
	default:
		return nil, &Refusal{Status: http.StatusUnsupportedMediaType, Reason: ReasonRequest, Text: "a body is sent as it is, or with gzip"}
	}
	plain, err := url.PathUnescape(path)
	if err != nil {
		return nil, odd(http.StatusBadRequest, "the path has an escape that is none")
	}
	header := req.Header.Clone()
	delete(header, "Content-Encoding")
	stripRequest(header, r.header)
	if r.Git != nil {
		r.Git.strip(header)
	}
	header["Accept-Encoding"] = []string{"identity"}
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // net/http would say its own
	}
	query = stripQuery(query, r.parameter())
	if r.As == "query" {
		if query != "" {
			query += "&"
		}
		query += url.QueryEscape(r.Field) + "=" + url.QueryEscape(string(r.Secret))
	} else {
		_, value := r.credential()
		header[r.header] = []string{value}
	}
	return &http.Request{
		Method: h.method, Host: r.authority(), Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Scheme: r.scheme(), Host: r.Target.Host.WithPort(r.Port), Path: plain, RawPath: path, RawQuery: query},
	}, nil
}

// parameter is the one of a query that the secret goes into.
func (t *Target) parameter() string {
	if t.As == "query" {
		return t.Field
	}
	return ""
}

// leaks reports whether a secret is in the head of a request.
func (c *client) leaks(path, query string, header http.Header) bool {
	s := c.proxy.secrets
	if s.inString(path) || s.inString(query) {
		return true
	}
	for name, values := range header {
		if s.inString(name) {
			return true
		}
		for _, v := range values {
			if s.inString(v) {
				return true
			}
		}
	}
	return false
}

// sending is a body on its way.
type sending struct {
	from   io.Reader
	leaked atomic.Bool
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
		if !s.leaked.Swap(true) {
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

// body gives out its body, which is looked through: a small one now, and others on
// their way.
func (c *client) body(out, req *http.Request, u *upload) (*sending, *Refusal) {
	s := &sending{tell: func() {}, alive: func() {}, done: make(chan struct{})}
	git := c.route.Git
	pushes := git != nil && git.part(out.URL.Path) == pushing
	switch none := req.Body == http.NoBody; {
	case none && pushes:
		return s, s.over(noPush("it has no body"))
	case none:
		return s, s.over(nil)
	case git != nil && out.Method == http.MethodGet:
		return s, s.over(odd(http.StatusBadRequest, "git asks for this without a body"))
	}
	var from io.Reader = u
	length := req.ContentLength
	if e := req.Header.Get("Content-Encoding"); e == "gzip" || e == "x-gzip" {
		from, length = unpack(u), -1
	}
	s.from = newStream(from, c.proxy.secrets, false)
	if pushes {
		if no := s.commands(git); no != nil {
			return s, s.over(no)
		}
	}
	if req.ContentLength < 0 || req.ContentLength > small {
		out.Body, out.ContentLength, u.lent = s, length, true
		return s, nil
	}
	b, err := io.ReadAll(io.LimitReader(s, 2*modest))
	switch {
	case errors.Is(err, errLeak):
		return s, s.over(leak())
	case errors.Is(err, errBomb), len(b) == 2*modest:
		return s, s.over(why(errBomb))
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
		return why(err)
	}
	return odd(http.StatusBadRequest, "the body cannot be read")
}

// over is no, of a body that nobody reads any more.
func (s *sending) over(no *Refusal) *Refusal {
	_ = s.Close()
	return no
}

// answer sends a response to the sandbox and reports whether another request may
// follow, which the request permits if again.
func (c *client) answer(h head, resp *http.Response, again bool, alive func()) bool {
	defer resp.Body.Close()
	alive()
	r := c.route
	empty := h.method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
	var from io.Reader = resp.Body
	length := resp.ContentLength
	switch resp.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip", "x-gzip":
		from, length = unpack(resp.Body), -1
	default:
		if !empty {
			return c.refuse(&Refusal{Status: http.StatusBadGateway, Text: "the binding's host packs its answer in a way that cannot be looked through"}, again)
		}
	}
	if resp.StatusCode < 200 || resp.StatusCode > 999 || len(resp.Header["Content-Encoding"]) > 1 {
		return c.refuse(&Refusal{Status: http.StatusBadGateway, Text: "the binding's host answers with what is no answer"}, again)
	}
	resp.Header.Del("Content-Encoding")
	stripResponse(resp.Header)
	c.proxy.cover(resp.Header, r)
	if empty {
		if resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
			length = -1
		}
		c.begin(resp.StatusCode, resp.Header, length, false, again)
		if c.out.Flush() != nil {
			c.broken = true
		}
		return again && !c.broken
	}
	chunked := length < 0 && h.minor
	again = again && (chunked || length >= 0)
	c.begin(resp.StatusCode, resp.Header, length, chunked, again)
	if c.out.Flush() != nil || !c.copy(newStream(from, c.proxy.secrets, true), length, chunked, alive) {
		c.broken = true
	}
	return again && !c.broken
}

// cover puts stars over secrets in the headers of a response, and the base URL in
// place of the host's own in a redirect.
func (p *Proxy) cover(h http.Header, r *route) {
	if l := h["Location"]; len(l) == 1 {
		l[0] = r.base(l[0])
	}
	_, value := r.credential()
	for name, values := range h {
		if p.secrets.in([]byte(name)) {
			delete(h, name)
			continue
		}
		for i, v := range values {
			for _, q := range p.routes {
				if v == string(q.Secret) { // also one too short to be looked for
					v = strings.Repeat("*", len(v))
				}
			}
			if v == value {
				v = strings.Repeat("*", len(v))
			}
			values[i] = p.secrets.redact(v)
		}
	}
}

// base is location below the binding's base URL, if it is one of the binding's,
// and otherwise as it is.
func (r *route) base(location string) string {
	u, err := url.Parse(location)
	if err != nil || u.Scheme != r.scheme() || u.User != nil || u.Opaque != "" {
		return location
	}
	at := u.Port()
	if at == "" {
		at = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	path := u.EscapedPath()
	h, err := netaddr.ParseHost(u.Hostname())
	if err != nil || h != r.Target.Host || at != strconv.Itoa(int(r.Port)) || oddPath(path) != "" || !r.holds(path) {
		return location
	}
	u.Scheme, u.Host, u.RawQuery = "http", r.host, stripQuery(u.RawQuery, r.parameter())
	return u.String()
}

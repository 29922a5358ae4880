package inspect

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// call is one request on a connection with HTTP/2.
type call struct {
	w       http.ResponseWriter
	r       *http.Request
	from    io.ReadCloser // its body
	read    atomic.Bool   // to its end
	aborted bool          // the stream is broken off
}

// serveStream answers one request.
func serveStream(w http.ResponseWriter, r *http.Request) {
	below, _ := r.Context().Value(sessionKey{}).(*handed)
	if below == nil || !below.enter() {
		panic(http.ErrAbortHandler)
	}
	defer below.leave()
	s := below.session
	c := &call{w: w, r: r, from: r.Body}
	if r.ContentLength == 0 {
		r.Body = http.NoBody
		c.read.Store(true)
	}
	h, no := checkStream(r)
	if no != nil {
		s.ask.Refused(h.method, no)
		c.refuse(no)
	} else {
		(&exchange{session: s, front: c, head: h, req: r, body: c}).run(r.Context())
	}
	if c.aborted {
		panic(http.ErrAbortHandler)
	}
}

// checkStream is checkHead for a request of HTTP/2, of which net/http has checked
// what ends it.
func checkStream(r *http.Request) (h head, no *Refusal) {
	h = head{method: r.Method, target: r.RequestURI, host: r.Host, minor: true, trailers: r.Header.Get("Te") == "trailers"}
	if no := h.check(); no != nil {
		return h, no
	}
	fields := 0
	for name, values := range r.Header {
		if fields += len(values); !fieldName(name) {
			return h, odd(http.StatusBadRequest, "a header field has a name that is none, or an underscore in it")
		}
	}
	switch {
	case fields > maxFields:
		return h, odd(http.StatusRequestHeaderFieldsTooLarge, "there are too many header fields")
	case r.Method == http.MethodConnect:
		return h, odd(http.StatusMethodNotAllowed, "this is no proxy: CONNECT leads nowhere")
	case len(r.Header["Content-Length"]) > 1, len(r.Header["Content-Encoding"]) > 1:
		return h, odd(http.StatusBadRequest, "there is more than one length, or encoding")
	case r.ContentLength == 0 && r.Header["Content-Length"] != nil && r.Header.Get("Content-Length") != "0":
		return h, odd(http.StatusBadRequest, "the body is shorter than its length")
	case r.Header["Expect"] != nil:
		return h, odd(http.StatusExpectationFailed, "the only expectation is 100-continue")
	}
	for _, host := range r.Header["Host"] {
		if !strings.EqualFold(host, r.Host) {
			return h, misdirected("the Host is not the :authority")
		}
	}
	return h, nil
}

// Read implements io.Reader.
func (c *call) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	if err == io.EOF {
		c.read.Store(true)
	}
	return n, err
}

func (c *call) whole() bool { return c.read.Load() }

func (c *call) lend() {}

func (c *call) end() { _ = c.from.Close() }

// watch implements front: the request's context ends when the sandbox goes away.
func (c *call) watch(func()) (stop func()) { return func() {} }

// refuse implements front.
func (c *call) refuse(no *Refusal) (again bool) {
	if no == nil {
		c.aborted = true
		return false
	}
	text, h := no.say(c.w.Header())
	h.Set("Content-Length", strconv.Itoa(len(text)))
	c.w.WriteHeader(no.status())
	_, _ = io.WriteString(c.w, text) // to whom it fails has gone
	return true
}

// reply implements front.
func (c *call) reply(ctx context.Context, a *answer) (again bool) {
	control := http.NewResponseController(c.w)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { // the sandbox may take nothing
		defer close(ended)
		_ = control.SetWriteDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-ended // the writer is nobody's afterwards
		}
	}()
	h := c.w.Header()
	for name, values := range a.header {
		h[name] = values
	}
	if a.length > 0 || a.length == 0 && a.body == nil {
		h.Set("Content-Length", strconv.FormatInt(a.length, 10))
	}
	c.w.WriteHeader(a.status)
	if a.body == nil || a.length == 0 {
		return true
	}
	if !a.soon() && control.Flush() != nil || !c.copy(control, a) {
		c.aborted = true
		return false
	}
	if a.trailer != nil {
		for name, values := range a.trailer() {
			h[http.TrailerPrefix+name] = values
		}
	}
	return true
}

// copy sends the body of an answer as it comes, and reports whether that was all of
// it.
func (c *call) copy(control *http.ResponseController, a *answer) bool {
	buf := buffers.Get().(*[window]byte)
	defer buffers.Put(buf)
	for left := a.length; ; {
		n, err := a.body.Read(buf[:])
		a.alive()
		if a.length >= 0 {
			if left -= int64(n); left < 0 {
				return false
			}
		}
		if n > 0 {
			if _, err := c.w.Write(buf[:n]); err != nil || control.Flush() != nil {
				return false
			}
		}
		switch {
		case err == io.EOF:
			return left <= 0
		case err != nil:
			return false
		}
	}
}

// Package portproxy passes HTTP and WebSocket requests on to a server in a
// sandbox, which is hostile: it may answer what and when it likes, and hurts only
// who asked it.
//
//	portproxy.Serve(w, r, portproxy.Target{Port: 8000, Dial: dial, Secrets: names, Failed: failed})
package portproxy

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

// Bounds of an answer.
const (
	maxHeader  = 64 << 10
	headerWait = 5 * time.Minute // models take their time
	maxHints   = 16              // answers of the 1xx kind before the real one
)

// Target is where a request goes.
type Target struct {
	Port int // in the sandbox
	// Dial opens a connection to it, for this request only. It is not asked again
	// for a request that has a body.
	Dial func(ctx context.Context) (net.Conn, error)
	// Secrets are the headers that hold our own credentials, or route. The sandbox
	// never sees them.
	Secrets []string
	// Secret reports whether a header's value holds one of our credentials
	// wherever it is, such as in Authorization. Such values do not enter either.
	Secret func(value string) bool
	// Failed answers when there is no connection, or no proper answer.
	Failed func(w http.ResponseWriter, err error)
}

// answerHeaders are what a server in a sandbox has no say in: they reach beyond
// its own answers.
var answerHeaders = []string{"Alt-Svc", "Strict-Transport-Security", "Public-Key-Pins", "Expect-Ct", "Nel", "Report-To", "Reporting-Endpoints"}

// quiet is where the proxy tells of answers that break off: whoever asked sees
// that, and a server in a sandbox must not write our log.
var quiet = log.New(io.Discard, "", 0)

// Serve passes r on to t and its answer back, both streamed. An upgrade becomes a
// connection of its own that ends with r's context. Redirects are the caller's.
//
// Cost: a connection for each request: none is shared between callers.
func Serve(w http.ResponseWriter, r *http.Request, t Target) {
	transport := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return t.Dial(ctx) },
		DisableKeepAlives:      true,
		DisableCompression:     true, // what it sent is what its caller gets
		MaxResponseHeaderBytes: maxHeader,
		ResponseHeaderTimeout:  headerWait,
	}
	defer transport.CloseIdleConnections()
	p := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		Rewrite:       func(p *httputil.ProxyRequest) { t.rewrite(p) },
		ModifyResponse: func(res *http.Response) error {
			clean(res.Header)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { t.Failed(w, err) },
		ErrorLog:     quiet,
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	p.ServeHTTP(&hinted{ResponseWriter: w, over: cancel}, r.WithContext(ctx))
}

// hinted passes on only so many 1xx answers, of which a server may send any
// number before its real one.
type hinted struct {
	http.ResponseWriter
	n    int // of them; one goroutine at a time writes headers
	over func()
}

// Unwrap serves http.ResponseController.
func (h *hinted) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (h *hinted) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		if h.n++; h.n > maxHints {
			h.over()
			return
		}
	}
	h.ResponseWriter.WriteHeader(status)
}

// rewrite makes the request one to a server on the sandbox's loopback.
func (t Target) rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme, p.Out.URL.Host = "http", "localhost:"+strconv.Itoa(t.Port)
	p.Out.Host, p.Out.URL.RawQuery = p.Out.URL.Host, p.In.URL.RawQuery
	p.Out.Header.Del("Forwarded")
	p.SetXForwarded()
	p.Out.Header.Del("X-Forwarded-For") // who asks is none of its business
	for _, h := range t.Secrets {
		p.Out.Header.Del(h)
	}
	if t.Secret == nil {
		return
	}
	for name, values := range p.Out.Header {
		for _, v := range values {
			if t.Secret(v) {
				p.Out.Header.Del(name)
				break
			}
		}
	}
}

// clean takes out of an answer what would reach beyond its host: parents' cookies
// are its neighbours', too.
func clean(h http.Header) {
	for _, name := range answerHeaders {
		h.Del(name)
	}
	cookies := h.Values("Set-Cookie")
	for i, c := range cookies {
		parts := strings.Split(c, ";")
		kept := parts[:1]
		for _, p := range parts[1:] {
			if name, _, _ := strings.Cut(strings.TrimSpace(p), "="); !strings.EqualFold(strings.TrimSpace(name), "Domain") {
				kept = append(kept, p)
			}
		}
		cookies[i] = strings.Join(kept, ";")
	}
}

package inspect

import (
	"net/http"
	"net/url"
	"strings"
)

// permits refuses a request that is not one of the binding's.
func (t *Target) permits(method, path, query string, header http.Header) *Refusal {
	switch {
	case t.Git != nil:
		return t.Git.admit(method, path, query, header)
	case !t.allows(method):
		return &Refusal{Status: http.StatusMethodNotAllowed, Reason: ReasonMethod, Text: "the binding is not for this method"}
	case !t.holds(path):
		return &Refusal{Status: http.StatusForbidden, Reason: ReasonPath, Text: "the binding is for paths below " + t.Path}
	}
	return nil
}

// outgoing makes the request that is sent on, without its body.
func (x *exchange) outgoing() (*http.Request, *Refusal) {
	r := x.route
	target, no := x.head.origin(r.face)
	if no != nil {
		return nil, no
	}
	split := splitTarget
	if r.binding == nil {
		split = splitAny
	}
	path, query, what := split(target)
	if what != "" {
		return nil, &Refusal{Status: http.StatusBadRequest, Reason: ReasonRequest, Text: what}
	}
	if r.binding != nil {
		if no := r.binding.permits(x.head.method, path, query, x.req.Header); no != nil {
			return nil, no
		}
	}
	if x.leaks(path, query, x.req.Header) {
		return nil, leak()
	}
	if x.reads() {
		switch x.req.Header.Get("Content-Encoding") {
		case "", "identity", "gzip", "x-gzip":
		default:
			return nil, &Refusal{Status: http.StatusUnsupportedMediaType, Reason: ReasonRequest, Text: "a body is sent as it is, or with gzip"}
		}
	}
	plain, err := url.PathUnescape(path)
	if err != nil {
		return nil, odd(http.StatusBadRequest, "the path has an escape that is none")
	}
	header := x.req.Header.Clone()
	out := &http.Request{
		Method: x.head.method, Host: r.authority(), Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Scheme: r.scheme(), Host: r.Name.WithPort(r.Port), Path: plain, RawPath: path, RawQuery: query},
	}
	if r.binding != nil {
		r.binding.inject(out)
	} else {
		x.passOn(out)
	}
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // net/http would say its own
	}
	return out, nil
}

// inject leaves of a request what a sandbox may say to a host with another's
// credential, and adds that.
func (t *Target) inject(out *http.Request) {
	header := out.Header
	into, value := t.credential()
	delete(header, "Content-Encoding")
	stripRequest(header, into)
	if t.Git != nil {
		t.Git.strip(header)
	}
	header["Accept-Encoding"] = []string{"identity"}
	query := stripQuery(out.URL.RawQuery, t.parameter())
	if t.As == "query" {
		if query != "" {
			query += "&"
		}
		query += url.QueryEscape(t.Field) + "=" + url.QueryEscape(string(t.Secret))
	} else {
		header[into] = []string{value}
	}
	out.URL.RawQuery = query
}

// passOn leaves of a request what is not about the connection it came on.
func (x *exchange) passOn(out *http.Request) {
	header := out.Header
	trailers := x.head.trailers
	stripHop(header)
	for _, name := range []string{"Host", "Expect", "Content-Length", "Proxy-Authorization"} {
		delete(header, name)
	}
	if x.reads() {
		delete(header, "Content-Encoding")
		header["Accept-Encoding"] = []string{"identity"}
	}
	if trailers {
		header["Te"] = []string{"trailers"} // without which gRPC is not answered
	}
	if x.head.port { // as the sandbox wrote it: it may have signed that
		out.Host = x.route.Name.WithPort(x.route.Port)
	}
	out.URL.ForceQuery = out.URL.RawQuery == "" && strings.HasSuffix(x.head.target, "?")
}

// parameter is the one of a query that the secret goes into.
func (t *Target) parameter() string {
	if t.As == "query" {
		return t.Field
	}
	return ""
}

// reads reports whether the bodies of the route's requests and answers are looked
// through: it has a secret, or another one of the wire's could be sent there.
func (s *session) reads() bool { return s.route.binding != nil || s.proxy.secrets.any() }

// leaks reports whether a secret is in the head of a request.
func (s *session) leaks(path, query string, header http.Header) bool {
	known := s.proxy.secrets
	if !known.any() {
		return false
	}
	if known.inString(path) || known.inString(query) {
		return true
	}
	for name, values := range header {
		if known.inString(name) {
			return true
		}
		for _, v := range values {
			if known.inString(v) {
				return true
			}
		}
	}
	return false
}

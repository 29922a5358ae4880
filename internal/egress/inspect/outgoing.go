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
	target, no := x.head.origin(x.route.face)
	if no != nil {
		return nil, no
	}
	if x.head.socket && x.route.binding != nil {
		return nil, odd(http.StatusNotImplemented, "a binding upgrades no connection")
	}
	rest, fields, no := x.choose(target)
	if no != nil {
		return nil, no
	}
	r := x.route
	split := splitTarget
	if r.binding == nil {
		split = splitAny
	}
	path, query, what := split(target)
	if what != "" {
		return nil, &Refusal{Status: http.StatusBadRequest, Reason: ReasonRequest, Text: what}
	}
	if no := x.objects(path, query, rest, fields); no != nil {
		return nil, no
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
		r.binding.strip(out)
	} else {
		x.passOn(out)
		x.disarm(out)
	}
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // net/http would say its own
	}
	if x.head.socket {
		return out, x.knock(out)
	}
	return out, nil
}

// objects refuses a request that is not one of the route's, or says what goes
// nowhere: rest and fields are without what choose took away.
func (x *exchange) objects(path, query, rest string, fields http.Header) *Refusal {
	if x.route.binding != nil {
		if no := x.route.binding.permits(x.head.method, path, query, x.req.Header); no != nil {
			return no
		}
	}
	if x.route.binding == nil && x.narrow && poses(x.req.Header) {
		return &Refusal{Status: http.StatusForbidden, Reason: ReasonMethod, Text: "a header asks to have the request taken for another one, and the policy decides about methods or paths"}
	}
	if no := x.leaks(rest, fields); no != nil {
		return no
	}
	if x.reads() {
		switch x.req.Header.Get("Content-Encoding") {
		case "", "identity", "gzip", "x-gzip":
		default:
			return &Refusal{Status: http.StatusUnsupportedMediaType, Reason: ReasonRequest, Text: "a body is sent as it is, or with gzip"}
		}
	}
	return nil
}

// strip leaves of a request what a sandbox may say to a host with another's
// credential.
func (t *Target) strip(out *http.Request) {
	header := out.Header
	into, _ := t.credential()
	delete(header, "Content-Encoding")
	stripRequest(header, into)
	if t.Git != nil {
		t.Git.strip(header)
	}
	header["Accept-Encoding"] = []string{"identity"}
	out.URL.RawQuery = stripQuery(out.URL.RawQuery, t.parameter())
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

// reads reports whether the bodies of the request and its answer are looked through:
// there is a secret that is sent with it, or another one of the wire's could be.
func (x *exchange) reads() bool { return x.route.binding != nil || x.with.secrets.any() }

// leaks refuses a request with a secret, or what stands for one, in its head.
func (x *exchange) leaks(target string, header http.Header) *Refusal {
	known := x.with.secrets
	if !known.any() {
		return nil
	}
	texts := []string{target}
	path, query, _ := strings.Cut(target, "?")
	for name, values := range header {
		texts = append(append(texts, name), values...)
	}
	for _, text := range append(texts, path, query) {
		if known.inString(text) {
			return known.misuse(text)
		}
	}
	return nil
}

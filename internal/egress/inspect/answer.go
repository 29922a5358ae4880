package inspect

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// answer is what goes back to the sandbox.
type answer struct {
	status  int
	header  http.Header // without what is about one connection
	length  int64       // of the body; -1: not known
	body    io.Reader   // nil: there is none, of whatever length
	trailer func() http.Header
	alive   func() // called when something of it went on
}

// soon reports whether the body is so short that the head waits for it: one packet
// then holds both.
func (a *answer) soon() bool { return a.length >= 0 && a.length <= window }

// answer sends a response to the sandbox and reports whether another request may
// follow.
func (x *exchange) answer(ctx context.Context, resp *http.Response, alive func()) (again bool) {
	defer resp.Body.Close()
	alive()
	a := &answer{status: resp.StatusCode, header: resp.Header, length: resp.ContentLength, body: resp.Body, alive: alive}
	empty := x.head.method == http.MethodHead || a.status == http.StatusNoContent || a.status == http.StatusNotModified
	if a.status < 200 || a.status > 999 || len(resp.Header["Content-Encoding"]) > 1 {
		return x.front.refuse(&Refusal{Status: http.StatusBadGateway, Text: "the host answers with what is no answer"})
	}
	if x.reads() {
		switch resp.Header.Get("Content-Encoding") {
		case "", "identity":
		case "gzip", "x-gzip":
			a.body, a.length = unpack(resp.Body), -1
		default:
			if !empty {
				return x.front.refuse(&Refusal{Status: http.StatusBadGateway, Text: "the host packs its answer in a way that cannot be looked through"})
			}
		}
		resp.Header.Del("Content-Encoding")
		a.body = newStream(a.body, x.with.secrets, true)
	}
	if x.route.binding != nil {
		stripResponse(a.header)
	} else {
		stripAnswer(a.header)
		a.trailer = func() http.Header { return x.trailer(resp) }
	}
	x.cover(a.header)
	if empty {
		a.body = nil
		if a.status == http.StatusNoContent || a.status == http.StatusNotModified {
			a.length = -1
		}
	}
	return x.front.reply(ctx, a)
}

// trailer is what a host says after its answer.
func (x *exchange) trailer(resp *http.Response) http.Header {
	h := resp.Trailer.Clone()
	stripAnswer(h)
	x.cover(h)
	return h
}

// cover puts stars over secrets in the headers of a response, and the base URL in
// place of the host's own in a redirect.
func (x *exchange) cover(h http.Header) {
	r, known := x.route, x.with.secrets
	if len(h) == 0 || r.binding == nil && !known.any() {
		return
	}
	value := ""
	if r.binding != nil {
		if l := h["Location"]; len(l) == 1 && r.face != r.Site {
			l[0] = r.base(l[0])
		}
		_, value = r.binding.credential()
	}
	for name, values := range h {
		if known.in([]byte(name)) {
			delete(h, name)
			continue
		}
		for i, v := range values {
			for _, q := range x.with.routes {
				if v == string(q.binding.Secret) { // also one too short to be looked for
					v = strings.Repeat("*", len(v))
				}
			}
			if value != "" && v == value {
				v = strings.Repeat("*", len(v))
			}
			values[i] = known.redact(v)
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
	if err != nil || h != r.Host || at != strconv.Itoa(int(r.Port)) || policy.OddPath(path) != "" || !r.binding.holds(path) {
		return location
	}
	u.Scheme, u.Host, u.RawQuery = "http", r.face.Name.String(), stripQuery(u.RawQuery, r.binding.parameter())
	return u.String()
}

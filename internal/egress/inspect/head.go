package inspect

import (
	"bytes"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// Refusal is why a request is not sent on, and what the sandbox is told.
type Refusal struct {
	Status int
	Reason string // in records
	Text   string // for people; without secrets and addresses
	close  bool   // nothing after it can be understood
	result []byte // in place of Text, to a git that pushes
}

// The reasons of this package.
const (
	ReasonClaim   = "claim"   // it is for another host than the connection
	ReasonRequest = "request" // it is none, or one that means two things
	ReasonMethod  = "method"
	ReasonPath    = "path"
	ReasonLeak    = "leak"
	ReasonLimit   = "limit"
	ReasonPush    = "push" // to a ref that is not the binding's
)

// say is what a refusal says, and in h what that is.
func (r *Refusal) say(h http.Header) (text string, header http.Header) {
	kind := "text/plain; charset=utf-8"
	if text = r.Text + "\n"; r.result != nil {
		text, kind = string(r.result), "application/x-"+pushing+"-result"
	}
	h.Set("Content-Type", kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	return text, h
}

// status is what it is answered with.
func (r *Refusal) status() int {
	if r.result != nil {
		return http.StatusOK // with which git is told of it
	}
	return r.Status
}

func odd(status int, text string) *Refusal {
	return &Refusal{Status: status, Reason: ReasonRequest, Text: text, close: true}
}

// The most a request's head may be.
const (
	maxHead   = 64 << 10
	maxFields = 128
)

// head is what the check of a request's head saw.
type head struct {
	method, target, host string
	expects, minor       bool // Expect: 100-continue; HTTP/1.1 and not 1.0
	trailers             bool // the sandbox reads what follows an answer
	port                 bool // the host was named with its port
	socket               bool // WebSocket is asked for
}

// checkHead reads the head of a request, which ends with an empty line, as
// narrowly as it can be read: what net/http would still understand and another
// server differently is refused.
func checkHead(b []byte) (h head, no *Refusal) {
	lines := bytes.Split(b, []byte("\n"))
	for i, line := range lines[:len(lines)-1] {
		end := len(line) - 1
		if end < 0 || line[end] != '\r' || bytes.IndexByte(line[:end], '\r') >= 0 || bytes.IndexByte(line, 0) >= 0 {
			return h, odd(http.StatusBadRequest, "a line does not end with CR LF")
		}
		lines[i] = line[:end]
	}
	fields := lines[1 : len(lines)-2] // without the empty line and what is after it: nothing
	if no = h.requestLine(string(lines[0])); no != nil {
		return h, no
	}
	if len(fields) > maxFields {
		return h, odd(http.StatusRequestHeaderFieldsTooLarge, "there are too many header fields")
	}
	seen := map[string]string{}
	for _, f := range fields {
		name, value, ok := bytes.Cut(f, []byte(":"))
		if !ok || !fieldName(string(name)) {
			return h, odd(http.StatusBadRequest, "a header field has a name that is none, an underscore in it, or is folded")
		}
		if !httpguts.ValidHeaderFieldValue(string(value)) {
			return h, odd(http.StatusBadRequest, "a header field has control characters")
		}
		switch k := strings.ToLower(string(name)); k {
		case "host", "content-length", "transfer-encoding", "expect", "content-encoding", "upgrade":
			if _, twice := seen[k]; twice {
				return h, odd(http.StatusBadRequest, "there is more than one "+k)
			}
			seen[k] = strings.Trim(string(value), " \t")
		}
	}
	return h, h.fields(seen)
}

// requestLine reads "METHOD TARGET HTTP/1.x".
func (h *head) requestLine(line string) *Refusal {
	parts := strings.Split(line, " ")
	if len(parts) != 3 {
		return odd(http.StatusBadRequest, "the first line is not that of a request")
	}
	h.method, h.target = parts[0], parts[1]
	if no := h.check(); no != nil {
		return no
	}
	switch parts[2] {
	case "HTTP/1.1":
		h.minor = true
	case "HTTP/1.0":
	default:
		return odd(http.StatusHTTPVersionNotSupported, "what is spoken here is HTTP/1.1")
	}
	return nil
}

// check looks at method and target.
func (h *head) check() *Refusal {
	if !fieldName(strings.ReplaceAll(h.method, "_", "-")) || len(h.method) > 64 || h.target == "" {
		return odd(http.StatusBadRequest, "the first line is not that of a request")
	}
	for i := range len(h.target) {
		if h.target[i] <= ' ' || h.target[i] >= 0x7f {
			return odd(http.StatusBadRequest, "the target has a character that is to be escaped")
		}
	}
	return nil
}

// fields looks at those that say where a request ends, and whom it is for.
func (h *head) fields(seen map[string]string) *Refusal {
	length, sized := seen["content-length"]
	coding, coded := seen["transfer-encoding"]
	expect, expects := seen["expect"]
	upgrade, upgrades := seen["upgrade"]
	h.socket = strings.EqualFold(upgrade, "websocket") && h.minor && !coded
	switch {
	case upgrades && !h.socket:
		return odd(http.StatusNotImplemented, "the only upgrade is to WebSocket")
	case h.method == http.MethodConnect:
		return odd(http.StatusMethodNotAllowed, "this is no proxy: CONNECT leads nowhere")
	case sized && coded:
		return odd(http.StatusBadRequest, "there are a Content-Length and a Transfer-Encoding")
	case coded && (!h.minor || !strings.EqualFold(coding, "chunked")):
		return odd(http.StatusNotImplemented, "the only Transfer-Encoding is chunked")
	case sized && (length == "" || len(length) > 18 || strings.Trim(length, "0123456789") != ""):
		return odd(http.StatusBadRequest, "the Content-Length is no number")
	case expects && (!h.minor || !strings.EqualFold(expect, "100-continue")):
		return odd(http.StatusExpectationFailed, "the only expectation is 100-continue")
	}
	h.host, h.expects = seen["host"], expects
	return nil
}

// fieldName reports whether s may be a header's name here: a token without an
// underscore, which servers behind CGI take for a hyphen.
func fieldName(s string) bool {
	return httpguts.ValidHeaderFieldName(s) && !strings.Contains(s, "_")
}

// origin is the target as a path and a query, if the request is for face.
func (h *head) origin(face Site) (target string, no *Refusal) {
	isHost := func(s string) bool {
		host, port, err := netaddr.ParseHostPort(s)
		h.port = port != 0
		return err == nil && host == face.Name && (port == 0 || port == face.Port) && !strings.HasSuffix(s, ".")
	}
	switch {
	case h.host == "":
		return "", odd(http.StatusBadRequest, "there is no Host")
	case !isHost(h.host):
		return "", misdirected("the Host is not " + face.Name.String() + ", which the connection is to")
	case h.target[0] == '/':
		return h.target, nil
	}
	scheme, rest, ok := strings.Cut(h.target, "://")
	if !ok || !strings.EqualFold(scheme, face.scheme()) {
		return "", odd(http.StatusBadRequest, "the target is not a path")
	}
	at, path := rest, "/"
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		at, path = rest[:i], rest[i:]
	}
	if !isHost(at) {
		return "", misdirected("the target is not on " + face.Name.String() + ", which the connection is to")
	}
	return path, nil
}

// misdirected refuses a request for another host than the connection's.
func misdirected(text string) *Refusal {
	return &Refusal{Status: http.StatusMisdirectedRequest, Reason: ReasonClaim, Text: text, close: true}
}

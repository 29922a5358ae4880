package inspect

import (
	"bufio"
	"bytes"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestPath: what two servers read differently is no path, and everything else is.
func TestPath(t *testing.T) {
	for _, good := range []string{"/", "/v1/chat", "/v1/", "/a%20b/%C3%A9", "/v1/models/gpt:x@y,z=1", "/~me/it's(1)*", "/v1?x=1&y=%2F%2e", "/v1?a=/../;b", "/.well-known/x", "/a..b/...c"} {
		if _, _, why := splitTarget(good); why != "" {
			t.Errorf("%s: %s", good, why)
		}
	}
	for _, bad := range []string{
		"", "*", "v1", "http://x/", "//", "//x", "/v1//x", "/v1/.", "/v1/..", "/v1/../x", "/./v1", "/v1/..;/x", "/v1;x=1/y", "/v1/%2e%2e/x", "/v1/%2E./x",
		"/v1%2fx", "/v1%2Fx", "/v1%5cx", "/v1\\x", "/v1%3bx", "/v1%252e", "/v1%00", "/v1%0d%0aX", "/v1%7f", "/v1%", "/v1%2", "/v1%zz", "/v1#x", "/v1%23x", "/v1%3fx", "/v1 x", "/v1\tx",
		"/v1/é", "/v1/%c0%ae%c0%ae/x", "/v1/%ff", "/v1/%20..%20/x", "/v1/...%20/x", "/v1/.../x", "/v1?x#y", "/v1?x=%zz", "/v1?x\\y", "/v1?x y",
	} {
		if p, q, why := splitTarget(bad); why == "" {
			t.Errorf("%q is %q, %q", bad, p, q)
		}
	}
	r := &Target{Path: "/v1"}
	for p, want := range map[string]bool{"/v1": true, "/v1/": true, "/v1/x": true, "/v1x": false, "/v": false, "/": false, "/V1": false, "/%761": false} {
		if r.holds(p) != want {
			t.Errorf("%s below /v1: %v", p, !want)
		}
	}
}

// FuzzPath: of a path that is taken every reader has the same segments.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v1/x", "/v1/%2e%2e/", "/a;b", "/%c3%a9", "/..%20/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, _, why := splitTarget(s)
		if why != "" {
			return
		}
		plain, err := url.PathUnescape(p)
		u := &url.URL{Path: plain, RawPath: p}
		switch clean := path.Clean(plain); {
		case err != nil, !utf8.ValidString(plain), u.EscapedPath() != p:
			t.Errorf("%q is sent on as %q", p, u.EscapedPath())
		case clean != plain && clean+"/" != plain:
			t.Errorf("%q is %q for who cleans it", p, clean)
		case strings.ContainsAny(plain, "\\;?#%"), strings.Count(plain, "/") != strings.Count(p, "/"):
			t.Errorf("%q is %q", p, plain)
		}
	})
}

// FuzzAnyPath: a path goes on with the escapes that it had, whatever it is.
func FuzzAnyPath(f *testing.F) {
	for _, s := range []string{"/a%2Fb\"c", "//x/../%2e%2e/;y", "/{a}|^`<b>\\", "/[x]%25", "/%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, _, why := splitAny(s)
		plain, err := url.PathUnescape(p)
		if why != "" || err != nil {
			return
		}
		u := &url.URL{Path: plain, RawPath: p}
		was, _, _ := strings.Cut(s, "?")
		if same, _ := url.PathUnescape(was); u.EscapedPath() != p || same != plain || strings.Count(p, "/") != strings.Count(was, "/") {
			t.Errorf("%q is sent on as %q", was, u.EscapedPath())
		}
	})
}

// FuzzHead: a head that is taken is to net/http what it is to us.
func FuzzHead(f *testing.F) {
	for _, s := range []string{top + "\r\n", top + "Content-Length: 5\r\n\r\n", top + "Transfer-Encoding: chunked\r\n\r\n", top + "Expect: 100-continue\r\nX-A:\tb \r\n\r\n",
		"GET http://api.binding.internal/v1 HTTP/1.0\r\nHost: api.binding.internal:80\r\n\r\n", top + "X_A: b\r\n\r\n", top + " folded\r\n\r\n"} {
		f.Add([]byte(s))
	}
	face := hostOf(f, "api.binding.internal")
	f.Fuzz(func(t *testing.T, b []byte) {
		i := bytes.Index(b, []byte("\r\n\r\n"))
		if i < 0 || i != len(b)-4 {
			return
		}
		h, no := checkHead(b)
		if no != nil {
			return
		}
		target, no := h.origin(Site{Name: face, Port: 80, Plain: true})
		if no != nil {
			return
		}
		if _, _, why := splitTarget(target); why != "" {
			return
		}
		in := bufio.NewReader(bytes.NewReader(append(bytes.Clone(b), "rest"...)))
		req, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		rest, _ := in.Peek(in.Buffered())
		if req.Method != h.method || req.RequestURI != h.target || string(rest) != "rest" || !strings.EqualFold(strings.TrimSuffix(req.Host, ":80"), "api.binding.internal") ||
			req.ContentLength >= 0 && len(req.TransferEncoding) > 0 {
			t.Errorf("%q: %+v", b, req)
		}
		fields := bytes.Count(b, []byte("\n")) - 2
		for _, v := range req.Header {
			fields -= len(v)
		}
		if fields < 0 || fields > 2 { // Host and Transfer-Encoding, which it takes out, and Cache-Control, which it may add
			t.Errorf("%q: %d fields differ: %v", b, fields, req.Header)
		}
	})
}

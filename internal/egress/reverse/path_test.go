package reverse

import (
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

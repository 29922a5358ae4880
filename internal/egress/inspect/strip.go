package inspect

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// hopByHop are the headers about one connection.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authentication-Info", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Http2-Settings"}

// overriding are headers with which a request asks to be taken for one with another
// method or path.
var overriding = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Method", "X-Original-Url", "X-Rewrite-Url"}

// meddling are those, and what asks to be taken for a request to another host, or
// from somebody else.
var meddling = slices.Concat(overriding, []string{"X-Original-Host", "X-Host", "Forwarded", "X-Real-Ip", "Via", "X-Client-Ip", "True-Client-Ip"})

// poses reports whether a request asks to be taken for one with another method or
// target.
func poses(h http.Header) bool {
	return slices.ContainsFunc(overriding, func(name string) bool { return h[name] != nil })
}

// credentials are headers, in lower case, by which hosts know who asks.
var credentials = []string{"authorization", "proxy-authorization", "cookie", "cookie2", "api-key", "apikey", "x-api-key", "x-apikey", "x-auth-key", "x-auth-email",
	"ocp-apim-subscription-key", "x-functions-key", "x-rapidapi-key", "x-aws-ec2-metadata-token"}

// credential reports whether a header says who asks: one that is known, or is
// named like one.
func credential(name string) bool {
	name = strings.ToLower(name)
	return slices.Contains(credentials, name) || strings.HasSuffix(name, "-token") || strings.HasSuffix(name, "-api-key") || strings.HasSuffix(name, "-apikey") ||
		strings.HasSuffix(name, "-authorization") || strings.HasSuffix(name, "-secret")
}

// stripHop removes the headers about one connection, those it names among them.
func stripHop(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.TrimSpace(name); httpguts.ValidHeaderFieldName(name) {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// stripRequest leaves of a sandbox's headers what it may say to a host with
// another's credential.
func stripRequest(h http.Header, injected string) {
	stripHop(h)
	for name := range h {
		if credential(name) || strings.EqualFold(name, injected) || slices.Contains(meddling, name) || strings.HasPrefix(name, "X-Forwarded-") {
			delete(h, name)
		}
	}
	for _, name := range []string{"Host", "Expect", "Content-Length", "Accept-Encoding"} {
		delete(h, name)
	}
}

// stripResponse removes what a host says about the connection, or to a client that
// it trusts: its cookies are credentials too.
func stripResponse(h http.Header) {
	stripHop(h)
	for _, name := range []string{"Set-Cookie", "Set-Cookie2", "Alt-Svc", "Strict-Transport-Security", "Content-Length", "Public-Key-Pins"} {
		delete(h, name)
	}
}

// stripAnswer removes what a host says about the connection, or about others that
// it may be reached by.
func stripAnswer(h http.Header) {
	stripHop(h)
	for _, name := range []string{"Alt-Svc", "Content-Length", "Public-Key-Pins"} {
		delete(h, name)
	}
}

// parameters of queries by which hosts know who asks.
var parameters = []string{"access_token", "api_key", "apikey", "api-key", "x-api-key", "auth_token", "private_token", "oauth_token"}

// stripQuery removes parameters that say who asks, and the injected one, from a
// query, whose escapes are good.
func stripQuery(query, injected string) string {
	if query == "" {
		return ""
	}
	gone := func(part string) bool {
		for p := range strings.SplitSeq(part, ";") { // which some servers separate by, too
			name, _, _ := strings.Cut(p, "=")
			name, err := url.QueryUnescape(name)
			if err != nil {
				return true
			}
			name, _, _ = strings.Cut(name, "[")
			name = strings.TrimSpace(name)
			if injected != "" && strings.EqualFold(name, injected) || slices.ContainsFunc(parameters, func(k string) bool { return strings.EqualFold(k, name) }) {
				return true
			}
		}
		return false
	}
	return strings.Join(slices.DeleteFunc(strings.Split(query, "&"), gone), "&")
}

//go:build linux

package egress

import (
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

const (
	thePlaceholder   = "fbp_0123456789abcdefghijABCDEFGHIJ0123456789"
	otherPlaceholder = "fbp_9876543210abcdefghijABCDEFGHIJ0123456789"
)

// standIn is a binding to the host with a placeholder.
func (h *host) standIn(as, field string) Binding {
	b := h.binding("api")
	b.As, b.Field, b.Path, b.Placeholder = as, field, "/", Hidden(thePlaceholder)
	return b
}

// heard is all that a host was sent.
type heard struct {
	mu   sync.Mutex
	reqs []string // guarded by mu; target, header and body of each
}

func (h *heard) handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var all bytes.Buffer
	fmt.Fprintf(&all, "%s %s\n", r.Method, r.RequestURI)
	_ = r.Header.Write(&all)
	all.Write(body)
	h.mu.Lock()
	h.reqs = append(h.reqs, all.String())
	h.mu.Unlock()
	w.Header().Set("X-Echo", r.Header.Get("Authorization"))
	_, _ = w.Write(all.Bytes())
}

// take is what was heard since it was last asked.
func (h *heard) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.reqs = nil }()
	return strings.Join(h.reqs, "\n---\n")
}

// armed serves the place's wire with an authority for all that there is.
func armed(t testing.TB, p *place, h *host, text string, bindings []Binding, transforms []Transform) (*Router, *journal, *x509.CertPool) {
	t.Helper()
	j := new(journal)
	r := New(Config{Logger: slog.New(slog.NewTextHandler(testLog{t}, nil)), Dialer: netaddr.Dialer{Lookup: lookup}, Record: j.record, Roots: h.roots})
	t.Cleanup(func() { _ = r.Close() })
	scope := table(t, text).Scope()
	scope.Names = append(slices.Clone(scope.Names), "good.example")
	a, err := authority.Derive(testSeed, "one", scope, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM())
	if err := r.Attach(Wire{ID: "one", Table: table(t, text), Bindings: bindings, Transforms: transforms, Authority: a}, p.tap); err != nil {
		t.Fatal(err)
	}
	return r, j, pool
}

// TestPlaceholder: in each of the positions where a secret goes, and on both versions
// of HTTP, its placeholder becomes the secret in a request to the host itself, which
// no rule has to name; the sandbox sees neither the secret in the answer nor needs
// another address.
func TestPlaceholder(t *testing.T) {
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for name, c := range map[string]struct {
		as, field string
		ask       func(*http.Request)
		want      string
	}{
		"bearer": {"bearer", "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+thePlaceholder) }, "Authorization: Bearer " + theSecret + "\r\n"},
		"basic":  {"basic", "me", func(r *http.Request) { r.SetBasicAuth("anybody", thePlaceholder) }, "Authorization: " + basic("me", theSecret) + "\r\n"},
		"header": {"header", "X-Api-Key", func(r *http.Request) { r.Header.Set("x-api-key", thePlaceholder) }, "X-Api-Key: " + theSecret + "\r\n"},
		"query":  {"query", "key", func(r *http.Request) { r.URL.RawQuery = "a=1&key=" + thePlaceholder + "&b=2" }, "POST /x?a=1&b=2&key=" + theSecret + "\n"},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprint(name, h2), func(t *testing.T) {
				p, said := newPlace(t), new(heard)
				h := newHost(t, said.handle)
				_, j, roots := armed(t, p, h, nothing, []Binding{h.standIn(c.as, c.field)}, nil)
				req, err := http.NewRequest("POST", fmt.Sprintf("https://good.example:%d/x", h.port), strings.NewReader("hello"))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Cookie", "own=1")
				c.ask(req)
				resp, err := p.client(roots, h2).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				got := said.take()
				if err != nil || resp.StatusCode != 200 || !strings.Contains(got, c.want) || strings.Contains(got, "fbp_") || strings.Contains(got, "own=1") || !strings.HasSuffix(got, "hello") {
					t.Errorf("%d, %v; the host got\n%s", resp.StatusCode, err, got)
				}
				if strings.Contains(string(body), theSecret) || strings.Contains(fmt.Sprint(resp.Header), theSecret) || !strings.Contains(string(body), "****") {
					t.Errorf("the sandbox got %v\n%s", resp.Header, body)
				}
				e := j.wait(t, "a request", func(e Event) bool { return e.Kind == KindRequest })
				if e.Decision != Allow || e.Binding != "api" || e.Reason != ReasonBinding || e.Method != "POST" {
					t.Errorf("%+v", e)
				}
			})
		}
	}
}

// TestPlaceholderInherited: what programs have of the sandbox that theirs was made of
// stands for the secret as its own does, where that goes and nowhere else; more than a
// few are too many.
func TestPlaceholderInherited(t *testing.T) {
	p, said := newPlace(t), new(heard)
	h := newHost(t, said.handle)
	b := h.standIn("bearer", "")
	b.Inherited = []Hidden{Hidden(otherPlaceholder)}
	r, j, roots := armed(t, p, h, nothing, []Binding{b}, nil)
	ask := func(header, value string) int {
		req, err := http.NewRequest("GET", fmt.Sprintf("https://good.example:%d/x", h.port), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(header, value)
		resp, err := p.client(roots, false).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, text := range []string{thePlaceholder, otherPlaceholder} {
		if status, got := ask("Authorization", "Bearer "+text), said.take(); status != 200 || !strings.Contains(got, "Authorization: Bearer "+theSecret+"\r\n") || strings.Contains(got, "fbp_") {
			t.Errorf("%s: %d; the host got\n%s", text, status, got)
		}
		if status, got := ask("X-Other", text), said.take(); status != 403 || got != "" {
			t.Errorf("%s elsewhere: %d; the host got\n%s", text, status, got)
		}
	}
	j.wait(t, "a refusal", func(e Event) bool { return e.Kind == KindRequest && e.Reason == ReasonPlaceholder })
	for range 4 {
		b.Inherited = append(b.Inherited, Hidden(otherPlaceholder))
	}
	if err := r.Grant("one", []Binding{b}, nil); err == nil {
		t.Error("five were taken")
	}
}

// TestPlaceholderElsewhere: a placeholder that is not where the secret goes, in
// whatever form, goes nowhere and is told of; nothing is put in its place.
func TestPlaceholderElsewhere(t *testing.T) {
	packed := func(s string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(strings.Repeat("x", 3000) + s))
		_ = z.Close()
		return b.String()
	}
	escaped := func(s string) string {
		var b strings.Builder
		for _, c := range []byte(s) {
			fmt.Fprintf(&b, "%%%02x", c)
		}
		return b.String()
	}
	p, said := newPlace(t), new(heard)
	h := newHost(t, said.handle)
	_, j, roots := armed(t, p, h, h.rules(), []Binding{h.standIn("bearer", "")}, nil)
	base := fmt.Sprintf("https://good.example:%d", h.port)
	bear := func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+thePlaceholder) }
	cases := map[string]struct {
		path, body string
		change     func(*http.Request)
	}{
		"another header": {"/", "", func(r *http.Request) { r.Header.Set("X-Api-Key", thePlaceholder) }},
		"another scheme": {"/", "", func(r *http.Request) { r.Header.Set("Authorization", "Token "+thePlaceholder) }},
		"within a value": {"/", "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer x"+thePlaceholder) }},
		"a value twice": {"/", "", func(r *http.Request) {
			r.Header["Authorization"] = []string{"Bearer " + thePlaceholder, "Bearer " + thePlaceholder}
		}},
		"in base64":          {"/", "", func(r *http.Request) { r.SetBasicAuth("x", thePlaceholder) }},
		"path":               {"/a/" + thePlaceholder, "", nil},
		"escaped path":       {"/a/" + escaped(thePlaceholder), "", nil},
		"query":              {"/?q=" + thePlaceholder, "", nil},
		"body":               {"/", "a" + thePlaceholder, nil},
		"body, hex":          {"/", hex.EncodeToString([]byte(thePlaceholder)), nil},
		"body, base64":       {"/", base64.StdEncoding.EncodeToString([]byte("ab" + thePlaceholder)), nil},
		"body, escaped":      {"/", "x=" + strings.ToUpper(escaped(thePlaceholder)), nil},
		"body, gzip":         {"/", packed(thePlaceholder), func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }},
		"long body":          {"/", strings.Repeat("y", 200<<10) + thePlaceholder, nil},
		"as well":            {"/", "", func(r *http.Request) { bear(r); r.Header.Set("X-Copy", thePlaceholder) }},
		"as well, in a body": {"/", thePlaceholder, bear},
		"a cookie":           {"/", "", func(r *http.Request) { r.Header.Set("Cookie", "a="+thePlaceholder) }},
	}
	for name, c := range cases {
		req, err := http.NewRequest("POST", base+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.change != nil {
			c.change(req)
		}
		resp, err := p.client(roots, false).Do(req)
		if err == nil {
			if resp.Body.Close(); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %d", name, resp.StatusCode)
			}
		} else if len(c.body) < 100<<10 { // of a long one the rest is not taken any more
			t.Errorf("%s: %v", name, err)
		}
		got := said.take()
		if strings.Contains(got, theSecret) || strings.Contains(got, thePlaceholder) || strings.Contains(got, thePlaceholder[8:]) {
			t.Errorf("%s: the host got\n%.300s", name, got)
		}
	}
	eventually(t, "each is told of", func() bool {
		n := 0
		for _, e := range j.all() {
			if e.Kind == KindRequest && e.Decision == Deny && e.Reason == ReasonPlaceholder {
				n += e.Count
			}
		}
		return n == len(cases)
	})
}

// TestPlaceholderOfAnother: another sandbox's placeholder is text; own credentials do
// not reach a host that there is a binding for; the secret itself goes nowhere.
func TestPlaceholderOfAnother(t *testing.T) {
	p, said := newPlace(t), new(heard)
	h := newHost(t, said.handle)
	_, j, roots := armed(t, p, h, h.rules(), []Binding{h.standIn("bearer", "")}, nil)
	ask := func(header, value, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequest("POST", fmt.Sprintf("https://good.example:%d/x?access_token=mine&y=1", h.port), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(header, value)
		req.Header.Set("Cookie", "mine=1")
		resp, err := p.client(roots, true).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, said.take()
	}
	for _, value := range []string{"Bearer " + otherPlaceholder, "Bearer my-own-token"} {
		if code, got := ask("Authorization", value, "hello"); code != 200 || strings.Contains(got, "Authorization") || strings.Contains(got, "mine") || strings.Contains(got, theSecret) ||
			!strings.Contains(got, "/x?y=1\n") || !strings.HasSuffix(got, "hello") {
			t.Errorf("%s: %d, the host got\n%s", value, code, got)
		}
	}
	e := j.wait(t, "a request", func(e Event) bool { return e.Kind == KindRequest })
	if e.Binding != "" || e.Rule == "" || e.Decision != Allow {
		t.Errorf("%+v", e)
	}
	for _, body := range []string{theSecret, base64.StdEncoding.EncodeToString([]byte(theSecret)), url.QueryEscape(theSecret)} {
		if code, got := ask("X-A", "b", body); code != http.StatusForbidden || got != "" {
			t.Errorf("%d, the host got\n%s", code, got)
		}
	}
	j.wait(t, "a leak", func(e Event) bool { return e.Kind == KindRequest && e.Reason == ReasonLeak })
}

// TestPlaceholderLimits: without its placeholder nothing passes that no rule allows; a
// deny rule wins; so do the binding's own methods and paths.
func TestPlaceholderLimits(t *testing.T) {
	for name, c := range map[string]struct {
		text, method, path string
		placeholder        bool
		code               int // 0: there is no connection
		reason, binding    string
	}{
		"with":             {nothing, "GET", "/v1/x", true, 200, "", ""},
		"without":          {nothing, "GET", "/v1/x", false, 403, "no_rule", ""},
		"method":           {nothing, "DELETE", "/v1/x", true, 405, ReasonMethod, "api"},
		"path":             {nothing, "GET", "/v2/x", true, 403, ReasonPath, "api"},
		"denied in part":   {"allow: []\ndeny: [{host: good.example, paths: [/v1/x]}]", "GET", "/v1/x", true, 403, "denied", "api"},
		"denied elsewhere": {"allow: []\ndeny: [{host: good.example, paths: [/v1/y]}]", "GET", "/v1/x", true, 200, "", ""},
		"unread":           {"allow:\n  - {host: good.example, ports: PORT, protocol: tls, inspect: none}" + loopback, "GET", "/v1/x", true, 0, "inspect", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, said := newPlace(t), new(heard)
			h := newHost(t, said.handle)
			b := h.standIn("bearer", "")
			b.Path, b.Methods = "/v1", []string{"GET"}
			_, j, roots := armed(t, p, h, strings.ReplaceAll(c.text, "PORT", fmt.Sprint(h.port)), []Binding{b}, nil)
			req, err := http.NewRequest(c.method, fmt.Sprintf("https://good.example:%d%s", h.port, c.path), nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.placeholder {
				req.Header.Set("Authorization", "Bearer "+thePlaceholder)
			}
			client := p.client(roots, false)
			resp, err := client.Do(req)
			if code := 0; err == nil {
				resp.Body.Close()
				if code = resp.StatusCode; code != c.code {
					t.Errorf("%d, not %d", code, c.code)
				}
			} else if c.code != 0 {
				t.Errorf("%v, not %d", err, c.code)
			}
			if got := said.take(); (c.code == 200) != strings.Contains(got, theSecret) || c.code != 200 && got != "" {
				t.Errorf("the host got\n%s", got)
			}
			if c.reason != "" {
				j.wait(t, "a denial", func(e Event) bool { return e.Decision == Deny && e.Reason == c.reason && e.Binding == c.binding })
			}
		})
	}
}

// TestDeniedPlaceholder: what a rule denies, no binding opens: the host has no address.
func TestDeniedPlaceholder(t *testing.T) {
	for text, code := range map[string]dnsmessage.RCode{"allow: []\ndeny: [good.example]": dnsmessage.RCodeNameError, nothing: dnsmessage.RCodeSuccess} {
		p := newPlace(t)
		h := newHost(t, new(heard).handle)
		armed(t, p, h, text, []Binding{h.standIn("bearer", "")}, nil)
		if got, addrs := p.ask("udp4", "good.example", dnsmessage.TypeA); got != code {
			t.Errorf("%s: %v %v", text, got, addrs)
		}
	}
}

// TestTransform: headers are set in what a rule lets pass, in place of the sandbox's;
// they open nothing, are not there in HTTP without TLS, and others follow with the
// next request.
func TestTransform(t *testing.T) {
	p, said := newPlace(t), new(heard)
	h := newHost(t, said.handle)
	set := func(value string) []Transform {
		return []Transform{{Host: "good.example", Port: h.port, Headers: []TransformHeader{{Name: "Authorization", Value: Hidden("Bearer " + value)}, {Name: "X-Set", Value: Hidden("set")}}, Secrets: []Hidden{Hidden(value)}}}
	}
	r, j, roots := armed(t, p, h, fmt.Sprintf("allow:\n  - {host: good.example, ports: %d, methods: [GET]}", h.port)+loopback, nil, set(theSecret))
	c := p.client(roots, true)
	ask := func(method string, want int) (got, body string) {
		t.Helper()
		req, err := http.NewRequest(method, fmt.Sprintf("https://good.example:%d/x", h.port), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer own")
		req.Header.Add("X-Set", "one")
		req.Header.Add("X-Set", "two")
		req.Header.Set("Cookie", "own=1")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%d, %v", resp.StatusCode, err)
		}
		return said.take(), fmt.Sprint(resp.Header) + string(b)
	}
	got, body := ask("GET", 200)
	if !strings.Contains(got, "Authorization: Bearer "+theSecret+"\r\n") || strings.Count(got, "X-Set") != 1 || !strings.Contains(got, "X-Set: set\r\n") || !strings.Contains(got, "own=1") {
		t.Errorf("the host got\n%s", got)
	}
	if strings.Contains(body, theSecret) {
		t.Errorf("the sandbox got %s", body)
	}
	if got, _ := ask("POST", 403); got != "" {
		t.Errorf("what is denied went on: %s", got)
	}
	if e := j.wait(t, "a denial", func(e Event) bool { return e.Kind == KindRequest && e.Decision == Deny }); e.Method != "POST" {
		t.Errorf("%+v", e)
	}
	const next = "the-secret-that-came-after"
	if err := r.Grant("one", nil, set(next)); err != nil {
		t.Fatal(err)
	}
	if got, body := ask("GET", 200); !strings.Contains(got, "Bearer "+next+"\r\n") || strings.Contains(body, next) {
		t.Errorf("after others were given the host got\n%s", got)
	}
	if n := h.conns.Load(); n > 2 { // net/http dials a second one while the first is made
		t.Errorf("%d connections were made: giving others closes none", n)
	}
	if err := r.Grant("one", nil, []Transform{{Host: "good.example", Port: 443, Headers: []TransformHeader{{Name: "Host", Value: Hidden("x")}}}}); err == nil {
		t.Error("a header that frames the message was taken")
	}
	if got, _ := ask("GET", 200); !strings.Contains(got, next) {
		t.Errorf("after a refusal the host got\n%s", got)
	}
	if err := r.Grant("one", nil, nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := ask("GET", 200); !strings.Contains(got, "Bearer own") {
		t.Errorf("without any the host got\n%s", got)
	}
}

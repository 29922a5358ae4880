package inspect

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "sk-very-secret/+=0123"

// gate is a proxy between a sandbox and a host that counts.
type gate struct {
	testing.TB
	proxy    *Proxy
	addr     string // where the sandbox connects
	requests atomic.Int64
	bytes    atomic.Int64 // that came to the host, of TLS
	decided  atomic.Int64

	mu      sync.Mutex
	refused []string // guarded by mu; METHOD REASON
}

func newGate(t testing.TB, change func(*Target, *Options), handle http.HandlerFunc) *gate {
	t.Helper()
	g := &gate{TB: t}
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.requests.Add(1)
		handle(w, r)
	}))
	up.EnableHTTP2 = true
	up.StartTLS()
	pool := x509.NewCertPool()
	pool.AddCert(up.Certificate())
	target := &Target{Name: "api", Host: netaddr.HostOf(netip.MustParseAddr("127.0.0.1")), Port: 443, Path: "/v1", As: "bearer", Secret: []byte(secret)}
	o := Options{
		Zone: "binding.internal", Roots: func() *x509.CertPool { return pool },
		Dial: func(ctx context.Context, _ *Target) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", up.Listener.Addr().String())
			return &counted{c, &g.bytes}, err
		},
		Ask: func(*Target) Asker { return g },
	}
	if change != nil {
		change(target, &o)
	}
	var err error
	if g.proxy, err = New(o, []*Target{target}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				g.proxy.Serve(ctx, c, "api")
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		all.Wait()
		g.proxy.Close()
		up.CloseClientConnections()
		up.Close()
		if strings.Trim(string(target.Secret), "\x00") != "" {
			t.Error("the secret is still there")
		}
	})
	return g
}

// Decide implements Asker.
func (g *gate) Decide(context.Context, string, string) *Refusal {
	g.decided.Add(1)
	return nil
}

// Refused implements Asker.
func (g *gate) Refused(method string, no *Refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = append(g.refused, method+" "+no.Reason)
}

type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.Conn.Write(b)
}

// raw sends bytes and returns all that comes back until the other side ends.
func (g *gate) raw(text string) string {
	g.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	go func() { _, _ = io.WriteString(c, text) }()
	b, _ := io.ReadAll(c)
	return string(b)
}

// do sends a request as an ordinary client does.
func (g *gate) do(method, path string, body io.Reader, headers ...string) (*http.Response, string) {
	g.Helper()
	resp, err := g.try(method, path, body, headers...)
	if err != nil {
		g.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.Fatal(err)
	}
	return resp, string(b)
}

func (g *gate) try(method, path string, body io.Reader, headers ...string) (*http.Response, error) {
	g.Helper()
	req, err := http.NewRequest(method, "http://"+g.addr+path, body)
	if err != nil {
		g.Fatal(err)
	}
	req.Host = "api.binding.internal"
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	return tr.RoundTrip(req)
}

// said is what was refused until now.
func (g *gate) said() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.refused...)
}

const top = "GET /v1/x HTTP/1.1\r\nHost: api.binding.internal\r\n"

// TestSmuggling: what one server could read as one request and the next one as two
// is refused, and nothing of it comes to the host.
func TestSmuggling(t *testing.T) {
	g := newGate(t, nil, func(http.ResponseWriter, *http.Request) {})
	post := strings.Replace(top, "GET", "POST", 1)
	inner := "GET /v1/smuggled HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n"
	for name, c := range map[string]struct {
		text   string
		status int
	}{
		"CL.TE":            {post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", 400},
		"TE.CL":            {post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n", 400},
		"TE.TE":            {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400},
		"TE odd":           {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
		"TE list":          {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		"TE tab":           {post + "Transfer-Encoding:\tchunked\x0b\r\n\r\n0\r\n\r\n", 400},
		"TE space":         {post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
		"TE 1.0":           {strings.Replace(post, "1.1", "1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501},
		"two lengths":      {post + "Content-Length: 0\r\nContent-Length: 60\r\n\r\n" + inner, 400},
		"the same lengths": {post + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n", 400},
		"length list":      {post + "Content-Length: 0, 0\r\n\r\n", 400},
		"length sign":      {post + "Content-Length: +0\r\n\r\n", 400},
		"length hex":       {post + "Content-Length: 0x0\r\n\r\n", 400},
		"length empty":     {post + "Content-Length:\r\n\r\n", 400},
		"length huge":      {post + "Content-Length: 9999999999999999999999\r\n\r\n", 400},
		"folded":           {top + "X-A: b\r\n c\r\n\r\n", 400},
		"folded first":     {"GET /v1/x HTTP/1.1\r\n X: y\r\nHost: api.binding.internal\r\n\r\n", 400},
		"bare LF":          {strings.ReplaceAll(top, "\r\n", "\n") + "\n", 400},
		"bare LF inside":   {top + "X-A: b\nX-B: c\r\n\r\n", 400},
		"bare CR":          {top + "X-A: b\rX-B: c\r\n\r\n", 400},
		"NUL":              {top + "X-A: b\x00\r\n\r\n", 400},
		"underscore":       {top + "Content_Length: 5\r\n\r\n", 400},
		"no colon":         {top + "X-A\r\n\r\n", 400},
		"no name":          {top + ": x\r\n\r\n", 400},
		"odd name":         {top + "X(A): x\r\n\r\n", 400},
		"two hosts":        {top + "Host: api.binding.internal\r\n\r\n", 400},
		"no host":          {"GET /v1/x HTTP/1.1\r\n\r\n", 400},
		"other host":       {"GET /v1/x HTTP/1.1\r\nHost: other.binding.internal\r\n\r\n", 421},
		"other port":       {"GET /v1/x HTTP/1.1\r\nHost: api.binding.internal:8080\r\n\r\n", 421},
		"host with dot":    {"GET /v1/x HTTP/1.1\r\nHost: api.binding.internal.\r\n\r\n", 421},
		"the real host":    {"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 421},
		"absolute":         {"GET http://other.binding.internal/v1/x HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n", 421},
		"absolute https":   {"GET https://api.binding.internal/v1/x HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n", 400},
		"absolute user":    {"GET http://x@api.binding.internal/v1/x HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n", 421},
		"CONNECT":          {"CONNECT api.binding.internal:443 HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n", 405},
		"upgrade":          {top + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 501},
		"h2c":              {top + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n", 501},
		"h2":               {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		"HTTP/0.9":         {"GET /v1/x\r\n\r\n", 400},
		"HTTP/1.2":         {"GET /v1/x HTTP/1.2\r\nHost: api.binding.internal\r\n\r\n", 505},
		"spaces":           {"GET  /v1/x HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n", 400},
		"tab":              {"GET\t/v1/x HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n", 400},
		"empty line":       {"\r\n" + top + "\r\n", 400},
		"expectation":      {post + "Expect: 200-ok\r\nContent-Length: 0\r\n\r\n", 417},
		"many fields":      {top + strings.Repeat("X: y\r\n", 200) + "\r\n", 431},
		"long head":        {top + "X: " + strings.Repeat("y", 70_000) + "\r\n\r\n", 431},
		"TLS":              {"\x16\x03\x01\x00\x05hello\r\n\r\n", 400},
		"star":             {"OPTIONS * HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n", 400},
	} {
		before := len(g.said())
		got := g.raw(c.text + inner)
		if want := fmt.Sprintf("HTTP/1.1 %d ", c.status); !strings.HasPrefix(got, want) || strings.Count(got, "HTTP/1.1 ") != 1 {
			t.Errorf("%s: %.200q, want %d and no more", name, got, c.status)
		}
		reason := " request"
		if c.status == 421 {
			reason = " claim"
		}
		if after := g.said(); len(after) != before+1 || !strings.HasSuffix(after[before], reason) {
			t.Errorf("%s: told %q", name, after[before:])
		}
	}
	if g.requests.Load() != 0 || g.bytes.Load() != 0 || g.decided.Load() != 0 {
		t.Errorf("%d requests, %d bytes", g.requests.Load(), g.bytes.Load())
	}
}

// TestPipelined: requests that come together are answered one after the other, and
// bodies end where they end.
func TestPipelined(t *testing.T) {
	var got []string
	g := newGate(t, nil, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.Path+" "+string(b))
		if r.URL.Path == "/v1/nothing" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		fmt.Fprint(w, "<", r.URL.Path, ">")
	})
	inner := "GET /v1/inner HTTP/1.1\r\n\r\n"
	text := top + "\r\n" +
		strings.Replace(top, "GET", "HEAD", 1) + "\r\n" +
		strings.Replace(top, "GET /v1/x", "POST /v1/length", 1) + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(inner)) + inner +
		strings.Replace(top, "GET /v1/x", "POST /v1/chunks", 1) + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x;ext=1\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n", len(inner), inner) +
		strings.Replace(top, "/v1/x", "/v1/nothing", 1) + "\r\n" +
		"GET http://API.binding.internal:80/v1/absolute HTTP/1.1\r\nHost: api.binding.internal:80\r\nConnection: close\r\n\r\n" + top + "\r\n"
	answer := g.raw(text)
	in := bufio.NewReader(strings.NewReader(answer))
	for _, want := range []string{"GET </v1/x>", "HEAD ", "POST </v1/length>", "POST </v1/chunks>", "GET ", "GET </v1/absolute>"} {
		method, body, _ := strings.Cut(want, " ")
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%s: %v of %q", want, err, answer)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != body {
			t.Errorf("%q, want %q", b, want)
		}
	}
	if in.Buffered() > 0 {
		t.Errorf("there is more: %q", answer)
	}
	want := []string{"GET /v1/x ", "HEAD /v1/x ", "POST /v1/length " + inner, "POST /v1/chunks " + inner, "GET /v1/nothing ", "GET /v1/absolute "}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("the host got %q", got)
	}
}

// TestCredentials: the host gets the secret where it belongs and no credential of
// the sandbox's; the method and the path are the binding's.
func TestCredentials(t *testing.T) {
	for as, want := range map[string]string{"bearer": "Bearer " + secret, "basic": "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+secret)), "header": "", "query": ""} {
		var got *http.Request
		g := newGate(t, func(x *Target, _ *Options) {
			x.As, x.Field = as, map[string]string{"basic": "me", "header": "X-Key", "query": "key"}[as]
			x.Methods = []string{"GET", "POST"}
		}, func(_ http.ResponseWriter, r *http.Request) { got = r.Clone(context.Background()) })
		resp, body := g.do("POST", "/v1/a?x=1&key=mine&access_token=t&y=%2F&KEY=z&a;api_key=2", strings.NewReader("hello"),
			"Authorization", "Bearer mine", "Proxy-Authorization", "x", "Cookie", "a=b", "X-Api-Key", "mine", "X-Key", "mine", "X-Goog-Api-Key", "mine", "Private-Token", "mine",
			"X-HTTP-Method-Override", "DELETE", "X-Original-URL", "/admin", "X-Forwarded-For", "1.2.3.4", "Connection", "X-Hop", "X-Hop", "1", "TE", "trailers", "X-Stays", "yes")
		if resp.StatusCode != 200 || got == nil {
			t.Fatalf("%s: %s %s", as, resp.Status, body)
		}
		query := "x=1&y=%2F"
		switch as {
		case "query":
			query += "&key=sk-very-secret%2F%2B%3D0123"
		default:
			query = "x=1&key=mine&y=%2F&KEY=z"
		}
		h := got.Header
		if got.URL.RawQuery != query || h.Get("Authorization") != want || as == "header" && h.Get("X-Key") != secret {
			t.Errorf("%s: %s %v", as, got.URL.RawQuery, h)
		}
		for _, name := range []string{"Proxy-Authorization", "Cookie", "X-Api-Key", "X-Goog-Api-Key", "Private-Token", "X-Http-Method-Override", "X-Original-Url", "X-Forwarded-For",
			"Connection", "X-Hop", "Te", "Expect", "Via"} {
			if h.Get(name) != "" {
				t.Errorf("%s: %s: %s", as, name, h.Get(name))
			}
		}
		if h.Get("X-Stays") != "yes" || h.Get("Accept-Encoding") != "identity" || got.ProtoMajor != 2 {
			t.Errorf("%s: %s %v", as, got.Proto, h)
		}
		before := g.requests.Load()
		for _, c := range []struct{ method, path, said string }{
			{"DELETE", "/v1/a", "DELETE method"}, {"get", "/v1/a", "get method"}, {"GET", "/v2", "GET path"}, {"GET", "/v1/../admin", "GET request"}, {"GET", "/v1x", "GET path"},
		} {
			text := strings.Replace(strings.Replace(top, "GET", c.method, 1), "/v1/x", c.path, 1) + "Connection: close\r\n\r\n"
			n := len(g.said())
			if answer := g.raw(text); !strings.HasPrefix(answer, "HTTP/1.1 4") || strings.Contains(answer, secret) {
				t.Errorf("%s %s: %q", c.method, c.path, answer)
			}
			if said := g.said()[n:]; len(said) != 1 || said[0] != c.said {
				t.Errorf("%s %s: told %q", c.method, c.path, said)
			}
		}
		if g.requests.Load() != before {
			t.Error("the host saw what was refused")
		}
	}
}

// TestLeak: a request that holds the secret in some form does not come to the host
// as a whole, and a small one not at all.
func TestLeak(t *testing.T) {
	var whole atomic.Int64
	g := newGate(t, nil, func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			whole.Add(1)
		}
	})
	forms := encodings(secret, "xyz")
	for name, form := range forms {
		bodies := map[string]io.Reader{"body": strings.NewReader(`{"x":"` + form + `"}`), "gzip": bytes.NewReader(packed([]byte("xx" + form)))}
		for where, c := range map[string]struct {
			path    string
			headers []string
		}{
			"path": {"/v1/" + strings.ReplaceAll(form, "/", "_"), nil}, "query": {"/v1/?q=" + strings.ReplaceAll(form, "=", "%3D"), nil},
			"header": {"/v1/", []string{"X-Note", "see " + form}}, "agent": {"/v1/", []string{"User-Agent", form}}, "cookie": {"/v1/", []string{"Cookie", form}},
			"body": {"/v1/", nil}, "gzip": {"/v1/", []string{"Content-Encoding", "gzip"}},
		} {
			if where == "path" && strings.ContainsAny(form, "/+=") || where == "path" && strings.Contains(form, "%") {
				continue // refused as a path
			}
			if resp, body := g.do("POST", c.path, bodies[where], c.headers...); resp.StatusCode != 403 || strings.Contains(body, secret) {
				t.Errorf("%s in %s: %s %s", name, where, resp.Status, body)
			}
		}
	}
	for _, said := range g.said() {
		if said != "POST leak" {
			t.Errorf("told %q", said)
		}
	}
	if g.requests.Load() != 0 || g.bytes.Load() != 0 || g.decided.Load() != 0 {
		t.Errorf("%d requests, %d bytes", g.requests.Load(), g.bytes.Load())
	}
	// What is long is on its way when the secret comes.
	for range 3 {
		n := len(g.said())
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 300_000)), strings.NewReader(secret), strings.NewReader(strings.Repeat("y", 300_000)))
		if resp, err := g.try("POST", "/v1/long", body); err == nil {
			resp.Body.Close()
			if resp.StatusCode < 400 {
				t.Error(resp.Status)
			}
		}
		if said := g.said()[n:]; len(said) != 1 || said[0] != "POST leak" {
			t.Errorf("told %q", said)
		}
	}
	if whole.Load() != 0 {
		t.Error("a request with a secret came as a whole")
	}
}

// TestEcho: a host that says the secret says stars to the sandbox.
func TestEcho(t *testing.T) {
	g := newGate(t, nil, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Echo", r.Header.Get("Authorization"))
		h.Set("Set-Cookie", "session=1")
		h.Set("Location", "https://127.0.0.1/v1/next?x="+secret)
		switch r.URL.Path {
		case "/v1/gzip":
			h.Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed([]byte("you said " + r.Header.Get("Authorization") + "!")))
		case "/v1/br":
			h.Set("Content-Encoding", "br")
			_, _ = io.WriteString(w, "???")
		case "/v1/slow":
			for _, b := range []byte("you said " + r.Header.Get("Authorization") + "!") {
				_, _ = w.Write([]byte{b})
				w.(http.Flusher).Flush()
			}
		default:
			h.Set("Content-Length", fmt.Sprint(len("you said Bearer !")+len(secret)))
			_, _ = io.WriteString(w, "you said "+r.Header.Get("Authorization")+"!")
		}
	})
	for _, path := range []string{"/v1/whole", "/v1/gzip", "/v1/slow"} {
		resp, body := g.do("GET", path, nil)
		stars := strings.Repeat("*", len(secret))
		if body != "you said Bearer "+stars+"!" || resp.Header.Get("X-Echo") != "Bearer "+stars && strings.Trim(resp.Header.Get("X-Echo"), "*") != "" {
			t.Errorf("%s: %q %v", path, body, resp.Header)
		}
		if l := resp.Header.Get("Location"); l != "http://api.binding.internal/v1/next?x="+stars {
			t.Errorf("%s: Location %s", path, l)
		}
		if resp.Header.Get("Set-Cookie") != "" || strings.Contains(fmt.Sprint(resp.Header), "secret") {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
	if resp, body := g.do("GET", "/v1/br", nil); resp.StatusCode != 502 || strings.Contains(body, "?") {
		t.Errorf("%s %s", resp.Status, body)
	}
}

func packed(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close()
	return out.Bytes()
}

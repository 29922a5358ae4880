//go:build linux

package egress

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const theSecret = "sk-the-secret-of-the-binding"

// host is an HTTPS server on the test's loopback, and who vouches for it.
type host struct {
	*httptest.Server
	port     uint16
	roots    func() *x509.CertPool
	requests atomic.Int64
	conns    atomic.Int64
}

func newHost(t testing.TB, handle http.HandlerFunc) *host {
	t.Helper()
	h := new(host)
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		handle(w, r)
	}))
	cert := selfSigned(t, "good.example")
	h.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	h.EnableHTTP2 = true
	h.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			h.conns.Add(1)
		}
	}
	h.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	h.StartTLS()
	t.Cleanup(func() { h.CloseClientConnections(); h.Close() })
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	h.roots = func() *x509.CertPool { return pool }
	h.port = uint16(h.Listener.Addr().(*net.TCPAddr).Port)
	return h
}

// binding is one to the host.
func (h *host) binding(name string) Binding {
	return Binding{Name: name, Host: "good.example", Port: h.port, Path: "/v1", As: "bearer", Secret: Hidden(theSecret)}
}

// bind serves the place's wire with bindings.
func bind(t testing.TB, p *place, h *host, text string, change func(*Config), bindings ...Binding) (*Router, *journal) {
	t.Helper()
	j := new(journal)
	c := Config{Logger: slog.New(slog.NewTextHandler(testLog{t}, nil)), Dialer: netaddr.Dialer{Lookup: lookup}, Record: j.record, Roots: h.roots}
	if change != nil {
		change(&c)
	}
	r := New(c)
	t.Cleanup(func() { _ = r.Close() })
	if err := r.Attach(Wire{ID: "one", Table: table(t, text), Bindings: bindings}, p.tap); err != nil {
		t.Fatal(err)
	}
	return r, j
}

// browser is an ordinary HTTP client in the place.
func (p *place) browser() *http.Client {
	tr := &http.Transport{Dial: func(_, addr string) (net.Conn, error) {
		name, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return p.dial(net.JoinHostPort(p.addr(name), port))
	}}
	p.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func (p *place) get(url string) (status int, body string, err error) {
	resp, err := p.browser().Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func (p *place) mustGet(url string, want int) string {
	p.Helper()
	status, body, err := p.get(url)
	if err != nil || status != want {
		p.Fatalf("%s: %d %q %v, want %d", url, status, body, err, want)
	}
	return body
}

const nothing = "allow: []"

// TestBinding: a request to a binding goes to its host with the secret, which the
// sandbox does not get; it is recorded first; the sandbox reaches the host in no
// other way.
func TestBinding(t *testing.T) {
	p := newPlace(t)
	var j *journal
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		recorded := false
		for _, e := range j.all() {
			recorded = recorded || e.Kind == KindRequest && e.Decision == Allow
		}
		fmt.Fprint(w, r.Host, " ", r.URL, " ", r.Header.Get("Authorization"), " ", recorded)
		if r.Header.Get("Authorization") != "Bearer "+theSecret {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	r, j0 := bind(t, p, h, nothing, nil, h.binding("other"), h.binding("api"))
	j = j0
	want := fmt.Sprintf("good.example:%d /v1/x?y=1 Bearer %s true", h.port, strings.Repeat("*", len(theSecret)))
	if body := p.mustGet("http://api.binding.internal/v1/x?y=1", 200); body != want {
		t.Errorf("%q, want %q", body, want)
	}
	e := j.wait(t, "a request", func(e Event) bool { return e.Kind == KindRequest })
	if e.Decision != Allow || e.Binding != "api" || e.Method != "GET" || e.Host != "good.example" || e.Port != h.port || e.Reason != ReasonBinding || e.Wire != "one" || e.Count != 1 {
		t.Errorf("%+v", e)
	}
	if code, _ := p.ask("udp4", "good.example", dnsmessage.TypeA); code != dnsmessage.RCodeNameError {
		t.Error("the binding opens its host: ", code)
	}
	for _, name := range []string{"third.binding.internal", "binding.internal", "x.api.binding.internal", "api.binding.internal.example"} {
		if code, _ := p.ask("udp4", name, dnsmessage.TypeA); code != dnsmessage.RCodeNameError {
			t.Errorf("%s: %v", name, code)
		}
	}
	if e := j.wait(t, "an unknown binding", func(e Event) bool { return e.Host == "third.binding.internal" }); e.Reason != ReasonUnbound || e.Decision != Deny || e.Hint == "" {
		t.Errorf("%+v", e)
	}
	if code, addrs := p.ask("udp4", "API.Binding.INTERNAL", dnsmessage.TypeA); code != dnsmessage.RCodeSuccess || len(addrs) != 1 {
		t.Error(code, addrs)
	}
	api := p.addr("api.binding.internal")
	for _, port := range []string{"443", "8080", "22"} {
		p.denied(api+":"+port, "")
	}
	if e := j.wait(t, "another port", func(e Event) bool { return e.Kind == KindConnect && e.Port == 8080 }); e.Reason != "port" || e.Binding != "api" {
		t.Errorf("%+v", e)
	}
	before := h.requests.Load()
	c := p.mustDial(api + ":80")
	_, _ = io.WriteString(c, "GET /v1/x HTTP/1.1\r\nHost: other.binding.internal\r\n\r\n")
	if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, " 421 ") {
		t.Errorf("%q", line)
	}
	if h.requests.Load() != before {
		t.Error("the host was asked")
	}
	if s := r.Stats(); s.Upload < 100 || s.Download < 100 || s.Allowed != 1 {
		t.Errorf("%+v", s)
	}
}

// TestBindingZone: no policy opens or closes the zone of bindings, and what looks
// like one of its names elsewhere leads to none.
func TestBindingZone(t *testing.T) {
	p := newPlace(t)
	h := newHost(t, func(http.ResponseWriter, *http.Request) {})
	before := lookups.Load()
	_, j := bind(t, p, h, `
mode: observe
allow: []`, nil, h.binding("api"))
	p.mustGet("http://api.binding.internal/v1/", 200)
	for _, name := range []string{"closed.binding.internal", "any.binding.internal"} {
		if code, _ := p.ask("udp4", name, dnsmessage.TypeA); code != dnsmessage.RCodeNameError {
			t.Errorf("%s: %v", name, code)
		}
	}
	if n := lookups.Load() - before; n > 1 {
		t.Errorf("%d names were asked for", n)
	}
	for _, e := range j.all() {
		if e.Kind == KindRequest && e.Host != "good.example" {
			t.Errorf("%+v", e)
		}
	}
}

// TestBindingDenied: what a rule denies, and what is never dialled, no binding
// reaches.
func TestBindingDenied(t *testing.T) {
	h := newHost(t, func(http.ResponseWriter, *http.Request) {})
	closed := func(host string) Binding {
		b := h.binding("api")
		b.Host = host
		return b
	}
	for name, c := range map[string]struct {
		text   string
		to     Binding
		reason string
	}{
		"by name":     {nothing + "\ndeny: [good.example]", h.binding("api"), "denied"},
		"by address":  {nothing + "\ndeny: [{cidr: 127.0.0.0/8}]", h.binding("api"), "denied"},
		"by port":     {nothing + fmt.Sprintf("\ndeny: [{host: good.example, ports: %d}]", h.port), h.binding("api"), "denied"},
		"metadata":    {nothing, closed("metadata.example"), "address"},
		"mixed":       {nothing, closed("mixed.example"), "address"},
		"metadata IP": {nothing, closed("169.254.169.254"), "address"},
		"private":     {nothing, closed("private.example"), "private"},
	} {
		p := newPlace(t)
		r, j := bind(t, p, h, c.text, nil, c.to)
		if body := p.mustGet("http://api.binding.internal/v1/", 403); strings.Contains(body, "127.0") || strings.Contains(body, "169.254") || strings.Contains(body, "10.9") {
			t.Errorf("%s: %q", name, body)
		}
		j.wait(t, name, func(e Event) bool {
			return e.Kind == KindRequest && e.Decision == Deny && e.Reason == c.reason && e.Binding == "api"
		})
		_ = r.Close()
		for _, e := range j.all() {
			if e.Kind == KindRequest && e.Decision == Allow {
				t.Errorf("%s: %+v", name, e)
			}
		}
	}
	if h.conns.Load() != 0 {
		t.Error("something was dialled")
	}
	p := newPlace(t)
	bind(t, p, h, nothing+fmt.Sprintf("\ndeny: [{host: good.example, ports: %d}]", h.port^1), nil, h.binding("api"))
	p.mustGet("http://api.binding.internal/v1/", 200) // another port is denied
}

// TestBindingUnrecorded: what cannot be recorded is not sent on.
func TestBindingUnrecorded(t *testing.T) {
	p := newPlace(t)
	h := newHost(t, func(http.ResponseWriter, *http.Request) {})
	_, j := bind(t, p, h, nothing, nil, h.binding("api"))
	p.addr("api.binding.internal")
	j.fail.Store(true)
	p.mustGet("http://api.binding.internal/v1/", 503)
	if h.conns.Load() != 0 {
		t.Error("something was dialled")
	}
	j.fail.Store(false)
	p.mustGet("http://api.binding.internal/v1/", 200)
}

// TestBindingFlood: thousands of requests are few records, and all are counted.
func TestBindingFlood(t *testing.T) {
	p := newPlace(t)
	h := newHost(t, func(http.ResponseWriter, *http.Request) {})
	r, j := bind(t, p, h, nothing, nil, h.binding("api"))
	c := p.mustDial(p.addr("api.binding.internal") + ":80")
	in := bufio.NewReader(c)
	const n = 500
	for _, path := range []string{"/v1/", "/v2/"} {
		for range n {
			_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n")
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
	}
	if _, err := r.Detach("one"); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	records := 0
	for _, e := range j.all() {
		if e.Kind == KindRequest {
			records++
			count[e.Decision+" "+e.Reason] += e.Count
		}
	}
	if count["allow binding"] != n || count["deny path"] != n || records > 40 {
		t.Errorf("%v in %d records", count, records)
	}
	if h.requests.Load() != n || h.conns.Load() > 2 {
		t.Errorf("%d requests on %d connections", h.requests.Load(), h.conns.Load())
	}
}

// TestBindingStream: what a host sends comes at once, and a long answer whole.
func TestBindingStream(t *testing.T) {
	p := newPlace(t)
	next := make(chan string)
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/long" {
			for range 64 {
				_, _ = w.Write(make([]byte, 256<<10))
			}
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for line := range next {
			fmt.Fprint(w, line)
			w.(http.Flusher).Flush()
		}
	})
	bind(t, p, h, nothing, nil, h.binding("api"))
	resp, err := p.browser().Get("http://api.binding.internal/v1/events")
	if err == nil {
		defer resp.Body.Close()
	} else {
		t.Fatal(err)
	}
	in := bufio.NewReader(resp.Body)
	for i := range 5 {
		want := fmt.Sprintf("data: %d\n", i)
		next <- want
		if got, err := in.ReadString('\n'); got != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	close(next)
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	if body := p.mustGet("http://api.binding.internal/v1/long", 200); len(body) != 64*256<<10 {
		t.Errorf("%d bytes", len(body))
	}
}

// TestBindingEnds: an update ends what the policy before allowed, and a detached
// wire has no connection, no goroutine and no secret left.
func TestBindingEnds(t *testing.T) {
	p := newPlace(t)
	started := make(chan struct{}, 10)
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		switch r.URL.Path {
		case "/v1/hang":
			started <- struct{}{}
			<-r.Context().Done()
		case "/v1/endless":
			started <- struct{}{}
			for b := make([]byte, 64<<10); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		case "/v1/upload":
			started <- struct{}{}
			_, _ = io.Copy(io.Discard, r.Body)
		}
	})
	one := h.binding("api")
	r, j := bind(t, p, h, nothing, nil, one)
	hang := func() (ended chan error) {
		ended = make(chan error, 1)
		go func() {
			status, _, err := p.get("http://api.binding.internal/v1/hang")
			if status >= 500 { // it had not begun yet
				err = errReset
			}
			ended <- err
		}()
		<-started
		return ended
	}
	ended := hang()
	if _, closed, err := r.Update("one", table(t, nothing), nil); err != nil || closed != 1 {
		t.Errorf("%d closed, %v", closed, err)
	}
	if err := <-ended; err == nil {
		t.Error("an answer that was cut off looks whole")
	}
	p.mustGet("http://api.binding.internal/v1/", 200) // and goes on under the next one
	if _, _, err := r.Update("one", table(t, nothing+"\ndeny: [good.example]"), nil); err != nil {
		t.Error(err)
	}
	p.mustGet("http://api.binding.internal/v1/", 403)
	if _, _, err := r.Update("one", table(t, nothing), nil); err != nil {
		t.Error(err)
	}
	ended = hang()
	stuck := p.mustDial(p.addr("api.binding.internal") + ":80") // which reads nothing
	_, _ = io.WriteString(stuck, "GET /v1/endless HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n")
	slow := p.mustDial(p.addr("api.binding.internal") + ":80") // which says nothing any more
	_, _ = io.WriteString(slow, "POST /v1/upload HTTP/1.1\r\nHost: api.binding.internal\r\nContent-Length: 1000000\r\n\r\nx")
	<-started
	<-started
	idle := p.mustDial(p.addr("api.binding.internal") + ":80") // and is known to the router
	_, _ = io.WriteString(idle, "HEAD /v1/ HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(idle), &http.Request{Method: "HEAD"}); err != nil || resp.StatusCode != 200 {
		t.Error(resp, err)
	}
	if _, err := r.Detach("one"); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("an answer that was cut off looks whole")
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Error("the connection goes on:", err)
	}
	if s := r.Stats(); s.Connections != 0 || s.Wires != 0 {
		t.Errorf("%+v", s)
	}
	if strings.Trim(string(one.Secret), "\x00") != "" {
		t.Errorf("the secret is still there: %q", string(one.Secret))
	}
	if len(j.all()) == 0 {
		t.Error("nothing was recorded")
	}
}

// TestBindingUntrusted: a host without a certificate that somebody vouches for is
// not spoken to.
func TestBindingUntrusted(t *testing.T) {
	p := newPlace(t)
	h := newHost(t, func(http.ResponseWriter, *http.Request) {})
	bind(t, p, h, nothing, func(c *Config) { c.Roots = x509.NewCertPool }, h.binding("api"))
	if body := p.mustGet("http://api.binding.internal/v1/", 502); !strings.Contains(body, "certificate") || strings.Contains(body, "127.0.0.1") {
		t.Errorf("%q", body)
	}
	if h.requests.Load() != 0 {
		t.Error("a request was sent")
	}
	other := h.binding("api")
	other.Host = "other.example" // which the certificate is not for
	q := newPlace(t)
	bind(t, q, h, nothing, nil, other)
	q.mustGet("http://api.binding.internal/v1/", 502)
	if h.requests.Load() != 0 {
		t.Error("a request was sent")
	}
}

// TestBindingInvalid: a wire with a binding that cannot be is not attached.
func TestBindingInvalid(t *testing.T) {
	h := newHost(t, func(http.ResponseWriter, *http.Request) {})
	r := New(Config{Record: func(Event) error { return nil }, Roots: h.roots})
	defer r.Close()
	for name, change := range map[string]func(*Binding){
		"name": func(b *Binding) { b.Name = "A.b" }, "host": func(b *Binding) { b.Host = "0x7f.1" }, "zone": func(b *Binding) { b.Host = "x.binding.internal" },
		"port": func(b *Binding) { b.Port = 0 }, "path": func(b *Binding) { b.Path = "/v1/../x" }, "slash": func(b *Binding) { b.Path = "/v1/" }, "as": func(b *Binding) { b.As = "body" },
		"method": func(b *Binding) { b.Methods = []string{"CONNECT"} }, "field": func(b *Binding) { b.As, b.Field = "header", "Host" },
		"no secret": func(b *Binding) { b.Secret = nil }, "secret": func(b *Binding) { b.Secret = Hidden("a\r\nX: y") }, "long": func(b *Binding) { b.Secret = make(Hidden, 65<<10) },
		"user": func(b *Binding) { b.As, b.Field = "basic", "a:b" }, "parameter": func(b *Binding) { b.As = "query" },
	} {
		b := h.binding("api")
		change(&b)
		p := newPlace(t)
		if err := r.Attach(Wire{ID: "one", Table: table(t, nothing), Bindings: []Binding{b}}, p.tap); sandbox.KindOf(err) != sandbox.KindInvalid || strings.Contains(err.Error(), theSecret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkBinding is a request through a binding on connections that are there.
func BenchmarkBinding(b *testing.B) {
	p := newPlace(b)
	h := newHost(b, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	bind(b, p, h, nothing, nil, h.binding("api"))
	c := p.mustDial(p.addr("api.binding.internal") + ":80")
	in := bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = io.WriteString(c, "GET /v1/ HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n")
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
}

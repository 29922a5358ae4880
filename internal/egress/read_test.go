//go:build linux

package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestReadRequests: the first request of a connection says nothing about the second:
// each is for the connection's host, by a method and a path that a rule has, and
// what is not arrives nowhere.
func TestReadRequests(t *testing.T) {
	p := newPlace(t)
	var got atomic.Pointer[http.Request]
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) { got.Store(r); _, _ = io.WriteString(w, "hello") })
	text := fmt.Sprintf(`allow:
  - {id: net, cidr: 127.0.0.1, ports: 1024-65535}
  - {id: read, host: good.example, ports: %[1]d, methods: [GET, HEAD], paths: [/v1, /simple]}
  - {id: write, host: good.example, ports: %[1]d, methods: POST, paths: /v1/in}
deny:
  - {id: not, host: good.example, paths: /v1/admin}`, h.port)
	_, j, roots := read(t, p, h, text, nil)
	c := p.client(roots, true)
	for _, x := range []struct {
		method, path, reason string
		also                 []string
	}{
		{"GET", "/v1", "", nil}, {"GET", "/v1/x?y=/v2", "", nil}, {"HEAD", "/simple/", "", nil}, {"POST", "/v1/in", "", nil},
		{"POST", "/v1", "path", nil}, {"PUT", "/v1", "method", nil}, {"get", "/v1", "method", nil}, {"GET", "/v10", "path", nil}, {"GET", "/", "path", nil}, {"GET", "/V1", "path", nil},
		{"GET", "/v1/../v2", "", nil}, {"GET", "/v1/%2e%2e/v2", "", nil}, {"GET", "/v1/..%2fv2", "", nil}, {"GET", "/v1//admin", "", nil}, {"GET", "/v1;x/y", "", nil}, {"GET", "/v1%2f..%2fv2", "", nil}, {"GET", "//v1", "", nil},
		{"GET", "/v1/admin", "denied", nil}, {"GET", "/v1/Admin/x", "denied", nil}, {"GET", "/v1/%61dmin", "denied", nil},
		{"GET", "/v1", "method", []string{"X-HTTP-Method-Override", "DELETE"}}, {"GET", "/v1", "method", []string{"X-Original-URL", "/v1/admin"}}, {"GET", "/v1", "method", []string{"X-Rewrite-URL", "/v1/admin"}},
	} {
		before := h.requests.Load()
		req, err := http.NewRequest(x.method, fmt.Sprintf("https://good.example:%d/", h.port), nil)
		if err != nil {
			t.Fatal(err)
		}
		path, query, _ := strings.Cut(x.path, "?")
		req.URL.Opaque, req.URL.RawQuery = "//"+req.URL.Host+path, query
		for i := 0; i < len(x.also); i += 2 {
			req.Header.Set(x.also[i], x.also[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(x.path, err)
		}
		resp.Body.Close()
		odd := x.reason == "" && (strings.Contains(x.path, "..") || strings.Contains(x.path, "%2") || strings.Contains(x.path, "//") || strings.Contains(x.path, ";"))
		if passed := h.requests.Load() > before; passed != (resp.StatusCode == 200) || passed != (x.reason == "" && !odd) {
			t.Errorf("%s %s: %s, passed %v", x.method, x.path, resp.Status, passed)
		}
		if x.reason != "" {
			j.wait(t, x.method+" "+x.path, func(e Event) bool {
				return e.Kind == KindRequest && e.Decision == Deny && e.Method == x.method && e.Reason == x.reason && e.Hint != ""
			})
		}
	}
	if r := got.Load(); r == nil {
		t.Error("nothing passed")
	}
}

// TestReadHosts: the same of hosts, on plain HTTP and in TLS.
func TestReadHosts(t *testing.T) {
	p := newPlace(t)
	s := serve(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	_, j, _ := read(t, p, nil, "allow:\n  - {id: good, host: [good.example, other.example], ports: "+s.port+"}"+loopback, nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port)
	in := bufio.NewReader(c)
	ask := func(host string) int {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	if status := ask("good.example"); status != 200 {
		t.Error(status)
	}
	bytes := s.bytes.Load()
	if status := ask("other.example"); status != 421 { // which is allowed, on a connection of its own
		t.Error(status)
	}
	e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny })
	if e.Kind != KindRequest || e.Reason != "claim" || e.Hint == "" || s.bytes.Load() != bytes || s.conns.Load() != 1 {
		t.Errorf("%+v, %d bytes", e, s.bytes.Load()-bytes)
	}
}

// TestReadUntrusted: TLS that is too old, or that does not believe the authority, is
// told of with what would help, and nobody is dialled.
func TestReadUntrusted(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	_, j, roots := read(t, p, nil, rules(s.port), nil)
	to := p.addr("good.example") + ":" + s.port
	for reason, config := range map[string]*tls.Config{
		"untrusted": {ServerName: "good.example"},
		"tls":       {ServerName: "good.example", RootCAs: roots, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
	} {
		c := tls.Client(p.mustDial(to), config)
		if err := c.Handshake(); err == nil {
			t.Errorf("%s: accepted", reason)
		}
		c.Close()
		e := j.wait(t, reason, func(e Event) bool { return e.Decision == Deny && e.Reason == reason })
		if e.Kind != KindConnect || !strings.Contains(e.Hint, "inspect: none") {
			t.Errorf("%+v", e)
		}
	}
	if s.conns.Load() != 0 {
		t.Error("it was dialled")
	}
}

// TestReadAddress: TLS to an address is for that, and its requests are.
func TestReadAddress(t *testing.T) {
	p := newPlace(t)
	_, j, roots := read(t, p, nil, "allow:\n  - {id: net, cidr: 93.184.216.0/24, ports: 443}", nil)
	c := tls.Client(p.mustDial("93.184.216.34:443"), &tls.Config{ServerName: "93.184.216.34", RootCAs: roots})
	for _, host := range []string{"other.example", "93.184.216.35"} {
		c := tls.Client(p.mustDial("93.184.216.34:443"), &tls.Config{ServerName: "93.184.216.34", RootCAs: roots})
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 421 {
			t.Fatal(resp, err)
		}
	}
	if err := c.Handshake(); err != nil {
		t.Error(err)
	}
	if e := j.wait(t, "a request", func(e Event) bool { return e.Kind == KindRequest }); e.Decision != Deny || e.Reason != "claim" || e.Host != "93.184.216.34" {
		t.Errorf("%+v", e)
	}
	named := tls.Client(p.mustDial("93.184.216.34:443"), &tls.Config{ServerName: "other.example", RootCAs: roots})
	if err := named.Handshake(); err == nil {
		t.Error("the authority vouches for a name that no rule has")
	}
	j.wait(t, "the denial", func(e Event) bool { return e.Kind == KindConnect && e.Decision == Deny })
}

// TestReadUnrecorded: a request that cannot be recorded is not sent on.
func TestReadUnrecorded(t *testing.T) {
	p := newPlace(t)
	h := newHost(t, func(http.ResponseWriter, *http.Request) {})
	var full atomic.Bool
	_, _, roots := read(t, p, h, h.rules(), func(c *Config) {
		record := c.Record
		c.Record = func(e Event) error {
			if full.Load() && e.Kind == KindRequest {
				return errReset
			}
			return record(e)
		}
	})
	c := p.client(roots, true)
	full.Store(true)
	for range 2 {
		resp, err := c.Get(fmt.Sprintf("https://good.example:%d/", h.port))
		if err != nil || resp.StatusCode != 503 || h.requests.Load() != 0 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	}
	full.Store(false)
	if resp, err := c.Get(fmt.Sprintf("https://good.example:%d/", h.port)); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
}

// TestReadEnds: an update ends what the policy before allowed, on both sides, and a
// wire is detached at once, whatever hangs on it; then there is no connection, no
// goroutine and no descriptor left.
func TestReadEnds(t *testing.T) {
	started := make(chan struct{}, 100)
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			return
		}
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		started <- struct{}{}
		switch r.URL.Path {
		case "/endless":
			for b := make([]byte, 64<<10); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		case "/upload":
			_, _ = io.Copy(io.Discard, r.Body)
		default:
			<-r.Context().Done()
		}
	})
	url := fmt.Sprintf("https://good.example:%d", h.port)
	warm := newPlace(t)
	r, j, _ := read(t, warm, h, h.rules(), nil)
	if _, err := r.Detach("one"); err != nil {
		t.Fatal(err)
	}
	goroutines, files := counts(t)
	for round := range 3 {
		p := newPlace(t)
		id := fmt.Sprint("round", round)
		a, roots := trusted(t, h.rules())
		if err := r.Attach(Wire{ID: id, Table: table(t, h.rules()), Authority: a}, p.tap); err != nil {
			t.Fatal(err)
		}
		var clients []*http.Client
		hang := func(path string, h2 bool) {
			c := p.client(roots, h2)
			clients = append(clients, c)
			var body io.Reader
			if path == "/upload" {
				in, out := io.Pipe()
				body = in
				go func() { _, _ = out.Write([]byte("x")) }()
				t.Cleanup(func() { out.Close() })
			}
			req, err := http.NewRequestWithContext(context.Background(), "POST", url+path, body)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if resp, err := c.Do(req); err == nil {
					time.Sleep(100 * time.Millisecond)
					_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1000))
					t.Cleanup(func() { resp.Body.Close() })
				}
			}()
			<-started
		}
		for _, h2 := range []bool{false, true} {
			hang("/endless", h2)
			hang("/wait", h2)
			hang("/upload", h2)
		}
		idle := p.client(roots, true)
		clients = append(clients, idle)
		if resp, err := idle.Get(url); err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		if round == 0 {
			begin := time.Now()
			a, _ := trusted(t, h.rules())
			if _, closed, err := r.Update(id, table(t, h.rules()), a); err != nil || closed < 8 || time.Since(begin) > 5*time.Second {
				t.Errorf("%d closed after %s: %v", closed, time.Since(begin), err)
			}
			eventually(t, "all have ended", func() bool { return r.Stats().Connections == 0 })
			if resp, err := idle.Get(url); err != nil || resp.StatusCode != 200 { // under the new one
				t.Fatal(resp, err)
			}
			hang("/wait", true)
		}
		begin := time.Now()
		if _, err := r.Detach(id); err != nil || time.Since(begin) > 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		if s := r.Stats(); s.Connections != 0 || s.Wires != 0 {
			t.Errorf("%+v", s)
		}
		for _, c := range clients {
			c.CloseIdleConnections()
		}
	}
	h.CloseClientConnections()
	eventually(t, "goroutines and files are as many as before", func() bool {
		runtime.GC()
		g, f := counts(t)
		return g <= goroutines+20 && f <= files+10
	})
	begun, ended := 0, 0
	for _, e := range j.all() {
		switch {
		case e.Kind == KindClose:
			ended++
		case e.Kind == KindConnect && e.Decision == Allow && e.Wire != "one":
			begun++
		}
	}
	if begun != ended || begun < 20 {
		t.Errorf("%d connections began and %d ended", begun, ended)
	}
}

// TestReadBudget: bytes of what is read are charged before they pass, as others.
func TestReadBudget(t *testing.T) {
	p := newPlace(t)
	var got atomic.Int64
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Add(n)
	})
	text := fmt.Sprintf("allow:\n  - {id: net, cidr: 127.0.0.1, ports: 1024-65535}\n  - {id: good, host: good.example, ports: %d, budget: {upload: 100KB, connections: 2}}", h.port)
	r, j, roots := read(t, p, h, text, nil)
	resp, err := p.client(roots, true).Post(fmt.Sprintf("https://good.example:%d/", h.port), "text/plain", strings.NewReader(strings.Repeat("x", 300_000)))
	if err == nil {
		t.Errorf("%s", resp.Status)
	}
	e := j.wait(t, "the end", func(e Event) bool { return e.Kind == KindClose })
	used, _ := r.Used("one")
	if e.Reason != "budget" || !strings.Contains(e.Hint, "upload") || e.Upload > 100<<10 || used["good"].Upload != e.Upload || got.Load() > 100<<10 {
		t.Errorf("%+v %+v, %d bytes", e, used, got.Load())
	}
}

// TestReadElsewhere: what is dialled for a connection that goes on, at another
// address than was recorded with it, is recorded before, and its end is.
func TestReadElsewhere(t *testing.T) {
	p := newPlace(t)
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Connection", "close") })
	var moved atomic.Bool
	r, j, roots := read(t, p, h, fmt.Sprintf("allow:\n  - {id: net, cidr: 127.0.0.0/8, ports: 1024-65535}\n  - {id: good, host: good.example, ports: %d}", h.port), func(c *Config) {
		was := c.Dialer.Lookup
		c.Dialer.Lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
			if moved.Load() {
				return []netip.Addr{netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1")}, nil
			}
			return was(ctx, name)
		}
	})
	c := p.client(roots, true)
	get := func() {
		resp, err := c.Get(fmt.Sprintf("https://good.example:%d/", h.port))
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	}
	get()
	moved.Store(true)
	time.Sleep(remembered + 100*time.Millisecond)
	get() // by a connection that is new, of a client's that is not
	e := j.wait(t, "the address that does not answer", func(e Event) bool { return e.Kind == KindConnect && e.Address == "127.0.0.9" })
	if e.Decision != Allow || e.Rule != "good" {
		t.Errorf("%+v", e)
	}
	j.wait(t, "its end", func(e Event) bool {
		return e.Kind == KindClose && e.Address == "127.0.0.9" && e.Reason == ReasonUnreachable
	})
	if _, err := r.Detach("one"); err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, e := range j.all() {
		switch {
		case e.Kind == KindClose:
			open--
		case e.Kind == KindConnect && e.Decision == Allow:
			open++
		}
	}
	if open != 0 {
		t.Errorf("%d connections have no end: %+v", open, j.all())
	}
}

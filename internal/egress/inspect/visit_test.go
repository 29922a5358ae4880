package inspect

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// certify makes a certificate for names that vouches for itself.
func certify(t testing.TB, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func poolOf(c tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Leaf)
	return pool
}

// house is a proxy between a sandbox and a site that counts.
type house struct {
	testing.TB
	proxy    *Proxy
	site     Site
	addr     string // where the sandbox connects
	trusts   *x509.CertPool
	up       *httptest.Server
	requests atomic.Int64 // that came to the site
	conns    atomic.Int64 // to the site
	decided  atomic.Int64
	open     atomic.Int64 // connections of the sandbox's
	no       atomic.Pointer[Refusal]
	stop     func() // ends all visits

	mu      sync.Mutex
	refused []string // guarded by mu; METHOD REASON
}

type furniture struct {
	plain   bool
	options func(*Options)
	tls     func(*tls.Config) // the site's
	targets []*Target
}

func newHouse(t testing.TB, f furniture, handle http.HandlerFunc) *house {
	t.Helper()
	h := &house{TB: t}
	h.up = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		handle(w, r)
	}))
	h.up.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	theirs := certify(t, time.Now().Add(time.Hour), "good.example")
	if f.plain {
		h.up.Start()
	} else {
		h.up.TLS = &tls.Config{Certificates: []tls.Certificate{theirs}}
		if f.tls != nil {
			f.tls(h.up.TLS)
		}
		h.up.EnableHTTP2 = true
		h.up.StartTLS()
	}
	name := hostOf(t, "good.example")
	h.site = Site{name, name, 443, f.plain}
	if f.plain {
		h.site.Port = 80
	}
	pool := poolOf(theirs)
	o := Options{Zone: "binding.internal", Roots: func() *x509.CertPool { return pool }, Ask: func(*Target) Asker { return h },
		Reach: func(ctx context.Context, s Site, _ uint64) (net.Conn, error) {
			if s != h.site {
				t.Errorf("%v is reached", s)
			}
			h.conns.Add(1)
			return new(net.Dialer).DialContext(ctx, "tcp", h.up.Listener.Addr().String())
		}}
	if f.options != nil {
		f.options(&o)
	}
	var err error
	if h.proxy, err = New(o, f.targets); err != nil {
		t.Fatal(err)
	}
	h.serve()
	return h
}

// serve accepts what a sandbox would connect to.
func (h *house) serve() {
	ours := certify(h, time.Now().Add(time.Hour), "good.example")
	h.trusts = poolOf(ours)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.Fatal(err)
	}
	h.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	config := ServerConfig()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				h.open.Add(1)
				defer h.open.Add(-1)
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				h.visit(ctx, c, config, &ours)
			})
		}
	})
	h.stop = sync.OnceFunc(func() {
		cancel()
		l.Close()
		all.Wait()
		h.proxy.Close()
	})
	h.Cleanup(func() {
		h.stop()
		h.up.CloseClientConnections()
		h.up.Close()
	})
}

func (h *house) visit(ctx context.Context, c net.Conn, config *tls.Config, ours *tls.Certificate) {
	read := c
	if !h.site.Plain {
		t, no := Accept(ctx, c, config, 10*time.Second, func() (*tls.Certificate, error) { return ours, nil })
		if no != nil {
			h.Refused("", no)
			return
		}
		read = t
	}
	h.proxy.Visit(ctx, read, &Visit{Site: h.site, Generation: 1, Ask: h})
}

// Decide implements Asker.
func (h *house) Decide(context.Context, string, string) *Refusal {
	h.decided.Add(1)
	return h.no.Load()
}

// Refused implements Asker.
func (h *house) Refused(method string, no *Refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused = append(h.refused, method+" "+no.Reason)
}

// told waits until it was told of a refusal.
func (h *house) told(what string) {
	h.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		h.mu.Lock()
		said := slices.Clone(h.refused)
		h.mu.Unlock()
		if slices.Contains(said, what) {
			return
		}
		if time.Now().After(end) {
			h.Errorf("told %q, and not %q", said, what)
			return
		}
	}
}

// dial connects as a sandbox does, with TLS unless the site is plain.
func (h *house) dial(protocols ...string) net.Conn {
	h.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	h.Cleanup(func() { c.Close() })
	if h.site.Plain {
		return c
	}
	t := tls.Client(c, &tls.Config{ServerName: "good.example", RootCAs: h.trusts, NextProtos: protocols})
	if err := t.Handshake(); err != nil {
		h.Fatal(err)
	}
	return t
}

// client is an ordinary one of a sandbox.
func (h *house) client(h2 bool) *http.Client {
	tr := &http.Transport{ForceAttemptHTTP2: h2, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: h.trusts},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", h.addr)
		}}
	h.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get is what a client's request is answered.
func (h *house) get(c *http.Client, method, path string, body io.Reader, headers ...string) (*http.Response, string) {
	h.Helper()
	req, err := http.NewRequest(method, h.site.scheme()+"://good.example"+path, body)
	if err != nil {
		h.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	return resp, string(b)
}

// TestVisit: what a client says and a site answers arrives as it was meant, by
// either version of HTTP; redirects and cookies are the client's; what is about
// connections, and ways round, is not passed on.
func TestVisit(t *testing.T) {
	h := newHouse(t, furniture{}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Alt-Svc", `h3=":443"`)
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("X-Got", fmt.Sprint(r.Method, " ", r.Host, " ", r.RequestURI, " ", r.Header["X-Hop"], r.Header["Authorization"], r.Header["Accept-Encoding"], r.Header["Proxy-Authorization"], len(b)))
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "https://other.example/x", http.StatusFound)
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed([]byte("hello")))
		case "/nothing":
			w.WriteHeader(http.StatusNoContent)
		default:
			_, _ = w.Write(b)
		}
	})
	for _, h2 := range []bool{false, true} {
		c := h.client(h2)
		long := strings.Repeat("x", 3<<20)
		resp, body := h.get(c, "POST", "/a%2Fb//c;d?x=%2F&y", strings.NewReader(long), "Authorization", "Basic x", "Accept-Encoding", "br", "Proxy-Authorization", "y")
		if body != long || resp.Header.Get("X-Got") != fmt.Sprint("POST good.example /a%2Fb//c;d?x=%2F&y [] [Basic x] [br] [] ", len(long)) || resp.ProtoMajor == 2 != h2 ||
			resp.Header["Alt-Svc"] != nil || resp.Header.Get("Set-Cookie") != "a=b" {
			t.Errorf("%v: %s %v %d bytes", h2, resp.Proto, resp.Header, len(body))
		}
		if resp, _ := h.get(c, "GET", "/redirect", nil); resp.StatusCode != 302 || resp.Header.Get("Location") != "https://other.example/x" {
			t.Errorf("%v: %s %v", h2, resp.Status, resp.Header)
		}
		if resp, body := h.get(c, "GET", "/gzip", nil, "Accept-Encoding", "gzip"); resp.Header.Get("Content-Encoding") != "gzip" || body != string(packed([]byte("hello"))) {
			t.Errorf("%v: %v %q", h2, resp.Header, body)
		}
		if resp, body := h.get(c, "GET", "/nothing", nil); resp.StatusCode != 204 || body != "" {
			t.Errorf("%v: %s %q", h2, resp.Status, body)
		}
		if resp, body := h.get(c, "HEAD", "/", nil); resp.StatusCode != 200 || body != "" {
			t.Errorf("%v: %s %q", h2, resp.Status, body)
		}
		h.no.Store(&Refusal{Status: 403, Reason: "method", Text: "the policy denies this request"})
		before := h.requests.Load()
		if resp, body := h.get(c, "PUT", "/", strings.NewReader("hello")); resp.StatusCode != 403 || !strings.Contains(body, "policy denies") || h.requests.Load() != before {
			t.Errorf("%v: %s %q", h2, resp.Status, body)
		}
		h.no.Store(nil)
	}
	if h.conns.Load() > 4 {
		t.Errorf("%d connections for two clients", h.conns.Load())
	}
}

// framed is a connection on which HTTP/2 is spoken frame by frame.
type framed struct {
	*http2.Framer
	net.Conn
	head bytes.Buffer
	pack *hpack.Encoder

	silent bool // somebody else writes
}

func (h *house) framed() *framed {
	h.Helper()
	c := h.dial("h2")
	f := &framed{Conn: c, Framer: http2.NewFramer(c, bufio.NewReader(c))}
	f.pack = hpack.NewEncoder(&f.head)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, err := io.WriteString(c, http2.ClientPreface)
	if err := errors.Join(err, f.WriteSettings()); err != nil {
		h.Fatal(err)
	}
	return f
}

func (f *framed) ask(id uint32, fields ...string) error {
	f.head.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = f.pack.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.head.Bytes(), EndHeaders: true, EndStream: true})
}

func headerField(name, value string) hpack.HeaderField {
	return hpack.HeaderField{Name: name, Value: value}
}

// answer is the status of a stream; "reset" or "gone" if it has none.
func (f *framed) answer(id uint32) string {
	for {
		x, err := f.ReadFrame()
		if err != nil {
			return "gone"
		}
		switch x := x.(type) {
		case *http2.MetaHeadersFrame:
			if x.StreamID == id {
				return x.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if x.StreamID == id {
				return "reset"
			}
		case *http2.SettingsFrame:
			if !x.IsAck() && !f.silent {
				_ = f.WriteSettingsAck()
			}
		}
	}
}

// TestEveryStream: each stream's authority is the connection's host, whatever the
// ones before were; what could be read in two ways is no request.
func TestEveryStream(t *testing.T) {
	h := newHouse(t, furniture{}, func(http.ResponseWriter, *http.Request) {})
	f := h.framed()
	id := uint32(1)
	for _, c := range []struct {
		fields []string
		want   string
		told   string
	}{
		{[]string{":authority", "good.example"}, "200", ""},
		{[]string{":authority", "other.example"}, "421", "GET claim"},
		{[]string{":authority", "good.example:443"}, "200", ""},
		{[]string{":authority", "good.example:8443"}, "421", "GET claim"},
		{[]string{":authority", "good.example.other.example"}, "421", "GET claim"},
		{[]string{":authority", "good.example", "host", "other.example"}, "421", "GET claim"},
		{[]string{":authority", "good.example", "host", "good.example"}, "200", ""},
		{[]string{"host", "other.example"}, "421", "GET claim"},
		{[]string{}, "400", "GET request"},
		{[]string{":authority", "x@good.example"}, "reset", ""},
		{[]string{":authority", "good.example", "x_y", "z"}, "400", "GET request"},
		{[]string{":authority", "good.example", "transfer-encoding", "chunked"}, "400", ""},
		{[]string{":authority", "good.example", "connection", "close"}, "400", ""},
		{[]string{":authority", "good.example", "content-length", "5"}, "400", "GET request"},
		{[]string{":authority", "good.example", "expect", "x"}, "417", "GET request"},
		{[]string{":authority", "good.example"}, "200", ""},
	} {
		before := h.requests.Load()
		if err := f.ask(id, append([]string{":method", "GET", ":scheme", "https", ":path", "/"}, c.fields...)...); err != nil {
			t.Fatal(err)
		}
		got := f.answer(id)
		if got != c.want && !(c.want == "reset" && got == "400") {
			t.Errorf("%q: %s, want %s", c.fields, got, c.want)
		}
		if n := h.requests.Load() - before; n != map[bool]int64{true: 1}[c.want == "200"] {
			t.Errorf("%q: the site got %d requests", c.fields, n)
		}
		if c.told != "" {
			h.told(c.told)
		}
		if id += 2; got == "gone" {
			f, id = h.framed(), 1
		}
	}
	if err := f.ask(id, ":method", "CONNECT", ":authority", "good.example:443"); err != nil {
		t.Fatal(err)
	}
	if got := f.answer(id); got != "405" && got != "400" {
		t.Errorf("CONNECT: %s", got)
	}
}

// TestDuplex: a stream goes both ways at once, and what follows the answer arrives,
// as gRPC needs it; also an answer that is nothing but its end.
func TestDuplex(t *testing.T) {
	h := newHouse(t, furniture{}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Te") != "trailers" {
			t.Errorf("%v", r.Header)
		}
		w.Header().Set("Content-Type", "application/grpc")
		if r.URL.Path == "/only" {
			w.Header().Set("Grpc-Status", "12")
			return
		}
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				break
			}
			_, _ = io.WriteString(w, "got "+line)
			_ = http.NewResponseController(w).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "well")
	})
	c := h.client(true)
	body, say := io.Pipe()
	req, _ := http.NewRequest("POST", "https://good.example/call", body)
	req.Header.Set("Te", "trailers")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for i := range 5 {
		fmt.Fprintf(say, "%d\n", i)
		if line, err := in.ReadString('\n'); line != fmt.Sprintf("got %d\n", i) {
			t.Fatalf("%q %v", line, err)
		}
	}
	say.Close()
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil || resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "well" {
		t.Errorf("%q %v %v", rest, err, resp.Trailer)
	}
	if resp, body := h.get(c, "POST", "/only", nil, "Te", "trailers"); resp.Header.Get("Grpc-Status") != "12" || body != "" {
		t.Errorf("%v %q", resp.Header, body)
	}
}

package inspect

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestHandshakes: what is not TLS 1.2 at least, or does not believe us, or is for
// something else than HTTP, gets nowhere, and somebody is told why.
func TestHandshakes(t *testing.T) {
	h := newHouse(t, furniture{}, func(http.ResponseWriter, *http.Request) {})
	other := certify(t, time.Now().Add(time.Hour), "good.example")
	for name, c := range map[string]struct {
		config *tls.Config
		told   string
	}{
		"another authority": {&tls.Config{RootCAs: poolOf(other)}, " untrusted"},
		"and TLS 1.2":       {&tls.Config{RootCAs: poolOf(other), MaxVersion: tls.VersionTLS12}, " untrusted"},
		"pinned": {&tls.Config{RootCAs: h.trusts, VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error {
			return errors.New("this is not the key I know")
		}}, " untrusted"},
		"TLS 1.0":      {&tls.Config{RootCAs: h.trusts, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, " tls"},
		"TLS 1.1":      {&tls.Config{RootCAs: h.trusts, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, " tls"},
		"another ALPN": {&tls.Config{RootCAs: h.trusts, NextProtos: []string{"imap"}}, " tls"},
	} {
		h.mu.Lock()
		h.refused = nil
		h.mu.Unlock()
		c.config.ServerName = "good.example"
		conn, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		s := tls.Client(conn, c.config)
		if err := s.Handshake(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		conn.Close()
		h.told(c.told)
	}
	if h.requests.Load()+h.conns.Load()+h.decided.Load() != 0 {
		t.Errorf("%d requests, %d connections", h.requests.Load(), h.conns.Load())
	}
}

// TestUpstreams: a site that cannot be believed, or wants to know who comes, gets no
// request, and the sandbox is told which it is.
func TestUpstreams(t *testing.T) {
	for name, c := range map[string]struct {
		with furniture
		says string
	}{
		"for another": {furniture{tls: func(c *tls.Config) {
			c.Certificates = []tls.Certificate{certify(t, time.Now().Add(time.Hour), "other.example")}
		}}, "another name|nobody"},
		"expired": {furniture{tls: func(c *tls.Config) {
			c.Certificates = []tls.Certificate{certify(t, time.Now().Add(-time.Hour), "good.example")}
		}}, "expired|nobody"},
		"nobody's":                      {furniture{options: func(o *Options) { o.Roots = x509.NewCertPool }}, "nobody whom the server trusts"},
		"for clients with certificates": {furniture{tls: func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }}, "client's certificate"},
		"and TLS 1.2":                   {furniture{tls: func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 }}, "client's certificate"},
		"old":                           {furniture{tls: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }}, "TLS|handshake"},
		"gone": {furniture{options: func(o *Options) {
			o.Reach = func(context.Context, Site, uint64) (net.Conn, error) { return nil, errors.New("10.1.2.3 refused") }
		}}, "cannot be reached"},
	} {
		h := newHouse(t, c.with, func(http.ResponseWriter, *http.Request) {})
		for _, h2 := range []bool{false, true} {
			resp, body := h.get(h.client(h2), "GET", "/", nil)
			fits := false
			for says := range strings.SplitSeq(c.says, "|") {
				fits = fits || strings.Contains(body, says)
			}
			if resp.StatusCode != 502 || !fits || strings.Contains(body, "127.0.0.1") || strings.Contains(body, "10.1.2.3") {
				t.Errorf("%s: %s %q", name, resp.Status, body)
			}
		}
		if h.requests.Load() != 0 {
			t.Errorf("%s: it got a request", name)
		}
	}
}

// TestSiteSmuggling: of what could be read in two ways nothing comes to a site.
func TestSiteSmuggling(t *testing.T) {
	h := newHouse(t, furniture{plain: true}, func(http.ResponseWriter, *http.Request) {})
	post := "POST / HTTP/1.1\r\nHost: good.example\r\n"
	inner := "GET /smuggled HTTP/1.1\r\nHost: good.example\r\n\r\n"
	for name, text := range map[string]string{
		"CL.TE": post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", "TE.CL": post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n",
		"TE.TE": post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", "two lengths": post + "Content-Length: 0\r\nContent-Length: 60\r\n\r\n",
		"folded": post + "X: a\r\n Content-Length: 60\r\n\r\n", "bare LF": "GET / HTTP/1.1\nHost: good.example\n\n", "bare CR": post + "X: a\rContent-Length: 60\r\n\r\n",
		"space before the colon": post + "Content-Length : 60\r\n\r\n", "NUL": post + "X: a\x00b\r\n\r\n", "h2c": post + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
		"prior knowledge": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT": "CONNECT good.example:80 HTTP/1.1\r\nHost: good.example\r\n\r\n", "another host": "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n",
		"no host": "GET / HTTP/1.1\r\n\r\n", "two hosts": "GET / HTTP/1.1\r\nHost: good.example\r\nHost: other.example\r\n\r\n", "absolute": "GET http://other.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
	} {
		c := h.dial()
		go func() { _, _ = io.WriteString(c, text+inner) }()
		b, _ := io.ReadAll(c)
		c.Close()
		if n := strings.Count(string(b), "HTTP/1.1 "); n != 1 || strings.HasPrefix(string(b), "HTTP/1.1 2") {
			t.Errorf("%s: %.300q", name, b)
		}
		if h.requests.Load() != 0 {
			t.Fatalf("%s: the site got a request", name)
		}
	}
	// A body that goes wrong on its way is cut off, and what follows it is lost.
	c := h.dial()
	go func() {
		_, _ = io.WriteString(c, post+"Transfer-Encoding: chunked\r\n\r\n1;\nx\r\nX\r\n0\r\n\r\n"+inner)
	}()
	if b, _ := io.ReadAll(c); strings.Count(string(b), "HTTP/1.1 ") > 1 || h.requests.Load() > 1 {
		t.Errorf("%d requests: %q", h.requests.Load(), b)
	}
}

// TestRapidReset: streams that are begun and broken off, thousands of them, cost one
// connection its life and nobody else anything.
func TestRapidReset(t *testing.T) {
	h := newHouse(t, furniture{}, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
		}
	})
	f := h.framed()
	var written atomic.Int64
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for id := uint32(1); id < 100_000; id += 2 {
			if f.ask(id, ":method", "GET", ":scheme", "https", ":path", "/hang", ":authority", "good.example") != nil || f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				return
			}
			written.Add(1)
		}
	}()
	for {
		if _, err := f.ReadFrame(); err != nil {
			break
		}
	}
	f.Conn.Close()
	<-gone
	t.Logf("%d streams, %d decisions, %d requests", written.Load(), h.decided.Load(), h.requests.Load())
	if resp, _ := h.get(h.client(true), "GET", "/", nil); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// TestFrameFloods: heads that do not end, pings and settings without an end, and
// what is no frame end the connection, without a request.
func TestFrameFloods(t *testing.T) {
	h := newHouse(t, furniture{}, func(http.ResponseWriter, *http.Request) {})
	for name, say := range map[string]func(*framed) error{
		"continuations": func(f *framed) error {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			for range 10_000 {
				f.head.Reset()
				err = errors.Join(err, f.WriteContinuation(1, false, append([]byte{0, 1, 'a', 0x7f, 0x81, 7}, make([]byte, 1000)...)))
			}
			return err
		},
		"a huge head": func(f *framed) error {
			f.head.Reset()
			fields := []string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "good.example"}
			for i := range 200 {
				fields = append(fields, fmt.Sprintf("x-%d", i), strings.Repeat("y", 1000))
			}
			for len(fields) > 0 {
				_ = f.pack.WriteField(headerField(fields[0], fields[1]))
				fields = fields[2:]
			}
			b := f.head.Bytes()
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:10_000], EndStream: true})
			for b = b[10_000:]; len(b) > 0; b = b[min(10_000, len(b)):] {
				err = errors.Join(err, f.WriteContinuation(1, len(b) <= 10_000, b[:min(10_000, len(b))]))
			}
			return err
		},
		"noise": func(f *framed) error { _, err := f.Conn.Write(make([]byte, 100_000)); return err },
		"push": func(f *framed) error {
			return f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		},
		"even ids": func(f *framed) error {
			return f.ask(2, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "good.example")
		},
		"a window": func(f *framed) error {
			return errors.Join(f.WriteWindowUpdate(0, 1<<31-1), f.WriteWindowUpdate(0, 1<<31-1))
		},
		"long data": func(f *framed) error { return f.WriteData(1, false, make([]byte, 1000)) },
	} {
		f := h.framed()
		f.silent = true
		go func() { _ = say(f) }()
		if name == "a huge head" {
			if got := f.answer(1); got != "431" && got != "gone" && got != "reset" {
				t.Errorf("%s: %s", name, got)
			}
		} else if got := f.answer(1 << 20); got != "gone" {
			t.Errorf("%s: %s", name, got)
		}
		f.Conn.Close()
	}
	if h.requests.Load()+h.decided.Load() != 0 {
		t.Errorf("%d requests", h.requests.Load())
	}
}

// TestHung: whatever state its requests are in, a visit whose context ends is over
// at once: bodies that are not taken, and such as do not come, answers that are
// waited for, sockets on which nothing is said.
func TestHung(t *testing.T) {
	for _, plain := range []bool{true, false} {
		h := newHouse(t, furniture{plain: plain}, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/endless":
				for b := make([]byte, 64<<10); ; {
					if _, err := w.Write(b); err != nil {
						return
					}
				}
			case "/upload":
				_, _ = io.Copy(io.Discard, r.Body)
			case "/chat":
				c, _ := upgrade(t, w, r)
				defer c.Close()
				_, _ = io.Copy(io.Discard, c)
			default:
				<-r.Context().Done()
			}
		})
		for _, h2 := range []bool{false, true} {
			if plain && h2 {
				continue
			}
			for _, path := range []string{"/endless", "/wait", "/upload"} {
				var body io.Reader
				if path == "/upload" {
					in, out := io.Pipe()
					body = in
					go func() { _, _ = out.Write([]byte("x")) }()
					t.Cleanup(func() { out.Close() })
				}
				req, _ := http.NewRequest("POST", h.site.scheme()+"://good.example"+path, body)
				go func() {
					resp, err := h.client(h2).Do(req)
					if err == nil {
						t.Cleanup(func() { resp.Body.Close() })
					}
				}()
			}
		}
		h.opened()
		for end := time.Now().Add(30 * time.Second); h.requests.Load() < map[bool]int64{true: 4, false: 7}[plain]; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d requests", h.requests.Load())
			}
		}
		begin := time.Now()
		h.stop()
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("it took %s", d)
		}
		if n := h.open.Load(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	}
}

// FuzzVisit: whatever is sent to a site, as many requests come to it as were decided
// about, each for it.
func FuzzVisit(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "POST /a HTTP/1.1\r\nHost: good.example\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: good.example\r\n\r\n", knock + "\r\n",
		"POST / HTTP/1.1\r\nHost: good.example:80\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n", "GET http://good.example/x?y HTTP/1.0\r\nHost: GOOD.example\r\n\r\n"} {
		f.Add([]byte(s))
	}
	var current atomic.Pointer[testing.T]
	h := newHouse(f, furniture{plain: true}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Host != "good.example" && r.Host != "good.example:80" {
			current.Load().Errorf("%s %s %v", r.Host, r.URL, r.Header)
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		current.Store(t)
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.proxy.Visit(ctx, theirs, &Visit{Site: h.site, Generation: 1, Ask: h})
			theirs.Close()
		}()
		go func() {
			_, _ = ours.Write(b)
			_ = ours.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		}()
		_, _ = io.ReadAll(ours)
		ours.Close()
		<-done
		if n := h.requests.Load(); n > h.decided.Load() {
			t.Errorf("%q: %d requests so far, of which not all were decided about", b, n)
		}
	})
}

// FuzzStreams: the same of frames of HTTP/2.
func FuzzStreams(f *testing.F) {
	for _, s := range []string{"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82", "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"} {
		f.Add([]byte(s))
	}
	h := newHouse(f, furniture{}, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s := tls.Client(c, &tls.Config{ServerName: "good.example", RootCAs: h.trusts, NextProtos: []string{"h2"}})
		_, _ = io.WriteString(s, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		_, _ = s.Write(b)
		_ = s.CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = io.Copy(io.Discard, bufio.NewReader(s))
		if n := h.requests.Load(); n > h.decided.Load() {
			t.Errorf("%q: %d requests so far, of which not all were decided about", b, n)
		}
	})
}

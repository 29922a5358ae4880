package inspect

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// plain makes the host one that speaks with handle on bare connections.
func plain(t testing.TB, handle func(net.Conn)) func(*Target, *Options) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					handle(c)
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return func(x *Target, o *Options) {
		x.Plain = true
		o.Dial = func(ctx context.Context, _ *Target) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		}
	}
}

// TestHostile: whatever a host answers, the sandbox gets one answer, or an error.
func TestHostile(t *testing.T) {
	say := func(s string) func(net.Conn) { return func(c net.Conn) { _, _ = io.WriteString(c, s) } }
	for name, c := range map[string]struct {
		host   func(net.Conn)
		status int
		body   string
		cut    bool
	}{
		"silence": {func(net.Conn) {}, 502, "", false},
		"noise":   {say("hello\r\n\r\n"), 502, "", false},
		"101":     {say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), 502, "", false},
		"endless headers": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			forever(c, "X-A: "+strings.Repeat("b", 1000)+"\r\n")
		}, 502, "", false},
		"endless 1xx":   {func(c net.Conn) { forever(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n") }, 502, "", false},
		"hints first":   {say("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), 200, "ok", false},
		"two answers":   {say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), 200, "ok", false},
		"cut":           {say("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok"), 200, "ok", true},
		"cut chunks":    {say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), 200, "ok", true},
		"until the end": {say("HTTP/1.1 200 OK\r\n\r\nok"), 200, "ok", false},
		"HTTP/1.0":      {say("HTTP/1.0 200 OK\r\n\r\nok"), 200, "ok", false},
		"trailers":      {say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: " + secret + "\r\n\r\n"), 200, "ok", false},
		"a phrase":      {say("HTTP/1.1 200 " + secret + "\r\nContent-Length: 2\r\n\r\nok"), 200, "ok", false},
		"no gzip":       {say("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok"), 200, "", true},
		"two packings":  {say("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok"), 502, "", false},
		"999":           {say("HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\nok"), 999, "ok", false},
		"a split":       {say("HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\nContent-Length: 2\r\n\r\nok"), 502, "", false},
	} {
		g := newGate(t, plain(t, c.host), nil)
		resp, err := g.try("GET", "/v1/x", nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || c.status != 502 && string(b) != c.body || (err != nil) != c.cut {
			t.Errorf("%s: %s %.100q %v", name, resp.Status, b, err)
		}
		if s := fmt.Sprint(resp, string(b)); strings.Contains(s, secret) || strings.Contains(string(b), "127.0.0.1") {
			t.Errorf("%s: %s", name, s)
		}
	}
}

func forever(c net.Conn, s string) {
	for {
		if _, err := io.WriteString(c, s); err != nil {
			return
		}
	}
}

// TestTarpit: a sandbox that is slow, silent or gone holds nothing for long.
func TestTarpit(t *testing.T) {
	gone := make(chan struct{}, 1)
	g := newGate(t, func(_ *Target, o *Options) {
		o.Head, o.Idle, o.Requests, o.Connections = 200*time.Millisecond, time.Minute, 2, 8
	}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/wait" {
			<-r.Context().Done()
			gone <- struct{}{}
		}
	})
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(c, top+"X-A: b")
	if line, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, " 408 ") {
		t.Errorf("a head that does not end: %q %v", line, err)
	}
	wait := func() net.Conn {
		c, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, strings.Replace(top, "/v1/x", "/v1/wait", 1)+"\r\n")
		return c
	}
	one, two := wait(), wait()
	defer one.Close()
	defer two.Close()
	for end := time.Now().Add(30 * time.Second); g.requests.Load() < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if resp, _ := g.do("GET", "/v1/x", nil); resp.StatusCode != 503 {
		t.Errorf("a third request: %s", resp.Status)
	}
	if said := g.said(); said[len(said)-1] != "GET limit" {
		t.Errorf("told %q", said)
	}
	one.Close() // and the host's side of it ends
	select {
	case <-gone:
	case <-time.After(30 * time.Second):
		t.Error("a request goes on without the sandbox")
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if resp, _ := g.do("GET", "/v1/x", nil); resp.StatusCode == 200 {
			break
		} else if time.Now().After(end) {
			t.Fatal(resp.Status)
		}
	}
}

// TestIdle: a host that says nothing for long is waited for no longer.
func TestIdle(t *testing.T) {
	g := newGate(t, func(_ *Target, o *Options) { o.Idle = 300 * time.Millisecond }, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	if resp, body := g.do("GET", "/v1/x", nil); resp.StatusCode != 504 {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestExpect: a body is asked for when somebody will read it, and only then.
func TestExpect(t *testing.T) {
	var got string
	g := newGate(t, nil, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = string(b)
		if r.Header.Get("Expect") != "" {
			t.Error("the host is asked too")
		}
	})
	for path, want := range map[string]string{"/v1/x": " 100 ", "/v2": " 403 "} {
		for _, length := range []int{5, 200_000} {
			c, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			_, _ = io.WriteString(c, strings.Replace(strings.Replace(top, "GET", "POST", 1), "/v1/x", path, 1)+fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d\r\n\r\n", length))
			in := bufio.NewReader(c)
			line, _ := in.ReadString('\n')
			if !strings.Contains(line, want) {
				t.Errorf("%s: %q", path, line)
			}
			if want == " 100 " {
				_, _ = in.ReadString('\n')
				_, _ = c.Write(bytes.Repeat([]byte("x"), length))
				if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 || len(got) != length {
					t.Errorf("%v %v %d", resp, err, len(got))
				}
			}
			c.Close()
		}
	}
}

// TestUploads: long bodies come whole, with and without a length, packed or not,
// and an answer that comes before their end is one.
func TestUploads(t *testing.T) {
	g := newGate(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/early" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, " ", r.ContentLength, " ", r.Header.Get("Content-Encoding"), " ", err)
	})
	long := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	for want, c := range map[string]struct {
		body    io.Reader
		headers []string
	}{
		"1600000 1600000  <nil>": {bytes.NewReader(long), nil},
		"1600000 -1  <nil>":      {io.MultiReader(bytes.NewReader(long)), nil},
		"5 5  <nil>":             {bytes.NewReader(packed([]byte("hello"))), []string{"Content-Encoding", "gzip"}},
		"0 0  <nil>":             {bytes.NewReader(nil), nil},
	} {
		if resp, body := g.do("POST", "/v1/x", c.body, c.headers...); resp.StatusCode != 200 || body != want {
			t.Errorf("%s %q, want %q", resp.Status, body, want)
		}
	}
	if resp, body := g.do("POST", "/v1/x", bytes.NewReader(packed(long)), "Content-Encoding", "br"); resp.StatusCode != 415 {
		t.Errorf("%s %s", resp.Status, body)
	}
	if resp, body := g.do("POST", "/v1/x", bytes.NewReader(packed(make([]byte, 8<<20))), "Content-Encoding", "gzip"); resp.StatusCode != 413 {
		t.Errorf("a bomb: %s %s", resp.Status, body)
	}
	in, out := io.Pipe()
	defer out.Close()
	go func() { _, _ = out.Write(make([]byte, 100_000)) }() // and no more
	if resp, err := g.try("POST", "/v1/early", in); err != nil || resp.StatusCode != http.StatusTeapot {
		t.Errorf("%v %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

// TestLeakOnOldHTTP: over HTTP/1.1 too, a request in which a secret turns up on its
// way is never whole for the host.
func TestLeakOnOldHTTP(t *testing.T) {
	ends := make(chan error, 10)
	host := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if bytes.Contains(b, []byte(secret[:8])) {
			err = nil
		}
		ends <- err
	}))
	defer host.Close()
	g := newGate(t, func(x *Target, o *Options) {
		x.Plain = true
		o.Dial = func(ctx context.Context, _ *Target) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", host.Listener.Addr().String())
		}
	}, nil)
	for _, length := range []int64{-1, 500_000 + int64(len(secret))} {
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 300_000)+secret), strings.NewReader(strings.Repeat("y", 200_000)))
		req, err := http.NewRequest("POST", "http://"+g.addr+"/v1/x", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Host, req.ContentLength = "api.binding.internal", length
		tr := &http.Transport{DisableKeepAlives: true}
		if resp, err := tr.RoundTrip(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode < 400 {
				t.Error(resp.Status)
			}
		}
		select {
		case err := <-ends:
			if err == nil {
				t.Error("the host got all, or the secret's beginning")
			}
		case <-time.After(30 * time.Second):
			t.Error("the host waits for the rest")
		}
	}
	if said := g.said(); len(said) != 2 || said[0] != "POST leak" || said[1] != "POST leak" {
		t.Errorf("told %q", said)
	}
}

package portproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inside is a server in a sandbox that says answer, raw, to whoever asks.
func inside(t *testing.T, serve func(c net.Conn, r *http.Request)) (dial func(context.Context) (net.Conn, error), open *atomic.Int32) {
	open = new(atomic.Int32)
	return func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		open.Add(1)
		go func() {
			defer open.Add(-1)
			defer theirs.Close()
			if r, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				serve(theirs, r)
			}
		}()
		return ours, nil
	}, open
}

// front is the proxy as callers see it.
func front(t *testing.T, dial func(context.Context) (net.Conn, error)) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Serve(w, r, Target{Port: 8000, Dial: dial, Secrets: []string{"X-Token"},
			Secret: func(v string) bool { return strings.Contains(v, "fb_") },
			Failed: func(w http.ResponseWriter, err error) { http.Error(w, err.Error(), http.StatusBadGateway) }})
	}))
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return s
}

// TestRequest: what enters the sandbox names the sandbox's own address, and holds
// neither our credentials nor the caller's address.
func TestRequest(t *testing.T) {
	var seen *http.Request
	dial, _ := inside(t, func(c net.Conn, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen = r
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	s := front(t, dial)
	req, _ := http.NewRequest("POST", s.URL+"/a%2Fb?c=d;e", strings.NewReader("content"))
	req.Header.Set("X-Token", "secret")
	req.Header.Set("Authorization", "Bearer fb_key")
	req.Header.Set("Cookie", "their=own")
	req.Header.Set("X-Forwarded-For", "1.2.3.4")
	req.Header.Set("Connection", "X-Hop")
	req.Header.Set("X-Hop", "1")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != "content" {
		t.Errorf("%d %q", res.StatusCode, b)
	}
	if seen.Host != "localhost:8000" || seen.RequestURI != "/a%2Fb?c=d;e" || seen.Header.Get("Cookie") != "their=own" {
		t.Errorf("%s %s %v", seen.Host, seen.RequestURI, seen.Header)
	}
	for _, h := range []string{"X-Token", "Authorization", "X-Forwarded-For", "Forwarded", "X-Hop"} {
		if v := seen.Header.Get(h); v != "" {
			t.Errorf("%s: %q entered", h, v)
		}
	}
}

// TestHostileAnswers: whatever a server answers hurts nobody but its caller, and
// never beyond its own host.
func TestHostileAnswers(t *testing.T) {
	endless := func(c net.Conn, head, more string) {
		_, err := io.WriteString(c, head)
		for err == nil {
			_, err = io.WriteString(c, more)
		}
	}
	for name, c := range map[string]struct {
		serve  func(net.Conn, *http.Request)
		status int
		check  func(*http.Response) error
	}{
		"headers without end": {func(c net.Conn, _ *http.Request) {
			endless(c, "HTTP/1.1 200 OK\r\n", "X-A: "+strings.Repeat("a", 1000)+"\r\n")
		}, 502, nil},
		"a status line without end": {func(c net.Conn, _ *http.Request) {
			endless(c, "HTTP/1.1 200 ", strings.Repeat("a", 1000))
		}, 502, nil},
		"information without end": {func(c net.Conn, _ *http.Request) { endless(c, "", "HTTP/1.1 103 Early Hints\r\n\r\n") }, 502, nil},
		"no HTTP":                 {func(c net.Conn, _ *http.Request) { io.WriteString(c, "SSH-2.0-x\r\n\r\n") }, 502, nil},
		"nothing":                 {func(net.Conn, *http.Request) {}, 502, nil},
		"two lengths": {func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy")
		}, 502, nil},
		"a split answer": {func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		}, 200, func(res *http.Response) error {
			if b, err := io.ReadAll(res.Body); string(b) != "ok" {
				return fmt.Errorf("%q, %v", b, err)
			}
			return nil
		}},
		"headers that reach beyond": {func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAlt-Svc: h2=\"evil:443\"\r\nStrict-Transport-Security: max-age=1; includeSubDomains\r\n"+
				"Set-Cookie: a=b; domain=example.com; Path=/; HttpOnly\r\nSet-Cookie: c=d;DOMAIN = example.com\r\n\r\n")
		}, 200, func(res *http.Response) error {
			got := res.Header.Values("Set-Cookie")
			if res.Header.Get("Alt-Svc")+res.Header.Get("Strict-Transport-Security") != "" || len(got) != 2 || got[0] != "a=b; Path=/; HttpOnly" || got[1] != "c=d" {
				return fmt.Errorf("%v", res.Header)
			}
			return nil
		}},
		"a redirect": {func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
		}, 302, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dial, open := inside(t, c.serve)
			s := front(t, dial)
			client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			defer client.CloseIdleConnections()
			res, err := client.Get(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != c.status {
				t.Errorf("%d, want %d", res.StatusCode, c.status)
			}
			if c.check != nil {
				if err := c.check(res); err != nil {
					t.Error(err)
				}
			}
			for end := time.Now().Add(time.Minute); open.Load() > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the connection is still open")
				}
			}
		})
	}
}

// TestNobodyThere: the caller decides how a refused connection is told.
func TestNobodyThere(t *testing.T) {
	s := front(t, func(context.Context) (net.Conn, error) { return nil, errors.New("nothing listens there") })
	res, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 502 || !strings.Contains(string(b), "nothing listens there") {
		t.Errorf("%d %s", res.StatusCode, b)
	}
}

// TestStreamAndUpgrade: an answer comes as it is written, and an upgraded
// connection goes both ways; both end when the caller has gone.
func TestStreamAndUpgrade(t *testing.T) {
	dial, open := inside(t, func(c net.Conn, r *http.Request) {
		if r.Header.Get("Upgrade") == "websocket" {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			io.Copy(c, c)
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
		io.Copy(io.Discard, c) // never ends by itself
	})
	s := front(t, dial)
	res, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
	res.Body.Close()

	req, _ := http.NewRequest("GET", s.URL, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	if res, err = http.DefaultClient.Do(req); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v, %v", res, err)
	}
	ws := res.Body.(io.ReadWriteCloser)
	if _, err := ws.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ws, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	ws.Close()
	for end := time.Now().Add(time.Minute); open.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are still open", open.Load())
		}
	}
}

package inspect

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// FuzzServe: whatever a sandbox sends, what comes to the host is a request of the
// binding's with the binding's credential alone, and as many as were decided about.
func FuzzServe(f *testing.F) {
	post := strings.Replace(top, "GET", "POST", 1)
	for _, s := range []string{top + "\r\n" + top + "\r\n", post + "Content-Length: 5\r\n\r\nhello" + top + "\r\n", post + "Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n" + top + "\r\n",
		post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", top + "Authorization: x\r\nConnection: Authorization, X-A\r\n\r\n", top + "Expect: 100-continue\r\n\r\n",
		post + "Content-Encoding: gzip\r\nContent-Length: 30\r\n\r\n" + string(packed([]byte("hello"))), "GET /v1/%2e%2e/x HTTP/1.1\r\nHost: api.binding.internal\r\n\r\n"} {
		f.Add([]byte(s))
	}
	var current atomic.Pointer[testing.T]
	g := newGate(f, nil, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if a := r.Header["Authorization"]; len(a) != 1 || a[0] != "Bearer "+secret || !strings.HasPrefix(r.URL.Path+"/", "/v1/") || strings.Contains(r.URL.Path, "..") || r.Host != "127.0.0.1" || r.Header.Get("Connection") != "" {
			current.Load().Errorf("%s %s %v", r.Method, r.URL, r.Header)
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
			g.proxy.Serve(ctx, theirs, "api")
			theirs.Close()
		}()
		go func() {
			_, _ = ours.Write(b)
			_ = ours.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		}()
		answer, _ := io.ReadAll(ours)
		ours.Close()
		<-done
		if strings.Contains(string(answer), secret) {
			t.Errorf("%q was answered with the secret", b)
		}
		// Over all inputs: a request of one that gave up may arrive during the next.
		if n := g.requests.Load(); n > g.decided.Load() {
			t.Errorf("%q: %d requests so far, of which not all were decided about", b, n)
		}
	})
}

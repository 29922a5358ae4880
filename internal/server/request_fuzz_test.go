package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// FuzzRequest sends whole requests, with every header that is read, through the
// server: it never fails by itself, and what it refuses it refuses with a kind
// and one JSON document.
func FuzzRequest(f *testing.F) {
	api := &fake{files: map[string][]byte{"a": []byte("0123456789")}}
	srv, err := New(Config{API: api, Auth: keys{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	add := func(method, path, query, accept, header, body string) {
		f.Add(method, path, query, accept, header, []byte(body))
	}
	add("POST", "/v1/sandboxes", "", "", "key-1", `{"name":"a"}`)
	add("GET", "/v1/sandboxes/sb1/events", "after_id=3", "text/event-stream", "7", "")
	add("GET", "/v1/sandboxes/sb1/files", "path=a", "", "bytes=2-4", "")
	add("GET", "/v1/sandboxes/sb1/files", "path=a", "", "bytes=-3", "")
	add("PUT", "/v1/sandboxes/sb1/files", "path=a&mode=0644", "", "", "content")
	add("POST", "/v1/sandboxes/sb1/exec", "", "application/x-ndjson", "", `{"code":"1"}`)
	add("POST", "/firebreak.v1.SandboxService/GetSandbox", "", "", "application/json", `{"id":"x"}`)
	add("POST", "/firebreak.v1.SandboxService/Exec", "", "", "application/connect+proto", "\x00\x00\x00\x00\x02\x0a\x00")
	add("DELETE", "/v1/sandboxes/%2e%2e", "x=%zz", "", "\xff\n", "\x00")
	f.Fuzz(func(t *testing.T, method, path, query, accept, header string, body []byte) {
		if method == "" || path == "" || path[0] != '/' || len(body) > 1<<16 {
			return // net/http lets nothing else in
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		u := &url.URL{Path: path, RawQuery: query}
		if p, err := url.PathUnescape(path); err == nil {
			u.Path, u.RawPath = p, path
		}
		contentType := "application/json"
		if strings.Contains(header, "/") {
			contentType = header
		}
		r := (&http.Request{Method: method, URL: u, RequestURI: path, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "localhost",
			RemoteAddr: "127.0.0.1:1", Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Header: http.Header{
				"Authorization": {"Bearer all"}, "Accept": {accept}, "Range": {header}, "Last-Event-Id": {header},
				"Idempotency-Key": {header}, "X-Request-Id": {header}, "Content-Type": {contentType}, "Connect-Protocol-Version": {"1"}}}).WithContext(ctx)
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, r)
		api.mu.Lock()
		api.reqs = nil // or they add up
		if len(api.files) > 10 {
			api.files = map[string][]byte{"a": []byte("0123456789")}
		}
		api.mu.Unlock()
		if ctx.Err() != nil {
			t.Fatal("it did not end")
		}
		for k, vs := range w.Header() {
			for _, v := range vs {
				if strings.ContainsAny(v, "\r\n") {
					t.Fatalf("header %s: %q", k, v)
				}
			}
		}
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w.Code < 400 || w.Body.Len() == 0 || !strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
			return
		}
		var doc struct {
			Code  string
			Error struct{ Kind, Message string }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc.Error.Kind == "" && doc.Code == "" {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
	})
}

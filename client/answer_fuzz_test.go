package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// said is a server that gives one answer to everything.
type said struct {
	status      int
	contentType string
	body        []byte
}

func (s said) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	return &http.Response{StatusCode: s.status, Status: http.StatusText(s.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {s.contentType}}, Trailer: http.Header{}, Body: io.NopCloser(bytes.NewReader(s.body)), ContentLength: int64(len(s.body))}, nil
}

// FuzzAnswer: whatever a server, or what stands before it, answers, every kind
// of call ends with a result or a typed, bounded error.
func FuzzAnswer(f *testing.F) {
	types := []string{"application/proto", "application/json", "application/connect+proto", "application/octet-stream", "text/html", ""}
	f.Add(uint16(404), byte(1), []byte(`{"error":{"kind":"not_found","message":"no such sandbox","hint":"x"}}`))
	f.Add(uint16(404), byte(1), []byte(`{"code":"not_found","message":"m","details":[{"type":"firebreak.v1.ErrorDetail","value":"CgJhYg"}]}`))
	f.Add(uint16(200), byte(2), []byte("\x00\x00\x00\x00\x00\x02\x00\x00\x00\x02{}"))
	f.Add(uint16(200), byte(2), []byte("\x02\x00\x00\x00\x2d{\"error\":{\"code\":\"unavailable\",\"message\":\"m\"}}"))
	f.Add(uint16(200), byte(0), []byte("\x0a\x02sb"))
	f.Add(uint16(502), byte(4), []byte("<html>Bad Gateway\xff</html>"))
	f.Add(uint16(429), byte(1), []byte(`{"error":null}`))
	f.Fuzz(func(t *testing.T, status uint16, kind byte, body []byte) {
		c, err := New(Options{URL: "http://server", HTTPClient: &http.Client{Transport: said{200 + int(status)%400, types[int(kind)%len(types)], body}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		sb := c.Sandbox("sb")
		check := func(call string, err error) {
			t.Helper()
			if err == nil {
				return
			}
			var e *sandbox.Error
			if !errors.As(err, &e) || e.Kind == "" {
				t.Fatalf("%s: untyped: %v", call, err)
			}
			if len(err.Error()) > 4*len(body)+1000 {
				t.Fatalf("%s: %d bytes of error", call, len(err.Error()))
			}
		}
		_, err = sb.Info(ctx)
		check("info", err)
		exit, err := sb.Exec(ctx, Command{Code: "x"}, nil, nil)
		check("exec", err)
		if err == nil && exit.Result != nil && len(exit.Result) > len(body) {
			t.Fatalf("%+v", exit)
		}
		hurry, cancel := context.WithTimeout(ctx, time.Millisecond) // a broken stream is tried again
		defer cancel()
		n := 0
		for _, err := range sb.Events(hurry, WatchOptions{NoFollow: true}) {
			check("events", err)
			if n++; n > len(body)+1 {
				t.Fatalf("%d events in %d bytes", n, len(body))
			}
		}
		_, err = sb.ReadFileBytes(ctx, "x", 100)
		check("read", err)
		_, err = sb.WriteFile(ctx, "x", bytes.NewReader(nil), 0)
		check("write", err)
		doc, err := c.JSON(ctx, "/v1/x", nil)
		check("json", err)
		if err == nil && !utf8.Valid(body) && len(doc) == 0 {
			t.Fatal("an empty document")
		}
	})
}

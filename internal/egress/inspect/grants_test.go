package inspect

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const stands = "fbp_0123456789abcdefghijABCDEFGHIJ0123456789"

// keyed is a binding to the house's site with a placeholder.
func keyed(t testing.TB, secret string) *Target {
	return &Target{Name: "api", Host: hostOf(t, "good.example"), Port: 443, Path: "/", As: "bearer", Secret: []byte(secret), Placeholder: []byte(stands)}
}

// TestGrant: requests are made with what is granted when they begin, whatever is
// granted meanwhile, and with all of it or none; what nobody has any more is
// overwritten, and nothing before.
func TestGrant(t *testing.T) {
	var h *house
	h = newHouse(t, furniture{targets: []*Target{keyed(t, "the-first-secret-0")}, options: func(o *Options) {
		o.Dial = func(ctx context.Context, _ *Target) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", h.up.Listener.Addr().String())
		}
	}}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Header.Get("Authorization") == "Bearer "+r.Header.Get("X-Is") && strings.HasPrefix(r.Header.Get("X-Is"), "the-"), len(body))
	})
	set := func(secret string) []*Transform {
		return []*Transform{{Host: "good.example", Port: 443, Headers: []Header{{Name: "X-Is", Value: []byte(secret)}}, Secrets: [][]byte{[]byte(secret)}}}
	}
	if err := h.proxy.Grant([]*Target{keyed(t, "the-first-secret-0")}, set("the-first-secret-0")); err != nil {
		t.Fatal(err)
	}
	c := h.client(true)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 50 {
				req, err := http.NewRequest("POST", "https://good.example/x", io.MultiReader(strings.NewReader(strings.Repeat("x", 70<<10)))) // of a length that nobody knows
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+stands)
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(b) != fmt.Sprint(true, 70<<10) {
					t.Errorf("%d %q %v", resp.StatusCode, b, err)
					return
				}
			}
		})
	}
	var past []*Target
	for i := range 50 {
		secret := fmt.Sprint("the-secret-that-follows-", i)
		target := keyed(t, secret)
		past = append(past, target)
		if err := h.proxy.Grant([]*Target{target}, set(secret)); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	for i, target := range past {
		h.proxy.mu.Lock() // what wiped it was under it
		wiped := bytes.Equal(target.Secret, make([]byte, len(target.Secret)))
		h.proxy.mu.Unlock()
		if wiped != (i < len(past)-1) {
			t.Errorf("%d of %d: overwritten %v", i, len(past), wiped)
		}
	}
}

// TestTransformOf: the most specific transform counts alone.
func TestTransformOf(t *testing.T) {
	named := func(host string, port uint16) *Transform { return &Transform{Host: host, Port: port} }
	ts, err := newTransforms([]*Transform{named("a.example.com", 443), named("*.example.com", 443), named("*.b.example.com", 443), named("x.org", 8443)})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"a.example.com": "a.example.com", "c.example.com": "*.example.com", "d.c.example.com": "*.example.com", "c.b.example.com": "*.b.example.com",
		"b.example.com": "*.example.com", "example.com": "", "aexample.com": "", "x.org": "", "y.x.org": "", "com": ""} {
		got := ""
		if x := ts.of(place{hostOf(t, host), 443}); x != nil {
			got = x.Host
		}
		if got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
	for what, bad := range map[string][]*Transform{"twice": {named("a.example.com", 443), named("a.example.com", 443)}, "an address": {named("10.0.0.1", 443)}, "capitals": {named("A.example.com", 443)},
		"no port": {named("a.example.com", 0)}, "two stars": {named("*.*.example.com", 443)}, "a framing header": {{Host: "a.example.com", Port: 443, Headers: []Header{{Name: "Content-Length", Value: []byte("1")}}}},
		"a line": {{Host: "a.example.com", Port: 443, Headers: []Header{{Name: "X-A", Value: []byte("1\r\nX-B: 2")}}}}, "a spelling": {{Host: "a.example.com", Port: 443, Headers: []Header{{Name: "x-a", Value: []byte("1")}}}}} {
		if _, err := newTransforms(bad); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

// TestStands: a placeholder stands in one place in one way.
func TestStands(t *testing.T) {
	for name, c := range map[string]struct {
		as, field, target string
		header            http.Header
		want              bool
	}{
		"bearer":          {"bearer", "", "/", http.Header{"Authorization": {"Bearer " + stands}}, true},
		"its capitals":    {"bearer", "", "/", http.Header{"Authorization": {"bEARER " + stands}}, true},
		"two spaces":      {"bearer", "", "/", http.Header{"Authorization": {"Bearer  " + stands}}, false},
		"more":            {"bearer", "", "/", http.Header{"Authorization": {"Bearer " + stands + ","}}, false},
		"twice":           {"bearer", "", "/", http.Header{"Authorization": {"Bearer " + stands, "x"}}, false},
		"bare":            {"bearer", "", "/", http.Header{"Authorization": {stands}}, false},
		"basic":           {"basic", "u", "/", http.Header{"Authorization": {"Basic eDpmYnBfMDEyMzQ1Njc4OWFiY2RlZmdoaWpBQkNERUZHSElKMDEyMzQ1Njc4OQ=="}}, true},
		"basic, the user": {"basic", "u", "/", http.Header{"Authorization": {"Basic ZmJwXzAxMjM0NTY3ODlhYmNkZWZnaGlqQUJDREVGR0hJSjAxMjM0NTY3ODk6eA=="}}, false},
		"header":          {"header", "x-key", "/", http.Header{"X-Key": {stands}}, true},
		"another header":  {"header", "x-key", "/", http.Header{"X-Other": {stands}}, false},
		"query":           {"query", "key", "/?a=b&key=" + stands, nil, true},
		"query, escaped":  {"query", "key", "/?k%65y=" + stands, nil, true},
		"query, twice":    {"query", "key", "/?key=" + stands + "&key=1", nil, false},
		"query, another":  {"query", "key", "/?keys=" + stands, nil, false},
		"path":            {"query", "key", "/key=" + stands, nil, false},
	} {
		x := &Target{As: c.as, Field: c.field, Placeholder: []byte(stands)}
		if got := x.stands(c.target, c.header); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		rest, header := x.lift(c.target, c.header)
		if left := strings.Contains(rest+fmt.Sprint(header), stands[4:]); c.as != "basic" && left == c.want {
			t.Errorf("%s: of it is left %s %v", name, rest, header)
		}
		if x.Placeholder = nil; x.stands(c.target, c.header) {
			t.Errorf("%s: without a placeholder", name)
		}
	}
}

// TestSocketPlaceholder: a WebSocket is opened with a placeholder in its handshake; in
// frames neither that nor the secret goes out, in pieces or not, and a secret that the
// host says comes as stars.
func TestSocketPlaceholder(t *testing.T) {
	const secret = "the-secret-of-the-socket"
	var got atomic.Value
	h := newHouse(t, furniture{}, nil)
	h.up.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw := upgrade(t, w, r)
		defer c.Close()
		out := &frames{out: rw.Writer}
		if err := out.write(opText, true, []byte("you said "+r.Header.Get("Authorization"))); err != nil {
			return
		}
		for {
			op, b, _, err := readMessage(rw.Reader, true)
			if err != nil || op == opClose {
				return
			}
			got.Store(string(b))
		}
	})
	dial := func(context.Context, *Target) (net.Conn, error) {
		return net.Dial("tcp", h.up.Listener.Addr().String())
	}
	h.proxy.o.Dial = dial
	if err := h.proxy.Grant([]*Target{keyed(t, secret)}, nil); err != nil {
		t.Fatal(err)
	}
	for name, frames := range map[string][][]byte{
		"whole":      {wireFrame(opText, true, true, "x"+stands)},
		"in pieces":  {wireFrame(opBinary, false, true, stands[:9]), wireFrame(opMore, true, true, stands[9:])},
		"the secret": {wireFrame(opText, true, true, secret)},
		"in a ping":  {wireFrame(opPing, true, true, stands)},
	} {
		got.Store("")
		c := h.dial("http/1.1")
		_, _ = io.WriteString(c, knock+"Authorization: Bearer "+stands+"\r\n\r\n")
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("%s: %v %v", name, resp, err)
		}
		if _, b, _, err := readMessage(in, false); err != nil || string(b) != "you said Bearer "+strings.Repeat("*", len(secret)) {
			t.Errorf("%s: the host's words are %q, %v", name, b, err)
		}
		for _, f := range frames {
			_, _ = c.Write(f)
		}
		if op, b, _, err := readMessage(in, false); err != nil || op != opClose || len(b) < 2 || binary.BigEndian.Uint16(b) != codePolicy {
			t.Errorf("%s: %d %q %v", name, op, b, err)
		}
		if said := got.Load().(string); strings.Contains(said, stands[9:]) || strings.Contains(said, secret) {
			t.Errorf("%s: the host got %q", name, said)
		}
		h.told("GET " + map[bool]string{true: ReasonLeak, false: ReasonPlaceholder}[name == "the secret"])
	}
}

package server

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuckets()
		take := func(name string, want bool) time.Duration {
			t.Helper()
			wait, ok := b.take(name, 2, 3)
			if ok != want || ok == (wait > 0) {
				t.Fatalf("%s at %v: %t after %v", name, time.Now(), ok, wait)
			}
			return wait
		}
		for range 3 {
			take("a", true)
		}
		if wait := take("a", false); wait != 500*time.Millisecond {
			t.Errorf("the next token comes in %v", wait)
		}
		take("b", true) // has a bucket of its own
		time.Sleep(499 * time.Millisecond)
		take("a", false)
		time.Sleep(time.Millisecond)
		take("a", true)
		take("a", false) // what was refused cost nothing, and nothing was saved up
		time.Sleep(time.Hour)
		for range 3 {
			take("a", true)
		}
		take("a", false)
		for i := range 3 * maxBuckets {
			take(fmt.Sprint("source ", i), true)
			b.take("lately", 0.000001, 1)
		}
		if len(b.named) != maxBuckets || b.used.Len() != maxBuckets {
			t.Errorf("%d buckets, %d in order", len(b.named), b.used.Len())
		}
		if _, ok := b.take("lately", 0.000001, 1); ok {
			t.Error("one used all the time was forgotten")
		}
		take("a", true) // forgotten
	})
}

func TestSource(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1", "[2001:db8:1:2:3::4]:9": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:9": "fe80::/64", "nonsense": "nonsense", "host:1": "host",
	} {
		if got := source(addr); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// TestThrottle: over its rate a key is refused on every surface, with a time to
// come back; other tenants, the operator and the health checks are not.
func TestThrottle(t *testing.T) {
	w := start(t, &fake{})
	w.srv.cfg.Rates = func(tenant sandbox.TenantID) Rates {
		if tenant != sandbox.DefaultTenant {
			t.Errorf("rates of %q", tenant)
		}
		return Rates{Tenant: 1000, Key: 1, Burst: 5}
	}
	refused := func(a answer) {
		t.Helper()
		a.want(t, 429, `"kind":"capacity"`, "tenant_key_requests")
		if a.header.Get("Retry-After") == "" {
			t.Errorf("no Retry-After: %v", a.header)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for w.do("GET", "/v1/backends", "").status != 429 {
		if time.Now().After(deadline) {
			t.Fatal("never refused")
		}
	}
	for range 4 { // so that a slow machine meets an empty bucket below
		w.do("GET", "/v1/backends", "")
	}
	refused(w.do("GET", "/v1/backends", ""))
	refused(w.do("GET", "/v1/sandboxes/"+testID+"/events", "", "Accept", "text/event-stream"))
	refused(w.do("POST", "/v1/sandboxes", `{"name":"x"}`))
	w.do("GET", "/v1/backends", "", "Authorization", "Bearer system:read").want(t, 200) // another key

	c := rpc.NewSandboxServiceClient(http.DefaultClient, "http://"+w.addr)
	req := connect.NewRequest(&v1.GetSandboxRequest{Id: testID})
	req.Header().Set("Authorization", "Bearer all")
	_, err := c.GetSandbox(t.Context(), req)
	ce, _ := err.(*connect.Error)
	if connect.CodeOf(err) != connect.CodeResourceExhausted || ce.Meta().Get("Retry-After") == "" {
		t.Errorf("Connect: %v %v", err, ce)
	}
	g := rpc.NewSandboxServiceClient(http2Client(t), "http://"+w.addr, connect.WithGRPC())
	sreq := connect.NewRequest(&v1.WatchEventsRequest{Id: testID})
	sreq.Header().Set("Authorization", "Bearer all")
	st, err := g.WatchEvents(t.Context(), sreq)
	if err == nil {
		st.Receive()
		err = st.Err()
		st.Close()
	}
	if ce, _ := err.(*connect.Error); connect.CodeOf(err) != connect.CodeResourceExhausted || ce.Meta().Get("Retry-After") == "" {
		t.Errorf("gRPC: %v", err)
	}
	for range 20 {
		w.do("GET", "/healthz", "").want(t, 200)
		res, err := w.local().Get("http://localhost/v1/backends")
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("the operator: %v %v", res, err)
		}
		res.Body.Close()
	}
	w.srv.cfg.Rates = func(sandbox.TenantID) Rates { return Rates{Tenant: -1, Key: -1, Burst: 1} }
	for range 20 {
		w.do("GET", "/v1/backends", "").want(t, 200)
	}
	w.srv.cfg.Rates = func(sandbox.TenantID) Rates { return Rates{Tenant: 1, Key: -1, Burst: 1} }
	w.do("GET", "/v1/backends", "", "Authorization", "Bearer exec")
	for range 3 {
		w.do("GET", "/v1/backends", "", "Authorization", "Bearer exec")
	}
	w.do("GET", "/v1/backends", "").want(t, 429, "tenant_requests") // another key of the same tenant
}

func http2Client(t *testing.T) *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// TestGuessing: an address that tries keys is slowed down; those with a right
// key at the same address are not, nor does a flood of it fill the log.
func TestGuessing(t *testing.T) {
	w := start(t, &fake{})
	counts := map[int]int{}
	var last answer
	for i := range failuresBurst + 100 {
		last = w.do("GET", "/v1/backends", "", "Authorization", fmt.Sprintf("Bearer guess%d", i))
		counts[last.status]++
	}
	if counts[401] < failuresBurst || counts[429] < 50 {
		t.Errorf("answers: %v", counts)
	}
	if last.status == 429 && last.header.Get("Retry-After") == "" {
		t.Errorf("%v", last.header)
	}
	w.do("GET", "/v1/backends", "").want(t, 200)
	quiet := 0
	for line := range bytes.Lines([]byte(w.log.String())) {
		if bytes.Contains(line, []byte(`"status":429`)) && bytes.Contains(line, []byte(`"level":"DEBUG"`)) {
			quiet++
		}
	}
	if quiet != counts[429] {
		t.Errorf("%d of %d refusals are quiet", quiet, counts[429])
	}
	for range failuresBurst + 10 {
		req, _ := http.NewRequestWithContext(context.Background(), "GET", "http://localhost/v1/backends", strings.NewReader(""))
		req.Header.Set("Authorization", "Bearer nope")
		res, err := w.local().Do(req)
		if err != nil || res.StatusCode != 401 {
			t.Fatalf("%v %v", res, err)
		}
		res.Body.Close()
	}
}

// forget fills all buckets.
func (b *buckets) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.named)
	b.used.Init()
}

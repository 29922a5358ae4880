//go:build linux

package egress

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestRequestBudgets: a request that another rule than its connection's permits is
// charged to that rule: as a connection, with what moves from then on.
func TestRequestBudgets(t *testing.T) {
	p := newPlace(t)
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Method, " ", n)
	})
	text := fmt.Sprintf(`allow:
  - {id: net, cidr: 127.0.0.1, ports: %[1]d}
  - {id: get, host: good.example, ports: %[1]d, methods: GET}
  - {id: post, host: good.example, ports: %[1]d, methods: POST, budget: {connections: 2, upload: 100KB}}`, h.port)
	r, j, roots := read(t, p, h, text, nil)
	do := func(c *http.Client, method string, size int) (status int, body string, err error) {
		req, err := http.NewRequest(method, fmt.Sprintf("https://good.example:%d/", h.port), strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	want := func(c *http.Client, method string, status int, body string) {
		t.Helper()
		if s, b, err := do(c, method, 1000); s != status || !strings.Contains(b, body) || err != nil {
			t.Errorf("%s: %d %q %v, want %d %q", method, s, b, err, status, body)
		}
	}
	one, two, three := p.client(roots, false), p.client(roots, true), p.client(roots, true)
	for range 2 {
		want(one, "GET", 200, "GET 1000")
		want(one, "POST", 200, "POST 1000")
	}
	want(two, "POST", 200, "POST 1000")
	want(three, "GET", 200, "GET 1000")
	want(three, "POST", 403, "budget")
	want(three, "GET", 200, "GET 1000") // it goes on
	if e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny }); e.Kind != KindRequest || e.Reason != "budget" || e.Rule != "post" || e.Method != "POST" || !strings.Contains(e.Hint, "connections") {
		t.Errorf("%+v", e)
	}
	used, err := r.Used("one")
	if u := used["post"]; err != nil || u.Connections != 2 || u.Upload < 2000 || used["get"].Connections != 3 {
		t.Errorf("%+v %v", used, err)
	}
	if s, b, err := do(one, "POST", 300_000); err == nil {
		t.Errorf("beyond the budget: %d %q", s, b)
	}
	j.wait(t, "the end", func(e Event) bool {
		return e.Kind == KindClose && e.Reason == "budget" && strings.Contains(e.Hint, "upload")
	})
}

// TestOverride: where rules are about requests, none passes that asks the host to
// take it for another one; where they are not, headers are the sandbox's.
func TestOverride(t *testing.T) {
	for about, passes := range map[string]bool{"": true, ", methods: [GET, POST]": false, ", paths: [/v1]": false} {
		for _, h2 := range []bool{false, true} {
			p := newPlace(t)
			h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, r.Header["X-Http-Method-Override"], r.Header["X-Original-Url"], r.Header["X-Rewrite-Url"], r.Header["X-Method-Override"], r.Header["X-Other"])
			})
			text := fmt.Sprintf("allow:\n  - {id: net, cidr: 127.0.0.1, ports: %[1]d}\n  - {id: good, host: good.example, ports: %[1]d%[2]s}", h.port, about)
			_, _, roots := read(t, p, h, text, nil)
			req, err := http.NewRequest("POST", fmt.Sprintf("https://good.example:%d/v1", h.port), nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, name := range []string{"X-HTTP-Method-Override", "X-Original-URL", "x-rewrite-url", "X-Method-Override", "X-Other"} {
				req.Header.Set(name, fmt.Sprint(i))
			}
			resp, err := p.client(roots, h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if passed := resp.StatusCode == 200 && string(b) == "[0] [1] [2] [3] [4]"; err != nil || passed != passes || !passed && resp.StatusCode != 403 {
				t.Errorf("%q, h2 %v: %d %s %v", about, h2, resp.StatusCode, b, err)
			}
		}
	}
}

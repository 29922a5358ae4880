package e2b

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// reach is how a client reaches a sandbox.
type reach struct {
	SandboxID, EnvdAccessToken, TrafficAccessToken string
}

// call sends a request to E2B's listener and returns the status and the body.
func (s *server) call(method, path, body string, header ...string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if req.Header.Get("Host") != "" {
		req.Host = req.Header.Get("Host")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func (s *server) create(body string) (r reach) {
	s.t.Helper()
	code, answer := s.call("POST", "/v2/sandboxes", body, "X-API-Key", s.key, "Content-Type", "application/json")
	if code != 201 || json.Unmarshal([]byte(answer), &r) != nil || r.EnvdAccessToken == "" || r.TrafficAccessToken == "" {
		s.t.Fatalf("create: %d %s", code, answer)
	}
	return r
}

// TestTokens: what one sandbox's token opens, nothing else does, and nothing after
// the sandbox. That it outlives a restart is shown in package auth.
func TestTokens(t *testing.T) {
	s := serve(t)
	a, b := s.create(`{}`), s.create(`{}`)
	inside := func(id, token string) int {
		code, _ := s.call("POST", "/process.Process/List", "{}", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "49983", "X-Access-Token", token, "Content-Type", "application/json")
		return code
	}
	for _, c := range []struct {
		name, id, token string
		code            int
	}{
		{"its own", a.SandboxID, a.EnvdAccessToken, 200},
		{"its neighbour's", a.SandboxID, b.EnvdAccessToken, 401},
		{"the traffic token", a.SandboxID, a.TrafficAccessToken, 401},
		{"none", a.SandboxID, "", 401},
		{"an API key", a.SandboxID, s.key, 401},
		{"of a sandbox that never was", "sbaaaaaaaaaaaaaaaaaa", a.EnvdAccessToken, 502},
		{"of an odd id", "../" + a.SandboxID, a.EnvdAccessToken, 502},
	} {
		if code := inside(c.id, c.token); code != c.code {
			t.Errorf("%s: %d, want %d", c.name, code, c.code)
		}
	}
	// A token is no key.
	if code, body := s.call("GET", "/v2/sandboxes", "", "X-API-Key", a.EnvdAccessToken); code != 401 {
		t.Errorf("a token lists sandboxes: %d %s", code, body)
	}
	// A viewer gets no tokens, and a revoked key makes none.
	viewer := s.newKey("--role", "viewer")
	if code, body := s.call("POST", "/v2/sandboxes/"+a.SandboxID+"/connect", "{}", "X-API-Key", viewer); code != 403 || strings.Contains(body, "ccessToken") {
		t.Errorf("a viewer connects: %d %s", code, body)
	}
	// The internal calls of E2B's agent are not there.
	for _, path := range []string{"/init", "/freeze", "/unfreeze", "/fsfreeze", "/collapse"} {
		if code, _ := s.call("POST", path, "{}", "E2b-Sandbox-Id", a.SandboxID, "X-Access-Token", a.EnvdAccessToken); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, _ := s.call("GET", "/health", "", "Host", "evil.example", "E2b-Sandbox-Id", a.SandboxID, "X-Access-Token", a.EnvdAccessToken); code != 403 {
		t.Errorf("a foreign host name: %d", code)
	}
	if code, _ := s.call("DELETE", "/sandboxes/"+a.SandboxID, "", "X-API-Key", s.key); code != 204 {
		t.Errorf("kill: %d", code)
	}
	if code := inside(a.SandboxID, a.EnvdAccessToken); code != 502 {
		t.Errorf("the token of a dead sandbox: %d", code)
	}
	// Attempts with wrong tokens end in a rest.
	limited := false
	for range 200 {
		if inside(b.SandboxID, "wrong") == 429 {
			limited = true
			break
		}
	}
	if !limited {
		t.Error("wrong tokens are tried without end")
	}
	if code := inside(b.SandboxID, b.EnvdAccessToken); code != 200 {
		t.Errorf("who has the token is locked out: %d", code)
	}
}

// TestWire: the same call in each of Connect's codecs.
func TestWire(t *testing.T) {
	s := serve(t)
	a := s.create(`{}`)
	head := []string{"E2b-Sandbox-Id", a.SandboxID, "E2b-Sandbox-Port", "49983", "X-Access-Token", a.EnvdAccessToken}
	framed := func(b string) string { return "\x00\x00\x00\x00" + string(rune(len(b))) + b }
	for kind, body := range map[string]string{"application/json": `{"path":"."}`, "application/proto": "\x0a\x01."} {
		if code, out := s.call("POST", "/filesystem.Filesystem/Stat", body, append(head, "Content-Type", kind)...); code != 200 || !strings.Contains(out, "/home/user") {
			t.Errorf("%s: %d %q", kind, code, out)
		}
	}
	start := map[string]string{
		"application/connect+json":  framed(`{"process":{"cmd":"echo","args":["hi"]}}`),
		"application/connect+proto": framed("\x0a\x0a\x0a\x04echo\x12\x02hi"),
	}
	for kind, body := range start {
		code, out := s.call("POST", "/process.Process/Start", body, append(head, "Content-Type", kind)...)
		if code != 200 || !strings.Contains(out, "exit status 0") || strings.Count(out, "{}") == 0 {
			t.Errorf("%s: %d %q", kind, code, out)
		}
	}
	// An error of a stream comes in its last frame, unknown fields are ignored.
	code, out := s.call("POST", "/process.Process/Start", framed(`{"process":{"cmd":"no-such"},"new":1}`), append(head, "Content-Type", "application/connect+json")...)
	if code != 200 || !strings.Contains(out, `"code":"not_found"`) {
		t.Errorf("a program that is not there: %d %q", code, out)
	}
	// Signs of life.
	code, out = s.call("POST", "/process.Process/Start", framed(`{"process":{"cmd":"sleep","args":["3"]}}`), append(head, "Content-Type", "application/connect+json", "Keepalive-Ping-Interval", "1")...)
	if code != 200 || !strings.Contains(out, "keepalive") {
		t.Errorf("no keepalive: %d %q", code, out)
	}
	// What a create asks for is done or refused, never ignored.
	for _, body := range []string{`{"unheard":true}`, `{"network":{"egressProxy":{"url":"socks5://x"}}}`, `{"iam":{"tokens":[{}]}}`, `{"network":{"allowPublicTraffic":true}}`,
		`{"volumeMounts":[{"name":"v","path":"/v"}]}`, `{"autoPause":true,"autoPauseMemory":false}`, `{"mcp":{"x":{}}}`, `{"network":{"rules":{"a.example":[{"x":1}]}}}`, `{"network":{"rules":{"10.0.0.1":[]}}}`} {
		if code, out := s.call("POST", "/v2/sandboxes", body, "X-API-Key", s.key); code != 400 && code != 501 {
			t.Errorf("%s: %d %s", body, code, out)
		}
	}
	if code, out := s.call("POST", "/v2/sandboxes", string(bytes.Repeat([]byte("x"), 2<<20)), "X-API-Key", s.key); code != 413 {
		t.Errorf("a body of 2 MiB: %d %s", code, out)
	}
}

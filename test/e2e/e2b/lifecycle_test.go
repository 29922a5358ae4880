package e2b

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"
)

// TestLifecycle drives pause, connect, snapshots and the end of a sandbox's time
// through every package that has them.
func TestLifecycle(t *testing.T) {
	s := serve(t)
	s.also = append(s.also, "OTHER_API_KEY="+s.strangersKey(t))
	for _, sdk := range []string{"e2b", "e2b-2-45"} {
		t.Run(sdk, func(t *testing.T) { s.steps(t, s.node(t, "lifecycle.mjs", sdk)...) })
	}
	t.Run("python", func(t *testing.T) { s.steps(t, s.python(t, "lifecycle.py")...) })
}

// strangersKey makes a key of another tenant, of which a server has only one so far.
func (s *server) strangersKey(t *testing.T) string {
	t.Helper()
	key := s.newKey("--name", "strangers")
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.dir, "data", "state.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n int64
	res, err := db.Exec(`UPDATE api_keys SET tenant = 'strangers' WHERE name = 'strangers'`)
	if err == nil {
		n, err = res.RowsAffected()
	}
	if err != nil || n != 1 {
		t.Fatalf("%d keys: %v", n, err)
	}
	return key
}

// TestLifecycleWire: the routes and answers that clients tell states by, of old ones,
// too.
func TestLifecycleWire(t *testing.T) {
	s := serve(t)
	a := s.create(`{"timeout":120}`)
	path := "/sandboxes/" + a.SandboxID
	call := func(code int, method, path, body string) string {
		t.Helper()
		got, answer := s.call(method, path, body, "X-API-Key", s.key, "Content-Type", "application/json")
		if got != code {
			t.Errorf("%s %s %s: %d %s, want %d", method, path, body, got, answer, code)
		}
		return answer
	}
	has := func(answer string, all ...string) {
		t.Helper()
		for _, one := range all {
			if !strings.Contains(answer, one) {
				t.Errorf("no %s in %s", one, answer)
			}
		}
	}
	call(409, "POST", path+"/resume", `{}`) // it runs
	has(call(200, "POST", path+"/connect", `{"timeout":1}`), a.EnvdAccessToken, a.TrafficAccessToken)
	for _, body := range []string{`{"memory":false}`, `{"mode":"x"}`} {
		if code, answer := s.call("POST", path+"/pause", body, "X-API-Key", s.key); code != 400 && code != 501 {
			t.Errorf("pause %s: %d %s", body, code, answer)
		}
	}
	if answer := call(204, "POST", path+"/pause", `{"memory":true,"requireHealthyGuest":true}`); answer != "" {
		t.Errorf("a 204 with %q", answer)
	}
	has(call(409, "POST", path+"/pause", ``), `"code":409`)
	has(call(200, "GET", path, ``), `"state":"paused"`)
	if answer := call(200, "GET", "/sandboxes", ``); strings.Contains(answer, a.SandboxID) {
		t.Errorf("the old list, of what runs: %s", answer)
	}
	has(call(200, "GET", "/v2/sandboxes?state=paused", ``), a.SandboxID)
	has(call(200, "GET", "/v2/sandboxes", ``), a.SandboxID)
	has(call(404, "POST", path+"/timeout", `{"timeout":60}`), "paused")
	has(call(404, "POST", path+"/refreshes", `{"duration":60}`), "paused")
	inside := []string{"E2b-Sandbox-Id", a.SandboxID, "X-Access-Token", a.EnvdAccessToken, "Content-Type", "application/json"}
	for _, port := range []string{"49983", "49999", "8000"} {
		head := append([]string{"E2b-Sandbox-Port", port, "E2B-Traffic-Access-Token", a.TrafficAccessToken}, inside...)
		code, answer := s.call("GET", "/health", "", head...)
		if code != 502 || !strings.Contains(answer, "paused") || !strings.Contains(answer, a.SandboxID) {
			t.Errorf("port %s of a paused one: %d %s", port, code, answer)
		}
	}
	if code, answer := s.call("GET", "/health", "", "E2b-Sandbox-Id", a.SandboxID, "X-Access-Token", "wrong"); code != 401 {
		t.Errorf("a stranger learns that it is paused: %d %s", code, answer)
	}
	call(501, "POST", path+"/connect", `{"timeout":60,"memory":false}`)
	call(501, "POST", path+"/resume", `{"autoPause":true}`)
	has(call(201, "POST", path+"/resume", `{"timeout":60,"autoPause":false}`), a.EnvdAccessToken)
	call(204, "POST", path+"/pause", `{}`)
	has(call(201, "POST", "/v2"+path+"/connect", ``), a.EnvdAccessToken, a.TrafficAccessToken)
	has(call(201, "POST", path+"/snapshots", `{"name":"one:default"}`), `"names":["one"]`)
	call(400, "POST", path+"/snapshots", `{"name":"base"}`)
	call(400, "POST", path+"/snapshots", `{"name":"No Name"}`)
	call(501, "POST", path+"/snapshots", `{"memory":false}`)
	has(call(200, "GET", "/snapshots?name=one:default", ``), `"one"`)
	if answer := call(200, "GET", "/snapshots?name=two", ``); answer != "[]" {
		t.Errorf("%s", answer)
	}
	call(204, "DELETE", "/templates/one:default", ``)
	has(call(404, "DELETE", "/templates/one", ``), `"code":404`)
	call(400, "POST", path+"/fork", `{"count":0}`)
	call(404, "POST", "/sandboxes/sbaaaaaaaaaaaaaaaaaa/fork", `{}`)
	call(400, "POST", path+"/connect", `{"timeout":0}`)
	call(204, "DELETE", path, ``)
	for _, op := range []string{"/pause", "/resume", "/connect", "/snapshots", "/fork"} {
		call(404, "POST", path+op, `{}`)
	}
}

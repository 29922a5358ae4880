package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

func (a answer) want(t *testing.T, status int, contains ...string) {
	t.Helper()
	if a.status != status {
		t.Errorf("status %d, want %d: %s", a.status, status, a.body)
	}
	for _, c := range contains {
		if !strings.Contains(a.body, c) {
			t.Errorf("answer lacks %q: %s", c, a.body)
		}
	}
	if status >= 400 && status != 421 {
		var e struct {
			Error *struct{ Kind, Message, Hint, Op, ID *string }
		}
		d := json.NewDecoder(strings.NewReader(a.body))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil || e.Error == nil || e.Error.Kind == nil || e.Error.Message == nil || e.Error.Hint == nil || e.Error.Op == nil || e.Error.ID == nil {
			t.Errorf("not the error shape: %s", a.body)
		}
	}
}

// TestGoldenJSON fixes the JSON profile, byte for byte.
func TestGoldenJSON(t *testing.T) {
	w := start(t, &fake{})
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/v1/sandboxes/" + testID, "", `{"id":"sbaaaaaaaaaaaaaaaaaa","name":"w\"x","state":"ended","reason":"memory","detail":"limit 64 MiB",` +
			`"backend":"gvisor","isolation":"user-kernel","template":"host","template_digest":"sha256:00","language_pack":"","tier":"",` +
			`"metadata":{"a":"ü\n","b":"2"},"limits":{"memory_bytes":{"value":67108864,"enforced":true,"explicit":true}},` +
			`"idle_timeout_ms":0,"timeout_ms":9007199254740993,"created_at":"2026-03-04T05:06:07.89Z","ended_at":"1970-01-01T00:00:00Z",` +
			`"usage":{"cpu_ms":12.5,"memory_bytes":0,"memory_peak_bytes":1099511627776,"overhead_bytes":0,"disk_bytes":0,"pids":0,"oom_kills":0},` +
			`"receipt":{"objects":[{"kind":"mount","name":"/x","gone":true,"detail":"","check":""}],"clean":true,"time":"2026-03-04T05:06:07.89Z","instance":""},` +
			`"readonly_root":false,"create_ms":1e-07,"principal":"","notes":[],"idle_action":"","egress":[],"egress_more":0,"bindings":[],"snapshot":"","paused_bytes":0,"forked_from":"","expire_action":"","wake":"","min_isolation":"","demanded_by":""}`},
		{"GET", "/v1/sandboxes", "", `{"sandboxes":[],"next_page_token":""}`},
		{"POST", "/v1/sandboxes/x/exec", `{"code":"print(6*7)"}`, `{"stdout":"42\n","stderr":"","exit_code":0,"duration_ms":13,"reason":"done","detail":"",` +
			`"stdout_truncated":false,"stderr_truncated":false,"stdout_data":"","stderr_data":"","result":{"ok":1}}`},
		{"GET", "/v1/runs/rn1", "", `{"id":"rn1","sandbox_id":"","state":"ended","backend":"","isolation":"","template_digest":"","stdout":"hi","stderr":"",` +
			`"stdout_data":"","stderr_data":"","stdout_truncated":false,"stderr_truncated":false,"exit_code":3,"reason":"","detail":"",` +
			`"result":[1,{"a":"b"}],"artifacts":[],"notes":[],"egress":[],"egress_more":0}`},
	} {
		a := w.do(c.method, c.path, c.body)
		if a.status != 200 || a.body != c.want+"\n" {
			t.Errorf("%s %s\n got %d %s\nwant %s", c.method, c.path, a.status, a.body, c.want)
		}
		if !json.Valid([]byte(a.body)) || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: not JSON", c.method, c.path)
		}
	}
}

// TestEmberd makes the three unversioned calls the way curl does.
func TestEmberd(t *testing.T) {
	w := start(t, &fake{})
	w.do("POST", "/sandboxes", "").want(t, 201, `"id":"`+testID+`"`)
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	w.do("POST", "/sandboxes/"+testID+"/exec", `{"code":"print(6*7)"}`, form...).want(t, 200, `{"stdout":"42\n","stderr":"","exit_code":0,"duration_ms":13,`)
	if a := w.do("DELETE", "/sandboxes/"+testID, ""); a.status != 204 || a.body != "" {
		t.Errorf("delete: %d %q", a.status, a.body)
	}
	w.do("DELETE", "/v1/sandboxes/"+testID, "").want(t, 200, `"receipt":{"objects":[],"clean":true,"instance":""}`)
	// Over the socket no key is needed.
	res, err := w.local().Post("http://localhost/sandboxes", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 {
		t.Errorf("over the socket: %d", res.StatusCode)
	}
}

func TestStatuses(t *testing.T) {
	w := start(t, &fake{})
	w.do("POST", "/v1/sandboxes/x/files/mkdir", `{"path":"d"}`).want(t, 201, `"type":"directory"`)
	w.do("POST", "/v1/templates", `{"name":"python"}`).want(t, 201, `"digest":"sha256:11"`)
	w.do("POST", "/v1/keys", `{"role":"viewer"}`).want(t, 201)
	w.do("POST", "/v1/runs", `{"program":{"code":"1"}}`).want(t, 201, `"id":"rn1"`)
	w.do("DELETE", "/v1/keys/k1", "").want(t, 204)
	w.do("DELETE", "/v1/templates/python", "").want(t, 204)
	w.do("DELETE", "/v1/sandboxes/x/files?path=f&recursive", "").want(t, 204)
	if r := w.fake.last().(*v1.RemoveFileRequest); !r.Recursive || r.Path != "f" || r.Id != "x" {
		t.Errorf("remove got %v", r)
	}
	w.do("GET", "/v1/sandboxes?metadata.team=x&metadata.a.b=y+z&page_size=7&state=all", "").want(t, 200)
	if r := w.fake.last().(*v1.ListSandboxesRequest); r.PageSize != 7 || r.State != "all" || fmt.Sprint(r.Metadata) != "map[a.b:y z team:x]" {
		t.Errorf("list got %v", r)
	}
	w.do("GET", "/healthz", "", "Authorization", "").want(t, 200, "ok")
	w.do("GET", "/readyz", "", "Authorization", "").want(t, 200, "ready")
	w.do("GET", "/metrics", "", "Authorization", "").want(t, 401)
	w.do("GET", "/metrics", "").want(t, 200, `firebreak_sandboxes{state="running"} 2`, `firebreak_egress_flows_total{decision="deny",kind="connect"} 7`,
		`firebreak_egress_bytes_total{direction="upload"} 5`,
		`firebreak_requests_total{code="201",operation="CreateKey"} 1`, `firebreak_request_duration_seconds_count{operation="Exec"} 0`)
	if a := w.do("HEAD", "/v1/sandboxes/"+testID, ""); a.status != 200 || a.body != "" || a.header.Get("Content-Length") == "" {
		t.Errorf("HEAD: %+v", a)
	}
}

// TestBadInput demands a typed error with a hint for everything a caller can
// get wrong before an operation sees it.
func TestBadInput(t *testing.T) {
	w := start(t, &fake{})
	deep := strings.Repeat(`{"limits":`, 100) + "1" + strings.Repeat("}", 100)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		kind                     string
		contains                 string
	}{
		{"unknown field", "POST", "/v1/sandboxes", `{"nam":"x"}`, 400, "invalid", `did you mean \"name\"?`},
		{"camel case typo", "POST", "/v1/sandboxes", `{"languagepakc":"x"}`, 400, "invalid", `did you mean \"language_pack\"?`},
		{"missing unit", "POST", "/v1/sandboxes", `{"limits":{"memory":1}}`, 400, "invalid", `did you mean \"memory_bytes\"?`},
		{"one level up", "POST", "/v1/runs", `{"code":"1"}`, 400, "invalid", `\"code\" belongs inside \"program\"`},
		{"one level down", "POST", "/v1/runs", `{"program":{"inputs":[]}}`, 400, "invalid", `\"inputs\" belongs at the top of the request`},
		{"far off", "POST", "/v1/sandboxes", `{"zzzzzzzz":1}`, 400, "invalid", `/openapi.json`},
		{"not JSON", "POST", "/v1/sandboxes", `code=print`, 400, "invalid", "JSON"},
		{"array", "POST", "/v1/sandboxes", `[]`, 400, "invalid", "JSON"},
		{"two documents", "POST", "/v1/sandboxes", `{}{}`, 400, "invalid", "JSON"},
		{"twice", "POST", "/v1/sandboxes", `{"name":"a","name":"b"}`, 400, "invalid", "duplicate"},
		{"wrong type", "POST", "/v1/sandboxes", `{"timeout_ms":"soon"}`, 400, "invalid", "timeout_ms"},
		{"deep", "POST", "/v1/sandboxes", deep, 400, "invalid", ""},
		{"deep unknown", "POST", "/v1/sandboxes", strings.Repeat("[", 1<<20), 400, "invalid", ""},
		{"rule", "POST", "/v1/sandboxes", `{"limits":{"memory_bytes":-1}}`, 400, "invalid", "limits.memory_bytes"},
		{"message rule", "POST", "/v1/sandboxes/x/exec", `{}`, 400, "invalid", "exactly one of code and command"},
		{"path and body", "POST", "/v1/sandboxes/x/exec", `{"id":"y","code":"1"}`, 400, "invalid", "path"},
		{"query on a body route", "POST", "/v1/sandboxes?name=x", ``, 400, "invalid", "query"},
		{"unknown parameter", "GET", "/v1/sandboxes?page_sise=3", "", 400, "invalid", `did you mean \"page_size\"?`},
		{"parameter type", "GET", "/v1/sandboxes?page_size=many", "", 400, "invalid", "32-bit integer"},
		{"parameter twice", "GET", "/v1/sandboxes?page_size=1&page_size=2", "", 400, "invalid", "2 times"},
		{"parameter range", "GET", "/v1/sandboxes?page_size=501", "", 400, "invalid", "page_size"},
		{"body of a delete", "DELETE", "/v1/sandboxes/x", `{"force":true}`, 400, "invalid", "force"},
		{"bad escape", "GET", "/v1/sandboxes?state=%zz", "", 400, "invalid", ""},
		{"not UTF-8", "GET", "/v1/sandboxes?state=%ff", "", 400, "invalid", "UTF-8"},
		{"no path", "PUT", "/v1/sandboxes/x/files", "data", 400, "invalid", "path"},
		{"bad mode", "PUT", "/v1/sandboxes/x/files?path=a&mode=9", "data", 400, "invalid", "mode"},
		{"data in query", "PUT", "/v1/sandboxes/x/files?path=a&data=aGk=", "data", 400, "invalid", "body"},
		{"unknown id", "GET", "/v1/sandboxes/nope", "", 404, "not_found", "firebreak ls"},
		{"unknown route", "GET", "/v2/sandboxes", "", 404, "not_found", "openapi"},
		{"trailing slash", "GET", "/v1/sandboxes/", "", 404, "not_found", "openapi"},
		{"double slash", "GET", "//v1/sandboxes", "", 404, "not_found", "openapi"},
		{"dots", "GET", "/v1/../metrics", "", 404, "not_found", "openapi"},
		{"wrong method", "PATCH", "/v1/sandboxes", "{}", 405, "invalid", "GET, HEAD, POST"},
		{"10 MB JSON", "POST", "/v1/sandboxes", `{"name":"` + strings.Repeat("a", 10<<20) + `"}`, 413, "too_large", "8 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := w.do(c.method, c.path, c.body)
			a.want(t, c.status, `"kind":"`+c.kind+`"`, c.contains)
			var e struct{ Error struct{ Hint string } }
			if json.Unmarshal([]byte(a.body), &e); e.Error.Hint == "" {
				t.Errorf("no hint: %s", a.body)
			}
			if c.status == 405 && a.header.Get("Allow") != "GET, HEAD, POST" {
				t.Errorf("Allow: %q", a.header.Get("Allow"))
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	w := start(t, &fake{})
	path := "/v1/sandboxes/" + testID
	for _, header := range []string{"", "Bearer", "Bearer wrong", "Basic all", "all"} {
		a := w.do("GET", path, "", "Authorization", header)
		a.want(t, 401, `"kind":"unauthenticated"`, "api-key")
		if !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%q: no challenge", header)
		}
	}
	w.do("GET", path, "", "Authorization", "bearer all").want(t, 200)
	w.do("GET", path, "", "Authorization", "Bearer files:read").want(t, 403, `"kind":"denied"`, "sandbox:read")

	// A body is not read for a stranger: a server that tried would wait.
	c := rawConn(t, w.addr)
	fmt.Fprintf(c, "POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
	if line := readLine(t, c); !strings.Contains(line, "401") {
		t.Errorf("got %q", line)
	}
}

func TestHost(t *testing.T) {
	w := start(t, &fake{})
	port := w.addr[strings.LastIndex(w.addr, ":"):]
	for host, status := range map[string]int{
		"localhost" + port: 200, "127.0.0.1": 200, "127.8.8.8" + port: 200, "[::1]" + port: 200, "api.example": 200, "API.example:80": 200,
		"evil.example": 421, "localhost.evil.example" + port: 421, "10.0.0.1": 421, "": 400,
	} {
		a := w.do("GET", "/healthz", "", "Host", host)
		if host == "" {
			continue // the client puts the address in
		}
		if a.status != status {
			t.Errorf("Host %q: %d, want %d", host, a.status, status)
		}
	}
	if a := w.do("OPTIONS", "/v1/sandboxes", "", "Origin", "http://evil.example", "Access-Control-Request-Method", "POST"); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("CORS is open")
	}
}

func TestErrorsOfOperations(t *testing.T) {
	f := &fake{}
	w := start(t, f)
	f.create = failing
	for kind, code := range codes {
		a := w.do("POST", "/v1/sandboxes", `{"name":"`+strings.ReplaceAll(string(kind), "_", "-")+`"}`)
		a.want(t, code.http, `"kind":"`+string(kind)+`","message":"because","hint":"do this","op":"create","id":"x"`)
		if (a.header.Get("Retry-After") == "2") != (kind == "capacity") {
			t.Errorf("%s: Retry-After %q", kind, a.header.Get("Retry-After"))
		}
	}
	a := w.do("POST", "/v1/sandboxes", `{"name":"plain"}`)
	a.want(t, 500, `"kind":"internal"`)
	if strings.Contains(a.body, "secret") || !strings.Contains(w.log.String(), "a secret path") {
		t.Errorf("the text of a foreign error belongs into the log alone: %s", a.body)
	}
	a = w.do("POST", "/v1/sandboxes", `{"name":"panic"}`)
	a.want(t, 500, `"kind":"internal"`)
	if strings.Contains(a.body, "oops") || !strings.Contains(w.log.String(), "panic: oops") || !strings.Contains(w.log.String(), "stack") {
		t.Errorf("panic: %s", a.body)
	}
	if id := a.header.Get("X-Request-Id"); id == "" || !strings.Contains(w.log.String(), id) {
		t.Errorf("request id %q is not in the log", id)
	}
	if a := w.do("GET", "/healthz", "", "X-Request-Id", "mine-1"); a.header.Get("X-Request-Id") != "mine-1" {
		t.Error("the caller's request id is not kept")
	}
	if a := w.do("GET", "/healthz", "", "X-Request-Id", "bad id"); a.header.Get("X-Request-Id") == "bad id" {
		t.Error("a bad request id is kept")
	}
	if strings.Contains(w.log.String(), "Bearer") {
		t.Error("a credential is in the log")
	}
}

func TestSecurityHeaders(t *testing.T) {
	w := start(t, &fake{})
	for _, path := range []string{"/v1/sandboxes/" + testID, "/nope", "/healthz"} {
		a := w.do("GET", path, "")
		if a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, a.header)
		}
	}
}

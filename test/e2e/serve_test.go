package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEmberd makes emberd's three calls with the curl people have.
func TestEmberd(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	for name, prefix := range map[string][]string{
		"key over TCP": {"-H", "Authorization: Bearer " + s.key, s.url},
		"local socket": {"--unix-socket", s.socket, "http://localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			flags, base := prefix[:len(prefix)-1], prefix[len(prefix)-1]
			call := func(args ...string) string { return curl(t, append(append([]string{}, flags...), args...)...) }
			var sb struct{ ID string }
			if out := call("-X", "POST", base+"/sandboxes"); json.Unmarshal([]byte(out), &sb) != nil || sb.ID == "" {
				t.Fatalf("create: %s", out)
			}
			// -d sends application/x-www-form-urlencoded, as in emberd's README.
			out := call("-X", "POST", base+"/sandboxes/"+sb.ID+"/exec", "-d", `{"code":"print(6*7)"}`)
			var res struct {
				Stdout, Stderr string
				ExitCode       int     `json:"exit_code"`
				Duration       float64 `json:"duration_ms"`
			}
			if err := json.Unmarshal([]byte(out), &res); err != nil || res.Stdout != "42\n" || res.Stderr != "" || res.ExitCode != 0 || res.Duration <= 0 {
				t.Errorf("exec: %s", out)
			}
			out = call("-X", "POST", base+"/sandboxes/"+sb.ID+"/exec", "-d", `{"code":"echo $0; exit 3","language_pack":"shell"}`)
			mustContain(t, "shell exec", out, `"exit_code":3`)
			out = call("-o", "/dev/stdout", "-w", "%{http_code}", "-X", "DELETE", base+"/sandboxes/"+sb.ID)
			if out != "204" {
				t.Errorf("delete: %q, want 204 and no body", out)
			}
		})
	}
}

// TestExecRightAfterCreate is emberd's boot race, which must never come back.
func TestExecRightAfterCreate(t *testing.T) {
	s := newWorld(t).serve()
	for range 10 {
		code, body, _ := s.do("POST", "/v1/sandboxes", "")
		var sb struct{ ID string }
		if json.Unmarshal([]byte(body), &sb); code != 201 {
			t.Fatalf("create: %d %s", code, body)
		}
		if code, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"command":"true"}`); code != 200 || !strings.Contains(body, `"exit_code":0`) {
			t.Fatalf("exec right after create: %d %s", code, body)
		}
		code, first, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, "")
		if code != 200 || !strings.Contains(first, `"clean":true`) {
			t.Errorf("destroy: %d %s", code, first)
		}
		if code, again, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); code != 200 || again != first {
			t.Errorf("destroy again: %d\n%s\nwant\n%s", code, again, first)
		}
		if code, body, _ := s.do("GET", "/v1/sandboxes/"+sb.ID, ""); code != 200 || !strings.Contains(body, `"state":"ended"`) {
			t.Errorf("get after death: %d %s", code, body)
		}
		if code, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"command":"true"}`); code != 410 || !strings.Contains(body, `"kind":"gone"`) {
			t.Errorf("exec after death: %d %s", code, body)
		}
	}
}

// TestFreshInterpreter: no name survives from one exec to the next.
func TestFreshInterpreter(t *testing.T) {
	s := newWorld(t).serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", "")
	var sb struct{ ID string }
	json.Unmarshal([]byte(body), &sb)
	s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"code":"x = 1; open('kept','w').write('y')"}`)
	_, body, _ = s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"code":"print('x' in globals(), open('kept').read())"}`)
	mustContain(t, "second exec", body, `"stdout":"False y\n"`)
}

// TestBadInput: every mistake gets the right status, a kind and a hint.
func TestBadInput(t *testing.T) {
	s := newWorld(t).serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", "")
	var sb struct{ ID string }
	json.Unmarshal([]byte(body), &sb)
	exec := "/v1/sandboxes/" + sb.ID + "/exec"
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		code                     int
		kind                     string
	}{
		{"unknown field", "POST", "/v1/sandboxes", `{"tempalte":"host"}`, nil, 400, "invalid"},
		{"not JSON", "POST", "/v1/sandboxes", `{"template":`, nil, 400, "invalid"},
		{"wrong type", "POST", "/v1/sandboxes", `{"template":7}`, nil, 400, "invalid"},
		{"absurd memory", "POST", "/v1/sandboxes", `{"limits":{"memory_bytes":9000000000000000}}`, nil, 400, "invalid"},
		{"tiny memory", "POST", "/v1/sandboxes", `{"limits":{"memory_bytes":5}}`, nil, 400, "invalid"},
		{"negative pids", "POST", "/v1/sandboxes", `{"limits":{"pids":-1}}`, nil, 400, "invalid"},
		{"missing template", "POST", "/v1/sandboxes", `{"template":"no-such"}`, nil, 404, "not_found"},
		{"unknown backend", "POST", "/v1/sandboxes", `{"backend":"chroot"}`, nil, 400, "invalid"},
		{"stronger than there is", "POST", "/v1/sandboxes", `{"min_isolation":"confidential"}`, nil, 422, "unsupported"},
		{"10 MB JSON", "POST", exec, `{"code":"` + strings.Repeat("x", 10<<20) + `"}`, nil, 413, "too_large"},
		{"code and command", "POST", exec, `{"code":"1","command":"true"}`, nil, 400, "invalid"},
		{"neither", "POST", exec, `{}`, nil, 400, "invalid"},
		{"unknown pack", "POST", exec, `{"code":"1","language_pack":"cobol"}`, nil, 400, "invalid"},
		{"unknown id", "GET", "/v1/sandboxes/sbaaaaaaaaaaaaaaaaaa", "", nil, 404, "not_found"},
		{"odd id", "GET", "/v1/sandboxes/..%2f..%2fetc", "", nil, 404, "not_found"},
		{"unknown route", "GET", "/v1/sandboxen", "", nil, 404, "not_found"},
		{"wrong method", "PATCH", "/v1/sandboxes", "", nil, 405, "invalid"},
		{"wrong key", "GET", "/v1/sandboxes", "", []string{"Authorization", "Bearer fb_wrong"}, 401, "unauthenticated"},
		{"no key", "GET", "/v1/sandboxes", "", []string{"Authorization", ""}, 401, "unauthenticated"},
		{"missing file", "GET", "/v1/sandboxes/" + sb.ID + "/files?path=nope", "", nil, 404, "not_found"},
		{"no path", "GET", "/v1/sandboxes/" + sb.ID + "/files", "", nil, 400, "invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, body, _ := s.do(c.method, c.path, c.body, c.header...)
			var e struct {
				Error struct{ Kind, Message, Hint, Op, ID string }
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatalf("%d, not a typed error: %s", code, body)
			}
			if code != c.code || e.Error.Kind != c.kind {
				t.Errorf("%d %s, want %d %s: %s", code, e.Error.Kind, c.code, c.kind, body)
			}
			if e.Error.Message == "" || e.Error.Hint == "" {
				t.Errorf("message or hint is missing: %s", body)
			}
		})
	}
}

// TestSlowBody: a client that dribbles its request is cut off with an answer.
func TestSlowBody(t *testing.T) {
	s := newWorld(t).serve()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+s.key+"\r\nContent-Length: 100\r\n\r\n{")
	c.SetReadDeadline(time.Now().Add(45 * time.Second))
	start := time.Now()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer after %v: %v", time.Since(start), err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(body), `"kind":"timeout"`) {
		t.Errorf("%s: %s", resp.Status, body)
	}
}

func TestIdempotencyKey(t *testing.T) {
	s := newWorld(t).serve()
	code, first, _ := s.do("POST", "/v1/sandboxes", `{"metadata":{"a":"b"}}`, "Idempotency-Key", "k1")
	if code != 201 {
		t.Fatalf("%d %s", code, first)
	}
	var a, b struct{ ID string }
	json.Unmarshal([]byte(first), &a)
	_, second, _ := s.do("POST", "/v1/sandboxes", `{"metadata":{"a":"b"}}`, "Idempotency-Key", "k1")
	if json.Unmarshal([]byte(second), &b); a.ID == "" || a.ID != b.ID {
		t.Errorf("%q and %q are not the same sandbox", a.ID, b.ID)
	}
	if code, body, _ := s.do("POST", "/v1/sandboxes", `{"metadata":{"a":"c"}}`, "Idempotency-Key", "k1"); code != 409 || !strings.Contains(body, `"kind":"conflict"`) {
		t.Errorf("another body under the same key: %d %s", code, body)
	}
}

// TestFiles: raw bodies in and out, ranges, and the typed errors of paths.
func TestFiles(t *testing.T) {
	s := newWorld(t).serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", "")
	var sb struct{ ID string }
	json.Unmarshal([]byte(body), &sb)
	files := "/v1/sandboxes/" + sb.ID + "/files"
	data := strings.Repeat("0123456789abcdef", 1<<16)
	if code, body, _ := s.do("PUT", files+"?path=d/e/f.bin", data); code != 200 && code != 201 {
		t.Fatalf("write: %d %s", code, body)
	}
	if code, got, _ := s.do("GET", files+"?path=d/e/f.bin", ""); code != 200 || got != data {
		t.Errorf("read: %d, %d bytes", code, len(got))
	}
	if code, got, _ := s.do("GET", files+"?path=/home/user/d/e/f.bin", "", "Range", "bytes=10-15"); code != 206 || got != data[10:16] {
		t.Errorf("range: %d %q", code, got)
	}
	_, body, _ = s.do("GET", files+"/list?path=d&depth=2", "")
	mustContain(t, "list", body, `"f.bin"`, `"type":"directory"`)
	if code, body, _ := s.do("POST", files+"/move", `{"from":"d/e/f.bin","to":"g.bin"}`); code != 200 {
		t.Errorf("move: %d %s", code, body)
	}
	if code, body, _ := s.do("DELETE", files+"?path=d", ""); code/100 == 2 {
		t.Errorf("a full directory was removed without recursive: %s", body)
	}
	if code, body, _ := s.do("DELETE", files+"?path=d&recursive=true", ""); code/100 != 2 {
		t.Errorf("remove: %d %s", code, body)
	}
	if code, body, _ := s.do("PUT", files+"?path=/usr/bin/evil", "x"); code != 403 || !strings.Contains(body, `"kind":"denied"`) {
		t.Errorf("write outside the user's reach: %d %s", code, body)
	}
	if code, body, _ := s.do("GET", files+"?path=../../../../etc/shadow", ""); code == 200 {
		t.Errorf("the guest has a shadow file? %s", body)
	}
}

// TestEvents: server-sent events replay from Last-Event-ID.
func TestEvents(t *testing.T) {
	s := newWorld(t).serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", "")
	var sb struct{ ID string }
	json.Unmarshal([]byte(body), &sb)
	s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"code":"print('seen')"}`)
	s.do("DELETE", "/v1/sandboxes/"+sb.ID, "")
	code, all, h := s.do("GET", "/v1/sandboxes/"+sb.ID+"/events", "", "Accept", "text/event-stream")
	if code != 200 || !strings.HasPrefix(h.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("%d %v", code, h)
	}
	mustContain(t, "events", all, "id: 1\n", "seen", `"running"`, `"ended"`)
	_, rest, _ := s.do("GET", "/v1/sandboxes/"+sb.ID+"/events", "", "Accept", "text/event-stream", "Last-Event-ID", "1")
	if strings.Contains(rest, "id: 1\n") || !strings.Contains(rest, "id: 2\n") {
		t.Errorf("Last-Event-ID was not honoured:\n%s", rest)
	}
}

// TestLiveExec: with server-sent events, output arrives while the program runs.
func TestLiveExec(t *testing.T) {
	s := newWorld(t).serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", "")
	var sb struct{ ID string }
	json.Unmarshal([]byte(body), &sb)
	req, _ := http.NewRequest("POST", s.url+"/v1/sandboxes/"+sb.ID+"/exec", strings.NewReader(`{"command":"sh","args":["-c","echo first; sleep 3; echo second"]}`))
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Accept", "text/event-stream")
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var first time.Duration
	var text strings.Builder
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if first == 0 && strings.Contains(lines.Text(), "first") {
			first = time.Since(start)
		}
		text.WriteString(lines.Text() + "\n")
	}
	if first == 0 || first > 2500*time.Millisecond {
		t.Errorf("the first line came after %v", first)
	}
	mustContain(t, "stream", text.String(), "event: started", "event: stdout", "second", "event: exit", `"exit_code":0`)
}

func TestMetricsAndDocuments(t *testing.T) {
	s := newWorld(t).serve()
	for path, want := range map[string]string{
		"/healthz": "", "/readyz": "", "/metrics": "firebreak_", "/openapi.json": `"/v1/sandboxes/{id}/exec"`,
		"/v1/backends": `"gvisor"`, "/v1/templates": `"host"`, "/v1/version": `"version"`,
	} {
		code, body, _ := s.do("GET", path, "")
		if code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
		mustContain(t, path, body, want)
	}
}

// TestMetrics: what a sandbox used is told while it lives and after its end.
func TestMetrics(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	code, body, _ := s.do("POST", "/v1/sandboxes", "{}")
	var sb struct{ ID string }
	if err := json.Unmarshal([]byte(body), &sb); err != nil || code != 201 {
		t.Fatalf("create: %d %s", code, body)
	}
	s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"code":"open('f','wb').write(b'x'*(8<<20))\nimport time\ne=time.process_time()+.3\nwhile time.process_time()<e: pass"}`)
	type sample struct {
		CPUMs       float64 `json:"cpu_ms"`
		MemoryBytes int64   `json:"memory_bytes"`
		DiskBytes   int64   `json:"disk_bytes"`
		PIDs        int64
	}
	type metrics struct {
		Samples    []sample
		IntervalMs int64 `json:"interval_ms"`
	}
	check := func(when string) {
		t.Helper()
		var m metrics
		code, body, _ := s.do("GET", "/v1/sandboxes/"+sb.ID+"/metrics", "")
		if err := json.Unmarshal([]byte(body), &m); err != nil || code != 200 || len(m.Samples) == 0 || m.IntervalMs != 5000 {
			t.Fatalf("%s: %d %s", when, code, body)
		}
		if last := m.Samples[len(m.Samples)-1]; last.CPUMs < 300 {
			t.Errorf("%s: %+v", when, last)
		}
		alive := slices.ContainsFunc(m.Samples, func(s sample) bool { return s.MemoryBytes > 1<<20 && s.DiskBytes >= 8<<20 && s.PIDs > 0 })
		if !alive {
			t.Errorf("%s: %+v", when, m.Samples)
		}
	}
	time.Sleep(1100 * time.Millisecond) // use is measured at most once a second
	check("alive")
	if code, body, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); code != 200 {
		t.Fatal(body)
	}
	check("after its end")
}

// TestPortForward reaches a server in a sandbox that has no network, by the
// command people use, and not one that is not there.
func TestPortForward(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	code, body, _ := s.do("POST", "/v1/sandboxes", "{}")
	var sb struct{ ID string }
	if err := json.Unmarshal([]byte(body), &sb); err != nil || code != 201 {
		t.Fatalf("create: %d %s", code, body)
	}
	s.do("PUT", "/v1/sandboxes/"+sb.ID+"/files?path=index.html", "from inside")
	if code, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/processes", `{"command":"python3","args":["-m","http.server","8000","--bind","127.0.0.1"]}`); code != 201 {
		t.Fatal(body)
	}
	// One that answers what it was told once its caller has said all, and one that says
	// all at once and then listens.
	s.do("PUT", "/v1/sandboxes/"+sb.ID+"/files?path=half.py", `import socket, threading
def last(c):
    told = b"".join(iter(lambda: c.recv(4096), b""))
    c.sendall(b"heard " + told)
    c.close()
def first(c):
    c.sendall(b"all")
    c.shutdown(socket.SHUT_WR)
    told = b"".join(iter(lambda: c.recv(4096), b""))
    open("told", "wb").write(told)
for port, answer in ((8002, last), (8003, first)):
    s = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=lambda s=s, answer=answer: [threading.Thread(target=answer, args=s.accept()[:1]).start() for _ in iter(int, 1)]).start()
open("up", "w").close()
`)
	if code, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/processes", `{"command":"python3","args":["half.py"]}`); code != 201 {
		t.Fatal(body)
	}
	cmd := w.command("port-forward", sb.ID, "0:8000", "0:8001", "0:8002", "0:8003")
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(said)
	var addr [4]string
	for i := range addr {
		if !lines.Scan() {
			t.Fatal("port-forward says nothing")
		}
		fields := strings.Fields(lines.Text()) // firebreak: ADDR reaches …
		addr[i] = fields[1]
	}
	get := func(addr string) (string, error) {
		res, err := http.Get("http://" + addr + "/index.html")
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return string(b), err
	}
	var got string
	for end := time.Now().Add(time.Minute); got == "" && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		got, err = get(addr[0])
	}
	if got != "from inside" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err := get(addr[1]); err == nil {
		t.Errorf("nothing listens there, and yet: %q", got)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if code, _, _ := s.do("GET", "/v1/sandboxes/"+sb.ID+"/files/stat?path=up", ""); code == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("half.py does not serve")
		}
	}
	talk := func(addr, say, want string) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if say == "" { // it talks first; its end is not the end of the connection
			if b, err := io.ReadAll(c); string(b) != want || err != nil {
				t.Errorf("%q, %v", b, err)
			}
			say = "after its end"
		}
		if _, err := io.WriteString(c, say); err != nil {
			t.Error(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(c); err != nil || say != "after its end" && string(b) != want {
			t.Errorf("%q, %v", b, err)
		}
	}
	talk(addr[2], "my words", "heard my words")
	talk(addr[3], "", "all")
	var told string
	for end := time.Now().Add(time.Minute); told != "after its end" && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		_, told, _ = s.do("GET", "/v1/sandboxes/"+sb.ID+"/files?path=told", "")
	}
	if told != "after its end" {
		t.Errorf("what was said after the server's end: %q", told)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines.Scan() {
			continue
		}
	}()
	_ = cmd.Wait()
	if code, body, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); code != 200 || !strings.Contains(body, `"clean":true`) {
		t.Errorf("%d %s", code, body)
	}
}

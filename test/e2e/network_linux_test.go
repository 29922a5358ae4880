package e2e

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// on makes the world's commands run on a machine of a test's internet, which trusts
// that's authority.
func (w *world) on(t *testing.T, n *internet.Internet) *world {
	t.Helper()
	enforcing(t)
	w.begin = n.Start
	w.env = append(w.env, "SSL_CERT_FILE="+n.Authority.File)
	w.transport = n.Transport()
	t.Cleanup(w.transport.CloseIdleConnections)
	return w
}

// flow is what a report says of something that was wanted.
type flow struct {
	Host, Decision, Rule, Reason, Hint, Kind string
	Port                                     int
	Count                                    int64
	Upload                                   int64 `json:"upload_bytes"`
	Download                                 int64 `json:"download_bytes"`
}

// ran is what `run --json` prints of a run with a network.
type ran struct {
	Stdout, Stderr, Reason string
	Sandbox                string `json:"sandbox_id"`
	ExitCode               int    `json:"exit_code"`
	Egress                 []flow
	Receipt                struct{ Clean bool }
}

// TestNetworkRun: a run in which everything is wanted, without a server: what no
// rule allows sends nothing, not a query, and says how to permit it.
func TestNetworkRun(t *testing.T) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	site, other := n.Site("api.example", internet.Reached), n.Site("other.example", internet.Reached)
	n.Names.Set("*.tunnel.example", "txt:answer", "5.5.5.5")
	script := `curl -sS -m 10 -k https://api.example/ && curl -sS -m 10 -k https://other.example/; curl -sS -m 10 http://api.example/; curl -sS -m 10 -k https://1.2.3.4/
/usr/bin/python3 -c "import socket; socket.getaddrinfo('what-was-found.tunnel.example', 443)" 2>/dev/null; exit 7`
	before := n.Sink.Counts(t)
	r := w.run("", "run", "--json", "--allow", "api.example", "--", "sh", "-c", script)
	var out ran
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != 7 || !strings.Contains(out.Stdout, "reached "+site.String()) || strings.Count(out.Stdout, "reached") != 1 {
		t.Fatalf("%v: %+v", err, r)
	}
	for _, want := range []struct {
		host     string
		port     int
		decision string
	}{{"api.example", 443, "allow"}, {"api.example", 80, "deny"}, {"1.2.3.4", 443, "deny"}, {"other.example", 0, "deny"}, {"what-was-found.tunnel.example", 0, "deny"}} {
		if !slices.ContainsFunc(out.Egress, func(f flow) bool {
			return f.Host == want.host && f.Port == want.port && f.Decision == want.decision && (f.Decision == "allow" || f.Hint != "" && f.Reason != "")
		}) {
			t.Errorf("the report lacks %+v: %+v", want, out.Egress)
		}
	}
	sent := n.Sink.Counts(t).Since(before)
	if to := sent.To(other, netip.MustParseAddr("1.2.3.4")).Total(); to.Packets != 0 {
		t.Errorf("what is denied got %d bytes: %v", to.Bytes, sent)
	}
	for f := range sent {
		if asks := f.To.Port() == 53 && slices.Contains(internet.NameServers(), f.To.Addr()); !asks && f.To != netip.AddrPortFrom(site, 443) {
			t.Errorf("packets went to %v", f)
		}
	}
	for _, q := range n.Names.Queries() {
		if !strings.EqualFold(q.Name, "api.example") {
			t.Errorf("a name server was asked %+v", q)
		}
	}
	// For people: why, and what to type.
	r = w.run("", "run", "--allow", "api.example", "--", "curl", "-sS", "-m", "10", "-k", "https://other.example/")
	if r.code == 0 || !strings.Contains(r.stderr, "--allow other.example") {
		t.Errorf("the hint is missing: %+v", r)
	}
	if r := w.run("", "run", "--allow", "api.example", "--allow", "other.example", "--", "curl", "-sS", "-m", "10", "-k", "https://other.example/"); r.code != 0 || !strings.Contains(r.stdout, "reached "+other.String()) {
		t.Errorf("with what the hint says: %+v", r)
	}
	// Without rules there is no device at all.
	if r := w.run("", "run", "--", "sh", "-c", "ls /sys/class/net; curl -sS -m 5 -k https://api.example/"); r.code == 0 || strings.Contains(r.stdout, "eth0") {
		t.Errorf("a sandbox without rules: %+v", r)
	}
}

// TestNetworkRaw: protocols that are neither TLS nor HTTP, and servers that speak
// first, where a policy says so; and a policy that changes ends what it no longer
// allows.
func TestNetworkRaw(t *testing.T) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	n.Site("ftp.example", internet.Reached)
	s := w.serve()
	doc, _ := json.Marshal(map[string]any{"network": map[string]string{"document": "allow: [{host: ftp.example, ports: [7, 21], protocol: tcp}]"}})
	status, body, _ := s.do("POST", "/v1/sandboxes", string(doc))
	var sb struct{ ID string }
	if err := json.Unmarshal([]byte(body), &sb); err != nil || status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	talk := `import socket, sys
s = socket.create_connection(('ftp.example', 21), 20)
print(s.recv(100), flush=True)
e = socket.create_connection(('ftp.example', 7), 20)
for size in (1, 1000, 300000):
    e.sendall(b'x' * size)
    got = 0
    while got < size:
        got += len(e.recv(65536))
    print('echo', got, flush=True)
s.settimeout(60)
print('end', s.recv(100), flush=True)`
	done := make(chan string, 1)
	go func() {
		cmd, _ := json.Marshal(map[string]any{"command": "python3", "args": []string{"-c", talk}, "timeout_ms": 90_000})
		_, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", string(cmd))
		done <- body
	}()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, body, _ := s.do("GET", "/v1/sandboxes/"+sb.ID+"/events?no_follow=true", "")
		if strings.Contains(body, "echo 300000") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no echo: %s", body)
		}
	}
	status, body, _ = s.do("PUT", "/v1/sandboxes/"+sb.ID+"/network", `{"allow":["api.example"]}`)
	var update struct {
		Closed int64 `json:"closed_connections"`
	}
	if err := json.Unmarshal([]byte(body), &update); err != nil || status != http.StatusOK || update.Closed != 2 {
		t.Errorf("update: %d %s", status, body)
	}
	got := <-done
	mustContain(t, "the program", got, "220 reached", "echo 300000")
	if !strings.Contains(got, "ConnectionReset") && !strings.Contains(got, "end b''") {
		t.Errorf("its connection outlived its rule: %s", got)
	}
	if status, body, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); status != http.StatusOK || !strings.Contains(body, `"clean":true`) {
		t.Errorf("%d %s", status, body)
	}
}

// reach asks from a sandbox for a page of an allowed host; ok if it came.
func (s *server) reach(id string) (said string, ok bool) {
	cmd, _ := json.Marshal(map[string]any{"command": "curl", "args": []string{"-sS", "-k", "-m", "5", "https://api.example/"}, "timeout_ms": 20_000})
	_, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/exec", string(cmd))
	return body, strings.Contains(body, "reached 151.101.")
}

// networked makes a sandbox that may reach api.example, and has.
func (s *server) networked(t *testing.T) (id string) {
	t.Helper()
	status, body, _ := s.do("POST", "/v1/sandboxes", `{"network":{"allow":["api.example"]}}`)
	var sb struct{ ID string }
	if err := json.Unmarshal([]byte(body), &sb); err != nil || status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	if said, ok := s.reach(sb.ID); !ok {
		t.Fatalf("the allowed host is not reached: %s", said)
	}
	return sb.ID
}

// eventually waits until the sandbox reaches the allowed host.
func (s *server) eventually(t *testing.T, id string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		said, ok := s.reach(id)
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the allowed host is not reached again: %s", said)
		}
	}
}

// denied asks for what no rule allows, by every way there is, and sees nothing of
// it outside.
func (s *server) denied(t *testing.T, n *internet.Internet, id string, allowed netip.Addr) {
	t.Helper()
	before, asked := n.Sink.Counts(t), len(n.Names.Queries())
	script := "curl -sS -k -m 3 https://93.184.1.1/; curl -sS -k -m 3 https://other.example/; curl -sS -m 3 http://169.254.169.254/; true"
	cmd, _ := json.Marshal(map[string]any{"command": "sh", "args": []string{"-c", script}, "timeout_ms": 30_000})
	if _, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/exec", string(cmd)); strings.Contains(body, "reached") || strings.Contains(body, "Secret") || !strings.Contains(body, "curl: (") {
		t.Errorf("what no rule allows: %s", body)
	}
	if sent := n.Sink.Counts(t).Since(before).Without(allowed); sent.Total().Packets != 0 { // whose connections may still end
		t.Errorf("what no rule allows was sent: %v", sent)
	}
	if q := n.Names.Queries()[asked:]; len(q) != 0 {
		t.Errorf("a name server was asked: %+v", q)
	}
}

// TestNetworkRouterKilled: the router is killed, again and again. Each time another
// one serves the same sandboxes, and none lets anything through that rules do not
// allow.
func TestNetworkRouterKilled(t *testing.T) {
	n := internet.New(t)
	allowed := n.Site("api.example", internet.Reached)
	n.Site("other.example", internet.Reached)
	s := newWorld(t).on(t, n).serve()
	ids := []string{s.networked(t), s.networked(t)}
	for range 3 {
		before := internet.Routers(s.cmd.Process.Pid)
		if len(before) != 1 {
			t.Fatalf("the server has the routers %v", before)
		}
		if err := syscall.Kill(before[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.denied(t, n, ids[0], allowed)
		for _, id := range ids {
			s.eventually(t, id)
		}
		if after := internet.Routers(s.cmd.Process.Pid); len(after) != 1 || after[0] == before[0] {
			t.Errorf("the routers are %v, they were %v", after, before)
		}
		s.denied(t, n, ids[1], allowed)
	}
	for _, id := range ids {
		if status, body, _ := s.do("DELETE", "/v1/sandboxes/"+id, ""); status != http.StatusOK || !strings.Contains(body, `"clean":true`) {
			t.Errorf("%d %s", status, body)
		}
	}
}

// TestNetworkServerKilled: a server is killed. No router outlives it, nothing leaves
// its sandboxes, and the next server gives them back what their rules allow.
func TestNetworkServerKilled(t *testing.T) {
	n := internet.New(t)
	n.Site("api.example", internet.Reached)
	n.Site("other.example", internet.Reached)
	w := newWorld(t).on(t, n)
	s := w.serve("--stop-sandboxes=false")
	id := s.networked(t)
	loop, _ := json.Marshal(map[string]any{"command": "sh", "args": []string{"-c", "while true; do curl -s -k -m 1 https://93.184.1.1/; curl -s -k -m 1 https://other.example/; curl -s -k -m 1 https://api.example/; done"}, "tag": "loop"})
	if status, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/processes", string(loop)); status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	routers := internet.Routers(s.cmd.Process.Pid)
	if len(routers) != 1 {
		t.Fatalf("the server has the routers %v", routers)
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	for end := time.Now().Add(30 * time.Second); syscall.Kill(routers[0], 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the router outlives its server")
		}
	}
	before := n.Sink.Counts(t)
	time.Sleep(time.Second) // of a program that tries without a pause
	if sent := n.Sink.Counts(t).Since(before); sent.Total().Packets != 0 {
		t.Errorf("without a router there was sent %v", sent)
	}
	w.transport.CloseIdleConnections()
	s = w.serve()
	s.eventually(t, id)
	if status, body, _ := s.do("DELETE", "/v1/sandboxes/"+id+"/processes/loop", ""); status/100 != 2 {
		t.Logf("stop the loop: %d %s", status, body)
	}
	for _, r := range n.Requests() {
		if r.Host != "api.example" {
			t.Errorf("a request got out: %+v", r)
		}
	}
	if status, body, _ := s.do("DELETE", "/v1/sandboxes/"+id, ""); status != http.StatusOK || !strings.Contains(body, `"clean":true`) {
		t.Errorf("%d %s", status, body)
	}
}

// TestNetworkRunKilled: a run without a server is killed while its program tries to
// get out. Nothing gets out after it, and the next run removes what it has left.
func TestNetworkRunKilled(t *testing.T) {
	n := internet.New(t)
	n.Site("api.example", internet.Reached)
	w := newWorld(t).on(t, n)
	cmd := w.command("run", "--timeout", "100s", "--allow", "api.example", "--", "sh", "-c", "while true; do curl -s -k -m 2 https://api.example/; curl -s -k -m 1 https://93.184.1.1/; done")
	if err := w.start(cmd); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); len(n.Requests()) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the program never reached the allowed host")
		}
	}
	routers := internet.Routers(cmd.Process.Pid)
	if len(routers) != 1 {
		t.Errorf("the run has the routers %v", routers)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range routers {
		for end := time.Now().Add(30 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the router outlives its run")
			}
		}
	}
	before := n.Sink.Counts(t)
	if r := w.run("", "run", "--", "true"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if sent := n.Sink.Counts(t).Since(before); sent.Total().Packets != 0 {
		t.Errorf("after its end there was sent %v", sent)
	}
}

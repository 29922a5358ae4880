package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/roots"
)

// asks is Python that fetches each of its arguments, with the key in $VAULT_API_KEY,
// and says what came.
const asks = `import os, sys, urllib.request as u
for url in sys.argv[1:]:
    try:
        r = u.Request(url, headers={'Authorization': 'Bearer ' + os.environ.get('VAULT_API_KEY', '')} if 'vault' in url else {})
        print(u.urlopen(r, timeout=60).read().decode().strip(), flush=True)
    except Exception as e:
        print(url, 'fails:', e, flush=True)
`

// fetches runs asks in a sandbox.
func (s *server) fetches(t *testing.T, id string, urls ...string) string {
	t.Helper()
	cmd, _ := json.Marshal(map[string]any{"command": "python3", "args": append([]string{"-c", asks}, urls...), "timeout_ms": 180_000})
	_, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/exec", string(cmd))
	return body
}

// TestMicroVMNetwork: what is promised of a sandbox's network holds for one with a
// kernel of its own: what a rule allows is reached, over HTTP and TLS that is looked
// into, and nothing else; a placeholder means a secret at its host; a server that
// dies, and a pause, leave it as it was.
func TestMicroVMNetwork(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("not run: there is no QEMU (apt-get install qemu-system-x86)")
	}
	if found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64"); len(found) == 0 {
		t.Skip("not run: there is no kernel to boot (apt-get install linux-image-cloud-amd64)")
	}
	w, v := bindingWorld(t)
	s := w.serve()
	w.must("", "template", "build", "small", "--dir", roots.Python(t))
	w.must(v.key, "secret", "set", "key")
	w.must("", "binding", "add", "vault", "--secret", "key", "--host", "api.vault.example", "--path", "/v1", "--placeholder", "VAULT_API_KEY")
	id := s.made(t, "/v1/sandboxes", `{"template":"small","backend":"microvm","limits":{"memory_bytes":268435456},"bindings":["vault"],`+
		`"network":{"allow":["other.example","other.example:80"]}}`)
	const allowed, denied = "https://other.example/", "https://denied.example/"
	said := s.fetches(t, id, allowed, "http://other.example/", denied, "http://1.2.3.4/", "https://api.vault.example/v1/python", "https://api.vault.example/v2/x", allowed+"vault")
	if strings.Count(said, "reached 151.101.") != 2 || strings.Count(said, "welcome") != 1 || strings.Count(said, "fails:") != 4 || strings.Contains(said, v.key) {
		t.Errorf("the sandbox fetches: %s", said)
	}
	if got, bad := v.took(); bad != 0 || !slices.Equal(got, []string{"GET /v1/python"}) {
		t.Errorf("the vault got %q, and %d requests without the key", got, bad)
	}
	_, events, _ := s.do("GET", "/v1/sandboxes/"+id+"/events?no_follow=true", "")
	mustContain(t, "the events", events, "denied.example", "1.2.3.4")
	if e := s.eval(t, id, "python", "import os, socket\nlistening = socket.create_server(('127.0.0.1', 0))\nsorted(os.listdir('/sys/class/net'))"); e.text() != "['eth0', 'lo']" {
		t.Errorf("eval: %+v", e)
	}

	// The server dies, and with it the router: the guest keeps its device.
	s.cmd.Process.Kill()
	s.cmd.Wait()
	w.transport.CloseIdleConnections()
	s = w.serve()
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(said, "again") || !strings.Contains(said, "reached"); {
		if said = s.fetches(t, id, allowed) + "again"; time.Now().After(end) {
			t.Fatalf("the allowed host is not reached again: %s", said)
		}
	}
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	if e := s.eval(t, id, "python", "c = socket.create_connection(listening.getsockname()); c.close(); 'it listens'"); e.text() != "'it listens'" {
		t.Errorf("after a pause: %+v", e)
	}
	if said := s.fetches(t, id, allowed, denied, "https://api.vault.example/v1/paused"); !strings.Contains(said, "reached") || !strings.Contains(said, "welcome") || strings.Count(said, "fails:") != 1 {
		t.Errorf("after a pause the sandbox fetches: %s", said)
	}
	// A copy has its rules, on a wire of its own, and another placeholder.
	s.must(t, "POST", "/v1/sandboxes/"+id+"/snapshots", `{"name":"wired"}`)
	copied := s.made(t, "/v1/sandboxes", `{"snapshot":"wired"}`)
	for _, each := range []string{copied, id} {
		if said := s.fetches(t, each, allowed, denied, "https://api.vault.example/v1/copied"); !strings.Contains(said, "reached") || !strings.Contains(said, "welcome") || strings.Count(said, "fails:") != 1 {
			t.Errorf("a copy, or the first, fetches: %s", said)
		}
	}
	s.must(t, "DELETE", "/v1/sandboxes/"+copied, "")
	s.must(t, "DELETE", "/v1/snapshots/wired", "")
	status, body, _ := s.do("DELETE", "/v1/sandboxes/"+id, "")
	if status != http.StatusOK || !strings.Contains(body, `"clean":true`) || !strings.Contains(body, `"vm0 in net:[`) {
		t.Errorf("destroy: %d %s", status, body)
	}
	if left, _ := os.ReadDir(filepath.Join(w.dir, "data/machines")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// One whole run, for people: why it failed, and what to type.
	r := w.run("", "run", "--backend", "microvm", "--template", "small", "--memory", "256MiB", "--allow", "other.example", "--", "python3", "-c", asks, allowed, denied)
	if !strings.Contains(r.stdout, "reached 151.101.") || !strings.Contains(r.stdout, denied+" fails:") || !strings.Contains(r.stderr, "--allow denied.example") {
		t.Errorf("run: %+v", r)
	}
	t.Logf("a run took %s", r.took.Round(time.Millisecond))
}

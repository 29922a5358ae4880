package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRestoreBeside: a server with a live sandbox is backed up and goes on; a
// second one, restored from that backup on the same machine, knows the sandbox's
// instance by name, and touches nothing of it, neither at its start nor when it
// goes, nor when it is uninstalled.
func TestRestoreBeside(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", `{"name":"web"}`)
	var sb struct{ ID string }
	if err := json.Unmarshal([]byte(body), &sb); err != nil || sb.ID == "" {
		t.Fatal(body)
	}
	works := func() {
		t.Helper()
		code, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"code":"print(6*7)"}`)
		if code != 200 || !strings.Contains(body, `"stdout":"42\n"`) {
			t.Fatalf("the original's sandbox: %d %s", code, body)
		}
	}
	works()
	outside := t.TempDir() // what is there is not this world's
	file := filepath.Join(outside, "b.fbk")
	if r := w.run("", "backup", file); r.code != 0 {
		t.Fatal(r.stderr)
	}
	other := *w
	other.dir = outside
	data := filepath.Join(outside, "data")
	other.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + outside, "TMPDIR=" + outside, "FIREBREAK_DATA=" + data, "FIREBREAK_SOCKET=" + filepath.Join(outside, "s.sock")}
	if r := other.run("", "restore", file); r.code != 0 || !strings.Contains(r.stdout, "1 sandboxes were alive") {
		t.Fatal(r.code, r.stdout, r.stderr)
	}
	key := s.key
	if err := os.WriteFile(filepath.Join(data, "api-key"), []byte(key+"\n"), 0o600); err != nil { // its owner has it
		t.Fatal(err)
	}
	o := other.serve()
	if code, body, _ := o.do("GET", "/v1/sandboxes/"+sb.ID, ""); code != 200 || !strings.Contains(body, `"state":"ended"`) || !strings.Contains(body, "lost") {
		t.Errorf("on the restored server: %d %s", code, body)
	}
	if code, body, _ := o.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); code != 200 {
		t.Errorf("destroyed there: %d %s", code, body)
	}
	works()
	_, body, _ = o.do("POST", "/v1/sandboxes", `{"name":"web"}`)
	if !strings.Contains(body, `"running"`) {
		t.Errorf("a new sandbox there: %s", body)
	}
	o.stop()
	works()
	if r := other.run("", "uninstall", "--yes"); r.code != 0 {
		t.Error(r.stderr)
	}
	works()
	if code, body, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); code != 200 || !strings.Contains(body, `"clean":true`) {
		t.Errorf("destroy: %d %s", code, body)
	}
}

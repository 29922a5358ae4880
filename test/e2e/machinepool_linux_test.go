package e2e

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/roots"
)

// promptly is how long a create and a first program may take in a machine that is ready:
// a boot, emulated, takes ten times that.
const promptly = 1500 * time.Millisecond

// TestMachinesReady: machines are kept ready like other sandboxes, each with an
// interpreter that waits; one is handed out without a boot, and none is left.
func TestMachinesReady(t *testing.T) {
	enforcing(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("not run: there is no QEMU (apt-get install qemu-system-x86)")
	}
	if found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64"); len(found) == 0 {
		t.Skip("not run: there is no kernel to boot (apt-get install linux-image-cloud-amd64)")
	}
	w := newWorld(t)
	if r := w.run("", "template", "build", "small", "--dir", roots.Python(t)); r.code != 0 {
		t.Fatalf("template: %+v", r)
	}
	w.env = append(w.env, "FIREBREAK_BACKEND=microvm", "FIREBREAK_TEMPLATE=small", "FIREBREAK_POOL_MACHINES=1", "FIREBREAK_POOL_MAX=1")
	s := w.serve()
	shelf := func() (c struct {
		Backend             string
		Ready, Hits, Misses int
	}) {
		t.Helper()
		var list struct {
			Shelves []json.RawMessage
		}
		if err := json.Unmarshal([]byte(s.must(t, "GET", "/v1/pool", "")), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Shelves) > 0 {
			if err := json.Unmarshal(list.Shelves[0], &c); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	for end := time.Now().Add(2 * time.Minute); shelf().Ready == 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no machine is ready: %s", s.must(t, "GET", "/v1/pool", ""))
		}
	}
	began := time.Now()
	id := s.made(t, "/v1/sandboxes", `{}`)
	if out := s.stdout(t, id, "import os\nprint(os.uname().nodename)"); out != id+"\n" {
		t.Errorf("its name is %q, not %s", out, id)
	}
	took := time.Since(began)
	if c := shelf(); c.Backend != "microvm" || c.Hits != 1 || c.Misses != 0 {
		t.Errorf("the pool says %+v", c)
	}
	if t.Logf("a machine that was ready, and its first program: %s", took.Round(time.Millisecond)); took > promptly {
		t.Errorf("it took %s", took)
	}
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
	s.must(t, "DELETE", "/v1/pool", "")
}

package e2b

import (
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMachine: E2B's SDK has what it has everywhere where a sandbox is a virtual machine,
// emulated or not: commands, files, watches, terminals, interpreters, pauses; and all of it
// is evidence. The whole of these tests is run so by FIREBREAK_TEST_BACKEND=microvm.
func TestMachine(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("not run: there is no QEMU (apt-get install qemu-system-x86)")
	}
	if found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64"); len(found) == 0 {
		t.Skip("not run: there is no kernel to boot (apt-get install linux-image-cloud-amd64)")
	}
	s := serveIn(t, place{backend: "microvm"})
	s.steps(t, s.python(t, "machine.py")...)

	req, err := http.NewRequest("GET", s.api+"/v1/audit/entries?page_size=500", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(s.run(nil, s.bin, "key", "create", "--role", "admin")))
	resp, err := s.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %v %.300s", resp.StatusCode, err, body)
	}
	for _, action := range []string{"sandbox.create", "process.exec", "process.resize", "file.write", "file.read", "sandbox.pause", "sandbox.resume", "sandbox.destroy", "sandbox.receipt"} {
		if !strings.Contains(string(body), `"`+action+`"`) {
			t.Errorf("no record of %s", action)
		}
	}
	if out := s.run(nil, s.bin, "audit", "verify"); !strings.Contains(out, "signed") {
		t.Errorf("the log: %s", out)
	}
}

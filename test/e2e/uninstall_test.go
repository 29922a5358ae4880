package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestUninstallKilled: with a sandbox that outlived its server, uninstall is
// killed on its way and repeated. Nothing is left on the host, and in the data
// directory only the evidence, which has the sandbox's receipt.
func TestUninstallKilled(t *testing.T) {
	for _, point := range []string{"end/after-destroy", "uninstall/after-part", "uninstall/after-part:6"} {
		t.Run(strings.ReplaceAll(point, "/", "-"), func(t *testing.T) {
			w := newWorld(t)
			s := w.serve("--stop-sandboxes=false")
			_, body, _ := s.do("POST", "/v1/sandboxes", "")
			var sb struct {
				ID       string
				Instance string `json:"instance_id"`
			}
			if err := json.Unmarshal([]byte(body), &sb); err != nil || sb.ID == "" {
				t.Fatal(body)
			}
			if r := w.run("", "uninstall", "--yes"); r.code != 1 || !strings.Contains(r.stderr, "stop the server") {
				t.Errorf("beside its server: %d %s", r.code, r.stderr)
			}
			s.stop()
			cmd := exec.Command(w.bin, "uninstall", "--yes")
			cmd.Env = append(w.env, failpoint.Env+"="+point)
			if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.ExitCode() != -1 {
				t.Errorf("it was not killed: %v\n%s", err, out)
			}
			if r := w.run("", "uninstall", "--yes"); r.code != 0 {
				t.Fatalf("%d %s", r.code, r.stderr)
			}
			data := filepath.Join(w.dir, "data")
			var left []string
			entries, err := os.ReadDir(data)
			for _, e := range entries {
				left = append(left, e.Name())
			}
			if err != nil || !slices.Equal(left, []string{"audit"}) {
				t.Errorf("left: %v, %v", left, err)
			}
			receipts := 0
			for e, err := range audit.Scan(filepath.Join(data, "audit", "server"), 1) {
				if err != nil {
					t.Fatal(err)
				}
				if r := e.Record; r.Sandbox == sandbox.ID(sb.ID) && r.Action == "sandbox.receipt" && r.Outcome == sandbox.OutcomeDone {
					receipts++
				}
			}
			if receipts == 0 {
				t.Error("there is no receipt of the sandbox")
			}
		})
	}
}

package chaos

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestProcessOutlivesServers: a program in the background, its input, its
// name and its output go on over kills of the server; nothing is lost or twice,
// and its end can be asked for.
func TestProcessOutlivesServers(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	s := w.serve("")
	id := s.create()
	path := "/v1/sandboxes/" + id + "/processes"
	if status, r := s.do("POST", path, `{"code":"import sys\nfor l in sys.stdin:\n    print('got', l, end='', flush=True)\nprint('over')\nsys.exit(3)","tag":"echo","open_stdin":true}`); status != http.StatusCreated {
		t.Fatalf("%d %+v", status, r)
	}
	var want strings.Builder
	for i := range 4 {
		for k := range 5 {
			text := fmt.Sprintf("%d.%d\n", i, k)
			want.WriteString("got " + text)
			if status, r := s.do("POST", path+"/echo/stdin", fmt.Sprintf(`{"text":%q,"close":%v}`, text, i == 3 && k == 4)); status != http.StatusOK {
				t.Fatalf("%d %+v", status, r)
			}
		}
		s.cmd.Process.Kill()
		s.wait()
		s = w.serve("")
	}
	a := s.send("GET", path+"/echo?wait_ms=60000", "")
	var p struct {
		State string
		Exit  struct {
			ExitCode int `json:"exit_code"`
			Reason   string
		}
	}
	if err := json.Unmarshal(a.body, &p); err != nil || p.State != "ended" || p.Exit.ExitCode != 3 || p.Exit.Reason != "done" {
		t.Errorf("%v: %s", err, a.body)
	}
	cmd := w.command("attach", id, "echo")
	out, errs := &output{}, &output{}
	cmd.Stdout, cmd.Stderr = out, errs
	_ = cmd.Run()
	if cmd.ProcessState.ExitCode() != 3 || out.String() != want.String()+"over\n" || errs.String() != "" {
		t.Errorf("attach: %d %q %q", cmd.ProcessState.ExitCode(), out, errs)
	}
	s.execs(id)
	s.destroy(id)
	if n := w.seeDirs(filepath.Join(w.data, "processes")); n != 0 {
		t.Errorf("%d files are left in the journal", n)
	}
	s.stop()
}

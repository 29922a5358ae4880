package chaos

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExecOutlivesServers kills the server under `firebreak exec`, over and
// over: the program runs on, and what its caller gets is what it printed, once.
func TestExecOutlivesServers(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	s := w.serve("")
	id := s.create()
	// About four seconds of numbered lines, then more than a pipe holds at once.
	const program = `
import sys, time
for i in range(400):
    print(i, flush=True)
    time.sleep(0.01)
sys.stdout.write("x" * 3000000 + "\n")
print("problem", file=sys.stderr)
import firebreak
firebreak.result({"lines": 401})
sys.exit(7)`
	cmd := w.command("exec", "--timeout", "60s", id, "-c", program)
	out, errs := &output{}, &output{}
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kills := 0
	for seen := 0; kills < 3; kills++ {
		for deadline := time.Now().Add(30 * time.Second); strings.Count(out.String(), "\n") < seen+40; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no output goes on after %d kills: %d lines, %s\n%s", kills, strings.Count(out.String(), "\n"), errs, s.log)
			}
		}
		seen = strings.Count(out.String(), "\n")
		s.cmd.Process.Kill()
		s.wait()
		time.Sleep(100 * time.Millisecond)
		s = w.serve("")
	}
	err := cmd.Wait()
	var want bytes.Buffer
	for i := range 400 {
		fmt.Fprintln(&want, i)
	}
	want.WriteString(strings.Repeat("x", 3000000) + "\n")
	if got := out.String(); got != want.String() {
		t.Errorf("%d bytes came, of %d, or others", len(got), want.Len())
	}
	if cmd.ProcessState.ExitCode() != 7 || errs.String() != "problem\n" {
		t.Errorf("%v, %q", err, errs)
	}
	s.execs(id)
	s.destroy(id)
	if n := w.seeDirs(filepath.Join(w.data, "processes")); n != 0 {
		t.Errorf("%d files are left in the journal", n)
	}
	s.stop()
}

// TestRunOutlivesServers: a run goes on over kills and stops of its server, and
// ends with its result and its artifacts.
func TestRunOutlivesServers(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	s := w.serve("")
	status, r := s.do("POST", "/v1/runs", `{"program":{"code":"import time, firebreak\nfor i in range(30):\n    print(i, flush=True)\n    time.sleep(0.1)\nopen('a','w').write('kept')\nfirebreak.result({'n':30})"},"artifacts":["a"]}`)
	if status/100 != 2 {
		t.Fatalf("%d %+v", status, r)
	}
	for i := range 3 {
		time.Sleep(700 * time.Millisecond)
		if i == 1 {
			s.stop()
		} else {
			s.cmd.Process.Kill()
			s.wait()
		}
		s = w.serve("")
	}
	var got struct {
		State, Stdout, Reason string
		ExitCode              int `json:"exit_code"`
		Result                struct{ N int }
		Artifacts             []struct{ Path string }
		Receipt               struct{ Clean bool }
	}
	for deadline := time.Now().Add(30 * time.Second); got.State != "ended"; time.Sleep(50 * time.Millisecond) {
		if status := s.get("/v1/runs/"+r.ID, &got); status != http.StatusOK || time.Now().After(deadline) {
			t.Fatalf("%d %+v\n%s", status, got, s.log)
		}
	}
	var want strings.Builder
	for i := range 30 {
		fmt.Fprintln(&want, i)
	}
	if got.Stdout != want.String() || got.ExitCode != 0 || got.Reason != "done" || got.Result.N != 30 || len(got.Artifacts) != 1 || !got.Receipt.Clean {
		t.Errorf("%+v", got)
	}
	s.stop()
}

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// newRootlessWorld is a world of a user without any privilege and without a way
// to get one: this user, or one that root becomes.
func newRootlessWorld(t *testing.T) *world {
	t.Helper()
	bin := binary(t)
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("not run: no setpriv (apt-get install util-linux)")
	}
	dir, err := os.MkdirTemp("", "fb") // t.TempDir's parents are this user's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, bin: filepath.Join(dir, "firebreak"), dir: dir, as: []string{setpriv, "--no-new-privs"}, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir,
		"FIREBREAK_DATA=" + filepath.Join(dir, "data"), "FIREBREAK_SOCKET=" + filepath.Join(dir, "s.sock"),
	}}
	program, err := os.ReadFile(bin) // which may lie where only root may look
	if err == nil {
		err = os.WriteFile(w.bin, program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.see = checkResidue(t, dir)
	if os.Geteuid() == 0 {
		uid := fmt.Sprint(60000 + os.Getpid()%5000)
		w.as = append(w.as, "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
		if out, err := exec.Command("chown", "-R", uid+":"+uid, dir).CombinedOutput(); err != nil {
			t.Fatalf("chown: %v: %s", err, out)
		}
	}
	return w
}

// hostEnforced are the limits a host without cgroups for this user enforces.
var hostEnforced = map[string]bool{"memory_bytes": false, "cpus": false, "pids": false, "disk_bytes": true}

// checkRootlessLimits compares what a result says with what such a host does.
func checkRootlessLimits(t *testing.T, out runJSON) {
	t.Helper()
	for name, want := range hostEnforced {
		if l, ok := out.Limits[name]; !ok || l.Enforced != want || l.Value <= 0 {
			t.Errorf("limit %s: %+v, want enforced %v", name, l, want)
		}
	}
}

// TestRootless: everything a user without root or sudo can have, they have;
// what the host cannot enforce for them is refused when asked for, and reported
// when not.
func TestRootless(t *testing.T) {
	w := newRootlessWorld(t)
	if isDelegated(t, w) {
		t.Skip("not run: this user's cgroup is delegated, so that everything is enforced")
	}
	t.Run("Run", func(t *testing.T) {
		if out, r := w.runJSON("-c", "import os; print('hello from', os.getuid())"); r.code != 0 || out.Stdout != "hello from 1000\n" ||
			out.Reason != "done" || out.Backend != "gvisor" || out.Isolation != "user-kernel" || !out.Receipt.Clean {
			t.Errorf("code %d: %+v\n%s", r.code, out, r.stderr)
		} else {
			checkRootlessLimits(t, out)
		}
	})
	for flag, value := range map[string]string{"memory": "64MiB", "cpus": "0.5", "pids": "32"} {
		t.Run("Refused-"+flag, func(t *testing.T) {
			r := w.run("", "run", "--"+flag, value, "-c", "print('ran')")
			if r.code != 125 || r.stdout != "" {
				t.Errorf("code %d, stdout %q", r.code, r.stdout)
			}
			mustContain(t, "the refusal", r.stderr, "cannot enforce", "hint:", "--accept-weaker", "root")
		})
	}
	// Not enforced by the host is not unlimited: the agent inside ends programs.
	for _, c := range []struct {
		reason string
		code   int
		args   []string
	}{
		{"memory", 137, []string{"--accept-weaker", "--memory", "64MiB", "-c", "x = bytearray(10**9)"}},
		{"pids", 137, []string{"--accept-weaker", "--pids", "32", "-c", "import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)"}},
		{"timeout", 124, []string{"--timeout", "1s", "-c", "while True: pass"}},
		{"disk", 1, []string{"--disk", "32MiB", "-c", "f = open('fill', 'wb')\nwhile True: f.write(b'x' * 1048576)"}},
	} {
		t.Run("Limit-"+c.reason, func(t *testing.T) {
			out, r := w.runJSON(c.args...)
			if out.Reason != c.reason || r.code != c.code || !out.Receipt.Clean {
				t.Errorf("reason %q, code %d, want %d; receipt %+v\n%s", out.Reason, r.code, c.code, out.Receipt, r.stderr)
			}
			checkRootlessLimits(t, out)
		})
	}
	t.Run("Doctor", func(t *testing.T) {
		r := w.run("", "doctor")
		if r.code != 0 {
			t.Errorf("doctor: code %d\n%s", r.code, r.stderr)
		}
		mustContain(t, "doctor", r.stdout+r.stderr, "rootless", "not enforced by the host: memory, cpu, pids", "as root")
	})
	t.Run("Demo", func(t *testing.T) {
		checkDemo(t, w.run("", "demo", "--json"), false)
	})
}

// isDelegated asks the program whether this machine enforces memory for its user.
func isDelegated(t *testing.T, w *world) bool {
	t.Helper()
	out, r := w.runJSON("--", "true")
	if r.code != 0 {
		t.Fatalf("code %d\n%s", r.code, r.stderr)
	}
	return out.Limits["memory_bytes"].Enforced
}

// TestRootlessKilled: kill -9 in the middle of a run leaves a sandbox that the
// same user's next run removes.
func TestRootlessKilled(t *testing.T) {
	w := newRootlessWorld(t)
	cmd := w.command("run", "-c", "import time\nprint('up', flush=True)\ntime.sleep(600)")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	cmd.Process.Kill()
	cmd.Wait()
	if line != "up\n" {
		t.Fatalf("the run says %q, %v", line, err)
	}
	left, err := filepath.Glob(filepath.Join(w.dir, "data", "run", "*", "instances", "in*"))
	if err != nil || len(left) != 1 {
		t.Errorf("the killed run left %v, %v; want one sandbox", left, err)
	}
	w.see(strings.Join(left, "\n"))
	if r := w.run("", "run", "-c", "print('next')"); r.code != 0 || r.stdout != "next\n" {
		t.Errorf("the next run: code %d, %q\n%s", r.code, r.stdout, r.stderr)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left, err := os.ReadDir(filepath.Join(w.dir, "data", "run"))
		if err == nil && len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left of the killed run: %v, %v", left, err)
		}
		w.run("", "run", "--", "true") // a short run may end before its reaper does
	}
}

// TestRootlessServer: a user's own server, its sandboxes, and that user's runs
// beside it.
func TestRootlessServer(t *testing.T) {
	w := newRootlessWorld(t)
	s := w.serve()
	code, body, _ := s.do("POST", "/v1/sandboxes", "{}")
	var sb struct{ ID string }
	if json.Unmarshal([]byte(body), &sb) != nil || code != 201 {
		t.Fatalf("create: %d %s", code, body)
	}
	var runs sync.WaitGroup
	for i := range 4 {
		runs.Go(func() {
			other := *w
			other.env = append(append([]string{}, w.env...), "FIREBREAK_SOCKET="+filepath.Join(w.dir, "none.sock"))
			if r := other.run("", "run", "-c", fmt.Sprintf("print(%d * 7)", i)); r.code != 0 || r.stdout != fmt.Sprintln(i*7) {
				t.Errorf("run %d: code %d, stdout %q\n%s", i, r.code, r.stdout, r.stderr)
			}
		})
	}
	runs.Wait()
	if code, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"code":"print(6*7)"}`); code != 200 || !strings.Contains(body, `"stdout":"42\n"`) {
		t.Errorf("exec: %d %s", code, body)
	}
	r := w.run("", "inspect", sb.ID)
	var seen struct {
		Limits map[string]struct{ Enforced bool }
	}
	if err := json.Unmarshal([]byte(r.stdout), &seen); err != nil || len(seen.Limits) != len(hostEnforced) {
		t.Fatalf("inspect: code %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	if !seen.Limits["disk_bytes"].Enforced {
		t.Errorf("inspect: %s", r.stdout)
	}
	if !seen.Limits["memory_bytes"].Enforced {
		if code, body, _ := s.do("POST", "/v1/sandboxes", `{"limits":{"memory_bytes":67108864}}`); code != 422 || !strings.Contains(body, "accept_weaker") {
			t.Errorf("an explicit limit: %d %s", code, body)
		}
	}
	if code, body, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); code != 200 || !strings.Contains(body, `"clean":true`) {
		t.Errorf("destroy: %d %s", code, body)
	}
}

package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestShellOfItsOwn: without a sandbox it makes one, and whatever ends it, by the
// program, by a person, by a signal, by an error, leaves none.
func TestShellOfItsOwn(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	none := func(when string) {
		t.Helper()
		if r := s.run("", "ls", "-q"); r.code != 0 || r.stdout != "" {
			t.Errorf("%s: %+v", when, r)
		}
	}
	tree := t.TempDir()
	setup := exec.Command("sh", "-ec", "git init -q; echo by git >brought.txt; git add -A; git -c user.name=a -c user.email=a@b commit -qm one")
	setup.Dir, setup.Env = tree, w.env
	if out, err := setup.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := s.sit(t, 0, "shell", "--memory", "128MiB", "--hostname", "here", "--metadata", "k=v", "--timeout", "1h", "--git", tree, "-e", "PS1=% ", "--", "sh", "-i")
	p.expect("for this shell only")
	p.expect("% ")
	p.types("hostname; cat brought.txt\r")
	p.expect("here\r\nby git")
	var list []struct {
		ID       string
		Metadata map[string]string
		Expires  time.Time `json:"expires_at"`
	}
	if r := s.run("", "ls", "--json"); json.Unmarshal([]byte(r.stdout), &list) != nil || len(list) != 1 || list[0].Metadata["k"] != "v" || time.Until(list[0].Expires) > 5*time.Minute {
		t.Errorf("%+v", r) // it ends soon should nobody remove it
	}
	p.types("exit 7\r")
	if c := p.code(); c != 7 {
		t.Errorf("exit code %d", c)
	}
	none("after the program")
	p = s.sit(t, 0, "shell", "-e", "PS1=% ", "--", "sh", "-i")
	p.expect("% ")
	p.types("\r~.")
	if c := p.code(); c != 0 || strings.Contains(string(p.screen()), "attach") {
		t.Errorf("exit code %d", c)
	}
	none("after ~.")
	p = s.sit(t, 0, "shell", "--", "sh", "-c", "echo ready; exec sleep 1000")
	p.expect("ready\r\n")
	p.cmd.Process.Signal(syscall.SIGHUP)
	if c := p.code(); c != 128+1 {
		t.Errorf("exit code %d", c)
	}
	none("after a signal")
	p = s.sit(t, 0, "shell", "--", "no-such-program")
	if c := p.code(); c != 127 {
		t.Errorf("exit code %d", c)
	}
	none("after an error")
	if r := s.run("echo $((6*7))\n", "shell", "--", "sh"); r.code != 0 || r.stdout != "42\n" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	none("after pipes")
	s.stop()
	if r := w.run("id -un\n", "shell", "--", "sh"); r.code != 0 || r.stdout != "user\n" {
		t.Errorf("without a server: %+v", r)
	}
}

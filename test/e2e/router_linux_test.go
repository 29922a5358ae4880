package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress/control"
	"github.com/firebreak-dev/firebreak/test/internet"
)

// TestRouterCommand: bin/firebreak is the program of its own router, confined, and
// of nobody else's.
func TestRouterCommand(t *testing.T) {
	bin := binary(t)
	out, err := exec.Command(bin, "router").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "servers start it themselves") {
		t.Errorf("by hand: %v\n%s", err, out)
	}
	k, err := control.Start(t.Context(), control.Options{Argv: []string{bin, "router"}})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if st, err := k.Stats(t.Context()); err != nil || st.Wires != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	routers := 0
	for _, task := range tasks {
		children, _ := os.ReadFile(task) // a thread that has ended
		for _, pid := range strings.Fields(string(children)) {
			status, err := os.ReadFile("/proc/" + pid + "/status")
			if err != nil || !strings.Contains(string(status), "\nSeccomp:\t2\n") || !strings.Contains(string(status), "\nNoNewPrivs:\t1\n") ||
				!strings.Contains(string(status), "\nCapPrm:\t0000000000000000\n") {
				t.Errorf("%s: %v\n%s", pid, err, status)
			}
			routers++
		}
	}
	if routers != 1 {
		t.Errorf("%d children, not one router", routers)
	}
}

// caged checks that a process has the one router of a sandbox with rules, that it
// can do nothing, and returns it.
func caged(t *testing.T, what string, pid int) int {
	t.Helper()
	routers := internet.Routers(pid)
	if len(routers) != 1 {
		t.Fatalf("%s has the routers %v", what, routers)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", routers[0]))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	const none, own = "0000000000000000", "1879060000 1879060000 1879060000 1879060000"
	for key, want := range map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2", "Uid": own, "Gid": own, "Groups": ""} {
		if got, there := status[key]; !there || got != want {
			t.Errorf("%s: the router's %s is %q, want %q", what, key, got, want)
		}
	}
	// Of no other threads is there more.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", routers[0]))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("%v, %v", tasks, err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if os.IsNotExist(err) {
			continue // it has ended
		}
		for _, want := range []string{"CapEff:\t" + none, "CapBnd:\t" + none, "NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t1879060000\t"} {
			if err != nil || !strings.Contains(string(text), "\n"+want) {
				t.Errorf("%s: %v: no %q in %s", what, err, want, task)
			}
		}
	}
	return routers[0]
}

// ends waits until a process is gone.
func ends(t *testing.T, what string, pid int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: process %d lives on", what, pid)
		}
	}
}

// TestRouterConfined: the router of a server, and of a run, is confined from where
// there is one: it begins with the first sandbox that has rules.
func TestRouterConfined(t *testing.T) {
	enforcing(t)
	s := newWorld(t).serve()
	create := func(body string) string {
		t.Helper()
		status, out, _ := s.do("POST", "/v1/sandboxes", body)
		var sb struct{ ID string }
		if err := json.Unmarshal([]byte(out), &sb); err != nil || status != http.StatusCreated {
			t.Fatalf("%d %s", status, out)
		}
		return sb.ID
	}
	server := s.cmd.Process.Pid
	create(`{}`)
	if routers := internet.Routers(server); len(routers) != 0 {
		t.Errorf("without rules the server has the routers %v", routers)
	}
	create(`{"network":{"allow":["api.example"]}}`)
	router := caged(t, "the server", server)
	create(`{"network":{"allow":["other.example"]}}`)
	if again := caged(t, "with another sandbox the server", server); again != router {
		t.Errorf("the router %d became %d", router, again)
	}
	s.stop()
	ends(t, "after the server", router)

	for _, rules := range []bool{true, false} {
		w := newWorld(t) // without a server
		args := []string{"run"}
		if rules {
			args = append(args, "--allow", "api.example")
		}
		cmd := w.command(append(args, "--", "sh", "-c", "echo begun; exec sleep 600")...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.start(cmd); err != nil {
			t.Fatal(err)
		}
		ended := func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() }
		t.Cleanup(ended) // does nothing the second time
		late := time.AfterFunc(time.Minute, func() { cmd.Process.Signal(syscall.SIGTERM) })
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "begun\n" {
			t.Errorf("the run says %q, %v", line, err)
		}
		if rules {
			router = caged(t, "the run", cmd.Process.Pid)
		} else if routers := internet.Routers(cmd.Process.Pid); len(routers) != 0 {
			t.Errorf("a run without rules has the routers %v", routers)
		}
		late.Stop()
		ended()
	}
	ends(t, "after the run", router)
}

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/egress/control"
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

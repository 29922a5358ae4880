package e2b

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCLI drives @e2b/cli.
func TestCLI(t *testing.T) {
	s := serve(t)
	bin := filepath.Join(nodeClients(t), "node_modules/.bin/e2b")
	e2b := func(args ...string) (string, error) {
		out, errs, err := s.try(s.clientEnv(), append([]string{bin, "sandbox"}, args...)...)
		return out + errs, err
	}
	ok := func(args ...string) string {
		t.Helper()
		out, err := e2b(args...)
		if err != nil {
			t.Fatalf("e2b sandbox %v: %v\n%s\n%s", args, err, out, tail(s.log(), 2000))
		}
		return out
	}
	contains := func(out string, all ...string) {
		t.Helper()
		for _, one := range all {
			if !strings.Contains(out, one) {
				t.Errorf("no %q in\n%s", one, out)
			}
		}
	}
	id := regexp.MustCompile(`sb[a-z2-7]{18}`).FindString(ok("create", "--detach", "base"))
	if id == "" {
		t.Fatal("create prints no id")
	}
	contains(ok("list"), id, "base", "Running")
	var all []struct{ SandboxID string }
	if out := ok("list", "--format", "json"); json.Unmarshal([]byte(out), &all) != nil || len(all) != 1 || all[0].SandboxID != id {
		t.Errorf("list --format json: %s", out)
	}
	contains(ok("exec", id, "echo from-$((6*7)); pwd"), "from-42", "/home/user")
	out, err := e2b("exec", id, "echo before; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(out, "before") {
		t.Errorf("exec of a command that fails: %v\n%s", err, out)
	}
	contains(ok("info", id), id, "Internet access: false")
	contains(ok("logs", id), "from-42", "sandbox running")
	contains(ok("logs", "--format", "json", id), `"exit_code":"3"`)
	ok("metrics", id)
	ok("pause", id)
	contains(ok("list", "--state", "paused"), id, "Paused")
	contains(ok("info", id), id, "paused")
	contains(ok("pause", id), "already paused")
	ok("resume", id)
	contains(ok("exec", id, "echo from-$((6*7))"), "from-42")
	snapshot := regexp.MustCompile(`sn[a-z2-7]{18}`).FindString(ok("snapshot", "create", "--name", "mine", id))
	contains(ok("snapshot", "list"), snapshot, "mine")
	made := regexp.MustCompile(`sb[a-z2-7]{18}`).FindString(ok("create", "--detach", "--lifecycle.ontimeout", "pause", "--timeout", "120", "mine"))
	contains(ok("info", made), made, snapshot)
	ok("kill", made)
	ok("snapshot", "delete", snapshot)
	ok("kill", id)
	contains(ok("list"), "No sandboxes found")
}

// TestProviders drives packages of others that build on E2B's.
func TestProviders(t *testing.T) {
	s := serve(t)
	for _, script := range []string{"compute.mjs", "agents.mjs"} {
		t.Run(strings.TrimSuffix(script, ".mjs"), func(t *testing.T) { s.steps(t, s.node(t, script)...) })
	}
}

package e2e

import (
	"bytes"
	"encoding/json"

	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// otherVersion copies the program with another agent in it: the compressed
// agent says that it is of another time, which makes it another version to
// everything that goes by digests.
func otherVersion(t *testing.T, bin, to string) {
	t.Helper()
	asset, err := os.ReadFile("../../internal/bundle/assets/firebreak-guest.gz")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(program, asset[:4096])
	if at < 0 {
		t.Fatal("the agent in bin/firebreak is not the one in assets: run `make`")
	}
	const mtime = 4 // in gzip's header
	program[at+mtime]++
	if err := os.WriteFile(to, program, 0o755); err != nil {
		t.Fatal(err)
	}
}

// agentOf is the digest of the programs that the one instance below data that
// is not in before has inside.
func agentOf(t *testing.T, data string, before map[string]string) string {
	t.Helper()
	found := ""
	dirs, _ := os.ReadDir(filepath.Join(data, "instances"))
	for _, d := range dirs {
		if _, known := before[d.Name()]; known {
			continue
		}
		b, err := os.ReadFile(filepath.Join(data, "instances", d.Name(), "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`libexec/([0-9a-f]{64})`).FindStringSubmatch(string(b))
		if m == nil || found != "" {
			t.Fatalf("%v, %s: %s", m, d.Name(), b)
		}
		found = m[1]
		before[d.Name()] = found
	}
	return found
}

// TestUpgrade: sandboxes of one version are taken over by another and back,
// work, and end clean; each version's programs stay as long as they are used,
// and no longer.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	data := filepath.Join(w.dir, "data")
	current := w.bin
	old := filepath.Join(t.TempDir(), "firebreak-old")
	otherVersion(t, current, old)
	start := func(bin string) *server {
		t.Helper()
		w.bin = bin
		return w.serve("--stop-sandboxes=false")
	}
	create := func(s *server) string {
		t.Helper()
		code, body, _ := s.do("POST", "/v1/sandboxes", "")
		var sb struct{ ID string }
		if json.Unmarshal([]byte(body), &sb); code != 201 {
			t.Fatalf("create: %d %s", code, body)
		}
		return sb.ID
	}
	execs := func(s *server, id string) {
		t.Helper()
		code, body, _ := s.do("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"print(open('/home/user/note').read(), 6*7)"}`)
		if code != 200 || !strings.Contains(body, `"stdout":"kept 42\n"`) {
			t.Fatalf("exec: %d %s\n%s", code, body, s.logText())
		}
	}
	note := func(s *server, id string) {
		t.Helper()
		if code, body, _ := s.do("PUT", "/v1/sandboxes/"+id+"/files?path=/home/user/note", "kept"); code/100 != 2 {
			t.Fatalf("write: %d %s", code, body)
		}
		execs(s, id)
	}
	destroy := func(s *server, id string) {
		t.Helper()
		if code, body, _ := s.do("DELETE", "/v1/sandboxes/"+id, ""); code != 200 || !strings.Contains(body, `"clean":true`) {
			t.Errorf("destroy: %d %s", code, body)
		}
	}
	// pruned waits until a server has looked for programs nobody uses.
	pruned := func() {
		t.Helper()
		decoy := filepath.Join(data, "libexec", strings.Repeat("d", 64))
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(decoy); err != nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("programs nobody uses are not removed")
			}
		}
	}
	decoy := func() {
		t.Helper()
		dir := filepath.Join(data, "libexec", strings.Repeat("d", 64))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".sha256"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	has := func(digest string, want bool) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(data, "libexec", digest)); (err == nil) != want {
			t.Errorf("programs %.8s: %v", digest, err)
		}
	}
	seen := map[string]string{}

	s := start(old)
	a := create(s)
	oldAgent := agentOf(t, data, seen)
	note(s, a)
	s.cmd.Process.Kill() // the upgrade of somebody in a hurry
	s.cmd.Wait()

	decoy()
	s = start(current)
	execs(s, a)
	b := create(s)
	newAgent := agentOf(t, data, seen)
	if newAgent == oldAgent || newAgent == "" {
		t.Fatalf("the agents of both versions are %q and %q", oldAgent, newAgent)
	}
	note(s, b)
	pruned()
	has(oldAgent, true)
	has(newAgent, true)
	execs(s, a) // with its programs still there
	s.stop()

	decoy()
	s = start(old) // and back
	execs(s, a)
	execs(s, b)
	pruned()
	has(newAgent, true)
	destroy(s, b)
	s.stop()

	decoy()
	s = start(current)
	execs(s, a)
	pruned()
	has(oldAgent, true)
	destroy(s, a)
	s.stop()

	decoy()
	s = start(current)
	pruned()
	has(oldAgent, false)
	has(newAgent, true)
	c := create(s)
	destroy(s, c)
	s.stop()
}

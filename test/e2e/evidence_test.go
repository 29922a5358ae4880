package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// witness starts a witness of one log and returns "ADDRESS KEY" and its key.
func (w *world) witness(logKey string) (address, key string) {
	w.t.Helper()
	cmd := w.command("audit", "witness", "--listen", "127.0.0.1:0", "--key", filepath.Join(w.t.TempDir(), "w.key"), "--name", "w.example", "--log", logKey)
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	said, _ := bufio.NewReader(errs).ReadString('\n')
	_, url, ok := strings.Cut(strings.TrimSpace(said), " on ")
	key, err = bufio.NewReader(out).ReadString('\n')
	if key = strings.TrimSpace(key); !ok || err != nil {
		w.t.Fatalf("the witness says %q, %q: %v", said, key, err)
	}
	return url + " " + key, key
}

// eventually runs a command until its output has something.
func (w *world) eventually(want string, args ...string) string {
	w.t.Helper()
	var r result
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if r = w.run("", args...); strings.Contains(r.stdout+r.stderr, want) {
			return r.stdout
		}
	}
	w.t.Fatalf("%q never says %q: %+v", args, want, r)
	return ""
}

// TestAuditEvidence lets a server run a sandbox, takes its evidence away, and
// checks that elsewhere, with nothing but the file and keys that were put aside.
// Then the whole log is rolled back, checkpoint and all.
func TestAuditEvidence(t *testing.T) {
	w := newWorld(t)
	w.serve().stop() // makes the key
	key := strings.TrimSpace(w.run("", "audit", "key").stdout)
	address, witness := w.witness(key)
	w.env = append(w.env, "FIREBREAK_AUDIT_WITNESS="+address)
	log := filepath.Join(w.dir, "data", "audit", "server")
	s := w.serve()
	id := strings.TrimSpace(w.run("", "create").stdout)
	w.run("", "exec", id, "--", "true")
	if r := w.run("", "rm", id); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	elsewhere := filepath.Join(t.TempDir(), "evidence.json")
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) { // signed within a second or so
		if r := w.run("", "audit", "export", "--sandbox", id, "-o", elsewhere); r.code == 0 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%+v", r)
		}
	}
	other := newWorld(t)
	var report struct {
		OK, Complete, Receipt, Clean bool
		KeyOutside                   bool `json:"key_outside"`
	}
	r := other.run("", "audit", "verify", elsewhere, "--key", key, "--json")
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil || r.code != 0 || !report.OK || !report.Complete || !report.Receipt || !report.Clean || !report.KeyOutside {
		t.Fatalf("%v %+v", err, r)
	}
	mustContain(t, "tail", w.run("", "audit", "tail").stdout, "sandbox.receipt", id)
	if r := w.run("", "audit", "export", "--jsonl", "--after", "1"); r.code != 0 || !strings.Contains(r.stdout, `"action":"sandbox.create"`) {
		t.Errorf("%+v", r)
	}
	w.eventually("witness w.example has seen", "audit", "verify", log, "--key", key, "--witness", witness)

	// The same over the network.
	remote := newWorld(t)
	remote.env = append(remote.env, "FIREBREAK_URL="+s.url, "FIREBREAK_API_KEY="+s.key)
	if r := remote.run("", "audit", "key"); strings.TrimSpace(r.stdout) != key {
		t.Errorf("%+v", r)
	}
	if r := remote.run("", "audit", "export", "--sandbox", id, "-o", elsewhere, "--force"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := other.run("", "audit", "verify", elsewhere, "--key", key, "--json"); r.code != 0 || !strings.Contains(r.stdout, `"complete":true`) {
		t.Errorf("%+v", r)
	}
	mustContain(t, "remote tail", remote.run("", "audit", "tail", "-n", "1000").stdout, "sandbox.create", id)

	// Rolled back, the log is whole and its own; those who remember know.
	s.stop()
	before := filepath.Join(t.TempDir(), "server")
	if err := os.CopyFS(before, os.DirFS(log)); err != nil {
		t.Fatal(err)
	}
	w.serve().stop()
	pin := filepath.Join(t.TempDir(), "pin")
	raw, err := os.ReadFile(filepath.Join(log, "checkpoint"))
	if err == nil {
		err = os.WriteFile(pin, raw, 0o600)
	}
	s = w.serve()
	var seen struct{ Pinned, Witnessed int64 }
	for end := time.Now().Add(time.Minute); seen.Witnessed <= seen.Pinned; time.Sleep(200 * time.Millisecond) {
		r := w.run("", "audit", "verify", log, "--witness", witness, "--from", pin, "--json")
		var out struct {
			Logs []struct{ Pinned, Witnessed int64 }
		}
		if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || len(out.Logs) != 1 || r.code != 0 || time.Now().After(end) {
			t.Fatalf("%v %+v", err, r)
		}
		seen.Pinned, seen.Witnessed = out.Logs[0].Pinned, out.Logs[0].Witnessed
	}
	s.stop()
	if err == nil {
		err = os.RemoveAll(log)
	}
	if err == nil {
		err = os.CopyFS(log, os.DirFS(before))
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := w.run("", "audit", "verify", log, "--key", key); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "audit", "verify", log, "--from", pin); r.code != 1 || !strings.Contains(r.stdout, "rolled back") {
		t.Errorf("%+v", r)
	}
	w.serve()
	w.eventually("audit.witness", "audit", "tail", "-n", "1000")
}

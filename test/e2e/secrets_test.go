package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecretsOverRestore: secrets and bindings outlive kill -9 of their server, and go
// into a backup without their key; the restored server says so.
func TestSecretsOverRestore(t *testing.T) {
	const canary = "canary-c0ffee-restore"
	w := newWorld(t)
	s := w.serve()
	if r := w.run(canary+"\n", "secret", "set", "openai"); r.code != 0 || !strings.Contains(r.stdout, "openai version 1") {
		t.Fatal(r.code, r.stdout, r.stderr)
	}
	if r := w.run("", "secret", "set", "vault", "--ref", "env:HOME"); r.code != 0 {
		t.Fatal(r.code, r.stdout, r.stderr)
	}
	if r := w.run("", "binding", "add", "api", "--secret", "openai", "--host", "api.example.com"); r.code != 0 || !strings.Contains(r.stdout, "http://api.binding.internal is https://api.example.com") {
		t.Fatal(r.code, r.stdout, r.stderr)
	}
	if r := w.run("", "secret", "rm", "openai"); r.code == 0 || !strings.Contains(r.stderr, "it is used by the binding api") {
		t.Error(r.code, r.stdout, r.stderr)
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s = w.serve()
	if r := w.run("", "secret", "ls"); r.code != 0 || !strings.Contains(r.stdout, "openai") || !strings.Contains(r.stdout, "env:HOME") || strings.Contains(r.stdout, canary) {
		t.Error(r.code, r.stdout, r.stderr)
	}
	if r := w.run("", "binding", "ls", "--json"); r.code != 0 || !strings.Contains(r.stdout, `"host":"api.example.com"`) {
		t.Error(r.code, r.stdout, r.stderr)
	}
	outside := t.TempDir() // what is there is not this world's
	file, data := filepath.Join(outside, "b.fbk"), filepath.Join(outside, "data")
	if r := w.run("", "backup", file); r.code != 0 {
		t.Fatal(r.stderr)
	}
	other := *w
	other.dir = outside
	other.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + outside, "TMPDIR=" + outside, "FIREBREAK_DATA=" + data, "FIREBREAK_SOCKET=" + filepath.Join(outside, "s.sock")}
	if r := other.run("", "restore", file); r.code != 0 || !strings.Contains(r.stdout, "secrets/key, which opens 1 secret\n") {
		t.Fatal(r.code, r.stdout, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(data, "secrets")); !os.IsNotExist(err) {
		t.Errorf("the key came along: %v", err)
	}
	if err := os.WriteFile(filepath.Join(data, "api-key"), []byte(s.key+"\n"), 0o600); err != nil { // its owner has it
		t.Fatal(err)
	}
	o := other.serve()
	if r := other.run("", "secret", "ls"); r.code != 0 || !strings.Contains(r.stdout, "openai") {
		t.Error(r.code, r.stdout, r.stderr)
	}
	o.stop()
	if r := other.run("", "uninstall", "--yes"); r.code != 0 {
		t.Error(r.stderr)
	}
	for _, dir := range []string{w.dir, outside} { // logs, databases, evidence
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || d.Name() == "runsc" || d.Name() == "firebreak-guest" {
				return nil // a file that went meanwhile is not one of ours to read
			}
			b, err := os.ReadFile(path)
			if err == nil && strings.Contains(string(b), canary) {
				t.Errorf("%s holds the secret", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	s.stop()
	if r := w.run("", "uninstall", "--yes"); r.code != 0 {
		t.Error(r.stderr)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "data", "secrets")); !os.IsNotExist(err) {
		t.Errorf("an uninstall leaves the key: %v", err)
	}
}

package e2b

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cache is where clients are installed, once for each content of their locks.
const cache = "../../../bin/e2b-clients"

// attempts is how often an installation is tried: registries have bad moments.
const attempts = 4

// installed makes a directory with what the named lock files say, by running
// install in it, and returns its path. It is made whole or not at all, by one
// process at a time. That it cannot be made is a failure: these tests are worth
// nothing without the clients.
func installed(t testing.TB, install [][]string, locks ...string) string {
	t.Helper()
	digest := sha256.New()
	for _, step := range install {
		for _, word := range step {
			digest.Write([]byte(word + "\x00"))
		}
	}
	contents := map[string][]byte{}
	for _, name := range locks {
		content, err := os.ReadFile(filepath.Join("clients", name))
		if err != nil {
			t.Fatal(err)
		}
		contents[name] = content
		digest.Write(content)
	}
	root, err := filepath.Abs(cache)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(root, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, hex.EncodeToString(digest.Sum(nil))[:16])
	if _, err := os.Stat(filepath.Join(dir, ".complete")); err == nil {
		return dir
	}
	var last string
	for try := range attempts {
		if try > 0 {
			time.Sleep(time.Duration(try) * 5 * time.Second)
		}
		// In place: an environment of Python knows its own path.
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range contents {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if last = runAll(dir, install); last == "" {
			if err := os.WriteFile(filepath.Join(dir, ".complete"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return dir
		}
	}
	os.RemoveAll(dir)
	t.Fatalf("the clients of %v could not be installed in %d attempts; the package registry has to be reachable through the machine's own configuration of npm and pip. The last one said:\n%s", locks, attempts, last)
	return ""
}

// runAll runs commands in dir and returns what the one that failed said.
func runAll(dir string, commands [][]string) string {
	for _, c := range commands {
		cmd := exec.Command(c[0], c[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return string(out) + "\n" + err.Error()
		}
	}
	return ""
}

// nodeClients is where the npm packages are.
var nodeClients = sync.OnceValue(func() func(testing.TB) string {
	var once sync.Once
	var dir string
	return func(t testing.TB) string {
		once.Do(func() {
			dir = installed(t, [][]string{{"npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"}}, "package.json", "package-lock.json")
		})
		return dir
	}
})()

// pythonClients is where the environment with the PyPI packages is.
var pythonClients = sync.OnceValue(func() func(testing.TB) string {
	var once sync.Once
	var dir string
	return func(t testing.TB) string {
		once.Do(func() {
			dir = installed(t, [][]string{{"python3", "-m", "venv", "venv"},
				{"venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--no-deps", "--require-hashes", "-r", "requirements.txt"}}, "requirements.txt")
		})
		return dir
	}
})()

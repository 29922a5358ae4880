//go:build linux

package internet

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Program is one that knows nothing of sandboxes, proxies or this package.
type Program struct {
	Name   string
	Script string            // for sh, in a directory where it may write
	Env    map[string]string // beside PATH and HOME
	Prints string            // a pattern of what it must print
	Allow  []string          // what it has to reach, as --allow takes it
	Wheels bool              // it needs Wheels in the directory
}

// tiny is the package that every package server has.
const tiny = "firebreaktiny"

// Programs makes sites for the programs that people use, and returns those. They
// need to trust the authority: see Trust.
func (n *Internet) Programs() ([]Program, error) {
	n.Site("api.example", Reached)
	n.Site("chat.example", Chat)
	n.Site("pypi.example", PythonIndex(tiny, "word = 'from the index'\n"))
	n.Site("npm.example", NodeRegistry(tiny, "module.exports = 'from the registry'\n"))
	repository, err := n.Repository("project", map[string]string{"README": "from the repository\n", "src/main.c": "int main;\n"})
	if err != nil {
		return nil, err
	}
	n.Site("git.example", repository)
	list := []Program{
		{Name: "curl HTTP/1.1", Script: `curl -sS --http1.1 --data-binary @/etc/hosts -w '%{http_version} %{http_code}\n' https://api.example/x`, Prints: `by HTTP/1.1 for api.example with \d+ bytes\n1.1 200`},
		{Name: "curl HTTP/2", Script: `curl -sS --http2 -w '%{http_version}\n' https://api.example/ https://api.example/again`, Prints: `(?s)by HTTP/2.0 for api.example.*\n2\n.*by HTTP/2.0.*\n2\n`},
		{Name: "curl without TLS", Script: `curl -sS http://api.example/`, Prints: `by HTTP/1.1 for api.example`, Allow: []string{"api.example:80"}},
		{Name: "Python urllib", Script: `/usr/bin/python3 -c "import urllib.request as u; print(u.urlopen('https://api.example/').read().decode())"`, Prints: `by HTTP/1.1 for api.example`},
		{Name: "Python requests", Wheels: true, Script: `PYTHONPATH=$(echo wheels/*.whl | tr ' ' :) /usr/bin/python3 -c "
import requests
with requests.Session() as s:
    for word in ('a', 'b'):
        print(s.post('https://api.example/', data=word * 70000).text)"`, Prints: `(?s)for api.example with 70000 bytes.*with 70000 bytes`},
		{Name: "Python websocket-client", Wheels: true, Allow: []string{"chat.example"}, Script: `PYTHONPATH=$(echo wheels/*.whl | tr ' ' :) /usr/bin/python3 -c "
import os, ssl, websocket
w = websocket.create_connection('wss://chat.example/', sslopt={'ca_certs': os.environ['SSL_CERT_FILE']})
for size in (1, 200, 70000):
    w.send_binary(b'x' * size)
    print('echo', len(w.recv()))
w.close()"`, Prints: `echo 1\necho 200\necho 70000`},
		{Name: "Node fetch", Script: `node -e "fetch('https://api.example/', {method: 'POST', body: 'x'.repeat(1000)}).then(r => r.text()).then(console.log)"`, Prints: `for api.example with 1000 bytes`},
		{Name: "git clone", Allow: []string{"git.example"}, Script: `git clone -q https://git.example/project.git && cat project/README && git -C project fetch && git -C project log --oneline`, Prints: `from the repository\n[0-9a-f]+ first`},
		{Name: "pip install", Allow: []string{"pypi.example"}, Script: `/usr/bin/python3 -m pip install -q --disable-pip-version-check --no-cache-dir --index-url https://pypi.example/simple/ --target site ` + tiny +
			` && PYTHONPATH=site /usr/bin/python3 -c "import ` + tiny + `; print(` + tiny + `.word)"`, Prints: `from the index`},
		{Name: "npm install", Allow: []string{"npm.example"}, Script: `npm install --silent --no-audit --no-fund --no-update-notifier --registry=https://npm.example/ ` + tiny +
			` && node -p "require('` + tiny + `')"`, Prints: `from the registry`},
	}
	for i := range list {
		p := &list[i]
		if p.Allow == nil {
			p.Allow = []string{"api.example"}
		}
		p.Env = map[string]string{"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
	}
	return list, nil
}

// requirements are the wheels that programs of Python need.
//
//go:embed requirements.txt
var requirements string

// Wheels is a directory with them, from the machine's package registry. They are
// fetched once and kept below cache, which several processes may share.
func Wheels(t testing.TB, cache string) string {
	t.Helper()
	root, err := filepath.Abs(cache)
	if err == nil {
		err = os.MkdirAll(root, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(root, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err == nil {
		defer lock.Close()
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, fmt.Sprintf("%.8x", sha256.Sum256([]byte(requirements))))
	if _, err := os.Stat(filepath.Join(dir, ".complete")); err == nil {
		return dir
	}
	var out []byte
	for try := range 4 { // registries have bad moments
		time.Sleep(time.Duration(try) * 5 * time.Second)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--no-deps", "--require-hashes",
			"--python-version", "3.11", "--platform", "any", "--implementation", "py", "--abi", "none", "-d", dir, "-r", "/dev/stdin")
		cmd.Stdin = strings.NewReader(requirements)
		if out, err = cmd.CombinedOutput(); err == nil {
			if err := os.WriteFile(filepath.Join(dir, ".complete"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return dir
		}
	}
	t.Fatalf("pip cannot download %s: the package registry has to be reachable through the machine's own configuration: %v\n%s", "requirements.txt", err, out)
	return ""
}

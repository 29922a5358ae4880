package e2b

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The sandboxes of these tests are made by gVisor, of this machine's own programs, unless
// FIREBREAK_TEST_BACKEND names another backend. With microvm, emulated or not, they are
// machines made of a template that has what the steps use: all of a machine's programs
// would be an image of gigabytes for each server.
//
//	FIREBREAK_TEST_BACKEND=microvm go test ./test/e2e/e2b -timeout 2h

// machines reports whether the sandboxes are virtual machines.
func (s *server) machines() bool { return s.backend == "microvm" }

// elsewhere is the environment of a server whose sandboxes the backend makes.
func elsewhere(backend string) (env []string) {
	if backend != "" {
		env = append(env, "FIREBREAK_BACKEND="+backend)
	}
	if backend == "microvm" {
		env = append(env, "FIREBREAK_TEMPLATE=small")
	}
	return env
}

// slowly is how many times longer things may take.
func (s *server) slowly() time.Duration {
	if s.machines() {
		return 10
	}
	return 1
}

// aboutThisMachine leaves a test out that says something of this machine's own programs as
// a template.
func (s *server) aboutThisMachine() {
	s.t.Helper()
	if s.machines() {
		s.t.Skip("not run: it is about this machine's own programs as a template, and machines have another one here")
	}
}

// networked leaves a test out where the backend attaches no network.
func (s *server) networked() {
	s.t.Helper()
	key, err := os.ReadFile(filepath.Join(s.dir, "data/api-key"))
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequest("GET", s.api+"/v1/backends", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(key)))
	resp, err := s.client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var list struct {
		Backends []struct {
			Name    string
			Network bool
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil || len(list.Backends) == 0 {
		s.t.Fatal(err, list)
	}
	for _, b := range list.Backends {
		if b.Name == s.backend && !b.Network {
			s.t.Skipf("not run: %s attaches no network to its sandboxes here", s.backend)
		}
	}
}

// furnish gives the server the template that elsewhere names.
func (s *server) furnish() {
	s.t.Helper()
	if s.machines() {
		s.run(nil, s.bin, "template", "build", "small", "--dir", smallRoot(s.t))
	}
}

// furnishing copies this machine's programs, as far as the steps use them, with what they
// are linked against, to the directory $1.
const furnishing = `
cd "$1"; mkdir -p usr/bin usr/lib usr/lib64 usr/share etc; ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib64 lib64
python=$(readlink -f /usr/bin/python3); name=$(basename "$python")
{ dpkg -L coreutils bash dash grep sed findutils procps util-linux hostname | sed -nE 's#^(/usr)?/bin/##p'; echo node; echo "$name"; } | sort -u |
  while read -r p; do [ -f "/usr/bin/$p" ] && [ ! -u "/usr/bin/$p" ] && cp -L "/usr/bin/$p" usr/bin/; done || true
ln -sf "$name" usr/bin/python3; cp /usr/bin/dash usr/bin/sh
for p in usr/bin/* /usr/lib/$name/lib-dynload/*.so; do ldd "$p" 2>/dev/null || true; done |
  sed -n 's/^.* => \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*\) .*/\1/p' | sort -u |
  while read -r l; do mkdir -p ".$(dirname "$l")"; cp -L "$l" ".$l"; done
mkdir -p usr/lib/$name; (cd /usr/lib/$name; tar c --exclude=test --exclude=__pycache__ --exclude=idlelib --exclude='config-*' .) | tar x -C usr/lib/$name
`

var small struct {
	once sync.Once
	dir  string
	err  error
	said []byte
}

// smallRoot is a root file system with what the steps use, made once.
func smallRoot(t testing.TB) string {
	t.Helper()
	small.once.Do(func() {
		if small.dir, small.err = os.MkdirTemp("", "firebreak-e2b-root-"); small.err == nil {
			small.said, small.err = exec.Command("sh", "-ec", furnishing, "sh", small.dir).CombinedOutput()
		}
	})
	if small.err != nil {
		t.Fatalf("the template: %v\n%s", small.err, small.said)
	}
	return small.dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if small.dir != "" {
		os.RemoveAll(small.dir)
	}
	os.Exit(code)
}

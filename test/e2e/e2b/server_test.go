package e2b

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// server is a `firebreak serve` with a listener for E2B's clients.
type server struct {
	t        testing.TB
	bin, dir string
	api, url string // its own API, and E2B's
	key      string // in E2B's spelling
	env      []string
	also     []string // in the environment of clients
	cmd      *exec.Cmd
	place
}

// place is where a server and its clients are; its zero value is this machine.
type place struct {
	begin     func(*exec.Cmd) error // starts a program there
	transport *http.Transport       // reaches it
	env       []string              // of a server there
	backend   string                // what makes its sandboxes; empty: FIREBREAK_TEST_BACKEND, or its own choice
}

// serve starts a server in a directory of its own. When the test ends it is
// stopped, and nothing of it may be left on the host.
func serve(t testing.TB, args ...string) *server {
	t.Helper()
	return serveIn(t, place{}, args...)
}

// serveIn is serve somewhere else.
func serveIn(t testing.TB, p place, args ...string) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root for enforced limits")
	}
	bin, err := filepath.Abs("../../../bin/firebreak")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("not run: bin/firebreak is not built (run `make`)")
	}
	dir := t.TempDir()
	s := &server{t: t, bin: bin, dir: dir, place: p}
	s.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir,
		"FIREBREAK_DATA=" + filepath.Join(dir, "data"), "FIREBREAK_SOCKET=" + filepath.Join(dir, "s.sock")}
	s.env = append(s.env, p.env...)
	for _, d := range []string{"data/run", "data/instances", "data/machines", "data/processes"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.backend = cmp.Or(s.backend, os.Getenv("FIREBREAK_TEST_BACKEND"))
	s.env = append(s.env, elsewhere(s.backend)...)
	before, err := residue.Take(residue.Scope{Dirs: []string{filepath.Join(dir, "data/run"), filepath.Join(dir, "data/instances"), filepath.Join(dir, "data/machines"), filepath.Join(dir, "data/processes")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range before.Diff() {
			t.Errorf("left behind: %v", f)
		}
	})
	api, e2b := freeAddress(t), freeAddress(t)
	s.api, s.url = "http://"+api, "http://"+e2b
	log, err := os.Create(filepath.Join(dir, "serve.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(bin, append([]string{"serve", "--listen", api, "--e2b-listen", e2b, "--stop-sandboxes"}, args...)...)
	s.cmd.Env, s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.env, dir, log, log
	if err := s.start(s.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if resp, err := s.client().Get(s.api + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server is not ready after a minute:\n%s", s.log())
		}
	}
	s.key = s.newKey()
	s.furnish()
	return s
}

// start starts a program where the server is.
func (s *server) start(cmd *exec.Cmd) error {
	if s.begin != nil {
		return s.begin(cmd)
	}
	return cmd.Start()
}

// client is one of HTTP, where the server is.
func (s *server) client() *http.Client {
	if s.transport != nil {
		return &http.Client{Transport: s.transport}
	}
	return http.DefaultClient
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newKey makes a key as a person does.
func (s *server) newKey(args ...string) string {
	s.t.Helper()
	out := s.run(nil, append([]string{s.bin, "key", "create", "--e2b"}, args...)...)
	return strings.TrimSpace(out)
}

// clientEnv is the environment of E2B's clients, and nothing else of ours.
func (s *server) clientEnv() []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "NO_COLOR=1", "PYTHONDONTWRITEBYTECODE=1",
		"E2B_API_URL=" + s.url, "E2B_SANDBOX_URL=" + s.url, "E2B_API_KEY=" + s.key, "FIREBREAK_API=" + s.api,
		fmt.Sprint("SLOWLY=", int(s.slowly()))}, s.also...)
}

// run runs a command that has to succeed and returns what it printed.
func (s *server) run(env []string, argv ...string) string {
	s.t.Helper()
	out, errs, err := s.try(env, argv...)
	if err != nil {
		s.t.Fatalf("%v: %v\n%s%s", argv, err, out, errs)
	}
	return out
}

// try runs a command; it has three minutes, or more where everything is slow.
func (s *server) try(env []string, argv ...string) (stdout, stderr string, err error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.slowly()*3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = env, s.dir
	if env == nil {
		cmd.Env = s.env
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = s.start(cmd); err == nil {
		err = cmd.Wait()
	}
	return out.String(), errs.String(), err
}

func (s *server) log() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "serve.log"))
	return string(b)
}

// stop ends the server gracefully; it may be called twice.
func (s *server) stop() {
	if s.cmd.ProcessState != nil {
		return
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			s.t.Errorf("the server ended with %v:\n%s", err, s.log())
		}
	case <-time.After(time.Minute):
		s.cmd.Process.Kill()
		<-done
		s.t.Errorf("the server did not stop within a minute:\n%s", s.log())
	}
	if strings.Contains(s.log(), "panic") {
		s.t.Errorf("the server's log tells of a panic:\n%s", s.log())
	}
}

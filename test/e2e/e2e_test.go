// Package e2e drives the built program the way people do: the command line,
// curl, plain HTTP. Everything here runs on real gVisor.
package e2e

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// binary is bin/firebreak, built by make.
func binary(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/firebreak")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("not run: bin/firebreak is not built (run `make`)")
	}
	return path
}

// enforcing skips where explicit limits are refused: for an ordinary user. What
// such a user gets is tested by the TestRootless tests, wherever they run.
func enforcing(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root for enforced limits")
	}
}

// world is a data directory of its own and the environment that points to it.
type world struct {
	t   testing.TB
	bin string
	dir string
	env []string
	see func(output string) // notes the instances it names
	as  []string            // what starts the program as somebody else, if not empty

	begin     func(*exec.Cmd) error // starts it somewhere else, if not nil
	transport *http.Transport       // reaches it there
}

// start starts a command of the world.
func (w *world) start(cmd *exec.Cmd) error {
	if w.begin != nil {
		return w.begin(cmd)
	}
	return cmd.Start()
}

// client asks servers of the world.
func (w *world) client() *http.Client {
	if w.transport != nil {
		return &http.Client{Transport: w.transport}
	}
	return http.DefaultClient
}

// command prepares firebreak with args.
func (w *world) command(args ...string) *exec.Cmd {
	argv := append(append(slices.Clone(w.as), w.bin), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = w.env, w.dir
	return cmd
}

// newWorld makes a world, and checks when the test ends that nothing of it is
// left on the host.
func newWorld(t *testing.T) *world {
	t.Helper()
	bin := binary(t)
	dir := t.TempDir()
	w := &world{t: t, bin: bin, dir: dir, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir,
		"FIREBREAK_DATA=" + filepath.Join(dir, "data"), "FIREBREAK_SOCKET=" + filepath.Join(dir, "s.sock"),
	}}
	w.see = checkResidue(t, dir)
	return w
}

// result is a finished command.
type result struct {
	stdout, stderr string
	code           int
	took           time.Duration
}

// run executes firebreak with args.
func (w *world) run(stdin string, args ...string) result {
	w.t.Helper()
	cmd := w.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := w.start(cmd)
	if err == nil {
		late := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
		err = cmd.Wait()
		late.Stop()
	}
	r := result{out.String(), errs.String(), cmd.ProcessState.ExitCode(), time.Since(start)}
	w.see(r.stdout)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("%v: %v", args, err)
	}
	return r
}

// server is a `firebreak serve` in a world.
type server struct {
	*world
	url, socket, key string
	cmd              *exec.Cmd
	log              string
}

// serve starts a server and waits until it is ready; it is stopped when the
// test ends.
func (w *world) serve(args ...string) *server {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := &server{world: w, url: "http://" + addr, socket: filepath.Join(w.dir, "s.sock"), log: filepath.Join(w.dir, "serve.log")}
	log, err := os.Create(s.log)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = w.command(append([]string{"serve", "--listen", addr, "--socket", s.socket, "--stop-sandboxes"}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := w.start(s.cmd); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.stop)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err := w.client().Get(s.url + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the server is not ready after 30 s:\n%s", s.logText())
		}
	}
	key, err := os.ReadFile(filepath.Join(w.dir, "data", "api-key"))
	if err != nil {
		w.t.Fatal(err)
	}
	s.key = strings.TrimSpace(string(key))
	return s
}

func (s *server) logText() string {
	data, _ := os.ReadFile(s.log)
	return string(data)
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
			s.t.Errorf("the server ended with %v:\n%s", err, s.logText())
		}
	case <-time.After(30 * time.Second):
		s.cmd.Process.Kill()
		<-done
		s.t.Errorf("the server did not stop within 30 s:\n%s", s.logText())
	}
}

// do sends a request with the server's key and returns status, body, headers.
func (s *server) do(method, path, body string, header ...string) (int, string, http.Header) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client().Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	s.see(string(out))
	return resp.StatusCode, string(out), resp.Header
}

// sandbox makes one.
func (s *server) sandbox() string {
	s.t.Helper()
	r := s.run("", "create", "--timeout", "1h")
	if r.code != 0 {
		s.t.Fatalf("create: %+v", r)
	}
	return strings.TrimSpace(r.stdout)
}

// instanceID is what every host object of a sandbox carries.
var instanceID = regexp.MustCompile(`\bin[a-z2-7]{18}\b`)

// checkResidue takes a baseline now and compares when the test ends, after
// every other clean-up. The function it returns reads a program's output for
// the ids of instances, of which nothing may be left anywhere.
func checkResidue(t testing.TB, dir string) func(output string) {
	t.Helper()
	for _, d := range []string{"data/run", "data/instances", "data/machines", "data/wires", "data/processes", "data/snapshots"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	base, err := residue.Take(residue.Scope{
		Dirs: []string{dir},
		// What outlives sandboxes by design. Below data/run, data/wires,
		// data/instances and data/machines nothing may.
		Keep: []string{"data/templates", "data/libexec", "data/machine-images", "data/audit", "data/events", "data/runs", "data/api-key", "data/token-key", "data/secrets",
			"data/state.db", "data/state.db-wal", "data/state.db-shm", "data/state.db-redo", "data/lock", "firebreak", "args.py", "hello.sh", "in.csv", "j.py", "out.txt", "serve.log"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range base.Diff() {
			t.Errorf("left behind: %v", f)
		}
	})
	var mu sync.Mutex
	return func(output string) {
		mu.Lock()
		defer mu.Unlock()
		base.Track(instanceID.FindAllString(output, -1)...)
	}
}

func curl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("curl", append([]string{"-sS", "--max-time", "60"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func mustContain(t testing.TB, what, s string, subs ...string) {
	t.Helper()
	for _, sub := range subs {
		if !strings.Contains(s, sub) {
			t.Errorf("%s does not contain %q:\n%s", what, sub, s)
		}
	}
}

// Package chaos breaks the built program where it hurts: kill -9 at crash
// points and in the middle of work, a disk without space. Whatever happened,
// what it made is afterwards whole or gone, and the host is as it was before.
package chaos

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// keep is what outlives sandboxes by design, below a data directory.
var keep = []string{"templates", "libexec", "audit", "events", "runs", "api-key", "token-key", "secrets", "state.db", "state.db-wal", "state.db-shm", "state.db-redo", "lock", "ballast",
	"state.db.before-v2", "state.db.before-v3", "state.db.before-v4"} // the copies that a first start makes when it was killed between two migrations

// instanceID is what every host object of a sandbox carries.
var instanceID = regexp.MustCompile(`\bin[a-z2-7]{18}\b`)

// world is a data directory of its own, and what must be left of it.
type world struct {
	t    *testing.T
	bin  string
	data string
	sock string
	base *residue.Baseline

	begin     func(*exec.Cmd) error // starts a server somewhere else, if not nil
	transport http.RoundTripper     // reaches it there
	env       []string              // of every command, beside the usual
}

// newWorld takes a baseline, and compares when the test ends.
func newWorld(t *testing.T, data string) *world {
	t.Helper()
	bin, err := filepath.Abs("../../bin/firebreak")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("not run: bin/firebreak is not built (run `make`)")
	}
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root for enforced limits")
	}
	for _, d := range []string{"run", "instances", "wires", "processes", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(data, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{t: t, bin: bin, data: data, sock: filepath.Join(t.TempDir(), "s")}
	if w.base, err = residue.Take(residue.Scope{Dirs: []string{data}, Keep: keep}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range w.base.Diff() {
			t.Errorf("left behind: %v", f)
		}
	})
	return w
}

// command prepares a firebreak command in the world.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(w.bin, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.data, "FIREBREAK_DATA=" + w.data, "FIREBREAK_SOCKET=" + w.sock}, w.env...)
	return cmd
}

// see notes the instances that a text names: nothing of them may be left.
func (w *world) see(text string) { w.base.Track(instanceID.FindAllString(text, -1)...) }

// seeDirs notes the instances that are on disk below dir.
func (w *world) seeDirs(dir string) (n int) {
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		w.see(e.Name())
		n++
	}
	return n
}

// server is a `firebreak serve`.
type server struct {
	*world
	cmd  *exec.Cmd
	log  *output
	http *http.Client
	url  string
	key  string
	wait func() error
	dead chan struct{} // closed when the process has ended
}

// serve starts a server, with a crash armed if point is not "", and returns
// when it is ready.
func (w *world) serve(point string, args ...string) *server {
	w.t.Helper()
	s := w.start(point, args...)
	if !s.ready() {
		w.t.Fatalf("the server is not ready after 30 s:\n%s", s.log)
	}
	return s
}

// start starts a server and does not wait for it.
func (w *world) start(point string, args ...string) *server {
	w.t.Helper()
	s := &server{world: w, cmd: w.command(append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...), log: &output{},
		http: &http.Client{Timeout: time.Minute, Transport: w.transport}, dead: make(chan struct{})}
	s.cmd.Env = append(s.cmd.Env, failpoint.Env+"="+point)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	begin := w.begin
	if begin == nil {
		begin = (*exec.Cmd).Start
	}
	if err := begin(s.cmd); err != nil {
		w.t.Fatal(err)
	}
	s.wait = sync.OnceValue(func() error {
		defer close(s.dead)
		return s.cmd.Wait()
	})
	go s.wait() // ends with the process
	w.t.Cleanup(func() { s.cmd.Process.Kill(); s.wait() })
	return s
}

var reAddress = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)

// ready waits until the server answers, and reports false when it ended or half
// a minute passed before that.
func (s *server) ready() bool {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); s.url == ""; time.Sleep(10 * time.Millisecond) {
		if s.url = reAddress.FindString(s.log.String()); s.url != "" {
			break
		}
		select {
		case <-s.dead:
			return false
		default:
		}
		if time.Now().After(deadline) {
			return false
		}
	}
	key, err := os.ReadFile(filepath.Join(s.data, "api-key"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.key = strings.TrimSpace(string(key))
	return true
}

// stop ends the server as an operator does; its sandboxes live on.
func (s *server) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.wait(); err != nil {
		s.t.Errorf("the server ended with %v:\n%s", err, s.log)
	}
}

// crashed waits for the armed crash.
func (s *server) crashed() {
	s.t.Helper()
	late := time.AfterFunc(20*time.Second, func() { s.cmd.Process.Signal(syscall.SIGQUIT) })
	defer late.Stop()
	s.wait()
	if ws, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		s.t.Fatalf("the server ended with %v, not by its failpoint:\n%s", s.cmd.ProcessState, s.log)
	}
}

// reply is what the tests look at in an answer.
type reply struct {
	ID, State, Reason, Stdout string
	Created                   time.Time `json:"created_at"`
	Sandboxes                 []reply
	Receipt                   *struct{ Clean bool }
	Error                     struct{ Kind, Message string }
}

// do sends a request; status 0 means that no answer came.
func (s *server) do(method, path, body string) (status int, r reply) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, r
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, r
	}
	s.see(string(b))
	if err := json.Unmarshal(b, &r); err != nil {
		s.t.Fatalf("%s %s: %v: %s", method, path, err, b)
	}
	return resp.StatusCode, r
}

// get fetches a document into v and returns the status.
func (s *server) get(path string, v any) int {
	s.t.Helper()
	req, err := http.NewRequest("GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		s.see(string(b))
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode
}

// create makes a sandbox and returns its id.
func (s *server) create() string {
	s.t.Helper()
	status, r := s.do("POST", "/v1/sandboxes", `{}`)
	if status != http.StatusCreated {
		s.t.Fatalf("create: %d %+v", status, r)
	}
	return r.ID
}

// execs checks that a sandbox works.
func (s *server) execs(id string) {
	s.t.Helper()
	status, r := s.do("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"print(6*7)"}`)
	if status != http.StatusOK || r.Stdout != "42\n" {
		s.t.Errorf("exec: %d %+v", status, r)
	}
}

// destroy ends a sandbox and checks its receipt.
func (s *server) destroy(id string) {
	s.t.Helper()
	status, r := s.do("DELETE", "/v1/sandboxes/"+id, "")
	if status != http.StatusOK || r.Receipt == nil || !r.Receipt.Clean {
		s.t.Errorf("destroy: %d %+v", status, r)
	}
}

// output is a buffer that may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

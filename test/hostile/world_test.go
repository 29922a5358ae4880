// Package hostile attacks Firebreak from inside its sandboxes, with the built
// program and real boundaries: programs that try what hostile code tries, and
// an agent that lies to the host. What a host must show each time is the same:
// a typed end, bounded memory, no residue, evidence that verifies, and
// neighbours that notice nothing.
package hostile

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// built is bin/firebreak as make builds it.
func built(t *testing.T) string {
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
	return bin
}

// chaotic is bin/firebreak with the agent of ./agent embedded in place of its
// own. It is kept beside it, so that the next run links nothing.
func chaotic(t *testing.T) string {
	t.Helper()
	root := filepath.Dir(filepath.Dir(built(t)))
	dir := filepath.Join(root, "bin", "hostile")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := func(out, pkg string, args ...string) {
		t.Helper()
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", out}, args...), pkg)...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, text)
		}
	}
	agent, packed := filepath.Join(dir, "agent"), filepath.Join(dir, "agent.gz")
	build(agent, "./test/hostile/agent")
	data, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(data)
	w.Close()
	if old, err := os.ReadFile(packed); err != nil || !bytes.Equal(old, z.Bytes()) {
		if err := os.WriteFile(packed, z.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	overlay, _ := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(root, "internal/bundle/assets/firebreak-guest.gz"): packed}})
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "firebreak")
	build(bin, "./cmd/firebreak", "-overlay="+list)
	return bin
}

// world is a server with a data directory of its own, and what must be left of
// both.
type world struct {
	t        *testing.T
	bin, dir string
	backend  string
	url, key string
	cmd      *exec.Cmd
	wait     func() error
	start    func(*exec.Cmd) error // the server
	env      []string              // of every command, beside the usual
	vault    *vault                // what its bindings are for, if there is one
	refs     func(repository string) (string, error)
	// transport reaches it.
	transport *http.Transport

	mu   sync.Mutex
	base *residue.Baseline // guarded by mu
	log  bytes.Buffer      // guarded by mu
}

// place is a machine that servers run on and are asked on.
type place interface {
	Start(cmd *exec.Cmd) error
	Transport() *http.Transport
}

var instanceID = regexp.MustCompile(`\bin[a-z2-7]{18}\b`)

// serve starts bin in a new world. When the test ends the server is stopped, its
// evidence verified and the host searched.
func serve(t *testing.T, bin string) *world {
	t.Helper()
	return serveOn(t, bin, "gvisor")
}

// serveOn is serve on a backend of one's choice.
func serveOn(t *testing.T, bin, backend string) *world {
	t.Helper()
	w := &world{t: t, bin: bin, dir: t.TempDir(), backend: backend, start: (*exec.Cmd).Start, transport: http.DefaultTransport.(*http.Transport)}
	w.up()
	return w
}

// serveIn is serve on another machine than this, with more in the environment.
func serveIn(t *testing.T, bin string, p place, env ...string) *world {
	t.Helper()
	w := &world{t: t, bin: bin, dir: t.TempDir(), backend: "gvisor", start: p.Start, transport: p.Transport(), env: env}
	t.Cleanup(w.transport.CloseIdleConnections)
	w.up()
	return w
}

// up starts the server.
func (w *world) up() {
	t := w.t
	t.Helper()
	for _, d := range []string{"run", "instances", "machines", "wires", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(w.dir, "data", d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.base, err = residue.Take(w.scope())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range w.base.Diff() {
			t.Errorf("left behind: %v", f)
		}
	})
	w.cmd = w.command("serve", "--listen", "127.0.0.1:0", "--stop-sandboxes", "--backend", w.backend)
	w.cmd.Stdout, w.cmd.Stderr = w, w
	if err := w.start(w.cmd); err != nil {
		t.Fatal(err)
	}
	w.wait = sync.OnceValue(w.cmd.Wait)
	t.Cleanup(w.stop)
	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	for deadline := time.Now().Add(60 * time.Second); w.url == ""; time.Sleep(10 * time.Millisecond) {
		if w.url = address.FindString(w.text()); w.url == "" && time.Now().After(deadline) {
			t.Fatalf("the server is not ready after 60 s:\n%s", w.text())
		}
	}
	key, err := os.ReadFile(filepath.Join(w.dir, "data", "api-key"))
	if err != nil {
		t.Fatal(err)
	}
	w.key = strings.TrimSpace(string(key))
}

// scope is where the world's host objects are looked for, and what a server
// leaves there on purpose.
func (w *world) scope() residue.Scope {
	return residue.Scope{Dirs: []string{w.dir}, Keep: []string{"out", "data/templates", "data/machine-images", "data/libexec", "data/audit",
		"data/events", "data/runs", "data/processes", "data/api-key", "data/token-key", "data/secrets", "data/state.db", "data/state.db-wal", "data/state.db-shm", "data/state.db-redo", "data/lock"}}
}

// command prepares a firebreak command in the world.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(w.bin, args...)
	cmd.Dir = w.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "FIREBREAK_DATA=" + filepath.Join(w.dir, "data"),
		"FIREBREAK_SOCKET=" + filepath.Join(w.dir, "s")}
	cmd.Env = append(cmd.Env, w.env...)
	return cmd
}

// cli runs a firebreak command against the server.
func (w *world) cli(args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	return w.cliWith("", args...)
}

// cliWith is cli with something on standard input.
func (w *world) cliWith(stdin string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	cmd := w.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		w.t.Fatalf("firebreak %v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Write keeps the server's log.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *world) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

// stop ends the server as an operator does, and verifies its evidence.
func (w *world) stop() {
	w.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(90*time.Second, func() { w.cmd.Process.Kill() })
	defer late.Stop()
	if err := w.wait(); err != nil {
		w.t.Errorf("the server ended with %v:\n%s", err, w.text())
	}
	if strings.Contains(w.text(), "panic") || strings.Contains(w.text(), "goroutine ") {
		w.t.Errorf("the server panicked:\n%s", w.text())
	}
	if _, err := audit.Verify(filepath.Join(w.dir, "data", "audit", "server")); err != nil {
		w.t.Errorf("the evidence does not verify: %v", err)
	}
}

// records are what the audit log says about a sandbox.
func (w *world) records(id string) (actions []string) {
	w.t.Helper()
	for e, err := range audit.Scan(filepath.Join(w.dir, "data", "audit", "server"), 0) {
		if err != nil {
			w.t.Fatalf("the evidence cannot be read: %v", err)
		}
		if string(e.Record.Sandbox) == id {
			actions = append(actions, e.Record.Action)
		}
	}
	return actions
}

// reply is what the tests look at in an answer.
type reply struct {
	ID, State, Reason, Detail string
	Stdout, Stderr            string
	ExitCode                  int     `json:"exit_code"`
	Duration                  float64 `json:"duration_ms"`
	Receipt                   *struct{ Clean bool }
	Error                     struct{ Kind, Message, Hint string }
	body                      string
}

// do sends a request. Status 0 means that no answer came, and why is in the
// reply's Error.
func (w *world) do(method, path, body string) (status int, r reply) {
	return w.doContext(context.Background(), method, path, body)
}

func (w *world) doContext(ctx context.Context, method, path, body string) (status int, r reply) {
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, strings.NewReader(body))
	if err != nil {
		r.Error.Message = err.Error()
		return 0, r
	}
	req.Header.Set("Authorization", "Bearer "+w.key)
	resp, err := (&http.Client{Timeout: 2 * time.Minute, Transport: w.transport}).Do(req)
	if err != nil {
		r.Error.Message = err.Error()
		return 0, r
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if r.body = string(b); err != nil {
		r.Error.Message = err.Error()
		return 0, r
	}
	if len(b) < 1<<20 { // more is a program's output
		w.mu.Lock()
		w.base.Track(instanceID.FindAllString(r.body, -1)...)
		w.mu.Unlock()
	}
	_ = json.Unmarshal(b, &r) // a file's content is not JSON
	return resp.StatusCode, r
}

// create makes a sandbox; fields is the inside of the request's JSON object.
func (w *world) create(t *testing.T, fields string) string {
	t.Helper()
	status, r := w.do("POST", "/v1/sandboxes", "{"+fields+"}")
	if status != http.StatusCreated {
		t.Fatalf("create %s: %d %+v", fields, status, r)
	}
	return r.ID
}

// createAll makes n sandboxes, four at a time.
func (w *world) createAll(t *testing.T, n int, fields string) []string {
	t.Helper()
	ids := make([]string, n)
	slots := make(chan struct{}, 4)
	var work sync.WaitGroup
	for i := range ids {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			_, r := w.do("POST", "/v1/sandboxes", "{"+fields+"}")
			ids[i] = r.ID
		})
	}
	work.Wait()
	for _, id := range ids {
		if id == "" {
			t.Fatal("a sandbox could not be created")
		}
	}
	return ids
}

// destroy ends a sandbox and checks its receipt and its evidence.
func (w *world) destroy(t *testing.T, id string) reply {
	t.Helper()
	status, r := w.do("DELETE", "/v1/sandboxes/"+id, "")
	if status != http.StatusOK || r.Receipt == nil || !r.Receipt.Clean {
		t.Errorf("destroy %s: %d %s", id, status, r.body)
	}
	return r
}

// exec runs a command and returns what came of it.
func (w *world) exec(id string, timeout time.Duration, argv ...string) (int, reply) {
	body, _ := json.Marshal(map[string]any{"command": argv[0], "args": argv[1:], "timeout_ms": timeout.Milliseconds()})
	return w.do("POST", "/v1/sandboxes/"+id+"/exec", string(body))
}

// metric reads one of the server's own numbers.
func (w *world) metric(name string) float64 {
	_, r := w.do("GET", "/metrics", "")
	for line := range strings.Lines(r.body) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			f, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return f
		}
	}
	return -1
}

// quiet waits until the server holds no more goroutines and descriptors than
// it did, but for the connections of whoever asks.
func (w *world) quiet(t *testing.T, goroutines, fds float64) {
	t.Helper()
	const slack = 6
	var g, f float64
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		w.transport.CloseIdleConnections()
		if g, f = w.metric("go_goroutines"), w.metric("process_open_fds"); g <= goroutines+slack && f <= fds+slack {
			return
		}
	}
	t.Errorf("the server holds %v goroutines and %v descriptors; it was %v and %v", g, f, goroutines, fds)
}

// memory watches the server's memory until the function it returns is called,
// which says by how many bytes its heap and its resident set grew at most.
func (w *world) memory() func() (heap, resident int64) {
	names := [2]string{"go_memstats_heap_inuse_bytes", "process_resident_memory_bytes"}
	var base, peak [2]float64
	for i, n := range names {
		base[i] = w.metric(n)
	}
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			for i, n := range names {
				peak[i] = max(peak[i], w.metric(n))
			}
			select {
			case <-quit:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() (int64, int64) {
		close(quit)
		<-over
		return int64(peak[0] - base[0]), int64(peak[1] - base[1])
	}
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/node"
)

// libexec is where the embedded programs are unpacked.
var libexec string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fb")
	if err != nil {
		panic(err)
	}
	libexec = filepath.Join(dir, "libexec")
	if err := os.Mkdir(libexec, 0o755); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(dir); err != nil {
			panic(err)
		}
		os.Exit(code)
	}))
}

// world is a data directory and an environment, in which whole command lines
// run in this process, on the model backend.
type world struct {
	t   testing.TB
	dir string
	env map[string]string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "fb") // short: a socket's path has a limit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	// Unpacked once for all tests: it takes a second.
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(libexec, filepath.Join(dir, "data", "libexec")); err != nil {
		t.Fatal(err)
	}
	return &world{t, dir, map[string]string{
		"HOME": dir, "FIREBREAK_DATA": filepath.Join(dir, "data"), "FIREBREAK_SOCKET": filepath.Join(dir, "s"), "FIREBREAK_BACKEND": "sim", "FIREBREAK_LISTEN": "127.0.0.1:0",
	}}
}

type result struct {
	code     int
	out, err string
}

// lines is a writer that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// app is a program in this world.
func (w *world) app(stdin string, out, errs *buffer) *cli.App {
	wiring := node.Wiring{Build: cli.Build{Version: "test"}}
	return &cli.App{
		In: strings.NewReader(stdin), Out: out, Err: errs, Root: true,
		Lookup: func(k string) (string, bool) { v, ok := w.env[k]; return v, ok },
		Local:  wiring.Local, Serve: wiring.Serve, Examine: wiring.Examine, Uninstall: wiring.Uninstall,
		Backup: wiring.Backup, Restore: wiring.Restore,
	}
}

func (w *world) runIn(ctx context.Context, stdin string, args ...string) result {
	w.t.Helper()
	var out, errs buffer
	code := w.app(stdin, &out, &errs).Execute(ctx, args)
	return result{code, out.String(), errs.String()}
}

func (w *world) run(args ...string) result {
	w.t.Helper()
	return w.runIn(context.Background(), "", args...)
}

// must runs a command line that has to succeed, and returns its stdout.
func (w *world) must(args ...string) string {
	w.t.Helper()
	r := w.run(args...)
	if r.code != 0 {
		w.t.Fatalf("%q: exit code %d\n%s", args, r.code, r.err)
	}
	return r.out
}

// serve starts a server that is stopped, gracefully, when the test ends.
func (w *world) serve(args ...string) (stop func() (int, string)) {
	w.t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	var out, errs buffer
	code := make(chan int, 1)
	go func() { code <- w.app("", &out, &errs).Execute(ctx, append([]string{"serve"}, args...)) }()
	var once sync.Once
	var got int
	stop = func() (int, string) {
		once.Do(func() {
			cancel(cli.Interrupted(syscall.SIGTERM))
			got = <-code
		})
		return got, errs.String()
	}
	w.t.Cleanup(func() { stop() })
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(errs.String(), "is ready"); time.Sleep(5 * time.Millisecond) {
		if len(code) > 0 || time.Now().After(deadline) {
			w.t.Fatalf("the server is not ready:\n%s", errs.String())
		}
	}
	return stop
}

func (w *world) write(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) read(name string) string {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

// runCases is what run promises, whether it brings its own server or not.
func runCases(t *testing.T, w *world) {
	w.write("prog.py", "import sys # sim: args\n")
	for _, c := range []struct {
		name, stdin string
		args        []string
		out, err    string // exact; "*" is anything
		code        int
	}{
		{"code", "", []string{"-c", "print(6*7) # sim: stdout 42"}, "42\n", "", 0},
		{"exit code", "", []string{"-c", "x # sim: exit 7"}, "", "", 7},
		{"command", "", []string{"--", "echo", "a", "--json", "b"}, "a --json b\n", "", 0},
		{"file and arguments", "", []string{filepath.Join(w.dir, "prog.py"), "a", "--json", "-c"}, "a --json -c\n", "", 0},
		{"program on stdin", "x # sim: stdout from stdin", []string{"-"}, "from stdin\n", "", 0},
		{"node", "", []string{"--language", "node", "-c", "1 // sim: stdout js"}, "js\n", "", 0},
		{"stdin", "some data", []string{"--stdin", "--", "cat"}, "some data", "", 0},
		{"no stdin", "some data", []string{"--", "cat"}, "", "", 0},
		{"stderr", "", []string{"-c", "x # sim: stderr oops"}, "", "oops\n", 0},
		{"environment", "", []string{"-e", "A=b c", "--", "sh", "-c", "echo $A"}, "b c\n", "", 0},
		{"timeout", "", []string{"--timeout", "200ms", "--", "sleep", "60"}, "", "firebreak: killed: timeout (limit 200ms)\n", 124},
		{"no such program", "", []string{"--", "no-such-program"}, "", "*", 127},
		{"no such template", "", []string{"--template", "nope", "-c", "1"}, "", "*", 125},
		{"absurd limit", "", []string{"--memory", "1k", "-c", "1"}, "", "*", 2},
		{"too weak", "", []string{"--min-isolation", "confidential", "-c", "1"}, "", "*", 125},
		{"unknown backend", "", []string{"--backend", "chroot", "-c", "1"}, "", "*", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := w.runIn(context.Background(), c.stdin, append([]string{"run"}, c.args...)...)
			if r.code != c.code || c.out != "*" && r.out != c.out || c.err != "*" && r.err != c.err {
				t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.out, r.err)
			}
			if (c.code == 125 || c.code == 2) && !strings.Contains(r.err, "\n  hint: ") {
				t.Errorf("no hint in %q", r.err)
			}
		})
	}
}

func TestRunInProcess(t *testing.T) {
	w := newWorld(t)
	runCases(t, w)
	if left, err := os.ReadDir(filepath.Join(w.dir, "data", "run")); err != nil || len(left) > 0 {
		t.Errorf("left in run: %v, %v", left, err)
	}
	evidence, err := os.ReadDir(filepath.Join(w.dir, "data", "audit"))
	if err != nil || len(evidence) == 0 {
		t.Errorf("no evidence: %v, %v", evidence, err)
	}
}

func TestRunOnServer(t *testing.T) {
	w := newWorld(t)
	stop := w.serve()
	runCases(t, w)
	if out := w.must("ls"); strings.Count(out, "\n") != 1 {
		t.Errorf("sandboxes are left:\n%s", out)
	}
	if code, errs := stop(); code != 0 {
		t.Errorf("serve ended with %d:\n%s", code, errs)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "s")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestRunJSON(t *testing.T) {
	w := newWorld(t)
	in := w.write("in/a.txt", "alpha")
	r := w.run("run", "--json", "--input", filepath.Dir(in)+":data", "--artifact", "data:"+filepath.Join(w.dir, "out"), "--artifact", "missing",
		"-c", "x # sim: stdout hi\nz # sim: exit 3")
	var out struct {
		SandboxID, Backend, Isolation, Stdout, Reason string
		ID                                            string `json:"sandbox_id"`
		ExitCode                                      int    `json:"exit_code"`
		Result                                        json.RawMessage
		Artifacts                                     []struct {
			Path, SHA256, Error string
			Size                int64
		}
		Egress  []any
		Receipt struct {
			Clean   bool
			Objects []any
		}
		Audit   struct{ First, Last int64 }
		Timings map[string]float64 `json:"timings_ms"`
	}
	if err := json.Unmarshal([]byte(r.out), &out); err != nil {
		t.Fatalf("%v\n%s%s", err, r.out, r.err)
	}
	if r.code != 3 || out.ExitCode != 3 || out.Reason != "done" || out.Stdout != "hi\n" || string(out.Result) != "null" ||
		out.Backend != "sim" || out.Isolation != "none" || !strings.HasPrefix(out.ID, "sb") || !out.Receipt.Clean || out.Egress == nil ||
		out.Audit.First <= 0 || out.Audit.Last <= out.Audit.First || len(out.Timings) != 3 {
		t.Errorf("exit code %d: %s%s", r.code, r.out, r.err)
	}
	if got := w.read("out/a.txt"); got != "alpha" {
		t.Errorf("artifact %q", got)
	}
	if len(out.Artifacts) != 2 || out.Artifacts[0].Size != 5 || len(out.Artifacts[0].SHA256) != 64 || out.Artifacts[1].Error == "" {
		t.Errorf("artifacts %+v", out.Artifacts)
	}
	r = w.run("run", "--json", "--template", "nope", "-c", "1")
	var failed struct {
		Error struct{ Kind, Message, Hint string }
	}
	if err := json.Unmarshal([]byte(r.out), &failed); err != nil || r.code != 125 || failed.Error.Kind != "not_found" || failed.Error.Hint == "" || r.err != "" {
		t.Errorf("exit code %d: %s%s", r.code, r.out, r.err)
	}
}

// TestArtifacts: live runs and recorded ones store the same files.
func TestArtifacts(t *testing.T) {
	w := newWorld(t)
	w.write("in/a/b.txt", "bravo")
	w.write("in/c.txt", "charlie")
	for _, mode := range [][]string{{"run"}, {"run", "--json"}} {
		out := filepath.Join(w.dir, "out"+mode[len(mode)-1])
		r := w.run(append(mode, "-i", filepath.Join(w.dir, "in")+":d", "-a", "d:"+filepath.Join(out, "dir"), "-a", "d/c.txt:"+filepath.Join(out, "one"), "--", "true")...)
		if r.code != 0 {
			t.Fatalf("%q: %d %s", mode, r.code, r.err)
		}
		rel, _ := filepath.Rel(w.dir, out)
		if w.read(rel+"/dir/a/b.txt") != "bravo" || w.read(rel+"/one") != "charlie" {
			t.Errorf("%q: wrong content", mode)
		}
	}
	r := w.run("run", "-a", "nothing:"+filepath.Join(w.dir, "n"), "--", "true")
	if r.code != 0 || !strings.HasPrefix(r.err, "firebreak: artifact nothing: ") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("a missing artifact: %d %q", r.code, r.err)
	}
}

// TestLargeInputs go by the file operations, not in the request.
func TestLargeInputs(t *testing.T) {
	w := newWorld(t)
	big := w.write("big", strings.Repeat("0123456789abcdef", 3<<16))
	for _, mode := range [][]string{{"run"}, {"run", "--json"}} {
		out := filepath.Join(w.dir, "back")
		if r := w.run(append(mode, "-i", big, "-a", "big:"+out, "--", "true")...); r.code != 0 {
			t.Fatalf("%q: %d %s%s", mode, r.code, r.out, r.err)
		}
		if w.read("back") != w.read("big") {
			t.Errorf("%q: content differs", mode)
		}
		os.Remove(out)
	}
}

// slow takes its time before it takes anything, and counts.
type slow struct {
	wait time.Duration
	n    int
}

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(s.wait)
	s.wait = 0
	s.n += len(p)
	return len(p), nil
}

// TestNoOutputIsLost: a reader that stalls slows the program down; it misses
// nothing, whatever the size.
func TestNoOutputIsLost(t *testing.T) {
	w := newWorld(t)
	const size = 48 << 20
	var errs buffer
	out := &slow{wait: time.Second}
	app := w.app("", &buffer{}, &errs)
	app.Out = out
	code := app.Execute(context.Background(), []string{"run", "--", "firebreak-guest", "probe", "noline", strconv.Itoa(size)})
	if code != 0 || out.n != size {
		t.Errorf("exit code %d, %d of %d bytes, stderr %q", code, out.n, size, errs.String())
	}
}

func TestInputsStayInside(t *testing.T) {
	w := newWorld(t)
	w.write("secret", "s")
	w.write("in/ok", "o")
	if err := os.Symlink("../secret", filepath.Join(w.dir, "in", "link")); err != nil {
		t.Fatal(err)
	}
	if r := w.run("run", "-i", filepath.Join(w.dir, "in"), "--", "true"); r.code != 2 {
		t.Errorf("a link out of the directory: %d %s", r.code, r.err)
	}
}

func TestInterrupt(t *testing.T) {
	w := newWorld(t)
	for _, mode := range [][]string{{"run"}, {"run", "--json"}} {
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(700*time.Millisecond, func() { cancel(cli.Interrupted(syscall.SIGINT)) })
		start := time.Now()
		r := w.runIn(ctx, "", append(mode, "--", "sleep", "60")...)
		if r.code != 130 || time.Since(start) > 15*time.Second {
			t.Errorf("%q: exit code %d after %v: %q", mode, r.code, time.Since(start), r.err)
		}
		if left, _ := os.ReadDir(filepath.Join(w.dir, "data", "run")); len(left) > 0 {
			t.Errorf("%q: left: %v", mode, left)
		}
	}
}

func TestSandboxCommands(t *testing.T) {
	w := newWorld(t)
	w.serve()
	id := strings.TrimSpace(w.must("create", "--name", "web", "--metadata", "team=a", "--timeout", "1h"))
	if !strings.HasPrefix(id, "sb") {
		t.Fatalf("create printed %q", id)
	}
	if out := w.must("ls"); !strings.Contains(out, id) || !strings.Contains(out, "web") || !strings.Contains(out, "running") {
		t.Errorf("ls:\n%s", out)
	}
	if out := w.must("ls", "-q", "--metadata", "team=b"); out != "" {
		t.Errorf("ls with another label: %q", out)
	}
	var listed []struct{ ID string }
	if err := json.Unmarshal([]byte(w.must("ls", "--json")), &listed); err != nil || len(listed) != 1 || listed[0].ID != id {
		t.Errorf("ls --json: %v %v", listed, err)
	}
	if out := w.must("exec", "web", "--", "echo", "-n", "x"); !strings.Contains(out, "x") {
		t.Errorf("exec by name: %q", out)
	}
	if r := w.run("exec", id, "-c", "x # sim: exit 5"); r.code != 5 {
		t.Errorf("exec -c: %d %s", r.code, r.err)
	}
	if r := w.run("exec", "--timeout", "100ms", id, "--", "sleep", "9"); r.code != 124 || r.err != "firebreak: killed: timeout (limit 100ms)\n" {
		t.Errorf("exec over its time: %d %q", r.code, r.err)
	}
	if r := w.run("exec", "--json", id, "-c", "x # sim: stdout hi"); r.code != 0 || !strings.Contains(r.out, `"stdout":"hi\n"`) {
		t.Errorf("exec --json: %d %s%s", r.code, r.out, r.err)
	}
	w.copies(t, id)
	if out := w.must("logs", id); !strings.Contains(out, "hi\n") {
		t.Errorf("logs: %q", out)
	}
	if out := w.must("events", id); !strings.Contains(out, "running") || !strings.Contains(out, "exit code 5") {
		t.Errorf("events:\n%s", out)
	}
	for _, line := range strings.Split(strings.TrimSpace(w.must("events", "--json", id)), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("events --json: %q", line)
		}
	}
	if r := w.run("__complete", "exec", ""); !strings.Contains(r.out, id) || !strings.Contains(r.out, "web") {
		t.Errorf("completion: %q", r.out)
	}
	if out := w.must("rm", id); out != id+"\n" {
		t.Errorf("rm: %q", out)
	}
	var sb struct {
		State, Reason string
		Receipt       struct{ Clean bool }
	}
	if err := json.Unmarshal([]byte(w.must("inspect", id)), &sb); err != nil || sb.State != "ended" || sb.Reason != "operator" || !sb.Receipt.Clean {
		t.Errorf("inspect after rm: %+v %v", sb, err)
	}
	if r := w.run("exec", id, "--", "true"); r.code != 125 || !strings.Contains(r.err, "hint: ") {
		t.Errorf("exec after rm: %d %q", r.code, r.err)
	}
	if r := w.run("inspect", "sbaaaaaaaaaaaaaaaaaa"); r.code != 1 || !strings.Contains(r.err, "hint: ") {
		t.Errorf("an unknown id: %d %q", r.code, r.err)
	}
	if out := w.must("ls", "-a"); !strings.Contains(out, "operator") {
		t.Errorf("ls -a:\n%s", out)
	}
}

// copies is cp both ways.
func (w *world) copies(t *testing.T, id string) {
	t.Helper()
	w.write("tree/a/b", "bravo")
	w.write("tree/c", "charlie")
	tree := filepath.Join(w.dir, "tree")
	w.must("cp", tree, id+":")
	w.must("cp", filepath.Join(tree, "c"), id+":/tmp/renamed")
	w.must("cp", id+":tree", filepath.Join(w.dir, "copy"))
	if w.read("copy/a/b") != "bravo" || w.read("copy/c") != "charlie" {
		t.Error("a directory came back changed")
	}
	if out := w.must("cp", id+":/tmp/renamed", "-"); out != "charlie" {
		t.Errorf("cp to stdout: %q", out)
	}
	if r := w.runIn(context.Background(), "delta", "cp", "-", id+":d"); r.code != 0 {
		t.Errorf("cp from stdin: %s", r.err)
	}
	if out := w.must("cp", id+":d", "-"); out != "delta" {
		t.Errorf("cp from stdin stored %q", out)
	}
	if r := w.run("cp", id+":nothing", filepath.Join(w.dir, "n")); r.code != 1 {
		t.Errorf("cp of nothing: %d %q", r.code, r.err)
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "n")); err == nil {
		t.Error("a failed cp left a file")
	}
}

func TestKeys(t *testing.T) {
	w := newWorld(t)
	w.serve()
	secret := strings.TrimSpace(w.must("key", "create", "--name", "ci", "--role", "viewer"))
	if !strings.HasPrefix(secret, "fb_") {
		t.Errorf("key create printed %q", secret)
	}
	list := w.must("key", "ls")
	if !strings.Contains(list, "ci") || strings.Contains(list, secret) {
		t.Errorf("key ls:\n%s", list)
	}
}

func TestSecondServer(t *testing.T) {
	w := newWorld(t)
	w.serve()
	other := *w
	other.env = map[string]string{}
	for k, v := range w.env {
		other.env[k] = v
	}
	other.env["FIREBREAK_SOCKET"] = filepath.Join(w.dir, "s2")
	r := other.run("serve")
	if r.code != 1 || !strings.Contains(r.err, "in use by process") || !strings.Contains(r.err, "hint: ") {
		t.Errorf("%d %q", r.code, r.err)
	}
	// An in-process run shares the data directory with the server, though.
	if r := other.run("run", "--", "echo", "hi"); r.code != 0 || r.out != "hi\n" {
		t.Errorf("a run beside a server: %d %q", r.code, r.err)
	}
}

// TestReap: what a dead run left is removed by the next; what a live one uses is
// not.
func TestReap(t *testing.T) {
	w := newWorld(t)
	dead := filepath.Join(w.dir, "data", "run", "20200101t000000-dead")
	w.write("data/run/20200101t000000-dead/lock", "999999\n")
	w.write("data/run/20200101t000000-dead/instances/x", "")
	half := filepath.Join(w.dir, "data", "run", ".tmp-20200101t000000-half")
	w.write("data/run/.tmp-20200101t000000-half/lock", "")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(half, old, old); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan result, 1)
	go func() { done <- w.runIn(ctx, "", "run", "--", "sleep", "60") }()
	live := ""
	for deadline := time.Now().Add(20 * time.Second); live == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the run does not start")
		}
		entries, _ := os.ReadDir(filepath.Join(w.dir, "data", "run"))
		for _, e := range entries {
			if !strings.Contains(e.Name(), "20200101") && !strings.HasPrefix(e.Name(), ".") {
				live = filepath.Join(w.dir, "data", "run", e.Name())
			}
		}
	}
	w.must("run", "--", "true")
	for _, d := range []string{dead, half} {
		if _, err := os.Stat(d); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", d, err)
		}
	}
	if _, err := os.Stat(filepath.Join(live, "state.db")); err != nil {
		t.Errorf("a live run lost its state: %v", err)
	}
	cancel(cli.Interrupted(syscall.SIGINT))
	if r := <-done; r.code != 130 {
		t.Errorf("the live run: %d %q", r.code, r.err)
	}
}

func TestUninstall(t *testing.T) {
	w := newWorld(t)
	w.must("run", "--", "true")
	w.write("data/mine", "not Firebreak's")
	if out := w.must("uninstall"); !strings.Contains(out, "would remove") {
		t.Errorf("dry run: %q", out)
	}
	if out := w.must("uninstall", "--yes"); !strings.Contains(out, "kept") || !strings.Contains(out, "evidence") {
		t.Errorf("it printed %q", out)
	}
	left := func() (names []string) {
		entries, err := os.ReadDir(filepath.Join(w.dir, "data"))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if got := left(); !slices.Equal(got, []string{"audit", "mine"}) {
		t.Errorf("left: %v", got)
	}
	w.must("uninstall", "--yes", "--keep-audit=false")
	if got := left(); !slices.Equal(got, []string{"mine"}) {
		t.Errorf("left without evidence: %v", got)
	}
	if out := w.must("uninstall", "--yes"); !strings.Contains(out, "nothing is installed") {
		t.Errorf("again: %q", out)
	}
}

// TestUninstallElsewhere: a directory that is not Firebreak's loses nothing,
// whatever its files are called, and a server's loses nothing while it runs.
func TestUninstallElsewhere(t *testing.T) {
	w := newWorld(t)
	stop := w.serve()
	if r := w.run("uninstall", "--yes"); r.code != 1 || !strings.Contains(r.err, "in use by process") || !strings.Contains(r.err, "stop the server") {
		t.Errorf("%d %q", r.code, r.err)
	}
	stop()
	w.env["FIREBREAK_DATA"] = filepath.Join(w.dir, "app")
	w.write("app/templates/index.html", "mine")
	w.write("app/run/pid", "mine")
	if out := w.must("uninstall", "--yes"); !strings.Contains(out, "nothing is installed") {
		t.Errorf("%q", out)
	}
	if w.read("app/templates/index.html") != "mine" || w.read("app/run/pid") != "mine" {
		t.Error("it is gone")
	}
	if _, err := os.Stat(filepath.Join(w.dir, "app", "lock")); err == nil {
		t.Error("a lock was left")
	}
}

func TestDoctor(t *testing.T) {
	w := newWorld(t)
	r := w.run("doctor", "--json")
	var out struct {
		Isolates bool
		Checks   []struct{ Name, Status, Detail string }
	}
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || len(out.Checks) == 0 || out.Isolates != (r.code == 0) {
		t.Errorf("%d %v\n%s%s", r.code, err, r.out, r.err)
	}
	for _, c := range out.Checks {
		if c.Name == "" || c.Status == "" {
			t.Errorf("%+v", c)
		}
	}
}

// TestBackupAndRestore: a server is backed up while it works; the restored one
// stands beside it with all records, knows its keys, and leaves it alone.
func TestBackupAndRestore(t *testing.T) {
	w := newWorld(t)
	stop := w.serve()
	ended := strings.TrimSpace(w.must("create", "--name", "old"))
	w.must("exec", ended, "-c", "x # sim: stdout hi")
	w.must("rm", ended)
	alive := strings.TrimSpace(w.must("create", "--name", "web"))
	key := strings.TrimSpace(w.must("key", "create", "--name", "ci", "--role", "owner"))
	before := w.must("inspect", ended)
	file := filepath.Join(w.dir, "b.fbk")
	w.must("backup", file)
	if r := w.run("backup", file); r.code != 1 || !strings.Contains(r.err, "hint: ") {
		t.Errorf("over a backup: %d %q", r.code, r.err)
	}
	w.must("backup", "--force", file)
	if r := w.run("restore", file); r.code != 1 || !strings.Contains(r.err, "not empty") || !strings.Contains(r.err, "hint: ") {
		t.Errorf("over a data directory: %d %q", r.code, r.err)
	}

	other := newWorld(t)
	data := filepath.Join(other.dir, "restored")
	other.env["FIREBREAK_DATA"] = data
	if out := other.must("restore", file); !strings.Contains(out, "1 sandboxes were alive") {
		t.Errorf("restore printed %q", out)
	}
	if _, err := os.Stat(filepath.Join(data, "api-key")); err == nil {
		t.Error("a secret was restored")
	}
	// Unpacked once for all tests.
	if err := os.Symlink(libexec, filepath.Join(data, "libexec")); err != nil {
		t.Fatal(err)
	}
	stopOther := other.serve()
	if got := other.must("inspect", ended); got != before {
		t.Errorf("the record is\n%s\nwas\n%s", got, before)
	}
	if out := other.must("logs", ended); !strings.Contains(out, "hi\n") {
		t.Errorf("its output: %q", out)
	}
	if out := other.must("inspect", alive); !strings.Contains(out, `"state": "ended"`) || !strings.Contains(out, "lost") || !strings.Contains(out, "backup") {
		t.Errorf("the sandbox that was alive: %s", out)
	}
	other.env["FIREBREAK_API_KEY"] = key
	if out := other.must("key", "ls"); !strings.Contains(out, "ci") {
		t.Errorf("keys: %q", out)
	}
	if out := w.must("exec", alive, "-c", "x # sim: stdout there"); out != "there\n" {
		t.Errorf("the original's sandbox: %q", out)
	}
	stopOther()
	if out := w.must("exec", "web", "-c", "x # sim: stdout still"); out != "still\n" {
		t.Errorf("the original's sandbox, later: %q", out)
	}
	stop()
	w.must("backup", filepath.Join(w.dir, "stopped.fbk"))
}

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	w := newWorld(t)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("args.py", "import sys; print(sys.argv[1:])")
	write("hello.sh", "echo hello from $0 $1")
	write("in.csv", "a,b\n1,2\n")
	cases := []struct {
		name           string
		stdin          string
		args           []string
		stdout, stderr string // exact; a stderr of "*" is not looked at
		code           int
	}{
		{"python", "", []string{"-c", "print(6*7)"}, "42\n", "", 0},
		{"shell", "", []string{"--language", "shell", "-c", "echo $((6*7)); exit 3"}, "42\n", "", 3},
		{"command", "", []string{"--", "sh", "-c", "echo out; echo err >&2; exit 7"}, "out\n", "err\n", 7},
		{"file and arguments", "", []string{"args.py", "a", "--json", "-c"}, "['a', '--json', '-c']\n", "", 0},
		{"shell file", "", []string{"hello.sh", "x"}, "*", "", 0},
		{"program on stdin", "print('from stdin')", []string{"-"}, "from stdin\n", "", 0},
		{"stdin passed on", "some data", []string{"--stdin", "-c", "import sys; print(sys.stdin.read().upper())"}, "SOME DATA\n", "", 0},
		{"environment", "", []string{"--env", "A=b c", "-c", "import os; print(os.environ['A'])"}, "b c\n", "", 0},
		{"input", "", []string{"--input", "in.csv", "-c", "print(open('in.csv').read(), end='')"}, "a,b\n1,2\n", "", 0},
		{"user", "", []string{"--", "id", "-u"}, "1000\n", "", 0},
		{"traceback", "", []string{"-c", "1/0"}, "", "*", 1},
		{"memory", "", []string{"--memory", "64MiB", "-c", "x=bytearray(10**9)"}, "", "firebreak: killed: memory (limit 64 MiB)\n", 137},
		{"timeout", "", []string{"--timeout", "2s", "-c", "while True: pass"}, "", "firebreak: killed: timeout (limit 2s)\n", 124},
		{"usage", "", []string{"--nonsense"}, "", "*", 2},
		{"bad size", "", []string{"--memory", "lots", "-c", "1"}, "", "*", 2},
		{"no program", "", []string{"--", "no-such-program"}, "", "*", 127},
		{"input outside the home", "", []string{"--input", "in.csv:/etc/in.csv", "-c", "1"},
			"", "firebreak: --input: /etc/in.csv cannot be written in the sandbox\n  hint: its user may write in the home, where relative paths start, and in /tmp\n", 125},
		{"special artifact", "", []string{"--artifact", "p", "--", "mkfifo", "p"},
			"", "firebreak: artifact p: it is neither a file nor a directory but a special file\n", 0},
		{"missing template", "", []string{"--template", "nope", "-c", "1"}, "", "*", 125},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if slices.Contains(c.args, "--memory") && c.code != 2 {
				enforcing(t)
			}
			r := w.run(c.stdin, append([]string{"run"}, c.args...)...)
			if r.code != c.code {
				t.Errorf("exit code %d, want %d; stderr:\n%s", r.code, c.code, r.stderr)
			}
			if c.stdout != "*" && r.stdout != c.stdout {
				t.Errorf("stdout %q, want %q; stderr:\n%s", r.stdout, c.stdout, r.stderr)
			}
			if c.stderr != "*" && r.stderr != c.stderr {
				t.Errorf("stderr %q, want %q", r.stderr, c.stderr)
			}
			if c.code == 124 { // beside what a run takes on this machine, now
				if usual := w.run("", "run", "-c", "pass").took; r.took > 3*time.Second+4*usual {
					t.Errorf("took %v, and a run that does nothing %v", r.took, usual)
				}
			}
			if (c.code == 125 || c.code == 2) && !strings.Contains(r.stderr, "hint:") && !strings.Contains(r.stderr, "--help") {
				t.Errorf("no hint in:\n%s", r.stderr)
			}
		})
	}
}

// runJSON is the object of INTERFACE.md.
type runJSON struct {
	SandboxID string          `json:"sandbox_id"`
	Backend   string          `json:"backend"`
	Isolation string          `json:"isolation"`
	Stdout    string          `json:"stdout"`
	Stderr    string          `json:"stderr"`
	ExitCode  *int            `json:"exit_code"`
	Reason    string          `json:"reason"`
	Result    json.RawMessage `json:"result"`
	Artifacts []struct {
		Path   string `json:"path"`
		Size   int64  `json:"size"`
		SHA256 string `json:"sha256"`
	} `json:"artifacts"`
	Usage struct {
		CPU    float64 `json:"cpu_ms"`
		Memory int64   `json:"memory_peak_bytes"`
	} `json:"usage"`
	Timings struct{ Create, Execute, Destroy float64 } `json:"timings_ms"`
	Limits  map[string]struct {
		Value              float64
		Enforced, Explicit bool
	} `json:"limits"`
	Egress  []any `json:"egress"`
	Receipt struct {
		Objects []struct {
			Kind, Name string
			Gone       bool
		}
		Clean bool
	} `json:"receipt"`
	Audit struct{ First, Last int64 } `json:"audit"`
}

func (w *world) runJSON(args ...string) (runJSON, result) {
	w.t.Helper()
	r := w.run("", append([]string{"run", "--json"}, args...)...)
	var out runJSON
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
		w.t.Fatalf("not one JSON object: %v\nstdout: %s\nstderr: %s", err, r.stdout, r.stderr)
	}
	return out, r
}

func TestRunJSON(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.dir, "j.py"), []byte(`import firebreak
open("out.txt", "w").write("artifact")
print("hi")
firebreak.result({"ok": 1})
`), 0o644); err != nil {
		t.Fatal(err)
	}
	out, r := w.runJSON("--artifact", "out.txt", "j.py")
	if r.code != 0 || *out.ExitCode != 0 || out.Reason != "done" || out.Stdout != "hi\n" {
		t.Errorf("code %d, %+v\n%s", r.code, out, r.stderr)
	}
	if string(out.Result) != `{"ok":1}` && string(out.Result) != `{"ok": 1}` {
		t.Errorf("result %s", out.Result)
	}
	if out.Backend != "gvisor" || out.Isolation != "user-kernel" || !strings.HasPrefix(out.SandboxID, "sb") {
		t.Errorf("%+v", out)
	}
	if !out.Receipt.Clean || len(out.Receipt.Objects) == 0 {
		t.Errorf("receipt %+v", out.Receipt)
	}
	if len(out.Artifacts) != 1 || out.Artifacts[0].Size != 8 || len(out.Artifacts[0].SHA256) != 64 {
		t.Errorf("artifacts %+v", out.Artifacts)
	}
	if got, err := os.ReadFile(filepath.Join(w.dir, "out.txt")); err != nil || string(got) != "artifact" {
		t.Errorf("the artifact was not stored here: %q %v", got, err)
	}
	measured := os.Geteuid() == 0 // by its cgroup
	if measured && (out.Usage.CPU <= 0 || out.Usage.Memory <= 0) || out.Timings.Create <= 0 || out.Timings.Execute <= 0 || out.Timings.Destroy <= 0 {
		t.Errorf("usage %+v timings %+v", out.Usage, out.Timings)
	}
	if out.Egress == nil || out.Audit.First <= 0 || out.Audit.Last <= out.Audit.First {
		t.Errorf("egress %v audit %+v", out.Egress, out.Audit)
	}
}

func TestRunReasons(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		reason string
		code   int
		args   []string
	}{
		{"memory", 137, []string{"--memory", "64MiB", "-c", "x=bytearray(10**9)"}},
		{"timeout", 124, []string{"--timeout", "1s", "-c", "import time; time.sleep(60)"}},
		{"pids", 137, []string{"--pids", "32", "-c", "import os,time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)"}},
		{"disk", 1, []string{"--disk", "32MiB", "-c", "f=open('fill','wb')\nwhile True: f.write(b'x'*1048576)"}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			if c.reason == "memory" || c.reason == "pids" {
				enforcing(t)
			}
			out, r := w.runJSON(c.args...)
			if out.Reason != c.reason || r.code != c.code || !out.Receipt.Clean {
				t.Errorf("reason %q (want %q), code %d (want %d), receipt %+v\n%s", out.Reason, c.reason, r.code, c.code, out.Receipt, out.Stderr)
			}
		})
	}
}

// TestParallelRuns has a server and eight runs of their own on one machine,
// which must never notice each other.
func TestParallelRuns(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	code, body, _ := s.do("POST", "/v1/sandboxes", "{}")
	if code != 201 {
		t.Fatalf("create: %d %s", code, body)
	}
	var sb struct{ ID string }
	json.Unmarshal([]byte(body), &sb)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			other := *w
			// No server at this socket: the run brings its own.
			other.env = append(append([]string{}, w.env...), "FIREBREAK_SOCKET="+filepath.Join(w.dir, "none.sock"))
			r := other.run("", "run", "-c", "print('x' * "+string(rune('1'+i))+")")
			if r.code != 0 || r.stdout != strings.Repeat("x", i+1)+"\n" {
				t.Errorf("run %d: code %d, stdout %q\n%s", i, r.code, r.stdout, r.stderr)
			}
		})
	}
	wg.Wait()
	if code, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", `{"code":"print(1)"}`); code != 200 || !strings.Contains(body, `"exit_code":0`) {
		t.Errorf("the server's sandbox did not survive its neighbours: %d %s", code, body)
	}
}

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// demoScenes are what the demo must show, and for each the controls without which
// it would show less than it says.
var demoScenes = []struct {
	name     string
	controls []string
	limit    bool // refused, or absent, for a user without cgroups
}{
	{"metadata", []string{"no network device", "no route", "nobody answers"}, false},
	{"exfiltration", []string{"no host secrets", "no DNS", "no connection", "the listener"}, false},
	{"door-ajar", []string{"one wire", "the allowed name", "no other name", "no other place", "nothing heard", "on record"}, true},
	{"fork-bomb", []string{"task limit"}, true},
	{"memory-balloon", []string{"memory limit"}, true},
	{"infinite-loop", []string{"wall clock"}, false},
	{"disk-fill", []string{"disk limit"}, false},
	{"escape", []string{"no host sockets", "own file system", "the bait", "own /proc, /sys", "own processes", "no mounts",
		"no devices", "own kernel", "another kernel", "no privilege"}, false},
	{"job", []string{"it simply works", "structured result", "artifact", "artifact's digest"}, false},
	{"receipts", []string{"verified teardown", "a second look"}, false},
	{"audit", []string{"audit log", "signature", "a changed byte", "a removed record", "a cut end", "a forger's key", "an old copy"}, false},
}

type demoJSON struct {
	Scenes []struct {
		Name, Title string
		Findings    []struct{ Control, Outcome, Measured string }
	}
	Held, Failed, Refused, Absent int
	DurationMs                    int64 `json:"duration_ms"`
}

// checkDemo compares the findings with what must be among them.
func checkDemo(t *testing.T, r result, enforced bool) {
	t.Helper()
	var d demoJSON
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || r.code != 0 {
		t.Fatalf("code %d, %v:\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	if len(d.Scenes) != len(demoScenes) || d.Failed != 0 || d.Held < 20 || enforced != (d.Refused == 0) {
		t.Errorf("%d scenes, %d held, %d failed, %d refused", len(d.Scenes), d.Held, d.Failed, d.Refused)
	}
	for i, want := range demoScenes[:min(len(d.Scenes), len(demoScenes))] {
		got := map[string]string{}
		for _, f := range d.Scenes[i].Findings {
			if got[f.Control] = f.Outcome; f.Measured == "" {
				t.Errorf("%s, %s: nothing was measured", want.name, f.Control)
			}
		}
		if want.limit && !enforced {
			if o := got[want.controls[0]]; o != "refused" && o != "absent" {
				t.Errorf("%s: %v, want a refusal", want.name, got)
			}
			continue
		}
		for _, c := range want.controls {
			if d.Scenes[i].Name != want.name || got[c] != "held" {
				t.Errorf("scene %d, %s: control %q is %q", i+1, d.Scenes[i].Name, c, got[c])
			}
		}
	}
	if d.DurationMs > 30_000 {
		t.Errorf("it took %v", time.Duration(d.DurationMs)*time.Millisecond)
	}
}

// TestDemo: every control of the demo holds on this machine, the story is fit for
// a pipe, and nothing of it is left but the evidence.
func TestDemo(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	checkDemo(t, w.run("", "demo", "--json"), true)
	r := w.run("", "demo")
	if r.code != 0 {
		t.Errorf("code %d:\n%s%s", r.code, r.stdout, r.stderr)
	}
	for line := range strings.Lines(r.stdout) {
		if utf8.RuneCountInString(line) > 81 || strings.ContainsFunc(line, func(c rune) bool { return c < ' ' && c != '\n' || c > '~' }) {
			t.Errorf("not a line of 80 plain characters: %q", line)
		}
	}
	mustContain(t, "the story", r.stdout, " 0 did not", "killed: memory (limit 64 MiB)", "killed: pids (limit 32)", `{"count":1229,"largest":9973}`)
	for _, left := range []string{"firebreak-demo-*", "data/run/*"} {
		if found, _ := filepath.Glob(filepath.Join(w.dir, left)); len(found) > 0 {
			t.Errorf("left behind: %v", found)
		}
	}
	if logs, err := os.ReadDir(filepath.Join(w.dir, "data", "audit")); err != nil || len(logs) < 2 {
		t.Errorf("the evidence is not there: %v %v", logs, err)
	}
}

package cli

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestDemoNotices: what a program tells of a control that did not hold is told as
// that. Each row is a result with one hole in it.
func TestDemoNotices(t *testing.T) {
	b, err := layBait()
	if err != nil {
		t.Fatal(err)
	}
	defer b.remove()
	byName := map[string]act{}
	for _, a := range acts(b) {
		byName[a.name] = a
	}
	quiet := `"dns":{"a":"x","b":"x","c":"x","d":"x"},"raw":{"a":"x","b":"x","c":"x","d":"x"},"sink":{"a":"x"}`
	metadata := `"a":"x","b":"x","c":"x","d":"x","e":"x","f":"x","g":"x","h":"x","i":"x"`
	groups := `"sockets":1,"files":1,"/proc and /sys":1,"mounts":1,"devices":1,"kernel":1`
	door := `"devices":["eth0","lo"],"known":["198.18.0.1"],"names":{"a":"x","b":"x","c":"x","d":"x"},"places":{"a":"x","b":"x","c":"x","d":"x"}`
	denials := []*v1.EgressFlow{{Decision: "deny"}, {Decision: "deny"}}
	self := `"uid":1000,"capabilities":"00","processes":2,"kernel":"Linux version 4.19.0-gvisor"`
	for _, c := range []struct{ act, result, fails string }{
		{"metadata", `{"devices":["lo"],"routes":[],"answers":{` + metadata + `,"j":"x"}}`, ""},
		{"metadata", `{"devices":["eth0","lo"],"routes":[],"answers":{` + metadata + `,"j":"x"}}`, "no network device"},
		{"metadata", `{"devices":["lo"],"routes":["eth0"],"answers":{` + metadata + `,"j":"x"}}`, "no route"},
		{"metadata", `{"devices":["lo"],"routes":[],"answers":{` + metadata + `,"j":"connected"}}`, "nobody answers"},
		{"metadata", `{"devices":["lo"],"routes":[],"answers":{}}`, "nobody answers"},
		{"exfiltration", `{"own":true,"bait":[],"files":2,"processes":2,` + quiet + `}`, ""},
		{"exfiltration", `{"own":true,"bait":["` + b.secret + `"],"files":2,"processes":2,` + quiet + `}`, "no host secrets"},
		{"exfiltration", `{"own":false,"bait":[],"files":2,"processes":2,` + quiet + `}`, "no host secrets"},
		{"exfiltration", `{"own":true,"bait":[],"files":2,"processes":2,` + strings.Replace(quiet, `"dns":{"a":"x"`, `"dns":{"a":"sent"`, 1) + `}`, "no DNS"},
		{"exfiltration", `{"own":true,"bait":[],"files":2,"processes":2,` + strings.Replace(quiet, `"raw":{"a":"x"`, `"raw":{"a":"sent"`, 1) + `}`, "no connection"},
		{"exfiltration", `not JSON`, "*"},
		{"door-ajar", `{` + door + `}`, ""},
		{"door-ajar", `{` + strings.Replace(door, `"lo"]`, `"lo","eth1"]`, 1) + `}`, "one wire"},
		{"door-ajar", `{` + strings.Replace(door, `["198.18.0.1"]`, `[]`, 1) + `}`, "the allowed name"},
		{"door-ajar", `{` + strings.Replace(door, `"names":{"a":"x"`, `"names":{"a":"connected"`, 1) + `}`, "no other name"},
		{"door-ajar", `{` + strings.Replace(door, `"places":{"a":"x"`, `"places":{"a":"connected"`, 1) + `}`, "no other place"},
		{"disk-fill", `{"bytes":33554432,"why":"ENOSPC"}`, ""},
		{"disk-fill", `{"bytes":33554433,"why":"ENOSPC"}`, "disk limit"},
		{"disk-fill", `{"bytes":100,"why":""}`, "disk limit"},
		{"escape", `{"tried":{` + groups + `},"through":{},` + self + `}`, ""},
		{"escape", `{"tried":{` + groups + `},"through":{"devices":["/dev/kvm"]},` + self + `}`, "no devices"},
		{"escape", `{"tried":{},"through":{},` + self + `}`, "no mounts"},
		{"escape", `{"tried":{` + groups + `},"through":{},` + strings.Replace(self, "1000", "0", 1) + `}`, "no privilege"},
		{"escape", `{"tried":{` + groups + `},"through":{},` + strings.Replace(self, `"00"`, `"10"`, 1) + `}`, "no privilege"},
		{"job", `{"count":1229,"largest":9972}`, "structured result"},
	} {
		findings := byName[c.act].verify(context.Background(), nil, &v1.Run{ResultJson: c.result, Reason: "done", Egress: denials})
		if c.fails == "*" && len(findings) != 0 {
			t.Errorf("%s %s: %v", c.act, c.result, findings)
		}
		failures := map[string]bool{}
		for _, f := range findings {
			failures[f.Control] = f.Outcome == failed
		}
		if c.fails != "" && c.fails != "*" && !failures[c.fails] {
			t.Errorf("%s %s: %s is told as held", c.act, c.result, c.fails)
		}
		for control, is := range failures {
			if c.fails == "" && is {
				t.Errorf("%s: %s is told as failed: %v", c.act, control, findings)
			}
		}
	}
	for _, flows := range [][]*v1.EgressFlow{nil, {{Decision: "deny"}, {Decision: "deny"}, {Decision: "allow"}}} {
		for _, f := range byName["door-ajar"].verify(context.Background(), nil, &v1.Run{ResultJson: "{" + door + "}", Reason: "done", Egress: flows}) {
			if f.Control == "on record" && f.Outcome != failed {
				t.Errorf("%v: %v", flows, f)
			}
		}
	}
	for _, name := range []string{"fork-bomb", "memory-balloon", "infinite-loop"} {
		if f := byName[name].verify(context.Background(), nil, &v1.Run{Reason: "done"}); f[0].Outcome != failed {
			t.Errorf("%s ended by itself, and is told as held: %v", name, f)
		}
	}
}

// TestDemoKernels: a kernel of the same release is another one if it was booted by itself.
func TestDemoKernels(t *testing.T) {
	version, err := os.ReadFile("/proc/version")
	boot, err2 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || err2 != nil {
		t.Skip("not run: this machine does not say which kernel it has")
	}
	same, own := strings.TrimSpace(string(version)), strings.TrimSpace(string(boot))
	for _, c := range []struct{ version, boot, want string }{
		{same, own, failed}, {same, "", failed}, {same, "another", held}, {"Linux version 4.19.0-gvisor", "", held}, {"", "another", failed},
	} {
		if f := anotherKernel(c.version, c.boot); f.Outcome != c.want {
			t.Errorf("%q, %q: %+v", c.version, c.boot, f)
		}
	}
}

// TestDemoHears: the sink hears a marker, plain and as a label of a query, and
// counts it.
func TestDemoHears(t *testing.T) {
	b, err := layBait()
	if err != nil {
		t.Fatal(err)
	}
	defer b.remove()
	if n, works := b.sink.heard(b.marker); n != 0 || !works {
		t.Errorf("before anybody spoke: %d bytes, works %v", n, works)
	}
	b.sink.hear([]byte("GET /" + b.marker))
	if n, _ := b.sink.heard(b.marker); n != len(b.marker) {
		t.Errorf("heard %d bytes, want %d", n, len(b.marker))
	}
	if data, err := os.ReadFile(b.file); err != nil || string(data) != b.secret || os.Getenv(baitVariable) != b.secret {
		t.Errorf("the bait lies nowhere: %q %v", data, err)
	}
	dir := b.dir
	if err := b.remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil || os.Getenv(baitVariable) != "" {
		t.Error("the bait is still there")
	}
}

// TestDemoStory: lines fit a terminal of 80 columns, colour is for terminals, and
// nothing from a sandbox is obeyed.
func TestDemoStory(t *testing.T) {
	var plain, coloured bytes.Buffer
	d := &demo{Held: 1, Failed: 1, Refused: 1}
	for _, s := range []*story{{&plain, false}, {&coloured, true}} {
		s.begin(&bait{secret: "fbbait-0123456789"}, &v1.Backend{Name: "microvm", Emulated: true})
		s.scene(10, &scene{Title: "A title"})
		s.finding(found(true, "a control", "%s", strings.Repeat("measured and found to hold ", 9)))
		s.finding(found(false, "another", "\x1b[2J%s", strings.Repeat("x", 200)))
		s.finding(finding{"refusal", refused, "cannot be enforced"})
		s.finding(finding{"one wire", absent, "not on this backend"})
		s.ran(&sceneRun{Create: 12345, Execute: 12345, Destroy: 12345, CPU: 12345, MemoryPeak: 12345678})
		s.end(d)
		s.end(&demo{Absent: 1})
		s.end(&demo{Held: 99, Millis: 30_000})
	}
	if strings.Contains(plain.String(), "\x1b") || strings.Contains(coloured.String(), "[2J\x1b") || !strings.Contains(coloured.String(), "\x1b[1;31mFAILED") {
		t.Errorf("colours:\n%q\n%q", plain.String(), coloured.String())
	}
	for line := range strings.Lines(plain.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > storyWidth {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	for _, want := range []string{"held", "FAILED", "refused", "1 controls held, 1 did not", "1 cannot be enforced here and was refused"} {
		if !strings.Contains(plain.String(), want) {
			t.Errorf("%q is missing:\n%s", want, plain.String())
		}
	}
	a := &App{Out: &plain, Lookup: func(string) (string, bool) { return "", false }}
	if a.story().colour {
		t.Error("colour in a pipe")
	}
	(*story)(nil).finding(finding{}) // --json
}

// TestDemoPrograms: the programs are the ones that are embedded and used.
func TestDemoPrograms(t *testing.T) {
	files, err := filepath.Glob("demo/*.py")
	if err != nil || len(files) != 9 {
		t.Fatal(files, err)
	}
	b := &bait{sink: &sink{}}
	used := map[string]bool{}
	for _, a := range acts(b) {
		used[a.options.Program.Code] = true
	}
	for _, f := range files {
		if code, err := os.ReadFile(f); err != nil || !used[string(code)] {
			t.Errorf("%s is no program of the demo: %v", f, err)
		}
	}
}

// TestDemoTampers: each change to a log is rejected with its place, and a change
// that changes nothing would be told as a control that did not hold.
func TestDemoTampers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit", "run")
	l, err := audit.Open(dir, audit.Options{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	record := func(n int) {
		for range n {
			if _, err := l.Record(t.Context(), sandbox.Record{Action: "sandbox.create", Outcome: sandbox.OutcomeDone, Sandbox: "sb1"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := &demo{}
	record(5)
	if err := d.putAside(dir); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(d.aside.dir)
	record(20)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.checkLog(dir); err != nil || d.Failed != 0 || d.Held != 7 {
		t.Errorf("%v: %+v", err, d.Scenes[0].Findings)
	}
	f, err := d.tamper(dir, "nothing", nil, func(string) (string, error) { return "nothing", nil })
	if err != nil || f.Outcome != failed {
		t.Errorf("a log that nobody changed: %+v %v", f, err)
	}
}

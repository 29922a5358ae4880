package hostile

import (
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// verdict is what must become of a hostile case.
type verdict string

const (
	deny    verdict = "DENY"    // refused: nothing that was tried worked
	kill    verdict = "KILL"    // ended by a limit, with its reason
	contain verdict = "CONTAIN" // works inside, changes nothing outside
	survive verdict = "SURVIVE" // server and neighbours stay healthy
)

// attack is one way to carry out a case of the list: a program that runs in a
// sandbox of its own, or an act against a sandbox through the API.
type attack struct {
	number  int
	also    []int  // cases of the list that it is a part of, too
	name    string // what sets it apart from others with the number
	verdict verdict
	limits  string // what differs from small

	// A program of programs, its arguments, and what must come of it.
	run     []string
	with    []string // further files that it needs
	timeout time.Duration
	reasons string // that it may end for, as a pattern
	prints  string // a pattern of its output
	check   func(t *testing.T, w *world, id string, r reply, took time.Duration)

	// What the sandbox may reach, as a request says it; what it wanted must be in the
	// evidence, each as a pattern of "KIND HOST:PORT DECISION REASON", of "request METHOD HOST:PORT OUTCOME
	// REASON", or of "request METHOD BINDING HOST:PORT OUTCOME REASON".
	network string
	wants   []string
	// fields are further ones of the request that makes it.
	fields string

	// Or what is done to the sandbox, in place of a program.
	act func(t *testing.T, w *world, id string)
	sim bool // the model shows it too
	// alone: by itself, as others would notice.
	alone bool
}

func (a attack) title() string {
	s := strconv.Itoa(a.number)
	for _, n := range a.also {
		s += ", " + strconv.Itoa(n)
	}
	return s + " " + a.name
}

// attacks are all there are, by the test that carries them out.
var attacks = map[string][]attack{
	"TestPrograms": programs,
	"TestFiles":    fileAttacks,
	"TestSurface":  surfaceAttacks,
	"TestEgress":   egressAttacks,
	"TestBindings": bindingAttacks,
}

// carryOut makes a sandbox, attacks from it, and asserts what holds of every case:
// the verdict; a clean receipt; a record of each step in a log that verifies; nothing
// on the host that mentions the instance, where the same oracle saw it alive; a
// neighbour that works.
func (w *world) carryOut(t *testing.T, n *neighbours, a attack) {
	limits := small
	for _, l := range strings.Split(a.limits, ",") {
		if name, _, ok := strings.Cut(l, ":"); ok {
			limits = regexp.MustCompile(name+`:[^,]*`).ReplaceAllLiteralString(limits, l)
		}
	}
	fields := `"limits":{` + limits + `}`
	if a.network != "" {
		fields += `,"network":` + a.network
	}
	if a.fields != "" {
		fields += "," + a.fields
	}
	id := w.create(t, fields)
	instance := w.watch(t, id)
	want := []string{"sandbox.create", "sandbox.destroy", "sandbox.receipt"}
	if a.act != nil {
		a.act(t, w, id)
	} else {
		want = append(want, w.runProgram(t, a, id)...)
	}
	if status, after := w.exec(id, 20*time.Second, "true"); status != http.StatusOK && status != http.StatusGone {
		t.Errorf("afterwards: %d %s", status, after.body)
	}
	w.wanted(t, id, a.wants)
	w.end(t, n, id, instance, want...)
}

// wanted checks that the evidence has what a sandbox wanted to reach, and what was
// decided; and that its events and its report know of it, too.
func (w *world) wanted(t *testing.T, id string, patterns []string) {
	t.Helper()
	if len(patterns) == 0 {
		return
	}
	for _, decision := range []string{"allow", "deny"} {
		one := slices.ContainsFunc(patterns, func(p string) bool { return strings.HasPrefix(p, "connect ") && strings.Contains(p, " "+decision+" ") })
		if _, r := w.do("GET", "/v1/sandboxes/"+id, ""); one && !strings.Contains(r.body, `"decision":"`+decision+`"`) {
			t.Errorf("the sandbox's report has no %s: %.2000s", decision, r.body)
		}
	}
	if _, r := w.do("GET", "/v1/sandboxes/"+id+"/events?no_follow=true", ""); !strings.Contains(r.body, "event: egress\n") {
		t.Errorf("its events have none of type egress: %.2000s", r.body)
	}
	var flows string
	for e, err := range audit.Scan(w.evidence(), 0) {
		if err != nil {
			t.Fatalf("the evidence cannot be read: %v", err)
		}
		switch r := e.Record; {
		case string(r.Sandbox) != id:
		case r.Action == "egress.decide":
			flows += strings.TrimSpace(r.Detail["kind"]+" "+r.Object+" "+r.Detail["decision"]+" "+r.Detail["reason"]) + "\n"
		case r.Action == "binding.invoked" || r.Action == "binding.denied" || r.Action == "egress.request":
			flows += strings.Join(strings.Fields("request "+r.Detail["method"]+" "+r.Object+" "+r.Detail["host"]+" "+string(r.Outcome)+" "+r.Detail["reason"]), " ") + "\n"
		}
	}
	for _, p := range patterns {
		if !regexp.MustCompile(`(?m)^` + p + `$`).MatchString(flows) {
			t.Errorf("the evidence has no %q; it has\n%s", p, flows)
		}
	}
}

// watch finds the instance of a sandbox, and sees it alive on the host.
func (w *world) watch(t *testing.T, id string) (instance string) {
	t.Helper()
	instance = w.instance(t, id)
	if seen := residue.Seen(w.scope(), instance); len(seen) == 0 && w.backend != "sim" { // the model has nothing on the host
		t.Error("the oracle is blind: it sees nothing of a live sandbox")
	}
	return instance
}

// end destroys a sandbox and asserts what holds after every case.
func (w *world) end(t *testing.T, n *neighbours, id, instance string, want ...string) {
	t.Helper()
	w.destroy(t, id)
	w.attested(t, id, want...)
	for _, f := range residue.Of(w.scope(), instance) {
		t.Errorf("left behind: %v", f)
	}
	n.healthy(t)
}

// runProgram runs the attack's program, judges how it ended, and returns the
// records there must be of it.
func (w *world) runProgram(t *testing.T, a attack, id string) []string {
	for _, name := range append([]string{a.run[0]}, a.with...) {
		w.upload(t, id, name)
	}
	if a.timeout == 0 {
		a.timeout = 20 * time.Second
	}
	interpreter := "python3"
	if strings.HasSuffix(a.run[0], ".sh") {
		interpreter = "sh"
	}
	start := time.Now()
	status, r := w.exec(id, a.timeout, append([]string{interpreter}, a.run...)...)
	took := time.Since(start)
	if status != http.StatusOK || !regexp.MustCompile(`^(`+a.reasons+`)$`).MatchString(r.Reason) {
		t.Errorf("%d %s (%s), want %s: %.300s %s", status, r.Reason, r.Detail, a.reasons, r.body, r.Error.Message)
	}
	if r.Reason == "done" && r.ExitCode != 0 || (r.Reason == "memory" || r.Reason == "pids") && r.ExitCode != 137 {
		t.Errorf("reason %s with exit code %d: %.500s", r.Reason, r.ExitCode, r.Stderr)
	}
	switch a.verdict {
	case kill:
		if r.Reason == "done" || r.Reason == "" || r.ExitCode != 137 && r.ExitCode != 124 {
			t.Errorf("it ended with reason %s and exit code %d, not by a limit", r.Reason, r.ExitCode)
		}
	case deny:
		if r.Reason != "done" || r.Stdout == "" && r.Stderr == "" {
			t.Errorf("it ended with reason %s and said nothing of what it tried", r.Reason)
		}
	}
	if a.prints != "" && (r.Reason == "done" || r.Reason == "timeout") && !regexp.MustCompile(a.prints).MatchString(r.Stdout) {
		t.Errorf("it printed %.300q %.300q, want %s", r.Stdout, r.Stderr, a.prints)
	}
	if a.check != nil {
		a.check(t, w, id, r, took)
	}
	switch r.Reason {
	case "":
		return []string{"process.exec"}
	case "done":
		return []string{"process.exec", "process.exit"}
	}
	return []string{"process.exec", "process.kill"}
}

// attested verifies the log as it is now, and that it holds these records of a
// sandbox.
func (w *world) attested(t *testing.T, id string, want ...string) {
	t.Helper()
	if _, err := audit.Verify(w.evidence()); err != nil {
		t.Errorf("the evidence does not verify: %v", err)
	}
	got := w.records(id)
	for _, a := range want {
		if !slices.Contains(got, a) {
			t.Errorf("the evidence lacks %s: %v", a, got)
		}
	}
}

// evidence is the directory of the server's log.
func (w *world) evidence() string { return filepath.Join(w.dir, "data", "audit", "server") }

// instance is what the host's objects of a sandbox are named after.
func (w *world) instance(t *testing.T, id string) string {
	t.Helper()
	for e, err := range audit.Scan(w.evidence(), 0) {
		if err != nil {
			t.Fatalf("the evidence cannot be read: %v", err)
		}
		if string(e.Record.Sandbox) == id && e.Record.Instance != "" {
			w.mu.Lock()
			w.base.Track(string(e.Record.Instance))
			w.mu.Unlock()
			return string(e.Record.Instance)
		}
	}
	t.Fatalf("the evidence names no instance of %s", id)
	return ""
}

// healthy asks one neighbour to work, and the server whether it is ready.
func (n *neighbours) healthy(t *testing.T) {
	t.Helper()
	if status, r := n.w.exec(n.ids[0], 30*time.Second, "true"); status != http.StatusOK || r.Reason != "done" || r.ExitCode != 0 {
		t.Errorf("a neighbour no longer works: %d %s %s", status, r.body, r.Error.Message)
	}
	if status, r := n.w.do("GET", "/readyz", ""); status != http.StatusOK {
		t.Errorf("the server is not ready: %d %s", status, r.body)
	}
}

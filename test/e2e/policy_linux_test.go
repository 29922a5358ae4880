package e2e

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/test/internet"
)

// wants is a program that knows of no rules: it says what it reached.
const wants = `for at in https://api.example/ http://www.example/ https://www.example:8443/ https://1.cdn.example/ https://2.cdn.example/ https://3.cdn.example/ https://4.cdn.example/
do curl -sS -k -m 20 $at || exit 1; done
curl -sS -k -m 20 http://169.254.169.254/; exit 0`

// TestObserve: with `mode: observe` a program works and what it wanted is recorded;
// what is suggested of that, enforced, is what it needs and no more.
func TestObserve(t *testing.T) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	for _, name := range []string{"api.example", "www.example", "1.cdn.example", "2.cdn.example", "3.cdn.example", "4.cdn.example"} {
		n.Site(name, internet.Reached)
	}
	other := n.Site("other.example", internet.Reached)
	metadata := netip.MustParseAddr("169.254.169.254")
	w.serve()
	dir := t.TempDir()
	observe, suggested := filepath.Join(dir, "observe.yaml"), filepath.Join(dir, "suggested.yaml")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ok := func(stdin string, args ...string) string {
		t.Helper()
		r := w.run(stdin, args...)
		if r.code != 0 {
			t.Fatalf("firebreak %q: %d %s\n%s", args, r.code, r.stdout, r.stderr)
		}
		return r.stdout
	}
	explain := func(file, host, want string) {
		t.Helper()
		r := w.run("", "policy", "explain", "--json", file, host)
		var x struct{ Decision string }
		if err := json.Unmarshal([]byte(r.stdout), &x); err != nil || x.Decision != want || (r.code == 0) != (want != "deny") {
			t.Errorf("explain %s %s: %v %+v, want %s", filepath.Base(file), host, err, r, want)
		}
	}
	reaches := func(what, out string) {
		t.Helper()
		if strings.Count(out, "reached ") != 7 || strings.Contains(out, "Secret") {
			t.Errorf("%s: %s", what, out)
		}
	}

	write(observe, "mode: observe\n")
	id := strings.TrimSpace(ok("", "create", "--policy", observe))
	reaches("observing", ok("", "exec", id, "--", "sh", "-c", wants))
	explain(observe, "api.example", "observe")
	explain(observe, metadata.String()+":80", "deny")
	events := ok("", "events", id, "--json")
	if !strings.Contains(events, `"decision":"observe"`) || strings.Contains(events, `"decision":"allow"`) {
		t.Errorf("what was observed is in the events as\n%s", events)
	}
	r := w.run(events, "policy", "suggest")
	if r.code != 0 || !strings.Contains(r.stderr, "169.254.169.254 is never dialled") {
		t.Fatalf("suggest: %+v", r)
	}
	document := r.stdout
	write(suggested, document)
	d, err := policy.Parse("suggested.yaml", []byte(document))
	if err != nil || d.Mode == policy.ModeObserve {
		t.Fatalf("%v\n%s", err, document)
	}
	// A run's report says the same.
	report := ok("", "run", "--json", "--policy", observe, "--", "sh", "-c", wants)
	if of := ok(report, "policy", "suggest"); of != document {
		t.Errorf("of a run's report is suggested\n%s\nof events\n%s", of, document)
	}
	for host, want := range map[string]string{"api.example": "allow", "www.example:80": "allow", "www.example:8443": "allow", "1.cdn.example": "allow",
		"other.example": "deny", "api.example:80": "deny", metadata.String() + ":80": "deny"} {
		explain(suggested, host, want)
	}

	before, asked := n.Sink.Counts(t), len(n.Names.Queries())
	enforced := strings.TrimSpace(ok("", "create", "--policy", suggested))
	reaches("enforced", ok("", "exec", enforced, "--", "sh", "-c", wants))
	if r := w.run("", "exec", enforced, "--", "curl", "-sS", "-k", "-m", "20", "https://other.example/"); r.code == 0 || strings.Contains(r.stdout, "reached") {
		t.Errorf("another host: %+v", r)
	}
	if sent := n.Sink.Counts(t).Since(before).To(other, metadata).Total(); sent.Packets != 0 {
		t.Errorf("what is denied was sent %d bytes", sent.Bytes)
	}
	if slices.ContainsFunc(n.Names.Queries()[asked:], func(q internet.Query) bool { return strings.EqualFold(q.Name, "other.example") }) {
		t.Error("a denied name was asked for")
	}
	for _, id := range []string{id, enforced} {
		ok("", "rm", id)
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// keyed are programs that send the key in $VAULT_API_KEY to a host as they would
// anywhere: none of them knows of bindings.
var keyed = map[string]string{
	"curl": `curl -sS -m 20 -H "Authorization: Bearer $VAULT_API_KEY" https://api.vault.example/v1/curl`,
	"h2":   `curl -sS -m 20 --http2 -H "Authorization: Bearer $VAULT_API_KEY" -d hello https://api.vault.example/v1/h2`,
	"python": `python3 -c '
import os, urllib.request
r = urllib.request.Request("https://api.vault.example/v1/python", headers={"Authorization": "Bearer " + os.environ["VAULT_API_KEY"]})
print(urllib.request.urlopen(r, timeout=20).read().decode())'`,
	"node": `node -e '
fetch("https://api.vault.example/v1/node", {headers: {Authorization: "Bearer " + process.env.VAULT_API_KEY}}).then(r => r.text()).then(console.log, e => console.log(e, e.cause))'`,
}

// TestPlaceholder: programs that know of no binding use a secret that they do not
// have: what they find in its place means it at its host, where it goes, by the
// binding's methods and below its path, and nothing anywhere else; in another sandbox
// it is another one. No rule has to name the host.
func TestPlaceholder(t *testing.T) {
	w, v := bindingWorld(t)
	s := w.serve()
	w.must(v.key, "secret", "set", "key")
	w.must("", "binding", "add", "vault", "--secret", "key", "--host", "api.vault.example", "--path", "/v1", "--placeholder", "VAULT_API_KEY")
	mustContain(t, "the list", w.must("", "binding", "ls"), "VAULT_API_KEY")
	var want []string
	script := "echo $VAULT_API_KEY\n"
	for _, name := range []string{"curl", "h2", "python", "node"} {
		script += keyed[name] + "\n"
		want = append(want, map[bool]string{false: "GET /v1/" + name, true: "POST /v1/h2 hello"}[name == "h2"])
	}
	r := w.run("", "run", "--json", "--binding", "vault", "--", "sh", "-c", script)
	var out struct {
		ran
		Egress []bound
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != 0 || !out.Receipt.Clean {
		t.Fatalf("%v: %+v", err, r)
	}
	if got, bad := v.took(); bad != 0 || !slices.Equal(got, want) {
		t.Errorf("the vault got %q, and %d requests without the key; the program said\n%s\n%s", got, bad, out.Stdout, out.Stderr)
	}
	if strings.Count(out.Stdout, "welcome") != len(want) || strings.Contains(r.stdout, v.key) || !strings.Contains(out.Stdout, "Bearer "+strings.Repeat("*", len(v.key))) {
		t.Errorf("the program: %s", out.Stdout)
	}
	first := regexp.MustCompile(`fbp_[0-9A-Za-z]{40}`).FindString(out.Stdout)
	if first == "" {
		t.Fatalf("there is no placeholder: %s", out.Stdout)
	}
	if !slices.ContainsFunc(out.Egress, func(f bound) bool {
		return f.Kind == "request" && f.Binding == "vault" && f.Host == "api.vault.example" && f.Method == "GET" && f.Decision == "allow"
	}) {
		t.Errorf("the report: %+v", out.Egress)
	}
	_, entries, _ := s.do("GET", "/v1/audit/entries?page_size=500&sandbox_id="+out.Sandbox, "")
	mustContain(t, "the evidence", entries, `"action":"binding.invoked"`, `"host":"api.vault.example:443"`)

	// Anywhere else.
	script = `echo $VAULT_API_KEY; set -- -sS -m 20 -o /dev/null -w '%{http_code}\n'
curl "$@" -H "X-Key: $VAULT_API_KEY" https://api.vault.example/v1/a
curl "$@" -d "$VAULT_API_KEY" -H "Authorization: Bearer $VAULT_API_KEY" https://api.vault.example/v1/b
curl "$@" -H "Authorization: Bearer $VAULT_API_KEY" https://other.example/c
curl "$@" -H "Authorization: Bearer $VAULT_API_KEY" http://other.example/d
curl "$@" -H "Authorization: Bearer $VAULT_API_KEY" https://api.vault.example/v2/e
curl "$@" -H "Authorization: Bearer ` + first + `" https://api.vault.example/v1/f
curl "$@" https://api.vault.example/v1/g`
	r = w.run("", "run", "--json", "--binding", "vault", "--allow", "other.example", "--allow", "other.example:80", "--", "sh", "-c", script)
	out.Egress = nil
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if lines := strings.Fields(out.Stdout); len(lines) != 8 || lines[0] == first || !slices.Equal(lines[1:], slices.Repeat([]string{"403"}, 7)) {
		t.Errorf("%q %s", lines, out.Stderr)
	}
	if got, bad := v.took(); len(got)+bad != 0 {
		t.Errorf("the vault got %q, and %d requests without the key", got, bad)
	}
	for _, host := range []string{"api.vault.example", "other.example"} {
		if !slices.ContainsFunc(out.Egress, func(f bound) bool {
			return f.Kind == "request" && f.Host == host && f.Decision == "deny" && f.Reason == "placeholder"
		}) {
			t.Errorf("nothing is told of a placeholder for %s: %+v", host, out.Egress)
		}
	}
}

// TestPlaceholderRestart: a placeholder means the same after the router was killed and
// after the server was; a secret that is set anew is used from the next request on,
// by sandboxes that live.
func TestPlaceholderRestart(t *testing.T) {
	w, v := bindingWorld(t)
	s := w.serve("--stop-sandboxes=false")
	w.must(v.key, "secret", "set", "key")
	w.must("", "binding", "add", "vault", "--secret", "key", "--host", "api.vault.example", "--placeholder", "VAULT_API_KEY")
	id := strings.TrimSpace(w.must("", "create", "--binding", "vault", "--timeout", "1h"))
	ask := func() (bool, string) {
		r := w.run("", "exec", id, "--", "sh", "-c", keyed["curl"])
		return r.code == 0 && strings.Contains(r.stdout, "welcome GET /v1/curl"), fmt.Sprintf("%+v", r)
	}
	again := func(after string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			ok, said := ask()
			if ok {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("after %s: %s", after, said)
			}
		}
	}
	again("the start")
	v.mu.Lock()
	v.key = "sk-live-another-5d1f88"
	v.mu.Unlock()
	w.must(v.key, "secret", "set", "key")
	if ok, said := ask(); !ok {
		t.Errorf("a new secret is not used: %s", said)
	}
	v.took()
	routers := internet.Routers(s.cmd.Process.Pid)
	if len(routers) != 1 {
		t.Fatalf("the server has the routers %v", routers)
	}
	if err := syscall.Kill(routers[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again("the router's death")
	s.cmd.Process.Kill()
	s.cmd.Wait()
	w.transport.CloseIdleConnections()
	w.serve()
	again("the server's death")
	if _, bad := v.took(); bad > 0 {
		t.Errorf("%d requests came without the key", bad)
	}
	w.must("", "rm", id)
}

// TestTransformRestart: headers that are set are so after the router was killed, and
// after the server was, with the secret of then; text is not shown or kept as it is.
func TestTransformRestart(t *testing.T) {
	w, v := bindingWorld(t)
	s := w.serve("--stop-sandboxes=false")
	w.must(v.key, "secret", "set", "key")
	const text = "text-of-the-transform-61"
	status, made, _ := s.do("POST", "/v1/sandboxes", `{"timeout_ms":3600000,"network":{"allow":["api.vault.example"],"transforms":[{"host":"api.vault.example",
		"headers":{"Authorization":"Bearer ${e2b.secrets.key}","X-Text":"`+text+`"}}]}}`)
	var sb struct{ ID string }
	if err := json.Unmarshal([]byte(made), &sb); err != nil || status != 201 || strings.Contains(made, text) || !strings.Contains(made, `"X-Text":"[redacted]"`) {
		t.Fatalf("%d %s %v", status, made, err)
	}
	again := func(after string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			r := w.run("", "exec", sb.ID, "--", "curl", "-sS", "-m", "10", "-H", "Authorization: Bearer mine", "https://api.vault.example/v1/models")
			if r.code == 0 && strings.Contains(r.stdout, "welcome GET /v1/models") && !strings.Contains(r.stdout, v.key) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("after %s: %+v", after, r)
			}
		}
	}
	again("the start")
	routers := internet.Routers(s.cmd.Process.Pid)
	if len(routers) != 1 {
		t.Fatalf("the server has the routers %v", routers)
	}
	if err := syscall.Kill(routers[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again("the router's death")
	s.cmd.Process.Kill()
	s.cmd.Wait()
	w.transport.CloseIdleConnections()
	s = w.serve()
	again("the server's death")
	if _, bad := v.took(); bad > 0 {
		t.Errorf("%d requests came without the key", bad)
	}
	if _, report, _ := s.do("GET", "/v1/sandboxes/"+sb.ID, ""); !strings.Contains(report, `"Bearer ${e2b.secrets.key}"`) || strings.Contains(report, text) || !strings.Contains(report, `"problem":""`) {
		t.Errorf("the report: %s", report)
	}
	w.must("", "rm", sb.ID)
}

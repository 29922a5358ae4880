package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// vault is a site that answers whoever brings its key, and tells nobody else.
type vault struct {
	key string

	mu  sync.Mutex
	got []string // guarded by mu; "METHOD PATH BODY" of requests with the key
	bad int      // guarded by mu; requests without it
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	v.mu.Lock()
	defer v.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+v.key {
		v.bad++
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	v.got = append(v.got, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
	fmt.Fprintf(w, "welcome %s %s, you said %s and %s\n", r.Method, r.URL.Path, body, r.Header.Get("Authorization"))
}

// took returns and forgets what came with the key, and how much came without.
func (v *vault) took() (got []string, bad int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	got, bad, v.got, v.bad = v.got, v.bad, nil, 0
	return got, bad
}

// bindingWorld is a world with a vault in it.
func bindingWorld(t *testing.T) (*world, *vault) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	v := &vault{key: "sk-live-4f9bb1d0e27c43a6a1c5"}
	n.Site("api.vault.example", v)
	n.Site("other.example", internet.Reached)
	return w, v
}

// must runs a command that has to work.
func (w *world) must(stdin string, args ...string) string {
	w.t.Helper()
	r := w.run(stdin, args...)
	if r.code != 0 {
		w.t.Fatalf("%v: %+v", args, r)
	}
	return r.stdout
}

// bound is an element of egress with what it was made through.
type bound struct {
	flow
	Binding, Method string
}

// TestBinding: a program uses a secret that it never has. What it sends to the binding
// arrives with the secret, by the methods and below the path of the binding only;
// without the binding nothing does. All of that is in the report and in the evidence.
func TestBinding(t *testing.T) {
	w, v := bindingWorld(t)
	s := w.serve()
	w.must(v.key+"\n", "secret", "set", "key")
	w.must("", "binding", "add", "my-vault", "--secret", "key", "--host", "api.vault.example", "--path", "/v1", "--method", "GET", "--method", "POST")
	w.must("", "binding", "add", "strong", "--secret", "key", "--host", "api.vault.example", "--path", "/v1", "--tier", "hypervisor")

	script := `set -- -sS -m 20 -o - -w '%{http_code}\n'
curl "$@" $MY_VAULT_BASE_URL/v1/models; curl "$@" -d hello $MY_VAULT_BASE_URL/v1/echo?a=b
curl "$@" -X DELETE $MY_VAULT_BASE_URL/v1/models; curl "$@" $MY_VAULT_BASE_URL/v2/models; curl "$@" $MY_VAULT_BASE_URL/v1/../v2/models --path-as-is
curl -sS -m 5 -k https://api.vault.example/v1/models; curl -sS -m 5 http://strong.binding.internal/v1/models; env; exit 7`
	r := w.run("", "run", "--json", "--binding", "my-vault", "--", "sh", "-c", script)
	var out struct {
		ran
		Egress []bound
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != 7 || !out.Receipt.Clean {
		t.Fatalf("%v: %+v", err, r)
	}
	mustContain(t, "the program", out.Stdout, "welcome GET /v1/models", "welcome POST /v1/echo, you said hello", "MY_VAULT_BASE_URL=http://my-vault.binding.internal\n")
	if strings.Count(out.Stdout, "200\n") != 2 || strings.Count(out.Stdout, "welcome") != 2 || strings.Contains(r.stdout, v.key) {
		t.Errorf("the program: %s", out.Stdout)
	}
	if got, bad := v.took(); bad != 0 || !slices.Equal(got, []string{"GET /v1/models", "POST /v1/echo?a=b hello"}) {
		t.Errorf("the vault got %q, and %d requests without the key", got, bad)
	}
	for _, want := range []struct{ method, decision, reason string }{{"GET", "allow", "binding"}, {"POST", "allow", "binding"}, {"DELETE", "deny", "method"}, {"GET", "deny", "path"}} {
		if !slices.ContainsFunc(out.Egress, func(f bound) bool {
			return f.Kind == "request" && f.Binding == "my-vault" && f.Host == "api.vault.example" && f.Port == 443 && f.Method == want.method && f.Decision == want.decision && f.Reason == want.reason
		}) {
			t.Errorf("the report lacks %+v: %+v", want, out.Egress)
		}
	}
	_, entries, _ := s.do("GET", "/v1/audit/entries?page_size=500&sandbox_id="+out.Sandbox, "")
	mustContain(t, "the evidence", entries, `"action":"binding.invoked"`, `"action":"binding.denied"`, `"object":"my-vault"`, `"host":"api.vault.example:443"`, `"bindings":"my-vault"`)
	_, events, _ := s.do("GET", "/v1/runs/"+runOf(t, r.stdout)+"/events", "")
	mustContain(t, "its events", events, `"kind":"request"`, `"binding":"my-vault"`)
	_, metrics, _ := s.do("GET", "/metrics", "")
	mustContain(t, "metrics", metrics, `firebreak_egress_flows_total{decision="allow",kind="request"} 2`)

	for what, c := range map[string]struct {
		args []string
		says []string
	}{
		"unknown": {[]string{"run", "--binding", "nobody", "--", "true"}, []string{"nobody", "firebreak binding ls"}},
		"weak":    {[]string{"run", "--binding", "strong", "--", "true"}, []string{"hypervisor", "user-kernel"}},
		"auto":    {[]string{"run", "--backend", "auto", "--binding", "strong", "--", "true"}, []string{"hypervisor"}},
		"no wire": {[]string{"run", "--backend", "sim", "--binding", "my-vault", "--", "true"}, []string{"network"}},
		"unbound": {[]string{"run", "--allow", "other.example", "--", "curl", "-sS", "-m", "5", "http://my-vault.binding.internal/v1/models"}, []string{"my-vault.binding.internal"}},
	} {
		if r := w.run("", c.args...); r.code == 0 {
			t.Errorf("%s works: %+v", what, r)
		} else {
			mustContain(t, what, r.stderr, c.says...)
		}
	}
	if got, bad := v.took(); len(got) > 0 || bad > 0 {
		t.Errorf("the vault got %q, and %d requests without the key", got, bad)
	}
}

// runOf is the id of the run that `run --json` printed.
func runOf(t *testing.T, out string) string {
	t.Helper()
	var run struct {
		ID string `json:"run_id"`
	}
	if err := json.Unmarshal([]byte(out), &run); err != nil || run.ID == "" {
		t.Fatalf("no run in %s", out)
	}
	return run.ID
}

// TestBindingRestart: a sandbox keeps its bindings when the router is killed, and when
// its server is; what it uses is not removed meanwhile.
func TestBindingRestart(t *testing.T) {
	w, v := bindingWorld(t)
	s := w.serve("--stop-sandboxes=false")
	w.must(v.key, "secret", "set", "key")
	w.must("", "binding", "add", "vault", "--secret", "key", "--host", "api.vault.example", "--path", "/")
	id := strings.TrimSpace(w.must("", "create", "--binding", "vault", "--timeout", "1h"))
	ask := func(id string) (bool, string) {
		r := w.run("", "exec", id, "--", "sh", "-c", "curl -sS -m 10 $VAULT_BASE_URL/v1/models")
		return r.code == 0 && strings.Contains(r.stdout, "welcome GET /v1/models"), fmt.Sprintf("%+v", r)
	}
	if ok, said := ask(id); !ok {
		t.Fatalf("the binding does not work: %s", said)
	}
	if said := w.must("", "eval", id, "-c", "import os; print(os.environ['VAULT_BASE_URL'])"); !strings.Contains(said, "http://vault.binding.internal") {
		t.Errorf("a context's environment: %s", said)
	}
	if said := w.must("", "exec", "--env", "VAULT_BASE_URL=mine", id, "--", "sh", "-c", "echo $VAULT_BASE_URL"); said != "mine\n" {
		t.Errorf("the caller's own variable: %s", said)
	}
	_, report, _ := s.do("GET", "/v1/sandboxes/"+id, "")
	mustContain(t, "the report", report, `"bindings":["vault"]`)
	if r := w.run("", "binding", "rm", "vault"); r.code == 0 || !strings.Contains(r.stderr, id) {
		t.Errorf("a binding in use is removed: %+v", r)
	}
	if r := w.run("", "secret", "rm", "key"); r.code == 0 || !strings.Contains(r.stderr, "vault") {
		t.Errorf("a secret in use is removed: %+v", r)
	}

	again := func(after string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			ok, said := ask(id)
			if ok {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("after %s the binding does not work: %s", after, said)
			}
		}
	}
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
	if _, report, _ = s.do("GET", "/v1/sandboxes/"+id, ""); !strings.Contains(report, `"bindings":["vault"]`) || !strings.Contains(report, `"problem":""`) {
		t.Errorf("after a kill the report is %s", report)
	}
	if _, bad := v.took(); bad > 0 {
		t.Errorf("%d requests came without the key", bad)
	}
	if r := w.run("", "binding", "rm", "vault"); r.code == 0 || !strings.Contains(r.stderr, id) {
		t.Errorf("a binding in use is removed: %+v", r)
	}
	w.must("", "rm", id)
	w.must("", "binding", "rm", "vault")
	w.must("", "secret", "rm", "key")
	if r := w.run("", "create", "--binding", "vault"); r.code == 0 || !strings.Contains(r.stderr, "firebreak binding ls") {
		t.Errorf("a binding that was removed: %+v", r)
	}
}

// TestBindingCutOff: of two bindings one has a secret that cannot be had any more when
// a server takes its sandbox up. That one is cut off, and told; the other one works, as
// do the rules, and a rule that denies its host ends it at once.
func TestBindingCutOff(t *testing.T) {
	w, v := bindingWorld(t)
	s := w.serve("--stop-sandboxes=false")
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(v.key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(v.key, "secret", "set", "kept")
	w.must("", "secret", "set", "elsewhere", "--ref", "file:"+file)
	w.must("", "binding", "add", "one", "--secret", "kept", "--host", "api.vault.example")
	w.must("", "binding", "add", "two", "--secret", "elsewhere", "--host", "api.vault.example")
	id := strings.TrimSpace(w.must("", "create", "--binding", "one", "--binding", "two", "--allow", "other.example", "--timeout", "1h"))
	asks := func(url string) string {
		r := w.run("", "exec", id, "--", "curl", "-sS", "-k", "-m", "10", url)
		return r.stdout + r.stderr
	}
	for _, name := range []string{"one", "two"} {
		mustContain(t, name, asks("http://"+name+".binding.internal/v1/models"), "welcome GET /v1/models")
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	w.transport.CloseIdleConnections()
	s = w.serve()
	for end := time.Now().Add(time.Minute); ; {
		said := asks("http://one.binding.internal/v1/models")
		if strings.Contains(said, "welcome") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("what is not gone does not work: %s", said)
		}
	}
	mustContain(t, "a rule", asks("https://other.example/"), "reached")
	mustContain(t, "the binding whose secret is gone", asks("http://two.binding.internal/v1/models"), "two.binding.internal")
	_, report, _ := s.do("GET", "/v1/sandboxes/"+id, "")
	mustContain(t, "the report", report, `"bindings":["one","two"]`, file)
	if r := w.run("", "create", "--binding", "two"); r.code == 0 || !strings.Contains(r.stderr, file) {
		t.Errorf("a sandbox is made without what it was to have: %+v", r)
	}
	v.took()
	if status, body, _ := s.do("PUT", "/v1/sandboxes/"+id+"/network", `{"document":"deny: [api.vault.example]"}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	mustContain(t, "a denied host", asks("http://one.binding.internal/v1/models"), "denies")
	if got, bad := v.took(); len(got) > 0 || bad > 0 {
		t.Errorf("a denied host got %q and %d", got, bad)
	}
	w.must("", "rm", id)
}

// TestBindingNeedsServer: a run without a server has no bindings, and says what has.
func TestBindingNeedsServer(t *testing.T) {
	w := newWorld(t)
	if r := w.run("", "run", "--binding", "vault", "--", "true"); r.code == 0 || !strings.Contains(r.stderr, "firebreak serve") {
		t.Errorf("%+v", r)
	}
}

package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/image"
	"github.com/firebreak-dev/firebreak/test/internet"
)

// clinging is a program that is connected to a host all the time, whom it trusts as of
// its start, and uses a key from its environment before each connection. It notes what
// happens; one of its connections ends only by breaking.
const clinging = `import http.client, os, ssl, time
context = ssl.create_default_context(cafile=os.environ['SSL_CERT_FILE'])
def note(*what):
    with open('/tmp/noted', 'a') as f: print(*what, file=f)
n = 0
while True:
    try:
        c = http.client.HTTPSConnection('api.vault.example', context=context, timeout=20)
        c.request('GET', '/v1/loop', headers={'Authorization': 'Bearer ' + os.environ.get('VAULT_API_KEY', '')})
        note('key', c.getresponse().status)
        c = http.client.HTTPSConnection('stream.example', context=context)
        c.request('GET', '/')
        r = c.getresponse()
        r.read(5)
        note('open', n)
        r.read()
        note('whole', n)
    except Exception as e:
        note('broken', n, type(e).__name__)
        time.sleep(0.2)
    n += 1
`

// wiredWorld is a world with a vault, and hosts that are there to be reached.
func wiredWorld(t *testing.T) (*world, *vault, *internet.Internet) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	v := &vault{key: "sk-live-4f9bb1d0e27c43a6a1c5"}
	n.Site("api.vault.example", v)
	for _, name := range []string{"other.example", "later.example", "never.example", "few.example"} {
		n.Site(name, internet.Reached)
	}
	n.Site("stream.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("hello"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	return w, v, n
}

// sh is what a script prints in a sandbox, and how it ended.
func (s *server) sh(t testing.TB, id, script string) (string, int) {
	t.Helper()
	b, _ := json.Marshal(map[string]any{"command": "sh", "args": []string{"-c", script}})
	var r struct {
		Stdout string
		Code   int `json:"exit_code"`
	}
	answer := s.must(t, "POST", "/v1/sandboxes/"+id+"/exec", string(b))
	if err := json.Unmarshal([]byte(answer), &r); err != nil {
		t.Fatalf("exec %q: %s", script, answer)
	}
	return strings.TrimSpace(r.Stdout), r.Code
}

// reaches reports whether a sandbox gets an answer from a host.
func (s *server) reaches(t testing.TB, id, host string) bool {
	t.Helper()
	out, code := s.sh(t, id, "curl -sS -m 20 https://"+host+"/")
	return code == 0 && strings.Contains(out, "reached")
}

// cling starts the clinging program.
func (s *server) cling(t testing.TB, id string) {
	t.Helper()
	b, _ := json.Marshal(map[string]any{"code": clinging, "language_pack": "python"})
	s.must(t, "POST", "/v1/sandboxes/"+id+"/processes", string(b))
}

// noted waits until the clinging program of a sandbox has noted something n times.
func (s *server) noted(t testing.TB, id, what string, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, _ := s.sh(t, id, "cat /tmp/noted")
		if strings.Count(out, what) >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q is not noted %d times: %s", what, n, out)
		}
	}
}

// wires are the namespaces of a world's sandboxes.
func (w *world) wires(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.dir, "data", "wires", "in*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestPausedNetwork: a sandbox with a network is paused again and again. Each time the
// policy of then holds from the first packet, what stood for a secret still does, also
// for a program that goes on with whom it trusted before, whose connection has broken
// at once, and its end is on record; what was used of a budget stays used.
func TestPausedNetwork(t *testing.T) {
	w, v, _ := wiredWorld(t)
	s := w.serve("--stop-sandboxes=false")
	w.must(v.key, "secret", "set", "key")
	w.must("", "binding", "add", "vault", "--secret", "key", "--host", "api.vault.example", "--path", "/v1", "--placeholder", "VAULT_API_KEY")
	const few = `{host: few.example, budget: {connections: 3}}`
	rules := func(more string) string {
		b, _ := json.Marshal("allow: [stream.example, " + few + more + "]")
		return string(b)
	}
	id := s.made(t, "/v1/sandboxes", `{"timeout_ms":3600000,"bindings":["vault"],"network":{"document":`+rules(", other.example")+`}}`)
	placeholder, _ := s.sh(t, id, "echo $VAULT_API_KEY")
	s.cling(t, id)
	s.noted(t, id, "open", 1)
	const cycles = 5
	for n := 1; n <= cycles; n++ {
		s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
		if st := s.state(t, id); st.State != "paused" || len(w.instances(t))+len(w.wires(t)) != 0 {
			t.Fatalf("cycle %d: %+v, instances %v, wires %v", n, st, w.instances(t), w.wires(t))
		}
		_, entries, _ := s.do("GET", "/v1/audit/entries?page_size=1000&sandbox_id="+id, "")
		if got := len(regexp.MustCompile(`"object":"stream.example:443"[^}]*"detail":\{[^}]*"kind":"close"`).FindAllString(entries, -1)); got != n {
			t.Errorf("cycle %d: the ends of %d connections are on record: %s", n, got, entries)
		}
		switch n {
		case 2:
			s.must(t, "PUT", "/v1/sandboxes/"+id+"/network", `{"document":`+rules(", later.example")+`}`)
			if st := s.state(t, id); st.State != "paused" {
				t.Errorf("the update of its policy woke it: %+v", st)
			}
		case 3:
			s.cmd.Process.Kill()
			s.cmd.Wait()
			w.transport.CloseIdleConnections()
			s = w.serve("--stop-sandboxes=false")
		}
		if n%2 == 0 {
			s.must(t, "POST", "/v1/sandboxes/"+id+"/resume", "{}")
		} // else whoever is next wakes it
		s.noted(t, id, "broken", n)
		s.noted(t, id, "key 200", n+1)
		s.noted(t, id, "open", n+1)
		out, code := s.sh(t, id, keyed["curl"])
		if now, _ := s.sh(t, id, "echo $VAULT_API_KEY"); code != 0 || !strings.Contains(out, "welcome GET /v1/curl") || now != placeholder {
			t.Errorf("cycle %d: the binding by %s, %s before: %s", n, now, placeholder, out)
		}
		for host, want := range map[string]bool{"never.example": false, "other.example": n < 2, "later.example": n >= 2, "few.example": n <= 3} {
			if got := s.reaches(t, id, host); got != want {
				t.Errorf("cycle %d: %s is reached: %v", n, host, got)
			}
		}
	}
	if _, bad := v.took(); bad > 0 {
		t.Errorf("%d requests came without the key", bad)
	}
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
	if st := s.state(t, id); !st.Receipt.Clean {
		t.Errorf("%+v", st)
	}
}

// TestSnapshotNetwork: what is made of a snapshot has the rules and the bindings of
// the one that was saved, or others in their place, and an identity of its own: another
// authority, other placeholders. Programs that came along can use what they have on its
// wire as its own, and it is worth nothing on another one. The secret is not in what was
// saved.
func TestSnapshotNetwork(t *testing.T) {
	w, v, _ := wiredWorld(t)
	s := w.serve()
	w.must(v.key, "secret", "set", "key")
	w.must("", "binding", "add", "vault", "--secret", "key", "--host", "api.vault.example", "--path", "/v1", "--placeholder", "VAULT_API_KEY")
	parent := s.made(t, "/v1/sandboxes", `{"timeout_ms":3600000,"bindings":["vault"],"network":{"allow":["stream.example","other.example"]}}`)
	s.cling(t, parent)
	s.noted(t, parent, "open", 1)
	s.must(t, "POST", "/v1/sandboxes/"+parent+"/snapshots", `{"name":"warm"}`)
	images, _ := filepath.Glob(filepath.Join(w.dir, "data", "snapshots", "sn*", "image"))
	if len(images) != 1 {
		t.Fatalf("images %v", images)
	}
	theirs, _ := s.sh(t, parent, "echo $VAULT_API_KEY")
	if found, size, err := image.Search(images[0], []byte(v.key), []byte(theirs)); err != nil || size < 1<<20 || found[0] != 0 || found[1] == 0 {
		t.Errorf("the image of %d bytes has the secret %v times: %v", size, found, err)
	}
	child := s.made(t, "/v1/sandboxes", `{"timeout_ms":3600000,"snapshot":"warm"}`)
	own, _ := s.sh(t, child, "echo $VAULT_API_KEY")
	if own == theirs || !strings.HasPrefix(own, "fbp_") {
		t.Errorf("the placeholders are %q and %q", own, theirs)
	}
	vouched := func(id string) string {
		out, _ := s.sh(t, id, `openssl x509 -noout -subject -in "$NODE_EXTRA_CA_CERTS"; grep -c 'sandbox CA' "$SSL_CERT_FILE" >/dev/null; csplit -sf /tmp/ca- "$SSL_CERT_FILE" '/# Firebreak: the authority/' '{*}'; ls /tmp/ca-* | wc -l`)
		return out
	}
	if a, b := vouched(parent), vouched(child); !strings.Contains(a, parent) || !strings.Contains(b, child) || !strings.HasSuffix(b, "\n2") {
		t.Errorf("who vouches for hosts: %q and %q", a, b)
	}
	with := func(id, placeholder string) string {
		out, _ := s.sh(t, id, `curl -sS -m 20 -o /dev/null -w '%{http_code}' -H "Authorization: Bearer `+placeholder+`" https://api.vault.example/v1/x`)
		return out
	}
	v.took()
	for _, c := range []struct{ id, placeholder, want string }{{child, own, "200"}, {child, theirs, "200"}, {parent, theirs, "200"}, {parent, own, "403"}} {
		if got := with(c.id, c.placeholder); got != c.want {
			t.Errorf("%s with %s: %s, want %s", c.id, c.placeholder, got, c.want)
		}
	}
	out, _ := s.sh(t, child, `curl -sS -m 20 -o /dev/null -w '%{http_code}' -H "X: `+theirs+`" https://other.example/`)
	if !s.reaches(t, child, "other.example") || s.reaches(t, child, "never.example") || out != "403" {
		t.Errorf("the rules of the first are not those of the second; its placeholder elsewhere: %s", out)
	}
	// The program that came along trusts another authority: nothing it says gets out.
	s.noted(t, child, "SSLCertVerificationError", 1)
	if out, _ := s.sh(t, parent, "cat /tmp/noted"); strings.Contains(out, "broken") {
		t.Errorf("the connection of the first broke: %s", out)
	}
	if got, bad := v.took(); bad != 0 || len(got) != 3 {
		t.Errorf("the vault got %q, and %d requests without the key", got, bad)
	}
	// Other rules in their place: of the binding there is nothing, and what stood for its
	// secret is a text.
	other := s.made(t, "/v1/sandboxes", `{"snapshot":"warm","network":{"allow":["later.example","other.example"]}}`)
	out, _ = s.sh(t, other, `echo "<$VAULT_API_KEY$VAULT_BASE_URL>"; curl -sS -m 20 -o /dev/null -w '%{http_code}' -H "X: `+theirs+`" https://other.example/`)
	if out != "<>\n200" || !s.reaches(t, other, "later.example") || with(other, theirs) == "200" {
		t.Errorf("with other rules: %q", out)
	}
	// What is gone since then, and what never had a network.
	s.must(t, "DELETE", "/v1/sandboxes/"+parent, "")
	s.must(t, "DELETE", "/v1/sandboxes/"+child, "")
	w.must("", "binding", "rm", "vault")
	if kind, text := s.failed(t, "POST", "/v1/sandboxes", `{"snapshot":"warm"}`); kind != "not_found" || !strings.Contains(text, "vault") {
		t.Errorf("of a snapshot whose binding is gone: %s", text)
	}
	bare := s.made(t, "/v1/sandboxes", "{}")
	s.must(t, "POST", "/v1/sandboxes/"+bare+"/snapshots", `{"name":"bare"}`)
	if kind, text := s.failed(t, "POST", "/v1/sandboxes", `{"snapshot":"bare","network":{"allow":["other.example"]}}`); kind != "conflict" || !strings.Contains(text, "device") {
		t.Errorf("a device for what had none: %s", text)
	}
	for _, name := range []string{"warm", "bare"} {
		s.must(t, "DELETE", "/v1/snapshots/"+name, "")
	}
}

// TestPauseNetworkFails: a pause that fails after the connections were ended leaves a
// sandbox that goes on and connects anew; a resume that its binding does not allow any
// more leaves it paused, without a wire, until the binding does; one that is idle is
// paused, with its network.
func TestPauseNetworkFails(t *testing.T) {
	w, v, _ := wiredWorld(t)
	s := w.serve()
	w.must(v.key, "secret", "set", "key")
	bind := []string{"binding", "add", "vault", "--secret", "key", "--host", "api.vault.example", "--path", "/v1", "--placeholder", "VAULT_API_KEY"}
	w.must("", bind...)
	id := s.made(t, "/v1/sandboxes", `{"timeout_ms":3600000,"bindings":["vault"],"network":{"document":"allow: [stream.example, other.example, {host: few.example, budget: {connections: 1}}]"}}`)
	if !s.reaches(t, id, "few.example") {
		t.Error("the budget is used up before it began")
	}
	s.cling(t, id)
	s.noted(t, id, "open", 1)
	inst := w.instances(t)
	if len(inst) != 1 {
		t.Fatalf("instances %v", inst)
	}
	taken := filepath.Join(w.dir, "data", "snapshots", filepath.Base(inst[0])) // where it would be saved
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	s.failed(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	if err := os.Remove(taken); err != nil {
		t.Fatal(err)
	}
	if st := s.state(t, id); st.State != "running" {
		t.Errorf("%+v", st)
	}
	s.noted(t, id, "open", 2)
	if s.reaches(t, id, "few.example") || !s.reaches(t, id, "other.example") || s.reaches(t, id, "never.example") {
		t.Error("what it reaches is not what it did")
	}

	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	w.must("", append(bind, "--tier", "hypervisor")...)
	for _, call := range [][2]string{{"/resume", "{}"}, {"/exec", `{"code":"print(1)"}`}} {
		if kind, text := s.failed(t, "POST", "/v1/sandboxes/"+id+call[0], call[1]); kind != "unsupported" || !strings.Contains(text, "vault") {
			t.Errorf("%s: %s", call[0], text)
		}
		if st := s.state(t, id); st.State != "paused" || len(w.instances(t))+len(w.wires(t)) != 0 {
			t.Errorf("after %s: %+v, instances %v, wires %v", call[0], st, w.instances(t), w.wires(t))
		}
	}
	w.must("", bind...)
	s.noted(t, id, "key 200", 3)
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")

	idle := s.made(t, "/v1/sandboxes", `{"idle_timeout_ms":300,"idle_action":"pause","network":{"allow":["other.example"]}}`)
	for range 2 {
		for end := time.Now().Add(time.Minute); s.state(t, idle).State != "paused"; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%+v", s.state(t, idle))
			}
		}
		if !s.reaches(t, idle, "other.example") {
			t.Error("one that was idle reaches nothing")
		}
	}
	s.must(t, "DELETE", "/v1/sandboxes/"+idle, "")
}

// TestSnapshotNetworkInherited: headers that name secrets come with a snapshot only to
// who could ask for them; others give rules of their own.
func TestSnapshotNetworkInherited(t *testing.T) {
	w, v, _ := wiredWorld(t)
	s := w.serve()
	w.must(v.key, "secret", "set", "key")
	id := s.made(t, "/v1/sandboxes", `{"network":{"allow":["api.vault.example"],"transforms":[{"host":"api.vault.example","headers":{"Authorization":"Bearer ${e2b.secrets.key}"}}]}}`)
	s.must(t, "POST", "/v1/sandboxes/"+id+"/snapshots", `{"name":"warm"}`)
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
	var made struct{ Secret string }
	if err := json.Unmarshal([]byte(w.must("", "key", "create", "--name", "dev", "--role", "developer", "--json")), &made); err != nil {
		t.Fatal(err)
	}
	dev := []string{"Authorization", "Bearer " + made.Secret}
	status, body, _ := s.do("POST", "/v1/sandboxes", `{"snapshot":"warm"}`, dev...)
	if status != http.StatusForbidden || !strings.Contains(body, "binding:write") {
		t.Errorf("whoever may not write bindings: %d %s", status, body)
	}
	const ask = `curl -sS -m 20 -o /dev/null -w '%{http_code}' https://api.vault.example/v1/x`
	var sb struct{ ID string }
	status, body, _ = s.do("POST", "/v1/sandboxes", `{"snapshot":"warm","network":{"allow":["api.vault.example"]}}`, dev...)
	if err := json.Unmarshal([]byte(body), &sb); err != nil || status != http.StatusCreated {
		t.Fatalf("with rules of its own: %d %s", status, body)
	}
	if out, _ := s.sh(t, sb.ID, ask); out != "401" {
		t.Errorf("with rules of its own: %s", out)
	}
	heir := s.made(t, "/v1/sandboxes", `{"snapshot":"warm"}`)
	if out, _ := s.sh(t, heir, ask); out != "200" {
		t.Errorf("who may: %s", out)
	}
	s.must(t, "DELETE", "/v1/snapshots/warm", "")
}

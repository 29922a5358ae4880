package hostile

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"
)

// vaultKey is the secret that sandboxes use and must not have. Programs are told it
// masked, so that whoever looks for it finds it only where it should not be.
const vaultKey = "sk-live/4f9bb1d0+e27c43a6=a1c5~77"

// masked is what programs unmask.
func masked() string {
	b := []byte(vaultKey)
	for i := range b {
		b[i] ^= 0x5a
	}
	return hex.EncodeToString(b)
}

var shared = []string{"attempts.py", "masked.py"}

// bindingAttacks try to get at the secret of a binding, to use one for what it is not
// for, and to use another sandbox's.
var bindingAttacks = []attack{
	{number: 16, name: "a key of one's own to a bound host", verdict: deny, run: []string{"bind_key.py", masked()}, with: shared, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: ownKeysStripped,
		fields: `"bindings":["vault"]`, wants: []string{`request POST vault api.vault.example:443 allowed`, `dns api.vault.example deny no_rule`}},
	{number: 18, name: "the secret, sent on", verdict: deny, run: []string{"bind_leak.py", masked()}, with: shared, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: nothingSentOn,
		fields: `"bindings":["vault"]`, wants: []string{`request GET vault api.vault.example:443 denied leak`, `request POST vault api.vault.example:443 denied leak`}},
	{number: 19, name: "a base URL used for other hosts", verdict: deny, run: []string{"bind_places.py", masked()}, with: shared, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		fields: `"bindings":["vault"]`, wants: []string{`request \S* ?vault api.vault.example:443 denied request`, `dns evil.example deny no_rule`}},
	{number: 20, name: "a server that echoes", verdict: deny, run: []string{"bind_echo.py", masked()}, with: shared, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: echoed,
		fields: `"bindings":["vault"]`, wants: []string{`request GET vault api.vault.example:443 allowed`}},
	{number: 21, name: "a search of the sandbox and of the host", verdict: deny, run: []string{"bind_search.py", masked()}, with: shared, limits: `"memory_bytes":536870912,"cpus":2`, timeout: 5 * time.Minute, reasons: "done", prints: `(?s)used .*welcome.*searched \d{4,} `, check: secretNowhere,
		fields: `"bindings":["vault"],"env":{"CANARY":"` + canary + `"},"metadata":{"canary":"` + canary + `"}`, wants: []string{`request GET vault api.vault.example:443 allowed`}},
	{number: 22, name: "git's token, and other refs", verdict: deny, run: []string{"bind_git.py", masked()}, with: shared, limits: `"memory_bytes":536870912,"cpus":2`, timeout: 5 * time.Minute, reasons: "done", prints: "(?s)control worked.*tried.*tried", check: onlyTheAgents,
		fields: `"bindings":["gh"]`, wants: []string{`request GET gh git.vault.example:443 allowed`, `request POST gh git.vault.example:443 allowed`, `request POST gh git.vault.example:443 denied push`,
			`request POST gh git.vault.example:443 denied request`, `request GET gh git.vault.example:443 denied path`, `dns git.vault.example deny no_rule`}},
	{number: 16, name: "a key of one's own, by TLS", verdict: deny, run: []string{"hold_key.py", masked()}, with: shared, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*welcome.*tried", check: ownKeysGone,
		network: allowing("api.vault.example"), fields: held, wants: []string{`request POST held api.vault.example:443 allowed`, `request POST api.vault.example:443 allowed rule`}},
	{number: 18, name: "the secret, sent on by TLS", verdict: deny, run: []string{"bind_leak.py", masked()}, with: shared, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: nothingSentOn,
		fields: held, wants: []string{`request GET held api.vault.example:443 denied leak`, `request POST held api.vault.example:443 denied leak`}},
	{number: 19, name: "a placeholder in other places", verdict: deny, run: []string{"hold_elsewhere.py", masked()}, with: shared, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: nothingArrived,
		network: allowing("api.vault.example", "api.example", "api.example:80", "api.vault.example:80"), fields: held,
		wants: []string{`request GET api.vault.example:443 denied placeholder`, `request POST held api.vault.example:443 denied placeholder`, `request GET api.example:443 denied placeholder`,
			`request GET api.example:80 denied placeholder`, `request GET held api.vault.example:443 denied path`}},
	{number: 20, name: "a server that echoes, by TLS", verdict: deny, run: []string{"bind_echo.py", masked()}, with: shared, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: echoed,
		fields: held, wants: []string{`request GET held api.vault.example:443 allowed`}},
	{number: 21, name: "a search after use by TLS", verdict: deny, run: []string{"bind_search.py", masked()}, with: shared, limits: `"memory_bytes":536870912,"cpus":2`, timeout: 5 * time.Minute, reasons: "done", prints: `(?s)used .*welcome.*searched \d{4,} `, check: secretNowhere,
		fields: `"bindings":["held"],"env":{"CANARY":"` + canary + `","VAULT_BASE_URL":"https://api.vault.example"},"metadata":{"canary":"` + canary + `"}`, wants: []string{`request GET held api.vault.example:443 allowed`}},
	{number: 23, name: "another sandbox's placeholder", verdict: deny, act: anothersPlaceholder, network: allowing("api.vault.example"),
		fields: `"bindings":["held"]`, wants: []string{`request GET api.vault.example:443 allowed rule`}},
	{number: 23, name: "another sandbox's binding", verdict: deny, act: anotherSandboxes,
		fields: `"bindings":["vault"]`, wants: []string{`dns other.binding.internal deny \S+`}},
}

// held gives a sandbox a placeholder, and has programs go to the host itself.
const held = `"bindings":["held"],"env":{"VAULT_BASE_URL":"https://api.vault.example"}`

// ownKeysGone: what arrived has the binding's key, or none.
func ownKeysGone(t *testing.T, w *world, id string, r reply, took time.Duration) {
	noFindings(t, w, id, r, took)
	with, without := 0, 0
	for _, g := range w.vault.took() {
		if g.authorized {
			with++
		} else {
			without++
		}
		if strings.Contains(g.text, "attacker") || !g.authorized && strings.Contains(g.text, "Authorization: ") {
			t.Errorf("there arrived %s", g.text)
		}
	}
	if with < 4 || without < 8 {
		t.Errorf("%d arrived with the binding's key and %d without: %s", with, without, r.Stdout)
	}
}

// nothingArrived: not one request did, whole.
func nothingArrived(t *testing.T, w *world, id string, r reply, took time.Duration) {
	noFindings(t, w, id, r, took)
	for _, g := range w.vault.took() {
		if g.complete || g.authorized && contains([]byte(strings.Replace(g.text, "Authorization: Bearer "+vaultKey, "", 1))) != "" {
			t.Errorf("there arrived, complete %v, %.300s", g.complete, g.text)
		}
	}
}

// anothersPlaceholder: in a sandbox that has the same binding, and in one that has none,
// it is a text like any other, which does not even arrive.
func anothersPlaceholder(t *testing.T, w *world, id string) {
	const ask = `curl -sS -m 10 -H "Authorization: Bearer ${1:-$VAULT_API_KEY}" https://api.vault.example/v1/models; echo "$VAULT_API_KEY"`
	first := w.create(t, `"bindings":["held"]`)
	defer w.destroy(t, first)
	_, r := w.exec(first, 20*time.Second, "sh", "-c", ask)
	said := strings.Fields(r.Stdout)
	if got := w.vault.took(); len(got) != 1 || !got[0].authorized || len(said) != 2 || !strings.HasPrefix(said[1], "fbp_") {
		t.Fatalf("it does not work where it should: %v, %s", got, r.body)
	}
	unbound := w.create(t, `"network":`+allowing("api.vault.example"))
	defer w.destroy(t, unbound)
	for _, id := range []string{id, unbound} {
		if _, r := w.exec(id, 20*time.Second, "sh", "-c", ask, "sh", said[1]); !strings.Contains(r.Stdout, "welcome") {
			t.Errorf("the host is not reached: %s", r.body)
		}
		got := w.vault.took()
		if len(got) != 1 || got[0].authorized || contains([]byte(got[0].text)) != "" || strings.Contains(got[0].text, "fbp_") != (id == unbound) {
			t.Errorf("there arrived %v", got)
		}
	}
}

// onlyTheAgents: of the forge's refs those are new that the binding lets be pushed to,
// and the others are as they were.
func onlyTheAgents(t *testing.T, w *world, id string, r reply, took time.Duration) {
	noFindings(t, w, id, r, took)
	mine := 0
	for _, repository := range []string{"owner/repo", "owner/other"} {
		refs, err := w.refs(repository)
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(refs) {
			_, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch {
			case strings.HasPrefix(ref, "refs/heads/agent/") && repository == "owner/repo":
				mine++
			case ref != "refs/heads/main":
				t.Errorf("%s has %s", repository, ref)
			}
		}
		if !strings.Contains(refs, "refs/heads/main") {
			t.Errorf("%s has no main any more: %s", repository, refs)
		}
	}
	if mine == 0 {
		t.Error("nothing was pushed where it may be")
	}
}

// canary is what a search has to find: one that does not is blind.
const canary = "canary-81d0f2b7c4"

// ownKeysStripped: what arrived has the binding's key and no other.
func ownKeysStripped(t *testing.T, w *world, id string, r reply, took time.Duration) {
	noFindings(t, w, id, r, took)
	got := w.vault.took()
	if len(got) == 0 {
		t.Errorf("nothing arrived: %s", r.Stdout)
	}
	for _, g := range got {
		if strings.Contains(g.text, "attacker") || strings.Count(g.text, "Authorization: ") != 1 || !g.authorized {
			t.Errorf("there arrived %s", g.text)
		}
	}
}

// nothingSentOn: nothing whole arrived that has the secret anywhere but where the
// binding puts it.
func nothingSentOn(t *testing.T, w *world, id string, r reply, took time.Duration) {
	noFindings(t, w, id, r, took)
	for _, g := range w.vault.took() {
		where := strings.Replace(g.text, "Authorization: Bearer "+vaultKey, "", 1)
		if form := contains([]byte(where)); form != "" {
			t.Errorf("there arrived, complete %v, the secret %s in %.300s", g.complete, form, where)
		}
	}
}

// echoed: the server did give back what it was sent.
func echoed(t *testing.T, w *world, id string, r reply, took time.Duration) {
	noFindings(t, w, id, r, took)
	n := 0
	for _, g := range w.vault.took() {
		if g.authorized && strings.Contains(g.text, " /v1/echo/") {
			n++
		}
	}
	if n < 20 {
		t.Errorf("the server was asked %d times", n)
	}
}

// secretNowhere: neither in the sandbox nor in what the server answers, logs and
// keeps, nor in the memory of the boundary, where the canary is.
func secretNowhere(t *testing.T, w *world, id string, r reply, took time.Duration) {
	noFindings(t, w, id, r, took)
	t.Log(strings.TrimSpace(r.Stdout))
	if got := w.vault.took(); len(got) == 0 || !got[0].authorized {
		t.Errorf("the binding was not used: %v", got)
	}
	w.searchMemory(t, w.instance(t, id))
	w.searchImages(t, id)
	w.searchServer(t, id)
}

// anotherSandboxes: the binding of one sandbox is nothing in another, which has one of
// its own, and in one that has none.
func anotherSandboxes(t *testing.T, w *world, id string) {
	first := w.create(t, `"bindings":["other"]`)
	defer w.destroy(t, first)
	_, r := w.exec(first, 20*time.Second, "getent", "ahostsv4", "other.binding.internal")
	address, _, _ := strings.Cut(r.Stdout, " ")
	if _, r = w.exec(first, 20*time.Second, "curl", "-sSf", "-m", "10", "http://other.binding.internal/v1/models"); address == "" || !strings.Contains(r.Stdout, "welcome") {
		t.Fatalf("it does not work where it should: %q %s", address, r.body)
	}
	unbound := w.create(t, `"network":`+allowing("api.example"))
	defer w.destroy(t, unbound)
	w.vault.took()
	for _, id := range []string{id, unbound} {
		for _, name := range append([]string{"bind_other.py"}, shared...) {
			w.upload(t, id, name)
		}
		status, r := w.exec(id, time.Minute, "python3", "bind_other.py", masked(), "other.binding.internal", address)
		if status != http.StatusOK || r.ExitCode != 0 || !strings.Contains(r.Stdout, "tried") {
			t.Errorf("%d %s", status, r.body)
		}
		noFindings(t, w, id, r, 0)
	}
	if got := w.vault.took(); len(got) > 0 {
		t.Errorf("there arrived %v", got)
	}
}

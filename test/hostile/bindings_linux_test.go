package hostile

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// TestBindings attacks from sandboxes that may make requests with a secret they must
// not have, to a server that tells everything it is sent: nothing arrives anywhere
// but at the binding's host, with the binding's key and nobody else's; and the secret
// is nowhere, not in the sandbox and not in what the server answers, logs and keeps.
func TestBindings(t *testing.T) {
	o := newOutside(t)
	v := new(vault)
	o.reachable[netip.AddrPortFrom(o.Site("api.vault.example", v), 443)] = true
	o.asked["api.vault.example"] = true
	o.reachable[netip.AddrPortFrom(o.Site("api.example", internet.Reached), 443)] = true
	o.asked["api.example"] = true
	w := serveIn(t, built(t), o, "SSL_CERT_FILE="+o.Authority.File)
	forge, err := o.Forge(vaultKey, "owner/repo", "owner/other")
	if err != nil {
		t.Fatal(err)
	}
	o.reachable[netip.AddrPortFrom(o.Site("git.vault.example", forge), 443)] = true
	o.asked["git.vault.example"] = true
	w.vault, w.refs = v, forge.Refs
	w.must(t, vaultKey, "secret", "set", "vault-key")
	w.must(t, "", "binding", "add", "vault", "--secret", "vault-key", "--host", "api.vault.example", "--path", "/v1")
	w.must(t, "", "binding", "add", "other", "--secret", "vault-key", "--host", "api.vault.example", "--path", "/v1")
	w.must(t, "", "binding", "add", "held", "--secret", "vault-key", "--host", "api.vault.example", "--path", "/v1", "--placeholder", "VAULT_API_KEY")
	w.must(t, "", "binding", "add", "gh", "--secret", "vault-key", "--host", "git.vault.example", "--git", "owner/repo", "--git-push", "refs/heads/agent/*")
	n := w.neighbours(t)
	begin := o.mark(t)
	n.unharmed(t, func() {
		for _, a := range bindingAttacks {
			t.Run(a.title(), func(t *testing.T) {
				v.took()
				w.carryOut(t, n, a)
			})
		}
	})
	for _, l := range o.leaks(t, begin) {
		t.Error(l)
	}
	routers := internet.Routers(w.cmd.Process.Pid)
	if len(routers) != 1 {
		t.Errorf("the server has the routers %v", routers)
	}
	for _, pid := range append(routers, w.cmd.Process.Pid) { // where every user of the machine may look
		for _, name := range []string{"environ", "cmdline"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if form := contains(b); err != nil || form != "" {
				t.Errorf("the %s of process %d has the secret %s: %v", name, pid, form, err)
			}
		}
	}
}

// must runs a command that has to work.
func (w *world) must(t *testing.T, stdin string, args ...string) {
	t.Helper()
	if out, errs, code := w.cliWith(stdin, args...); code != 0 {
		t.Fatalf("firebreak %v: %d %s %s", args, code, out, errs)
	}
}

// TestBindingsBite runs programs of TestBindings where no router is between them and a
// server that tells its key, and looks for each form of the secret with the search of
// TestBindings: what finds nothing anywhere shows nothing.
func TestBindingsBite(t *testing.T) {
	built(t)
	for name, form := range secretForms {
		if s := look(strings.NewReader(strings.Repeat("x", 1<<20) + string(form) + "yy")); s.form == "" || s.canary {
			t.Errorf("the search does not see the secret %s: %+v", name, s)
		}
	}
	o := newOutside(t)
	o.Site("api.vault.example", &vault{tells: true})
	o.Site("api.example", internet.Reached)
	for name, least := range map[string]int{"bind_echo.py": 30, "bind_leak.py": 40, "bind_echo.py by TLS": 30, "bind_leak.py by TLS": 40, "hold_elsewhere.py by TLS": 90} {
		program, tls := strings.CutSuffix(name, " by TLS")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		cmd := exec.CommandContext(ctx, "/usr/bin/python3", program, masked())
		var out bytes.Buffer
		cmd.Dir, cmd.Stdout, cmd.Stderr = "programs", &out, &out
		cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir(), "PYTHONDONTWRITEBYTECODE=1", "VAULT_BASE_URL=http://api.vault.example"}
		if tls {
			cmd.Env = append(cmd.Env, "VAULT_BASE_URL=https://api.vault.example", "VAULT_API_KEY=fbp_0123456789012345678901234567890123456789", "SSL_CERT_FILE="+o.Authority.File)
		}
		err := o.Run(cmd)
		cancel()
		if found := strings.Count(out.String(), "FINDING"); err != nil || found < least {
			t.Errorf("%s: %v, %d findings, want %d:\n%s", name, err, found, least, out.String())
		} else {
			t.Logf("%s: %d findings", name, found)
		}
	}
}

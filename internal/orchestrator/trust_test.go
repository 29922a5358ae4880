package orchestrator

import (
	"io"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// trusted is what a file of the sandbox says; "" if there is none.
func trusted(t *testing.T, o *Orchestrator, id sandbox.ID, path string) string {
	t.Helper()
	f, err := o.OpenFile(t.Context(), alice, string(id), path, guest.ReadOptions{})
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// TestTrust: the programs of a sandbox with a wire trust its authority, as it is
// after each change and in each process that serves the wire.
func TestTrust(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = n.kept(w)
	o := w.start()
	policy := "allow: [a.example.com]"
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf(policy), Env: map[string]string{"PIP_CERT": "/mine.pem"}})
	readonly := mustCreate(t, o, alice, CreateRequest{Network: policyOf(policy), ReadonlyRoot: true})
	plain := mustCreate(t, o, alice, CreateRequest{})
	for id, dir := range map[sandbox.ID]string{sb.ID: "/etc/firebreak", readonly.ID: "/tmp/.firebreak", plain.ID: ""} {
		if got, want := trusted(t, o, id, "/etc/firebreak/ca.pem"), certificate([][]byte{[]byte(policy)}); (got == want) != (dir == "/etc/firebreak") || got != "" && got != want {
			t.Errorf("%s: %q", dir, got)
		}
		if got := trusted(t, o, id, "/tmp/.firebreak/ca-bundle.pem"); (got != "") != (dir == "/tmp/.firebreak") {
			t.Errorf("%s: %q", dir, got)
		}
		_, c := mustExec(t, o, alice, id, sh("env"))
		env := "\n" + c.out.String()
		for name, file := range map[string]string{"SSL_CERT_FILE": "ca-bundle.pem", "CURL_CA_BUNDLE": "ca-bundle.pem", "REQUESTS_CA_BUNDLE": "ca-bundle.pem", "GIT_SSL_CAINFO": "ca-bundle.pem",
			"AWS_CA_BUNDLE": "ca-bundle.pem", "CARGO_HTTP_CAINFO": "ca-bundle.pem", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "ca-bundle.pem", "NODE_EXTRA_CA_CERTS": "ca.pem", "DENO_CERT": "ca.pem"} {
			if line := "\n" + name + "=" + dir + "/" + file + "\n"; strings.Contains(env, line) != (dir != "") || dir == "" && strings.Contains(env, name) {
				t.Errorf("%s: no %q in %s", dir, line, env)
			}
		}
		if want := map[sandbox.ID]string{sb.ID: "/mine.pem", readonly.ID: "/tmp/.firebreak/ca-bundle.pem"}[id]; want != "" && !strings.Contains(env, "\nPIP_CERT="+want+"\n") {
			t.Errorf("PIP_CERT is not %s: %s", want, env)
		}
	}
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [b.example.com]")); err != nil {
		t.Fatal(err)
	}
	next := certificate([][]byte{[]byte("allow: [b.example.com]")})
	if got := trusted(t, o, sb.ID, "/etc/firebreak/ca.pem"); got != next {
		t.Errorf("after an update: %q", got)
	}
	w.abandon(o)
	n.mu.Lock()
	n.open[sb.Instance].served = false
	n.mu.Unlock()
	n.set("authority", nil)
	w.cfg = n.config(w)
	second := w.start()
	eventually(t, "the next process sees to it", func() bool { return trusted(t, second, sb.ID, "/etc/firebreak/ca.pem") == next })
}

// TestTrustFails: a sandbox whose programs would trust nobody is not made. One that
// lives gets its policy all the same, and says what is wrong until it is not.
func TestTrustFails(t *testing.T) {
	w, n := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
	n.set("authority", sandbox.Errorf("test", sandbox.KindNoSpace, "the disk is full"))
	_, err := o.Create(t.Context(), alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
	if e := wantKind(t, err, sandbox.KindNoSpace); !strings.Contains(e.Error(), "the disk is full") {
		t.Error(err)
	}
	if open, _ := n.List(t.Context()); len(open) != 1 {
		t.Errorf("wires left: %v", open)
	}
	now, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [b.example.com]"))
	if err != nil || !strings.Contains(now.Details.Network.Untrusted, "the disk is full") || now.Details.Network.Problem != "" {
		t.Errorf("%+v, %v", now.Details.Network, err)
	}
	if wire, _ := n.of(sb.Instance); string(wire.Documents[0]) != "allow: [b.example.com]" {
		t.Errorf("the policy does not hold: %+v", wire)
	}
	n.set("authority", nil)
	now, _, err = o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [c.example.com]"))
	if err != nil || now.Details.Network.Untrusted != "" || trusted(t, o, sb.ID, "/etc/firebreak/ca.pem") != certificate([][]byte{[]byte("allow: [c.example.com]")}) {
		t.Errorf("%+v, %v", now.Details.Network, err)
	}
}

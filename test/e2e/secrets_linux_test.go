package e2e

import (
	"strings"
	"testing"
)

// TestSecretPrompt: at a terminal a secret is asked for and nothing of it is shown, also
// when it is typed at once; ^C stores nothing.
func TestSecretPrompt(t *testing.T) {
	s := newWorld(t).serve()
	const canary = "canary-typed-77"
	p := s.sit(t, 0, "secret", "set", "typed")
	p.expect("secret typed (not shown): ")
	p.types(canary + "\r")
	p.expect("typed version 1")
	if code := p.code(); code != 0 || strings.Contains(string(p.screen()), canary[:6]) {
		t.Errorf("exit code %d, %q", code, p.screen())
	}
	p = s.sit(t, 0, "secret", "set", "typed")
	p.expect("(not shown): ")
	p.types(canary + "\x03")
	if code := p.code(); code == 0 || strings.Contains(string(p.screen()), canary[:6]) || strings.Contains(string(p.screen()), "version") {
		t.Errorf("exit code %d, %q", code, p.screen())
	}
	if r := s.run("", "secret", "ls"); r.code != 0 || strings.Count(r.stdout, "\n") != 2 || !strings.Contains(r.stdout, "typed  1 ") {
		t.Error(r.code, r.stdout, r.stderr)
	}
}

package broker

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

type memory map[string]string

func (m memory) Get(_ context.Context, _ sandbox.TenantID, name string) (*Secret, error) {
	v, ok := m[name]
	if !ok {
		return nil, sandbox.Errorf("secret", sandbox.KindNotFound, "no")
	}
	return NewSecret([]byte(v)), nil
}

// TestHeaderValue: references are secrets, everything else is text, and nothing is
// both.
func TestHeaderValue(t *testing.T) {
	from := memory{"a": "AAAA", "b-1": "BBBB", "long": strings.Repeat("x", maxHeaderValue)}
	for text, want := range map[string]string{
		"":                        "",
		"plain":                   "plain",
		"Bearer ${e2b.secrets.a}": "Bearer AAAA",
		"${e2b.secrets.a}:${e2b.secrets.b-1}!${e2b.secrets.a}": "AAAA:BBBB!AAAA",
		"${other} $ { ${e2b": "${other} $ { ${e2b",
	} {
		v, err := ParseHeaderValue(text)
		if err != nil || v.Text() != text {
			t.Errorf("%q: %q, %v", text, v.Text(), err)
			continue
		}
		got, secrets, err := v.Resolve(t.Context(), from, "default")
		if err != nil || string(got) != want || len(secrets) != strings.Count(text, ".secrets.") {
			t.Errorf("%q: %q, %q, %v", text, got, secrets, err)
		}
	}
	for text, kind := range map[string]sandbox.Kind{
		"${e2b.secrets.a": sandbox.KindInvalid, "${e2b.secrets.}": sandbox.KindInvalid, "${e2b.secrets.a b}": sandbox.KindInvalid, "${e2b.secrets.${e2b.secrets.a}}": sandbox.KindInvalid,
		"${e2b.identity.tokens.aws}": sandbox.KindUnsupported, "a\nb": sandbox.KindInvalid, strings.Repeat("x", maxHeaderValue+1): sandbox.KindInvalid, strings.Repeat("-${e2b.secrets.a}", 2*maxReferences): sandbox.KindInvalid,
	} {
		if _, err := ParseHeaderValue(text); sandbox.KindOf(err) != kind {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	for text, kind := range map[string]sandbox.Kind{"x${e2b.secrets.long}": sandbox.KindUnavailable, "${e2b.secrets.none}": sandbox.KindNotFound} {
		v, err := ParseHeaderValue(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.Resolve(t.Context(), from, "default"); sandbox.KindOf(err) != kind {
			t.Errorf("%q: %v", text, err)
		}
	}
	v, _ := ParseHeaderValue("${e2b.secrets.A} ${e2b.secrets.A}")
	if got := v.Rename(map[string]string{"A": "a"}); got.Text() != "${e2b.secrets.a} ${e2b.secrets.a}" || !slices.Equal(got.Secrets(), []string{"a"}) || v.Text() == got.Text() {
		t.Errorf("%q", got.Text())
	}
}

func TestCredential(t *testing.T) {
	for header, want := range map[string]string{
		"Authorization: Bearer tok-en": "tok-en", "Authorization: bare": "bare", "X-Api-Key: k": "k", "Cookie: a=b; c=d": "a=b; c=d", "X-Env: production": "", "X-Auth-Token: t": "t",
	} {
		name, value, _ := strings.Cut(header, ": ")
		if got := Credential(name, []byte(value)); string(got) != want {
			t.Errorf("%s: %q", header, got)
		}
	}
	for name, ok := range map[string]bool{"authorization": true, "X-Key": true, "Host": false, "content-length": false, "Te": false, "X_Key": false, "": false, "a b": false, "Accept-Encoding": false, "Content-Type": false} {
		if _, err := CheckHeader(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestPlaceholderVariable: what may hold a placeholder.
func TestPlaceholderVariable(t *testing.T) {
	for env, ok := range map[string]bool{"": true, "OPENAI_API_KEY": true, "x": true, "1A": false, "A-B": false, "PATH": false, "path": false, "LD_PRELOAD": false, "FIREBREAK_RESULT": false,
		"A_BASE_URL": false, "SSL_CERT_FILE": false, strings.Repeat("A", 129): false} {
		_, err := Binding{Name: "a", Secret: "s", Host: "api.example.com", Env: env}.Normal()
		if (err == nil) != ok {
			t.Errorf("%q: %v", env, err)
		}
	}
	if _, err := (Binding{Name: "a", Secret: "s", Host: "api.example.com", Env: "KEY", Plain: true}).Normal(); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("without TLS: %v", err)
	}
}

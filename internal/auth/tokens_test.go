package auth

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// A token opens one sandbox of one tenant for one use, and is the same after a
// restart.
func TestTokens(t *testing.T) {
	dir := t.TempDir()
	a, err := OpenTokens(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenTokens(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenTokens(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	one, two := sandbox.NewID(), sandbox.NewID()
	token := a.Token(UseInside, "acme", one)
	if !b.Valid(UseInside, "acme", one, token) {
		t.Error("not valid after a restart")
	}
	for name, ok := range map[string]bool{
		"another sandbox":      b.Valid(UseInside, "acme", two, token),
		"another tenant":       b.Valid(UseInside, "acme2", one, token),
		"another use":          b.Valid(UseTraffic, "acme", one, token),
		"another installation": other.Valid(UseInside, "acme", one, token),
		"nothing":              b.Valid(UseInside, "acme", one, ""),
		"a part":               b.Valid(UseInside, "acme", one, token[:20]),
		"more":                 b.Valid(UseInside, "acme", one, token+"a"),
	} {
		if ok {
			t.Errorf("the token opens %s", name)
		}
	}
	path := filepath.Join(dir, tokensName)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Error(fi, err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Error("a temporary file is left", files)
	}
	os.Chmod(path, 0o644)
	_, err = OpenTokens(dir)
	wantKind(t, err, sandbox.KindDenied)
	os.Remove(path)
	os.WriteFile(path, []byte("short\n"), 0o600)
	_, err = OpenTokens(dir)
	wantKind(t, err, sandbox.KindInvalid)
}

// A key in E2B's spelling is a key like any other.
func TestE2BKey(t *testing.T) {
	ctx := context.Background()
	a, _ := open(t, Options{})
	root, err := a.Peer(0)
	if err != nil {
		t.Fatal(err)
	}
	token, k, err := a.CreateKey(ctx, root, NewKeyRequest{Role: Developer, E2B: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(token) != 44 || !strings.HasPrefix(token, "e2b_") || strings.Trim(token[4:], "0123456789abcdef") != "" {
		t.Errorf("%q is not e2b_ and 40 hexadecimal digits", token)
	}
	p, err := a.Bearer(ctx, token)
	if err != nil || p.ID != k.ID || p.Role != Developer {
		t.Error(p, err)
	}
	last := byte('0')
	if token[43] == last {
		last = '1'
	}
	for _, wrong := range []string{token[:43] + string(last), token[:43], token + "0", strings.ToUpper(token), "e2b_" + strings.Repeat("0", 40), "e2b_"} {
		_, err := a.Bearer(ctx, wrong)
		wantKind(t, err, sandbox.KindUnauthenticated)
	}
	if _, err := a.RevokeKey(ctx, root, k.ID); err != nil {
		t.Fatal(err)
	}
	_, err = a.Bearer(ctx, token)
	wantKind(t, err, sandbox.KindUnauthenticated)
}

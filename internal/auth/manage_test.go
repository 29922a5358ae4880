package auth

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestBootstrap(t *testing.T) {
	ctx := context.Background()
	a, s := open(t, Options{})
	dir := t.TempDir()
	boot := func(want sandbox.Kind) string {
		t.Helper()
		path, err := a.Bootstrap(ctx, dir, nil)
		wantKind(t, err, want)
		return path
	}
	path := boot("")
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 || path != filepath.Join(dir, "api-key") {
		t.Fatal(fi, err)
	}
	b, _ := os.ReadFile(path)
	token := strings.TrimSpace(string(b))
	p, err := a.Bearer(ctx, token)
	if err != nil || p.Tenant != sandbox.DefaultTenant || p.Role != Owner {
		t.Fatal(p, err)
	}
	// Again: the same key, alone.
	if boot("") != path {
		t.Fatal("another path")
	}
	if now, _ := os.ReadFile(path); string(now) != string(b) {
		t.Fatal("another key")
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Fatal(files)
	}
	// Revoked, it stays so.
	if _, err := a.RevokeKey(ctx, p, p.ID); err != nil {
		t.Fatal(err)
	}
	boot("")
	_, err = a.Bearer(ctx, token)
	wantKind(t, err, sandbox.KindUnauthenticated)
	// Taken away, it is not made again.
	os.Remove(path)
	if boot("") != "" {
		t.Fatal("made again")
	}
	// Not ours, not a key, not private, not a file.
	other, _, _ := NewKey()
	for _, c := range []struct {
		content string
		mode    os.FileMode
		kind    sandbox.Kind
	}{
		{other, 0o600, sandbox.KindConflict}, {"hello", 0o600, sandbox.KindInvalid}, {"", 0o600, sandbox.KindInvalid},
		{token, 0o640, sandbox.KindDenied}, {token, 0o604, sandbox.KindDenied}, {token, 0o600, ""},
	} {
		os.Remove(path)
		if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		boot(c.kind)
	}
	os.Remove(path)
	if err := os.Symlink("/etc/hostname", path); err != nil {
		t.Fatal(err)
	}
	boot(sandbox.KindDenied)
	if keys, err := s.Tenant(sandbox.DefaultTenant).ListKeys(ctx); err != nil || len(keys) != 1 {
		t.Fatal(len(keys), err)
	}
}

// A crash after the file was written and before the store knew the key is
// completed by the next Bootstrap.
func TestBootstrapCompletesAfterCrash(t *testing.T) {
	ctx := context.Background()
	a, _ := open(t, Options{})
	dir := t.TempDir()
	token, _, _ := NewKey()
	if err := writeKeyFile(filepath.Join(dir, "api-key"), token); err != nil {
		t.Fatal(err)
	}
	_, err := a.Bearer(ctx, token)
	wantKind(t, err, sandbox.KindUnauthenticated)
	if _, err := a.Bootstrap(ctx, dir, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Bearer(ctx, token); err != nil {
		t.Fatal(err)
	}
}

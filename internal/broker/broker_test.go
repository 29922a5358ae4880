package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const childEnv = "FIREBREAK_BROKER_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}

// child seals a secret and prints what it got, or dies on it.
func child(dir string) int {
	sealed, err := New(dir, nil).Seal("acme", "token", NewSecret([]byte(canary)))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Print(sealed)
	return 0
}

// keep is a store in memory.
type keep map[string]Kept

func (k keep) find(_ context.Context, tenant sandbox.TenantID, name string) (Kept, error) {
	kept, ok := k[string(tenant)+"/"+name]
	if !ok {
		return kept, sandbox.Errorf("secret", sandbox.KindNotFound, "there is none")
	}
	return kept, nil
}

func plain(t testing.TB, s *Secret, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var text string
	s.Use(func(b []byte) { text = string(b) })
	s.Destroy()
	return text
}

func wantKind(t testing.TB, err error, kind sandbox.Kind) {
	t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Hint == "" && kind != sandbox.KindNotFound {
		t.Errorf("%v, want %s with a hint", err, kind)
	}
	if err != nil && leaks(err.Error()) {
		t.Errorf("it quotes the secret: %v", err)
	}
}

func TestSealed(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "secrets")
	kept := keep{}
	b := New(dir, kept.find)
	_, err := b.Get(ctx, "acme", "token")
	wantKind(t, err, sandbox.KindNotFound)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("looking made a key: %v", err)
	}
	for _, value := range []string{canary, "x", strings.Repeat("y", MaxSecret)} {
		sealed, err := b.Seal("acme", "token", NewSecret([]byte(value)))
		if err != nil || leaks(sealed) {
			t.Fatal(err)
		}
		kept["acme/token"] = Kept{Sealed: sealed}
		for _, b := range []*Broker{b, New(dir, kept.find)} { // as after a restart
			s, err := b.Get(ctx, "acme", "token")
			if got := plain(t, s, err); got != value {
				t.Errorf("%d bytes, want %d", len(got), len(value))
			}
		}
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "key": 0o600} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("more than a key is left: %v", files)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "key")); !bytes.HasPrefix(b, []byte(keyHead+"AGE-SECRET-KEY-1")) {
		t.Errorf("%.40s", b)
	}
}

// TestSealedIsBound: what was sealed opens as that tenant's secret of that name.
func TestSealedIsBound(t *testing.T) {
	kept := keep{}
	b := New(filepath.Join(t.TempDir(), "secrets"), kept.find)
	sealed, err := b.Seal("acme", "token", NewSecret([]byte(canary)))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"other/token", "acme/token2", "acme/toke", "acmet/oken"} {
		kept[at] = Kept{Sealed: sealed}
		tenant, name, _ := strings.Cut(at, "/")
		_, err := b.Get(t.Context(), sandbox.TenantID(tenant), name)
		wantKind(t, err, sandbox.KindUnavailable)
	}
}

// TestDamaged: one changed byte anywhere, or an end that is missing, is an error and
// never another secret.
func TestDamaged(t *testing.T) {
	kept := keep{}
	b := New(filepath.Join(t.TempDir(), "secrets"), kept.find)
	sealed, err := b.Seal("acme", "token", NewSecret([]byte(canary)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for _, bad := range []string{sealed[:i] + string([]byte{sealed[i] ^ 1}) + sealed[i+1:], sealed[:i]} {
			kept["acme/token"] = Kept{Sealed: bad}
			s, err := b.Get(t.Context(), "acme", "token")
			if err == nil {
				if got := plain(t, s, nil); got != canary { // armor has some slack at its end
					t.Fatalf("at %d: %q", i, got)
				}
				continue
			}
			wantKind(t, err, sandbox.KindUnavailable)
		}
	}
}

// TestKeys: without the key nothing opens and it says so; with the key of the server
// it was sealed on as a further line, it does; a bad file is refused and not quoted.
func TestKeys(t *testing.T) {
	old, dir := filepath.Join(t.TempDir(), "secrets"), filepath.Join(t.TempDir(), "secrets")
	kept := keep{}
	sealed, err := New(old, kept.find).Seal("acme", "old", NewSecret([]byte("old")))
	if err != nil {
		t.Fatal(err)
	}
	kept["acme/old"] = Kept{Sealed: sealed}
	b := New(dir, kept.find)
	_, err = b.Get(t.Context(), "acme", "old")
	wantKind(t, err, sandbox.KindUnavailable)
	if sealed, err = b.Seal("acme", "new", NewSecret([]byte("new"))); err != nil {
		t.Fatal(err)
	}
	kept["acme/new"] = Kept{Sealed: sealed}
	_, err = b.Get(t.Context(), "acme", "old")
	wantKind(t, err, sandbox.KindUnavailable)

	path := filepath.Join(dir, "key")
	one, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(filepath.Join(old, "key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(one, two...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"old", "new"} {
		s, err := b.Get(t.Context(), "acme", name)
		if got := plain(t, s, err); got != name {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, err := b.Seal("acme", "x", NewSecret([]byte("x"))); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{"empty": "", "comment": "# nothing\n", "cut": string(one[:len(one)-10]), "other": "AGE-SECRET-KEY-1" + canary + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := b.Seal("acme", "x", NewSecret([]byte("x")))
		wantKind(t, err, sandbox.KindInvalid)
		_, err = b.Get(t.Context(), "acme", "new")
		wantKind(t, err, sandbox.KindInvalid)
		if strings.Contains(fmt.Sprint(err), "SECRET-KEY-1c") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, one, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = b.Get(t.Context(), "acme", "new")
	wantKind(t, err, sandbox.KindDenied)
}

// TestOneKey: however many seal first, there is one key and it opens all.
func TestOneKey(t *testing.T) {
	kept := keep{}
	b := New(filepath.Join(t.TempDir(), "secrets"), kept.find)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range 16 {
		wg.Go(func() {
			name := fmt.Sprint("s", i)
			sealed, err := b.Seal("acme", name, NewSecret([]byte(name)))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			kept["acme/"+name] = Kept{Sealed: sealed}
		})
	}
	wg.Wait()
	for i := range 16 {
		name := fmt.Sprint("s", i)
		s, err := b.Get(t.Context(), "acme", name)
		if got := plain(t, s, err); got != name {
			t.Errorf("%q", got)
		}
	}
}

// TestKeyKilled kills the making of the key at each of its points: what was handed
// out before opens, and the next one makes what is missing and sweeps the rest.
func TestKeyKilled(t *testing.T) {
	run := func(dir, point string) (out, errs string, killed bool) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir, failpoint.Env+"="+point)
		var o, e bytes.Buffer
		cmd.Stdout, cmd.Stderr = &o, &e
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
			return o.String(), e.String(), true
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", point, err, &o, &e)
		}
		return o.String(), e.String(), false
	}
	_, hits, _ := run(filepath.Join(t.TempDir(), "secrets"), "count")
	var points []string
	for line := range strings.Lines(hits) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint: "); ok {
			points = append(points, p)
		}
	}
	if len(points) < 3 {
		t.Fatalf("points %q", points)
	}
	for _, p := range points {
		dir := filepath.Join(t.TempDir(), "secrets")
		if out, _, killed := run(dir, p); !killed || out != "" {
			t.Fatalf("%s: killed %v, %q", p, killed, out)
		}
		before, _ := os.ReadFile(filepath.Join(dir, "key")) // perhaps not yet
		sealed, _, killed := run(dir, "")
		if killed {
			t.Fatal(p)
		}
		after, err := os.ReadFile(filepath.Join(dir, "key"))
		if err != nil || len(before) > 0 && !bytes.Equal(before, after) {
			t.Errorf("%s: the key was replaced, %v", p, err)
		}
		if files, _ := os.ReadDir(dir); len(files) != 1 {
			t.Errorf("%s: %v", p, files)
		}
		s, err := New(dir, keep{"acme/token": {Sealed: sealed}}.find).Get(t.Context(), "acme", "token")
		if got := plain(t, s, err); got != canary {
			t.Errorf("%s: %q", p, got)
		}
	}
}

func TestReferences(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("FIREBREAK_TEST_SECRET", canary)
	kept := keep{"acme/env": {Reference: "env:FIREBREAK_TEST_SECRET"}, "acme/none": {Reference: "env:FIREBREAK_TEST_NOTHING"}, "acme/file": {Reference: "file:" + file},
		"acme/dir": {Reference: "file:" + dir}, "acme/bad": {Reference: "http://x"}}
	secrets := filepath.Join(dir, "secrets")
	b := New(secrets, kept.find)
	get := func(name string) (string, error) {
		s, err := b.Get(t.Context(), "acme", name)
		if err != nil {
			return "", err
		}
		return plain(t, s, nil), nil
	}
	if got, err := get("env"); err != nil || got != canary {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"one\n", "two\r\n", "three"} { // read anew each time, without the line's end
		write(text)
		if got, err := get("file"); err != nil || got != strings.TrimSpace(text) {
			t.Errorf("%q, %v", got, err)
		}
	}
	for _, text := range []string{"", "\n", canary + "\n" + canary, " " + canary, canary + "\x00", canary + "\x1b", strings.Repeat("x", MaxSecret+1)} {
		write(text)
		_, err := get("file")
		wantKind(t, err, sandbox.KindUnavailable)
	}
	write(strings.Repeat("x", MaxSecret) + "\r\n")
	if got, err := get("file"); err != nil || len(got) != MaxSecret {
		t.Errorf("%d, %v", len(got), err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "none", "dir"} {
		_, err := get(name)
		wantKind(t, err, sandbox.KindUnavailable)
	}
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := get("file") // and does not wait for a writer
	wantKind(t, err, sandbox.KindUnavailable)
	_, err = get("bad")
	wantKind(t, err, sandbox.KindInvalid)
	if _, err := os.Stat(secrets); !os.IsNotExist(err) {
		t.Errorf("a reference made a key: %v", err)
	}
}

func TestParseReference(t *testing.T) {
	for _, s := range []string{"env:A", "env:_a9", "file:/run/secrets/x", "file:/a b"} {
		if r, err := ParseReference(s); err != nil || r.String() != s {
			t.Errorf("%q: %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "env:", "env:9", "env:A=B", "env:A B", "file:", "file:/", "file:x", "file:/a/../b", "file:/a/", "file://a", "file:/a\nb", "file:/\xff",
		"file:/" + strings.Repeat("x", 4095), "http://x", "ENV:A", " env:A"} {
		_, err := ParseReference(s)
		wantKind(t, err, sandbox.KindInvalid)
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"env:A", "file:/x", "file:/a/../b", "file:\x00", "env:é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err == nil && (r.String() != s || (r.variable == "") == (r.file == "") || r.file != "" && filepath.Clean(r.file) != r.file) {
			t.Fatalf("%q became %+v", s, r)
		}
	})
}

// FuzzOpen: whatever is in the store, opening it is a secret that was sealed there or
// an error that quotes nothing.
func FuzzOpen(f *testing.F) {
	kept := keep{}
	b := New(filepath.Join(f.TempDir(), "secrets"), kept.find)
	sealed, err := b.Seal("acme", "token", NewSecret([]byte(canary)))
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{sealed, "", sealed[:60], strings.ToLower(sealed), "-----BEGIN AGE ENCRYPTED FILE-----\n-----END AGE ENCRYPTED FILE-----\n", "age-encryption.org/v1\n-> X25519 \n---"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		secret, err := New(b.dir, keep{"acme/token": {Sealed: s}}.find).Get(t.Context(), "acme", "token")
		if err != nil {
			wantKind(t, err, sandbox.KindUnavailable)
			return
		}
		if got := plain(t, secret, nil); got != canary {
			t.Fatalf("%q opens as %q", s, got)
		}
	})
}

// FuzzKeys: no text makes parsing keys panic, and what is accepted has keys.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{"", "#\n", "AGE-SECRET-KEY-1", keyHead + "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if list, ok := parseKeys(s); ok != (len(list) > 0) {
			t.Fatalf("%q: %d keys, %v", s, len(list), ok)
		}
	})
}

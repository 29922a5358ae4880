package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func open(t testing.TB, o Options) (*Authenticator, *store.Store) {
	t.Helper()
	s := openStore(t)
	a := New(s, o)
	t.Cleanup(func() { a.Close() })
	return a, s
}

func wantKind(t testing.TB, err error, k sandbox.Kind) {
	t.Helper()
	var e *sandbox.Error
	if k == "" && err == nil {
		return
	}
	if !errors.As(err, &e) || e.Kind != k {
		t.Fatalf("got %v (%T), want kind %q", err, err, k)
	}
}

var root = Principal{Tenant: "acme", ID: "root", Role: Owner}

func mustKey(t testing.TB, a *Authenticator, p Principal, req NewKeyRequest) (string, store.Key) {
	t.Helper()
	token, k, err := a.CreateKey(context.Background(), p, req)
	if err != nil {
		t.Fatal(err)
	}
	return token, k
}

func TestKeyFormat(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		token, id, hash := NewKey()
		gotID, secret, err := Parse(token)
		if err != nil || gotID != id || Hash(secret) != hash || len(token) != tokenLen || len(id) != 10 || len(secret) != 32 {
			t.Fatal(token, err)
		}
		if seen[id] || seen[secret] {
			t.Fatal("a random string came twice")
		}
		seen[id], seen[secret] = true, true
	}
	// The format is part of the API: secret scanners know it.
	if got := join("abcdefghij", "0123456789ABCDEFGHIJKLMNOPQRSTUV"); got != "fb_abcdefghij_0123456789ABCDEFGHIJKLMNOPQRSTUV_1h9Q0Y" {
		t.Fatal(got)
	}
}

// Any change of one character, and anything else, is rejected without a store.
func TestParseRejects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token, _, _ := NewKey()
		i := rapid.IntRange(0, len(token)-1).Draw(t, "at")
		c := rapid.Byte().Draw(t, "byte")
		if token[i] == c {
			return
		}
		bad := token[:i] + string([]byte{c}) + token[i+1:]
		if _, _, err := Parse(bad); sandbox.KindOf(err) != sandbox.KindUnauthenticated {
			t.Fatalf("%q: %v", bad, err)
		}
	})
	for _, s := range []string{"", "fb_", strings.Repeat("x", tokenLen), "fb_abc_def_123456", "e2b_" + strings.Repeat("0", 39), "e2b_" + strings.Repeat("g", 40)} {
		_, _, err := Parse(s)
		wantKind(t, err, sandbox.KindUnauthenticated)
	}
}

func FuzzParse(f *testing.F) {
	token, _, _ := NewKey()
	f.Add(token)
	f.Add(token[:20])
	f.Fuzz(func(t *testing.T, s string) {
		if id, secret, err := Parse(s); err == nil && join(id, secret) != s {
			t.Fatalf("%q is accepted and not canonical", s)
		}
	})
}

func TestRolesAndScopes(t *testing.T) {
	want := map[Role]string{
		Owner:     "sandbox:read sandbox:write exec files:read files:write template:read template:write template:boot policy:read policy:write secret:read secret:write secret:reference binding:read binding:write key:read key:write audit:read system:read",
		Admin:     "sandbox:read sandbox:write exec files:read files:write template:read template:write template:boot policy:read policy:write secret:read secret:write secret:reference binding:read binding:write key:read key:write audit:read system:read",
		Developer: "sandbox:read sandbox:write exec files:read files:write template:read template:write policy:read secret:read binding:read system:read",
		Viewer:    "sandbox:read files:read template:read policy:read secret:read binding:read system:read",
		"":        "",
		"root":    "",
	}
	for role, list := range want {
		var got []string
		for _, s := range Scopes() {
			if (Principal{Tenant: "acme", Role: role}).Can(s) {
				got = append(got, string(s))
			}
			if (Principal{Role: role}).Can(s) {
				t.Errorf("a %q of no tenant can %s", role, s)
			}
		}
		if s := strings.Join(got, " "); s != list {
			t.Errorf("%q can %s, want %s", role, s, list)
		}
	}
	for _, c := range []struct {
		role   Role
		scopes []Scope
		s      Scope
		want   bool
	}{
		{Owner, []Scope{Exec}, Exec, true},
		{Owner, []Scope{Exec}, SandboxRead, false},
		{Owner, []Scope{"files:*"}, FilesWrite, true},
		{Owner, []Scope{"files:*"}, SandboxWrite, false},
		{Viewer, []Scope{"files:*"}, FilesWrite, false},
		{Viewer, []Scope{FilesWrite}, FilesWrite, false},
		{Owner, []Scope{"*"}, Exec, false},
		{Owner, []Scope{":*"}, Exec, false},
		{Owner, []Scope{"e*"}, Exec, false},
		{Owner, []Scope{""}, Exec, false},
		{Owner, nil, "nonsense", false},
	} {
		if got := (Principal{Tenant: "acme", Role: c.role, Scopes: c.scopes}).Can(c.s); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestRequire(t *testing.T) {
	ctx := context.Background()
	_, err := Require(ctx, Exec)
	wantKind(t, err, sandbox.KindUnauthenticated)
	_, err = Require(WithPrincipal(ctx, Principal{}), Exec)
	wantKind(t, err, sandbox.KindDenied)
	_, err = Require(WithPrincipal(ctx, Principal{Tenant: "acme", Role: Viewer}), Exec)
	wantKind(t, err, sandbox.KindDenied)
	p, err := Require(WithPrincipal(ctx, root), Exec)
	if err != nil || p.ID != root.ID {
		t.Fatal(p, err)
	}
}

func TestBearer(t *testing.T) {
	ctx := context.Background()
	a, s := open(t, Options{})
	token, k := mustKey(t, a, root, NewKeyRequest{Name: "ci", Role: Developer, Scopes: []Scope{"files:*", Exec}})
	for range 3 { // from the store, then from the cache
		p, err := a.Bearer(ctx, token)
		if err != nil || p.Tenant != "acme" || p.ID != k.ID || p.Role != Developer || !p.Can(FilesWrite) || p.Can(SandboxRead) {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	if stored, err := s.Tenant("acme").Key(ctx, k.ID); err != nil || strings.Contains(fmt.Sprint(stored), token[14:46]) {
		t.Fatal("the store holds the secret", err)
	}
	other, _, _ := NewKey()
	_, otherSecret, _ := Parse(other)
	fresh := New(s, Options{})
	defer fresh.Close()
	var answers []string
	for name, bad := range map[string]string{
		"unknown":             other,
		"wrong secret":        join(k.ID, otherSecret),
		"wrong secret, fresh": join(k.ID, otherSecret),
	} {
		a := a
		if strings.HasSuffix(name, "fresh") {
			a = fresh
		}
		_, err := a.Bearer(ctx, bad)
		wantKind(t, err, sandbox.KindUnauthenticated)
		answers = append(answers, err.Error())
	}
	if answers[0] != answers[1] || answers[1] != answers[2] {
		t.Fatal("the answers tell which keys exist:", answers)
	}
	if _, err := a.Bearer(ctx, token); err != nil {
		t.Fatal("a wrong guess locked the key out:", err)
	}
	_, err := a.Bearer(ctx, "fb_")
	wantKind(t, err, sandbox.KindUnauthenticated)
	s.Close()
	_, err = fresh.Bearer(ctx, token)
	wantKind(t, err, sandbox.KindUnavailable)
}

// Revocation and expiry hold from that moment on, cached or not; another
// process's revocation after CacheFor at the latest.
func TestRevocationAndExpiry(t *testing.T) { synctest.Test(t, revocationAndExpiry) }

func revocationAndExpiry(t *testing.T) {
	ctx := context.Background()
	a, s := open(t, Options{CacheFor: time.Hour})
	token, k := mustKey(t, a, root, NewKeyRequest{Role: Viewer})
	if _, err := a.Bearer(ctx, token); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := a.RevokeKey(ctx, root, k.ID); err != nil {
			t.Fatal(err)
		}
		_, err := a.Bearer(ctx, token)
		wantKind(t, err, sandbox.KindUnauthenticated)
	}
	token, _ = mustKey(t, a, root, NewKeyRequest{Role: Viewer, Expires: time.Now().Add(time.Minute)})
	if _, err := a.Bearer(ctx, token); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
	_, err := a.Bearer(ctx, token)
	wantKind(t, err, sandbox.KindUnauthenticated)

	b := New(s, Options{CacheFor: 10 * time.Second})
	defer b.Close()
	token, k = mustKey(t, b, root, NewKeyRequest{Role: Viewer})
	if _, err := b.Bearer(ctx, token); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RevokeKey(ctx, root, k.ID); err != nil { // behind b's back
		t.Fatal(err)
	}
	time.Sleep(9 * time.Second)
	if _, err := b.Bearer(ctx, token); err != nil {
		t.Fatal("the cache believes for less than CacheFor:", err)
	}
	time.Sleep(time.Second)
	_, err = b.Bearer(ctx, token)
	wantKind(t, err, sandbox.KindUnauthenticated)
}

// However requests and the revocation interleave, none that begins after
// RevokeKey has returned is accepted.
func TestRevocationRace(t *testing.T) {
	ctx := context.Background()
	a, _ := open(t, Options{CacheFor: time.Nanosecond})
	for range 30 {
		token, k := mustKey(t, a, root, NewKeyRequest{Role: Viewer})
		var wg sync.WaitGroup
		revoked := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				for range 20 {
					gone := false
					select {
					case <-revoked:
						gone = true
					default:
					}
					if _, err := a.Bearer(ctx, token); err == nil && gone {
						t.Error("accepted after revocation")
					}
				}
			})
		}
		if _, err := a.RevokeKey(ctx, root, k.ID); err != nil {
			t.Fatal(err)
		}
		close(revoked)
		wg.Wait()
	}
}

func TestCacheIsBounded(t *testing.T) {
	a, _ := open(t, Options{})
	for i := range 3 * cacheEntries {
		a.keep(fmt.Sprint(i), &verified{until: time.Now().Add(time.Hour)}, 0)
	}
	if len(a.keys) > cacheEntries {
		t.Fatal(len(a.keys))
	}
}

// A key read before a revocation is not believed after it.
func TestStaleReadIsNotKept(t *testing.T) {
	a, _ := open(t, Options{})
	_, k := mustKey(t, a, root, NewKeyRequest{Role: Viewer})
	gen := a.gen
	if _, err := a.RevokeKey(context.Background(), root, k.ID); err != nil {
		t.Fatal(err)
	}
	a.keep(k.ID, &verified{until: time.Now().Add(time.Hour)}, gen)
	if a.keys[k.ID] != nil {
		t.Fatal("it was kept")
	}
}

func TestLastUsedIsWrittenLazily(t *testing.T) {
	ctx := context.Background()
	a, s := open(t, Options{TouchEvery: time.Hour})
	token, k := mustKey(t, a, root, NewKeyRequest{Role: Viewer})
	before := time.Now()
	if _, err := a.Bearer(ctx, token); err != nil {
		t.Fatal(err)
	}
	used := func() time.Time {
		k, err := s.Tenant("acme").Key(ctx, k.ID)
		if err != nil {
			t.Fatal(err)
		}
		return k.LastUsed
	}
	if !used().IsZero() {
		t.Fatal("written at once")
	}
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if u := used(); u.Before(before) || u.After(time.Now()) {
		t.Fatal(u)
	}
	b := New(s, Options{TouchEvery: 5 * time.Millisecond})
	defer b.Close()
	mark := time.Now()
	if _, err := b.Bearer(ctx, token); err != nil {
		t.Fatal(err)
	}
	for used().Before(mark) {
		time.Sleep(time.Millisecond)
	}
}

func TestKeysAreNoStrongerThanTheirMaker(t *testing.T) {
	ctx := context.Background()
	a, s := open(t, Options{})
	admin := Principal{Tenant: "acme", ID: "admin", Role: Admin}
	narrow := Principal{Tenant: "acme", ID: "narrow", Role: Owner, Scopes: []Scope{"key:*", Exec}}
	for name, c := range map[string]struct {
		by   Principal
		req  NewKeyRequest
		kind sandbox.Kind
	}{
		"owner makes owner":         {root, NewKeyRequest{Role: Owner}, ""},
		"admin makes admin":         {admin, NewKeyRequest{Role: Admin}, ""},
		"admin makes owner":         {admin, NewKeyRequest{Role: Owner}, sandbox.KindDenied},
		"admin makes narrow owner":  {admin, NewKeyRequest{Role: Owner, Scopes: []Scope{Exec}}, sandbox.KindDenied},
		"narrow makes its own kind": {narrow, NewKeyRequest{Role: Owner, Scopes: []Scope{KeyRead, Exec}}, ""},
		"narrow makes wide":         {narrow, NewKeyRequest{Role: Viewer}, sandbox.KindDenied},
		"developer makes any":       {Principal{Tenant: "acme", Role: Developer}, NewKeyRequest{Role: Viewer}, sandbox.KindDenied},
		"nobody makes any":          {Principal{}, NewKeyRequest{Role: Viewer}, sandbox.KindDenied},
		"unknown role":              {root, NewKeyRequest{Role: "root"}, sandbox.KindInvalid},
		"unknown scope":             {root, NewKeyRequest{Role: Owner, Scopes: []Scope{"everything"}}, sandbox.KindInvalid},
		"bare star":                 {root, NewKeyRequest{Role: Owner, Scopes: []Scope{"*"}}, sandbox.KindInvalid},
		"long name":                 {root, NewKeyRequest{Role: Owner, Name: strings.Repeat("x", 101)}, sandbox.KindInvalid},
		"expired":                   {root, NewKeyRequest{Role: Owner, Expires: time.Now().Add(-time.Second)}, sandbox.KindInvalid},
	} {
		t.Run(name, func(t *testing.T) { _, _, err := a.CreateKey(ctx, c.by, c.req); wantKind(t, err, c.kind) })
	}
	_, owners := mustKey(t, a, root, NewKeyRequest{Role: Owner})
	_, err := a.RevokeKey(ctx, admin, owners.ID)
	wantKind(t, err, sandbox.KindDenied)
	_, err = a.RevokeKey(ctx, Principal{Tenant: "other", ID: "x", Role: Owner}, owners.ID)
	wantKind(t, err, sandbox.KindNotFound)
	_, err = a.RevokeKey(ctx, Principal{Tenant: "acme", Role: Viewer}, owners.ID)
	wantKind(t, err, sandbox.KindDenied)
	if k, err := s.Tenant("acme").Key(ctx, owners.ID); err != nil || !k.Revoked.IsZero() {
		t.Fatal(k, err)
	}
}

func TestPeer(t *testing.T) {
	a, _ := open(t, Options{UID: 1000})
	for _, uid := range []int{0, 1000} {
		p, err := a.Peer(uid)
		if err != nil || p.Tenant != sandbox.DefaultTenant || p.Role != Owner || p.ID != fmt.Sprint("uid:", uid) {
			t.Fatal(p, err)
		}
	}
	for _, uid := range []int{1001, -1, 65534} {
		_, err := a.Peer(uid)
		wantKind(t, err, sandbox.KindDenied)
		if e := (*sandbox.Error)(nil); !errors.As(err, &e) || e.Hint == "" {
			t.Fatal("no hint")
		}
	}
}

// The toucher's clock: nothing before TouchEvery, everything just after.
func TestTouchInterval(t *testing.T) {
	s := openStore(t)
	synctest.Test(t, func(t *testing.T) {
		a := &Authenticator{st: s, o: Options{TouchEvery: time.Minute}, stop: make(chan struct{}), done: make(chan struct{}),
			keys: map[string]*verified{"gone": {until: time.Now().Add(30 * time.Second)}}}
		go a.touch()
		have := func() int { a.mu.Lock(); defer a.mu.Unlock(); return len(a.keys) }
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if have() != 1 {
			t.Fatal("too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if have() != 0 {
			t.Fatal("an entry nobody may use is kept")
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkBearer(b *testing.B) {
	a, _ := open(b, Options{CacheFor: time.Hour})
	token, _ := mustKey(b, a, root, NewKeyRequest{Role: Owner})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Bearer(context.Background(), token); err != nil {
			b.Fatal(err)
		}
	}
}

package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// golden unpacks a database that an earlier program wrote: testdata has one of
// every released schema.
func golden(t testing.TB, version int) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("testdata/%04d.db.gz", version))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestGoldenDatabases: what any released version wrote reads back.
func TestGoldenDatabases(t *testing.T) {
	for v := 1; v <= len(migrations); v++ {
		s := open(t, golden(t, v))
		checkRows(t, s)
		checkPolicies(t, s, v)
		checkSecrets(t, s, v)
		checkSnapshots(t, s, v)
		copies, _ := filepath.Glob(filepath.Join(filepath.Dir(s.path), "*.before-v*"))
		if migrated := v < len(migrations); migrated != (len(copies) == 1) {
			t.Errorf("schema %d: copies %v", v, copies)
		}
	}
}

// checkRows checks the rows of testdata/rows….sql, which every golden database
// holds.
func checkRows(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	sb, err := s.Tenant("acme").Sandbox(ctx, "sbaaaaaaaaaaaaaaaaaa")
	if err != nil || sb.Name != "web" || sb.State != Ended || sb.Limits.Memory != 67108864 || sb.Metadata["team"] != "red" ||
		sb.Receipt == nil || !sb.Receipt.Objects[0].Gone || sb.Enforced != sandbox.AllLimits || sb.MaxLife != time.Hour {
		t.Fatalf("%+v, %v", sb, err)
	}
	if list, _, err := s.Tenant("acme").ListSandboxes(ctx, Filter{Metadata: map[string]string{"team": "red"}}, Page{}); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if r, err := s.Tenant("acme").Run(ctx, "rnaaaaaaaaaaaaaaaaaa"); err != nil || r.ExitCode != 3 {
		t.Fatal(r, err)
	}
	if k, err := s.System().Key(ctx, "k1"); err != nil || k.Hash[31] != 0x0f {
		t.Fatal(k, err)
	}
	res, err := s.Tenant("acme").Reserve(ctx, Request{Key: "key", Hash: [32]byte{}})
	if sandbox.KindOf(err) != sandbox.KindConflict { // it is known, for another request
		t.Fatal(res, err)
	}
}

// checkPolicies checks what schema 2 brought: a database of an earlier one has no
// policies, and takes them.
func checkPolicies(t testing.TB, s *Store, wrote int) {
	t.Helper()
	acme := s.Tenant("acme")
	list, err := acme.ListPolicies(t.Context())
	if err != nil || len(list) != min(wrote-1, 1) {
		t.Fatalf("schema %d: %+v, %v", wrote, list, err)
	}
	p, err := acme.SetPolicy(t.Context(), Policy{Name: "build", Text: "allow: []"}, AnyDigest)
	if want := int64(1); wrote >= 2 {
		want = 4
		if err != nil || p.Version != want || !p.Created.Equal(list[0].Created) || list[0].Principal != "k1" {
			t.Fatalf("schema %d: %+v, %v", wrote, p, err)
		}
	} else if err != nil || p.Version != want {
		t.Fatalf("schema %d: %+v, %v", wrote, p, err)
	}
}

// checkSecrets checks what schema 3 brought: a database of an earlier one has neither
// secrets nor bindings, and takes them.
func checkSecrets(t testing.TB, s *Store, wrote int) {
	t.Helper()
	ctx, acme := context.Background(), s.Tenant("acme")
	secrets, err := acme.ListSecrets(ctx)
	bindings, e := acme.ListBindings(ctx)
	if wrote < 3 {
		if err != nil || e != nil || len(secrets)+len(bindings) != 0 {
			t.Fatalf("schema %d: %+v, %+v, %v, %v", wrote, secrets, bindings, err, e)
		}
		if _, err := acme.SetSecret(ctx, Secret{Name: "s", Sealed: "x"}); err != nil {
			t.Error(err)
		}
		return
	}
	if err != nil || e != nil || len(secrets) != 2 || len(bindings) != 1 || secrets[0].Version != 2 || secrets[1].Reference != "file:/run/secrets/vault" {
		t.Fatalf("schema %d: %+v, %+v, %v, %v", wrote, secrets, bindings, err, e)
	}
	if got, err := acme.Secret(ctx, "openai"); err != nil || got.Sealed != "sealed" || got.Principal != "k1" {
		t.Errorf("%+v, %v", got, err)
	}
	if b := bindings[0]; b.Name != "api" || b.Secret != "openai" || b.Version != 3 || !strings.Contains(string(b.Body), `"host":"api.example.com"`) {
		t.Errorf("%+v", b)
	}
	if n, err := s.System().SealedSecrets(ctx); err != nil || n != 1 {
		t.Error(n, err)
	}
}

// checkSnapshots checks what schema 4 brought.
func checkSnapshots(t testing.TB, s *Store, wrote int) {
	t.Helper()
	ctx, acme := context.Background(), s.Tenant("acme")
	list, err := acme.ListSnapshots(ctx)
	if err != nil || len(list) != max(0, min(wrote-3, 1)) {
		t.Fatalf("schema %d: %+v, %v", wrote, list, err)
	}
	if wrote < 4 {
		if _, err := acme.AddSnapshot(ctx, SavedSandbox{ID: sandbox.NewSnapshotID(), Name: "warm", Body: []byte("{}")}, false); err != nil {
			t.Error(err)
		}
		return
	}
	got, err := acme.Snapshot(ctx, "warm")
	if err != nil || got.ID != "snaaaaaaaaaaaaaaaaaa" || got.Size != 13631488 || string(got.Body) != `{"digest":"sha256:00"}` || !got.Expires.Equal(list[0].Expires) {
		t.Errorf("%+v, %v", got, err)
	}
}

// future is two steps that no program has yet.
var future = append(migrations[:len(migrations):len(migrations)],
	`CREATE TABLE future (id TEXT PRIMARY KEY); INSERT INTO future SELECT id FROM sandboxes;`,
	`ALTER TABLE future ADD COLUMN more TEXT; UPDATE future SET more = 'x'; CREATE INDEX future_more ON future (more);`)

const (
	migrateEnv = "FIREBREAK_STORE_TEST_MIGRATE"
	newerEnv   = "FIREBREAK_STORE_TEST_NEWER"
)

// migrateChild opens a database with a program of the future, or dies on it.
func migrateChild() int {
	migrations = future
	s, err := Open(context.Background(), os.Getenv(migrateEnv), slog.New(slog.DiscardHandler))
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// migrateIn runs migrateChild and returns its stderr and whether it was killed.
func migrateIn(t testing.TB, path, point string) (string, bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), migrateEnv+"="+path, failpoint.Env+"="+point)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return errs.String(), true
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", point, err, &errs)
	}
	return errs.String(), false
}

// TestMigrationKilled kills a migration at each of its points, again and again:
// in the end it is done once, nothing is lost, and the copy from before is what
// was there.
func TestMigrationKilled(t *testing.T) {
	var points []string
	have := len(migrations)
	out, _ := migrateIn(t, golden(t, have), "count")
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint: migrate/"); ok {
			points = append(points, "migrate/"+name)
		}
	}
	if len(points) != 3+2*4 {
		t.Fatalf("points %q", points)
	}
	for i, p := range points {
		path := golden(t, have)
		for _, point := range []string{p, points[(i+3)%len(points)], ""} { // the second may not be reached again
			if _, killed := migrateIn(t, path, point); !killed && point == p {
				t.Fatalf("%s was not hit", p)
			}
			if v, err := version(context.Background(), path); err != nil || v < have || v > have+2 {
				t.Fatalf("%s: schema %d, %v", p, v, err)
			}
		}
		db, err := sql.Open("sqlite", readOnly(path))
		if err != nil {
			t.Fatal(err)
		}
		var v, n int
		var more string
		if err := db.QueryRow(`SELECT MAX(version), COUNT(*) FROM schema_migrations`).Scan(&v, &n); err != nil || v != have+2 || n != have+2 {
			t.Errorf("%s: schema %d in %d steps, %v", p, v, n, err)
		}
		if err := db.QueryRow(`SELECT COUNT(*), MAX(more) FROM future`).Scan(&n, &more); err != nil || n != 1 || more != "x" {
			t.Errorf("%s: %d rows, %q, %v", p, n, more, err)
		}
		db.Close()
		before := fmt.Sprintf("%s.before-v%d", path, have+1)
		if _, err := os.Stat(before + ".tmp"); err == nil {
			t.Errorf("%s: half a copy is left", p)
		}
		checkRows(t, open(t, before))
	}
}

// TestNewerIsLeftAlone: not a byte of a newer program's database changes, not
// even those it had not folded in when it was killed.
func TestNewerIsLeftAlone(t *testing.T) {
	path := golden(t, 1)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), newerEnv+"="+path)
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("it was to die: %s", out)
	}
	read := func() (db, wal []byte) {
		db, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if wal, err = os.ReadFile(path + "-wal"); err != nil || len(wal) == 0 {
			t.Fatalf("nothing is left to fold in: %v", err)
		}
		return db, wal
	}
	db, wal := read()
	for range 2 {
		_, err := Open(context.Background(), path, slog.New(slog.DiscardHandler))
		wantKind(t, err, sandbox.KindUnsupported)
		_, err = Snapshot(context.Background(), path, filepath.Join(t.TempDir(), "copy"))
		wantKind(t, err, sandbox.KindUnsupported)
	}
	if db2, wal2 := read(); !bytes.Equal(db, db2) || !bytes.Equal(wal, wal2) {
		t.Error("it was changed")
	}
}

// newerChild is a program of the future that dies with its log not folded in.
func newerChild() int {
	migrations = future
	s, err := Open(context.Background(), os.Getenv(newerEnv), slog.New(slog.DiscardHandler))
	if err == nil {
		_, err = s.Tenant("acme").CreateSandbox(context.Background(), Sandbox{ID: sandbox.NewID()}, Quota{})
	}
	if err != nil {
		fmt.Println(err)
		return 0
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// TestWriteGolden makes testdata/….db.gz of the newest schema, for whoever adds
// one: FIREBREAK_WRITE_GOLDEN=1 go test ./internal/store -run WriteGolden.
func TestWriteGolden(t *testing.T) {
	if os.Getenv("FIREBREAK_WRITE_GOLDEN") == "" {
		return
	}
	v := len(migrations)
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	rows, err := os.ReadFile(fmt.Sprintf("testdata/rows%04d.sql", v))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.writer.conn.ExecContext(context.Background(), string(rows)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	z.Write(b)
	z.Close()
	if err := os.WriteFile(fmt.Sprintf("testdata/%04d.db.gz", v), out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const childEnv = "FIREBREAK_STORE_TEST_CHILD"

// child creates sandboxes as fast as it can and prints the id of each that was
// acknowledged, until it is killed.
func child() int {
	s, err := Open(context.Background(), os.Getenv(childEnv), slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	var mu sync.Mutex
	for range 8 {
		go func() {
			for {
				sb, err := s.Tenant("acme").CreateSandbox(context.Background(), Sandbox{ID: sandbox.NewID()}, Quota{})
				if err == nil {
					sb, err = s.Tenant("acme").EditSandbox(context.Background(), sb.ID,
						func(sb *Sandbox) error { sb.State = Running; return nil })
				}
				mu.Lock()
				fmt.Println(sb.ID, err)
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestKill9LosesNothingAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	total := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// From the first acknowledgement on, so that a slow machine tests too.
		kill := time.NewTimer(time.Hour)
		var killer sync.WaitGroup
		killer.Go(func() { <-kill.C; cmd.Process.Kill() })
		after := time.Duration(70+70*round) * time.Millisecond
		var acked []string
		for sc := bufio.NewScanner(out); sc.Scan(); {
			if len(acked) == 0 {
				kill.Reset(after)
			}
			id, rest, ok := strings.Cut(sc.Text(), " ")
			if !ok || rest != "<nil>" {
				if ok && rest != "" && !strings.HasPrefix("<nil>", rest) {
					t.Error(sc.Text())
				}
				continue // the line the kill cut short
			}
			acked = append(acked, id)
		}
		kill.Reset(0) // in case its output ended some other way
		killer.Wait()
		cmd.Wait() // killed: always an error
		s := open(t, path)
		for _, id := range acked {
			sb, err := s.Tenant("acme").Sandbox(context.Background(), sandbox.ID(id))
			if err != nil || sb.State != Running {
				t.Fatalf("acknowledged %s: %v %v", id, sb.State, err)
			}
		}
		var ok string
		if err := s.row(context.Background(), []any{&ok}, `PRAGMA integrity_check`); err != nil || ok != "ok" {
			t.Fatal(ok, err)
		}
		total += len(acked)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if total == 0 {
		t.Fatal("no write was acknowledged: nothing was tested")
	}
	t.Logf("%d acknowledged writes, all there", total)
}

// What must be flushed is written with synchronous=FULL or noted, what need not is
// neither: asked of SQLite, on the very connection, and of the redo file.
func TestSynchronousMode(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	mode := func() (n int) {
		t.Helper()
		if err := s.writer.conn.QueryRowContext(ctx, `PRAGMA synchronous`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	edit := func(id sandbox.ID, f func(*Sandbox)) error {
		_, err := tn.EditSandbox(ctx, id, func(sb *Sandbox) error { f(sb); return nil })
		return err
	}
	a := mustCreate(t, tn, Sandbox{})
	if _, err := tn.CreateKey(ctx, Key{ID: "k", Hash: [32]byte{1}, Role: "owner"}); err != nil {
		t.Fatal(err)
	}
	const normal, full, noted = 1, 2, 3
	at := s.writer.redo.off
	for i, st := range []struct {
		want int
		do   func() error
	}{
		{normal, func() error { return tn.TouchKey(ctx, "k", now()) }},
		{full, func() error { return edit(a.ID, func(sb *Sandbox) { sb.State = Running }) }}, // with the key's row
		{normal, func() error { return edit(a.ID, func(sb *Sandbox) { sb.ExpiresAt = now() }) }},
		{noted, func() error { return edit(a.ID, func(sb *Sandbox) { sb.Instance = sandbox.NewInstanceID() }) }},
		{normal, func() error { _, err := tn.Reserve(ctx, Request{Key: "k"}); return err }},
		{full, func() error { return edit(a.ID, func(sb *Sandbox) { sb.State = Ended }) }}, // with the reservation
		{normal, func() error { return edit(a.ID, func(sb *Sandbox) { sb.Detail = "x" }) }},
		{noted, func() error { return edit(a.ID, func(sb *Sandbox) { sb.Receipt = &sandbox.Receipt{} }) }},
		{normal, func() error { return edit(a.ID, func(sb *Sandbox) { sb.Detail = "y" }) }},
		{full, func() error { _, err := tn.RevokeKey(ctx, "k"); return err }},
		{normal, func() error { return edit(a.ID, func(sb *Sandbox) { sb.Detail = "z" }) }},
		{full, func() error { _, err := tn.CreateRun(ctx, Run{ID: sandbox.NewRunID()}); return err }},
	} {
		if err := st.do(); err != nil {
			t.Fatal(i, err)
		}
		got := mode()
		if s.writer.redo.off > at {
			got = noted
		}
		if at = s.writer.redo.off; got != st.want {
			t.Errorf("step %d: synchronous is %d, want %d", i, got, st.want)
		}
	}
}

// One write's failure in a shared transaction is nobody else's.
func TestBatchIsolation(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	taken := mustCreate(t, tn, Sandbox{})
	started, gate := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // holds the writer until all others are queued
		s.writer.do(ctx, false, func(*txn) error { close(started); <-gate; return nil })
	})
	<-started
	canceled, cancel := context.WithCancel(ctx)
	ids := make([]sandbox.ID, 30)
	errs := make([]error, len(ids))
	for i := range ids {
		ids[i] = sandbox.NewID()
		c := ctx
		switch i % 3 {
		case 1:
			ids[i] = taken.ID
		case 2:
			c = canceled
		}
		wg.Go(func() { _, errs[i] = tn.CreateSandbox(c, Sandbox{ID: ids[i]}, Quota{}) })
	}
	for len(s.writer.jobs) < len(ids) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	close(gate)
	wg.Wait()
	for i, err := range errs {
		wantKind(t, err, []sandbox.Kind{"", sandbox.KindExists, sandbox.KindCanceled}[i%3])
		if _, err := tn.Sandbox(ctx, ids[i]); i%3 == 0 {
			wantKind(t, err, "")
		} else if i%3 == 2 {
			wantKind(t, err, sandbox.KindNotFound)
		}
	}
}

// A full disk refuses what needs room, changes nothing, and is over when there
// is room again.
func TestDiskFull(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	a := mustCreate(t, tn, Sandbox{})
	limit := func(q string) {
		t.Helper()
		if _, err := s.writer.conn.ExecContext(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	limit(`PRAGMA max_page_count = 1`) // SQLite keeps the present size
	var err error
	made := 0
	for ; err == nil && made < 1000; made++ {
		_, err = tn.CreateSandbox(ctx, Sandbox{ID: sandbox.NewID(), Detail: strings.Repeat("x", 4000)}, Quota{})
	}
	wantKind(t, err, sandbox.KindNoSpace)
	if n, err := tn.CountSandboxes(ctx); err != nil || n != made {
		t.Fatal(n, made, err) // the first, and all but the last
	}
	if _, err := tn.Sandbox(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	limit(`PRAGMA max_page_count = 1000000`)
	mustCreate(t, tn, Sandbox{Detail: strings.Repeat("x", 4000)})
}

func TestLockedByAnotherProcess(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	other, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.SetMaxOpenConns(1)
	if _, err := other.Exec(`BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	_, err = s.Tenant("acme").CreateSandbox(ctx, Sandbox{ID: sandbox.NewID()}, Quota{})
	wantKind(t, err, sandbox.KindUnavailable)
	if _, err := other.Exec(`ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, s.Tenant("acme"), Sandbox{})
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	o, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Lock(dir)
	wantKind(t, err, sandbox.KindUnavailable)
	var l *LockedError
	if !errors.As(err, &l) || l.PID != os.Getpid() || l.Dir != dir {
		t.Fatalf("%#v", l)
	}
	for range 2 {
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	o, err = Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	o.Close()
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Fatal(fi, err)
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "state.db"))
	mustCreate(t, s.Tenant("acme"), Sandbox{})
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Mode().Perm() != 0o600 {
			t.Error(f, fi.Mode(), err)
		}
	}
}

// released holds the digests of migrations that have left the house. Add a
// line for a new one; never change a line.
var released = []string{
	"4c523dc9510c8355fd2154329a11db01e44548bbefe4edddd98bebe515ca90c2",
	"a1f07355fa79601946d3608057d0fc76847284e3c3aa3156ac2ef8266f6f6736",
	"c9985fd50731fa6bb82ae01d4aa7558f043f7548876a42b7e57660043727672a",
	"e0413deb8d6b53db7956d2ff60b6bbbc5a49a9faa7fcfd12ec91124c4d17fff6",
}

func TestMigrations(t *testing.T) {
	ctx := context.Background()
	if len(released) != len(migrations) {
		t.Fatalf("%d migrations, %d digests", len(migrations), len(released))
	}
	for i, m := range migrations {
		sum := sha256.Sum256([]byte(m))
		if got := hex.EncodeToString(sum[:]); got != released[i] {
			t.Errorf("migration %d was edited: digest %s", i+1, got)
		}
	}
	// Every released version with rows in it opens and keeps them.
	for v := 1; v <= len(migrations); v++ {
		path := filepath.Join(t.TempDir(), "state.db")
		db, err := sql.Open("sqlite", "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := db.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := migrate(ctx, conn, path, migrations[:v]); err != nil {
			t.Fatal(err)
		}
		rows, err := os.ReadFile(fmt.Sprintf("testdata/rows%04d.sql", v))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.ExecContext(ctx, string(rows)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		db.Close()
		s := open(t, path)
		checkRows(t, s)
	}
}

// A failed step leaves the version before it, whole.
func TestMigrationIsTransactional(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	bad := append(migrations[:len(migrations):len(migrations)], `CREATE TABLE extra (a TEXT); SELECT nonsense FROM nowhere;`)
	if err := migrate(ctx, conn, path, bad); err == nil {
		t.Fatal("no error")
	}
	var n int
	if err := conn.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_master WHERE name = 'extra'`).Scan(&n); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	if err := migrate(ctx, conn, path, append(migrations[:len(migrations):len(migrations)], `CREATE TABLE extra (a TEXT)`)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	// What a newer program wrote is left alone.
	_, err = Open(ctx, path, slog.New(slog.DiscardHandler))
	wantKind(t, err, sandbox.KindUnsupported)
}

// TestKilledWhileMade: a process that was killed while it made the database left
// a rollback journal, which only a writer can deal with. The next one does.
func TestKilledWhileMade(t *testing.T) {
	dir := t.TempDir()
	made, left := filepath.Join(dir, "made.db"), filepath.Join(dir, "state.db")
	db, err := sql.Open("sqlite", "file:"+made+"?_pragma=cache_size(1)&_pragma=auto_vacuum(incremental)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, q := range []string{`CREATE TABLE t (x)`, `INSERT INTO t VALUES (zeroblob(100000))`, `BEGIN`, `UPDATE t SET x = randomblob(100000)`} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(q, err)
		}
	}
	for _, suffix := range []string{"", "-journal"} { // as they are now, in the middle
		b, err := os.ReadFile(made + suffix)
		if err != nil || len(b) == 0 {
			t.Fatal(suffix, err)
		}
		if err := os.WriteFile(left+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec(`ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := Open(t.Context(), left, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// failed is a directory as a machine leaves it that fails now: the database as it was
// when before was made, which is what SQLite has surely flushed, and the redo file as
// it is.
func failed(t *testing.T, before []byte, s *Store) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	noted, err := os.ReadFile(s.path + redoSuffix)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{path: before, path + redoSuffix: noted} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// flushed returns the database after everything in it was flushed and folded in.
func flushed(t *testing.T, s *Store) []byte {
	t.Helper()
	if err := s.writer.do(context.Background(), true, func(x *txn) error {
		_, err := x.exec(`UPDATE schema_migrations SET applied = applied + 1 WHERE version = 1`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var busy, all, done int
	if err := s.writer.conn.QueryRowContext(context.Background(), `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &all, &done); err != nil || busy != 0 {
		t.Fatal(busy, err)
	}
	b, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What was acknowledged is there after the machine has failed, though SQLite was not
// waited for: as it was last written, searchable, and once.
func TestRedo(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	old := mustCreate(t, tn, Sandbox{Name: "old"})
	before := flushed(t, s)
	a := mustCreate(t, tn, Sandbox{Name: "web", Metadata: map[string]string{"team": "red"}, Instance: sandbox.NewInstanceID()})
	if _, err := tn.EditSandbox(ctx, a.ID, func(sb *Sandbox) error { sb.Detail = "not flushed"; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := tn.EditSandbox(ctx, a.ID, func(sb *Sandbox) error { sb.State = Running; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := tn.EditSandbox(ctx, old.ID, func(sb *Sandbox) error { sb.State, sb.Reason = Ended, sandbox.ReasonDone; return nil }); err != nil {
		t.Fatal(err)
	}
	b := mustCreate(t, s.Tenant("other"), Sandbox{Name: "web", Detail: "<&>"})
	if _, err := tn.CreateSandbox(ctx, Sandbox{ID: sandbox.NewID(), Name: "web"}, Quota{}); err == nil {
		t.Fatal("a name was given twice")
	}
	if s.writer.full {
		t.Fatal("SQLite flushed: this test shows nothing")
	}
	next := open(t, failed(t, before, s))
	for _, want := range []struct {
		tenant sandbox.TenantID
		id     sandbox.ID
	}{{"acme", a.ID}, {"acme", old.ID}, {"other", b.ID}} {
		has, err := s.Tenant(want.tenant).Sandbox(ctx, want.id)
		if err != nil {
			t.Fatal(err)
		}
		got, err := next.Tenant(want.tenant).Sandbox(ctx, want.id)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(has) {
			t.Errorf("%s: %+v, %v\nwant %+v", want.id, got, err, has)
		}
	}
	if list, _, err := next.Tenant("acme").ListSandboxes(ctx, Filter{Metadata: map[string]string{"team": "red"}}, Page{}); err != nil || len(list) != 1 || list[0].ID != a.ID {
		t.Error(list, err)
	}
	if n, err := next.Tenant("acme").CountSandboxes(ctx); err != nil || n != 2 {
		t.Error(n, err)
	}
	mustCreate(t, next.Tenant("acme"), Sandbox{Name: "old"}) // its name is free
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if again := open(t, next.path); again.writer.redo.off != 0 {
		t.Error("it is written again after a stop")
	}
}

// A flush of SQLite's begins the file anew, in which what is older means nothing.
func TestRedoEpochs(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	for range 5 {
		mustCreate(t, tn, Sandbox{})
	}
	if _, err := tn.CreateKey(ctx, Key{ID: "k", Hash: [32]byte{1}, Role: "owner"}); err != nil {
		t.Fatal(err)
	}
	before := flushed(t, s)
	last := mustCreate(t, tn, Sandbox{})
	noted, err := os.ReadFile(s.path + redoSuffix)
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := parseRedo(noted); err != nil || len(rows) != 1 || !strings.Contains(string(rows[0].Body), string(last.ID)) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	next := open(t, failed(t, before, s))
	if n, err := next.Tenant("acme").CountSandboxes(ctx); err != nil || n != 6 {
		t.Error(n, err)
	}
}

// What need not be durable is so with the next write that is: a row by being noted with
// it, and where there is something that cannot be, SQLite flushes.
func TestRedoLater(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	a := mustCreate(t, tn, Sandbox{})
	before := flushed(t, s)
	if _, err := tn.EditSandbox(ctx, a.ID, func(sb *Sandbox) error { sb.Detail = "later"; return nil }); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, tn, Sandbox{})
	next := open(t, failed(t, before, s))
	if sb, err := next.Tenant("acme").Sandbox(ctx, a.ID); err != nil || sb.Detail != "later" {
		t.Errorf("%+v, %v", sb, err)
	}
	res, err := tn.Reserve(ctx, Request{Key: "k", Result: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Release(ctx)
	mustCreate(t, tn, Sandbox{})
	if !s.writer.full {
		t.Error("a key that was reserved before could be lost with a sandbox that is not")
	}
	for k := range maxLater + 1 {
		if _, err := tn.EditSandbox(ctx, a.ID, func(sb *Sandbox) error { sb.Detail = fmt.Sprint(k); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	mustCreate(t, tn, Sandbox{})
	if !s.writer.full || len(s.writer.later) != 0 {
		t.Errorf("%d rows wait", len(s.writer.later))
	}
}

// What was removed stays removed.
func TestRedoRemoved(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	a := mustCreate(t, tn, Sandbox{})
	if _, err := tn.EditSandbox(ctx, a.ID, func(sb *Sandbox) error { sb.State = Ended; return nil }); err != nil {
		t.Fatal(err)
	}
	if n, _, err := s.System().Purge(ctx, time.Now().Add(time.Hour)); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	next := open(t, failed(t, flushed(t, s), s))
	_, err := next.Tenant("acme").Sandbox(ctx, a.ID)
	wantKind(t, err, sandbox.KindNotFound)
}

// A file that is full makes SQLite flush, and rows of any size are noted.
func TestRedoFull(t *testing.T) {
	s := openTemp(t)
	tn := s.Tenant("acme")
	large := Sandbox{Detail: strings.Repeat("x", 300<<10)}
	flushes := 0
	for range 8 {
		before := s.writer.redo.epoch
		mustCreate(t, tn, large)
		if s.writer.redo.epoch != before {
			flushes++
		}
	}
	if flushes != 2 {
		t.Errorf("%d flushes", flushes)
	}
}

// Of a file that is cut short or damaged, what is before that is taken; nothing else
// is.
func TestRedoTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	r, _, err := openRedo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var want []redoRow
	for k := range 3 {
		row := redoRow{"acme", int64(k), json.RawMessage(fmt.Sprintf(`{"id":"%d"}`, k))}
		want = append(want, row)
		if err := r.note([]redoRow{row}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path + redoSuffix)
	if err != nil {
		t.Fatal(err)
	}
	size := int(r.off)
	check := func(what string, b []byte) {
		t.Helper()
		rows, err := parseRedo(b)
		if err != nil || len(rows) > len(want) {
			t.Fatalf("%s: %v, %v", what, rows, err)
		}
		for k, row := range rows {
			if row.Version != want[k].Version || !bytes.Equal(row.Body, want[k].Body) {
				t.Fatalf("%s: row %d is %+v", what, k, row)
			}
		}
	}
	for k := range size {
		check(fmt.Sprintf("cut at %d", k), b[:k])
		damaged := bytes.Clone(b)
		damaged[k] ^= 0x20
		check(fmt.Sprintf("damaged at %d", k), damaged)
		halves := append(bytes.Clone(b[:k]), make([]byte, len(b)-k)...)
		check(fmt.Sprintf("written to %d", k), halves)
	}
	if rows, err := parseRedo(b); err != nil || len(rows) != 3 {
		t.Error(rows, err)
	}
	r.begin()
	if err := r.note(want[:1]); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(path + redoSuffix); err != nil {
		t.Fatal(err)
	}
	if rows, err := parseRedo(b); err != nil || len(rows) != 1 {
		t.Errorf("of a new epoch: %v, %v", rows, err)
	}
}

// What was noted and could not be committed is not there after the machine has failed,
// and what is written next is.
func TestRedoRevoked(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	before := flushed(t, s)
	first := mustCreate(t, tn, Sandbox{})
	lost := Sandbox{ID: sandbox.NewID(), Tenant: "acme", State: Running, Version: 1}
	err := s.writer.note(ctx, true, func(x *txn) error {
		if err := x.insertSandbox(&lost); err != nil {
			return err
		}
		_, err := x.exec("ROLLBACK") // so that there is nothing to commit
		return err
	})
	if err == nil {
		t.Fatal("what was rolled back was committed")
	}
	check := func(want ...Sandbox) {
		t.Helper()
		next := open(t, failed(t, before, s))
		defer next.Close()
		if n, err := next.Tenant("acme").CountSandboxes(ctx); err != nil || n != len(want) {
			t.Error(n, err)
		}
		for _, sb := range want {
			if _, err := next.Tenant("acme").Sandbox(ctx, sb.ID); err != nil {
				t.Error(err)
			}
		}
	}
	check(first)
	check(first, mustCreate(t, tn, Sandbox{}))
}

// What is to be done beside a record is done when that is certain, once, before whoever
// waits for it goes on; and not for one that cannot be there.
func TestCreateBeside(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	for _, prepare := range []func(){func() {}, func() { s.writer.loose = true }} { // with a redo file, and by SQLite
		if err := s.writer.do(ctx, false, func(*txn) error { prepare(); return nil }); err != nil {
			t.Fatal(err)
		}
		var done atomic.Int32
		sb := Sandbox{ID: sandbox.NewID()}
		beside := func() { done.Add(1) }
		if _, err := s.Tenant("acme").CreateBeside(ctx, sb, Quota{}, beside); err != nil || done.Load() != 1 {
			t.Fatal(done.Load(), err)
		}
		if _, err := s.Tenant("acme").CreateBeside(ctx, sb, Quota{}, beside); sandbox.KindOf(err) != sandbox.KindExists || done.Load() != 1 {
			t.Fatal(done.Load(), err)
		}
		var all sync.WaitGroup
		for range 20 { // several share a batch
			all.Go(func() {
				if _, err := s.Tenant("acme").CreateBeside(ctx, Sandbox{ID: sandbox.NewID()}, Quota{}, func() { done.Add(1) }); err != nil {
					t.Error(err)
				}
			})
		}
		if all.Wait(); done.Load() != 21 {
			t.Errorf("done %d times", done.Load())
		}
	}
}

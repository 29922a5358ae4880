package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// dead fills a store with records of sandboxes and runs that have ended.
func dead(t testing.TB, s *Store, n int, at time.Time) {
	t.Helper()
	for _, q := range []string{
		`INSERT INTO sandboxes (tenant, id, version, state, name, instance, reason, created, expires, ended, body)
		 SELECT 'acme', printf('sbz%%017d', x), 3, 'ended', '', '', 'done', %d - x, 0, %d - x,
		 printf('{"id":"sbz%%017d","state":"ended","isolation":2,"limits":{"Memory":67108864},"created":"2026-01-02T03:04:05Z","ended":"2026-01-02T03:04:06Z","extra":{"notes":["%%s"]}}', x, printf('%%.*c', 400, 'x')) FROM c`,
		`INSERT INTO runs (tenant, id, version, state, sandbox, created, ended, body)
		 SELECT 'acme', printf('rnz%%017d', x), 2, 'ended', printf('sbz%%017d', x), %d - x, %d - x,
		 printf('{"id":"rnz%%017d","state":"ended","created":"2026-01-02T03:04:05Z","ended":"2026-01-02T03:04:06Z"}', x) FROM c`,
	} {
		q = fmt.Sprintf(`WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < %d) `, n) + fmt.Sprintf(q, at.UnixNano(), at.UnixNano())
		if _, err := s.writer.conn.ExecContext(context.Background(), q); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManyDeadRecords: dead records cost neither time nor memory while nobody
// asks for them, go in bounded passes, and give their space back.
func TestManyDeadRecords(t *testing.T) {
	n := 12_000
	if os.Getenv("FIREBREAK_LONG") != "" {
		n = 100_000
	}
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	at := now()
	dead(t, s, n, at)
	keep := mustCreate(t, s.Tenant("acme"), Sandbox{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	full := size(t, path)

	heap := func() uint64 {
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, began := heap(), time.Now()
	s = open(t, path)
	live, err := s.System().LiveSandboxes(ctx)
	started := time.Since(began)
	if err != nil || len(live) != 1 || live[0].ID != keep.ID {
		t.Fatal(live, err)
	}
	if runs, err := s.System().UnfinishedRuns(ctx); err != nil || len(runs) != 0 {
		t.Fatal(runs, err)
	}
	if after := heap(); after > before+8<<20 {
		t.Errorf("opening %d dead records needs %d KiB", n, (after-before)>>10)
	}
	measure := func(what string, f func() error) time.Duration {
		t.Helper()
		best := time.Hour
		for range 5 {
			began := time.Now()
			if err := f(); err != nil {
				t.Fatal(what, err)
			}
			best = min(best, time.Since(began))
		}
		return best
	}
	first := measure("first page", func() error { _, _, err := s.Tenant("acme").ListSandboxes(ctx, Filter{}, Page{}); return err })
	alive := measure("live page", func() error {
		_, _, err := s.Tenant("acme").ListSandboxes(ctx, Filter{States: []State{Running}}, Page{})
		return err
	})
	i := n / 2
	get := measure("get", func() error {
		i++ // another each time: it is cached
		_, err := s.Tenant("acme").Sandbox(ctx, sandbox.ID(fmt.Sprintf("sbz%017d", i)))
		return err
	})
	t.Logf("%d dead sandboxes and runs, %d MiB: open %v, first page %v, live page %v, get %v", n, full>>20, started, first, alive, get)
	// Generous: the machine may be busy. A scan of everything takes longer.
	if first > 100*time.Millisecond || alive > max(first, 2*time.Millisecond) || get > 20*time.Millisecond || started > 2*time.Second {
		t.Error("too slow")
	}

	began = time.Now()
	passes := 0
	for more := true; more; passes++ {
		var k int
		if k, more, err = s.System().Purge(ctx, at.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if k > 3*(purgePass+purgeChunk) {
			t.Errorf("one pass deleted %d records", k)
		}
	}
	t.Logf("purged in %d passes, %v", passes, time.Since(began))
	if passes < 2 {
		t.Errorf("%d passes: the bound was not met", passes)
	}
	if _, err := s.Tenant("acme").Sandbox(ctx, keep.ID); err != nil {
		t.Error("the living one:", err)
	}
	if err := s.Close(); err != nil { // folds the log in
		t.Fatal(err)
	}
	if now := size(t, path); now > full/4 {
		t.Errorf("the database has %d KiB after the purge, %d before", now>>10, full>>10)
	}
}

func size(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// TestPurgeRemovesCopies: the copy a migration leaves goes when it is old.
func TestPurgeRemovesCopies(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	old, young := s.path+".before-v2", s.path+".before-v3"
	for _, p := range []string{old, young} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	week := time.Now().Add(-7 * 24 * time.Hour)
	if err := os.Chtimes(old, week, week); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.System().Purge(ctx, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the old copy is still there")
	}
	if _, err := os.Stat(young); err != nil {
		t.Error(err)
	}
}

func TestAmong(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	a, b := mustCreate(t, s.Tenant("a"), Sandbox{}), mustCreate(t, s.Tenant("b"), Sandbox{})
	stranger := sandbox.NewID()
	got, err := s.System().SandboxesAmong(ctx, []sandbox.ID{a.ID, stranger, b.ID})
	if err != nil || len(got) != 2 || !got[a.ID] || !got[b.ID] {
		t.Error(got, err)
	}
	if got, err := s.System().RunsAmong(ctx, nil); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
	_, err = s.System().RunsAmong(ctx, make([]sandbox.RunID, maxAmong+1))
	wantKind(t, err, sandbox.KindInvalid)
}

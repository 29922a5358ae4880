package store

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestSnapshotUnderLoad: a copy made while others write has everything that was
// acknowledged before it began, is consistent, and holds nobody up for good.
func TestSnapshotUnderLoad(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "state.db"))
	var mu sync.Mutex
	var acked []sandbox.ID
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				sb, err := s.Tenant("acme").CreateSandbox(context.Background(), Sandbox{ID: sandbox.NewID()}, Quota{})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acked = append(acked, sb.ID)
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	defer load.Wait()
	defer cancel()
	for i := range 10 {
		mu.Lock()
		before := acked[:len(acked):len(acked)]
		mu.Unlock()
		to := filepath.Join(dir, "copy"+string(rune('a'+i)))
		schema, err := Snapshot(context.Background(), s.path, to)
		if err != nil || schema != len(migrations) {
			t.Fatal(schema, err)
		}
		if fi, err := os.Stat(to); err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatal(fi, err)
		}
		if v, err := Check(context.Background(), to); err != nil || v != schema {
			t.Fatal(v, err)
		}
		c := open(t, to)
		for _, id := range before {
			if _, err := c.Tenant("acme").Sandbox(context.Background(), id); err != nil {
				t.Fatalf("copy %d lacks %s: %v", i, id, err)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(acked) == 0 {
		t.Error("nothing was written meanwhile")
	}
}

func TestSnapshotRefusals(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s := openTemp(t)
	_, err := Snapshot(ctx, filepath.Join(dir, "none"), filepath.Join(dir, "copy"))
	wantKind(t, err, sandbox.KindNotFound)
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Snapshot(ctx, s.path, filepath.Join(dir, "there"))
	wantKind(t, err, sandbox.KindExists)
	if b, _ := os.ReadFile(filepath.Join(dir, "there")); string(b) != "mine" {
		t.Errorf("it was overwritten: %q", b)
	}
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() error{
		func() error { _, err := Snapshot(ctx, junk, filepath.Join(dir, "copy")); return err },
		func() error { _, err := Check(ctx, junk); return err },
	} {
		if err := f(); err == nil {
			t.Error("a file of zeros passes for a database")
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "copy")); err == nil {
		t.Error("a failed copy was left")
	}
}

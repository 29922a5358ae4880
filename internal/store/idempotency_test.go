package store

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func reserve(t *testing.T, tn *Tenant, hash byte, result string) *Reservation {
	t.Helper()
	r, err := tn.Reserve(context.Background(), Request{Key: "key", Hash: [32]byte{hash}, Result: result})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReserve(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	tn := s.Tenant("acme")

	// A failure gives the key back, to any request.
	r := reserve(t, tn, 1, "a")
	if r.Done() || r.Result() != "a" || r.Abandoned() != "" {
		t.Fatalf("%+v", r)
	}
	if err := r.Release(ctx); err != nil {
		t.Fatal(err)
	}
	r = reserve(t, tn, 2, "b")
	if r.Done() || r.Abandoned() != "" {
		t.Fatalf("%+v", r)
	}

	// Another body conflicts at once, even while the first is in progress.
	_, err := tn.Reserve(ctx, Request{Key: "key", Hash: [32]byte{3}})
	wantKind(t, err, sandbox.KindConflict)

	// The same body meets its deadline while the first is in progress.
	soon, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_, err = tn.Reserve(soon, Request{Key: "key", Hash: [32]byte{2}})
	wantKind(t, err, sandbox.KindConflict)
	gone, cancel := context.WithCancel(ctx)
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err = tn.Reserve(gone, Request{Key: "key", Hash: [32]byte{2}})
	wantKind(t, err, sandbox.KindCanceled)

	// Completed, it is remembered, whatever is called afterwards and across
	// a restart.
	if err := r.Complete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.Release(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r = reserve(t, tn, 2, "c")
		if !r.Done() || r.Result() != "b" {
			t.Fatalf("%+v", r)
		}
		r.Release(ctx)
		_, err = tn.Reserve(ctx, Request{Key: "key", Hash: [32]byte{3}})
		wantKind(t, err, sandbox.KindConflict)
		s.Close()
		s = open(t, path)
		tn = s.Tenant("acme")
	}
	for _, k := range []string{"", strings.Repeat("x", 256)} {
		_, err = tn.Reserve(ctx, Request{Key: k})
		wantKind(t, err, sandbox.KindInvalid)
	}
}

// Whoever held a key when the process died is followed by the next request,
// which learns what may be half made.
func TestReserveTakesOverFromTheDead(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	reserve(t, s.Tenant("acme"), 1, "a")
	s.Close() // as far as the file can tell, the process died
	s = open(t, path)
	tn := s.Tenant("acme")
	_, err := tn.Reserve(ctx, Request{Key: "key", Hash: [32]byte{2}})
	wantKind(t, err, sandbox.KindConflict)
	r := reserve(t, tn, 1, "b")
	if r.Done() || r.Abandoned() != "a" || r.Result() != "b" {
		t.Fatalf("%+v", r)
	}
	if err := r.Complete(ctx); err != nil {
		t.Fatal(err)
	}
	if r = reserve(t, tn, 1, "c"); !r.Done() || r.Result() != "b" {
		t.Fatalf("%+v", r)
	}
}

func TestReserveExpires(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	r, err := tn.Reserve(ctx, Request{Key: "key", Hash: [32]byte{1}, Result: "a", TTL: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if n, _, err := s.System().Purge(ctx, time.Now()); n != 0 || err != nil {
		t.Fatal("a key in use was purged", n, err)
	}
	if err := r.Complete(ctx); err != nil {
		t.Fatal(err)
	}
	if r = reserve(t, tn, 2, "b"); r.Done() || r.Abandoned() != "" {
		t.Fatalf("%+v", r)
	}
	if err := r.Release(ctx); err != nil {
		t.Fatal(err)
	}
	r, _ = tn.Reserve(ctx, Request{Key: "key", TTL: time.Nanosecond})
	r.Complete(ctx)
	if n, _, err := s.System().Purge(ctx, time.Now()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// Of many equal requests at once, one acts at a time, failures hand over, and
// after the first success nobody acts again.
func TestReserveUnderConcurrency(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	var acting, acted, answered atomic.Int32
	var wg sync.WaitGroup
	for range 24 {
		wg.Go(func() {
			r, err := tn.Reserve(ctx, Request{Key: "key", Result: string(sandbox.NewID())})
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Release(ctx)
			if r.Done() {
				answered.Add(1)
				return
			}
			if acting.Add(1) != 1 {
				t.Error("two hold the key")
			}
			time.Sleep(time.Millisecond)
			n := acted.Add(1)
			acting.Add(-1)
			if n == 5 { // four fail, the fifth succeeds
				if err := r.Complete(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if acted.Load() != 5 || answered.Load() != 19 {
		t.Fatal(acted.Load(), answered.Load())
	}
}

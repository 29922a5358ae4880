package orchestrator

import (
	"context"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestWatchers: a watcher collects for its tenant, within bounds, and ends with
// its directory, its sandbox, or when asked to.
func TestWatchers(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	id := string(mustCreate(t, o, alice, CreateRequest{}).ID)
	ctx := t.Context()
	if _, err := o.MakeDirectory(ctx, alice, id, "d/e", ""); err != nil {
		t.Fatal(err)
	}
	wa, err := o.CreateWatcher(ctx, alice, id, "d", guest.WatchOptions{Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.WriteFile(ctx, alice, id, "d/e/f", guest.WriteOptions{}, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	var seen []string
	poll := func() (over bool) {
		t.Helper()
		events, over, err := o.WatcherEvents(ctx, alice.Tenant, id, wa)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			seen = append(seen, e.Type+" "+e.Path)
		}
		return over
	}
	eventually(t, "the file's events", func() bool { poll(); return len(seen) >= 2 })
	if got := strings.Join(seen, ", "); got != "create e/f, write e/f" {
		t.Errorf("%s", got)
	}
	for _, tt := range []struct {
		tenant      sandbox.TenantID
		sandbox, id string
	}{{bob.Tenant, id, wa}, {alice.Tenant, id, "wa0"}, {alice.Tenant, string(mustCreate(t, o, alice, CreateRequest{}).ID), wa}} {
		_, _, err := o.WatcherEvents(ctx, tt.tenant, tt.sandbox, tt.id)
		wantKind(t, err, sandbox.KindNotFound)
	}
	if err := o.RemoveFile(ctx, alice, id, "d", "", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end", poll)
	for i := range maxWatchers - 1 {
		if _, err := o.CreateWatcher(ctx, alice, id, ".", guest.WatchOptions{}); err != nil {
			t.Fatalf("watcher %d: %v", i+2, err)
		}
	}
	_, err = o.CreateWatcher(ctx, alice, id, ".", guest.WatchOptions{})
	wantKind(t, err, sandbox.KindCapacity)
	if err := o.RemoveWatcher(ctx, alice, id, wa); err != nil {
		t.Fatal(err)
	}
	if wa, err = o.CreateWatcher(ctx, alice, id, ".", guest.WatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		kind sandbox.Kind
	}{{"none", sandbox.KindNotFound}, {"/etc/passwd", sandbox.KindNotDirectory}} {
		if err := o.RemoveWatcher(ctx, alice, id, wa); err != nil {
			t.Fatal(err)
		}
		_, err = o.CreateWatcher(ctx, alice, id, tt.path, guest.WatchOptions{})
		wantKind(t, err, tt.kind) // and takes no place
		if wa, err = o.CreateWatcher(ctx, alice, id, ".", guest.WatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	l := o.find(alice.Tenant, id)
	if _, err := o.Destroy(ctx, alice, id); err != nil {
		t.Fatal(err)
	}
	_, _, err = o.WatcherEvents(ctx, alice.Tenant, id, wa)
	wantKind(t, err, sandbox.KindGone)
	eventually(t, "no watcher", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.watchers) == 0
	})
}

// TestWatcherOutlivesSession: a new connection to the agent is a gap that is told
// of, and not the end.
func TestWatcherOutlivesSession(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	id := string(mustCreate(t, o, alice, CreateRequest{}).ID)
	wa, err := o.CreateWatcher(t.Context(), alice, id, ".", guest.WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := o.find(alice.Tenant, id)
	l.mu.Lock()
	s := l.sess
	l.mu.Unlock()
	s.Close()
	seen := map[string]bool{}
	eventually(t, "an overflow, then what is new", func() bool {
		if _, err := o.WriteFile(t.Context(), alice, id, "f", guest.WriteOptions{}, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		events, over, err := o.WatcherEvents(t.Context(), alice.Tenant, id, wa)
		if err != nil || over {
			t.Fatal(over, err)
		}
		for _, e := range events {
			seen[e.Type+" "+e.Path] = true
		}
		return seen["overflow "] && seen["write f"]
	})
}

// TestWatchFiles: a watch ends with its caller or with its sandbox.
func TestWatchFiles(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	id := string(mustCreate(t, o, alice, CreateRequest{}).ID)
	for _, how := range []string{"caller", "sandbox"} {
		ctx, cancel := context.WithCancel(t.Context())
		err := o.WatchFiles(ctx, alice, id, ".", guest.WatchOptions{}, func() error {
			if how == "caller" {
				cancel()
				return nil
			}
			_, err := o.Destroy(t.Context(), alice, id)
			return err
		}, func(guest.FileEvent) error { return nil })
		cancel()
		want := map[string]sandbox.Kind{"caller": sandbox.KindCanceled, "sandbox": sandbox.KindGone}[how]
		wantKind(t, err, want)
	}
}

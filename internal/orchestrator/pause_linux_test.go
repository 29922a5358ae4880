package orchestrator

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/gvisor"
	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// onGVisor makes a world's sandboxes real ones, of this machine's own files.
func onGVisor(t *testing.T, w *world) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root")
	}
	programs, err := bundle.Open(t.TempDir())
	if err != nil {
		t.Skipf("not run: %v", err)
	}
	t.Cleanup(func() { programs.Close() })
	b, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), Runsc: programs.Runsc, Runtime: programs.Runtime, Cgroup: "firebreak-test-" + strconv.Itoa(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if list, err := b.List(context.Background()); err != nil || len(list) != 0 {
			t.Errorf("left behind: %v, %v", list, err)
		}
		b.Close()
	})
	templates, err := template.New(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = func(c *Config) {
		c.Backends, c.Templates, c.Defaults.Backend = []sandbox.Backend{b}, templates, "gvisor"
		c.Patience, c.Memory, c.DestroyOnClose = 30*time.Second, nil, true
	}
}

// TestPauseTogether: callers who pause, resume, save, use, look at and end one sandbox
// at once are all answered, none of them with anything but what is true, and nothing
// is left.
func TestPauseTogether(t *testing.T) {
	w := newWorld(t)
	onGVisor(t, w)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	id := string(sb.ID)
	if _, err := o.StartProcess(t.Context(), alice, id, StartRequest{ExecRequest: verb("sleep", "1h"), Tag: "still"}); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	rounds := 4
	each := func(what string, do func() error, fine ...sandbox.Kind) {
		all.Go(func() {
			for range rounds {
				err := do()
				ok := err == nil
				for _, k := range fine {
					ok = ok || sandbox.KindOf(err) == k
				}
				if !ok {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
	ctx := t.Context()
	each("pause", func() error { _, err := o.Pause(ctx, alice, id, PauseRequest{}); return err })
	each("resume", func() error { _, err := o.Resume(ctx, alice, id, ResumeRequest{}); return err })
	each("snapshot", func() error {
		s, err := o.CreateSnapshot(ctx, alice, id, SnapshotRequest{})
		if err == nil {
			_, err = o.RemoveSnapshot(ctx, alice, string(s.ID))
		}
		return err
	})
	// Whoever begins just when the sandbox is paused may be told that his connection
	// broke: nothing ran, or nobody knows.
	each("exec", func() error {
		var c collect
		exit, err := o.Exec(ctx, alice, id, verb("echo", "hi"), &c)
		if err == nil && (exit.Code != 0 || c.out.String() != "hi\n") {
			t.Errorf("exec: %+v, %q", exit, c.out.String())
		}
		return err
	}, sandbox.KindUnavailable)
	each("write", func() error {
		_, err := o.WriteFile(ctx, alice, id, "/tmp/file", guest.WriteOptions{}, bytes.NewReader([]byte("x")))
		return err
	}, sandbox.KindUnavailable)
	each("look", func() error {
		_, err := o.Get(ctx, alice.Tenant, id)
		if err == nil {
			_, err = o.ListProcesses(ctx, alice.Tenant, id)
		}
		if err == nil {
			_, err = o.SetTimeout(ctx, alice, id, time.Hour, true)
		}
		return err
	})
	// An exec that was under way at the last pause waits for somebody to wake it.
	answered := make(chan struct{})
	go func() { all.Wait(); close(answered) }()
	for waiting := true; waiting; {
		select {
		case <-answered:
			waiting = false
		case <-time.After(500 * time.Millisecond):
			if _, err := o.Resume(ctx, alice, id, ResumeRequest{}); err != nil {
				t.Errorf("resume: %v", err)
			}
		}
	}
	if p, err := o.GetProcess(ctx, alice.Tenant, id, "still", 0); err != nil || p.Exit != nil {
		t.Errorf("the program that was there: %+v, %v", p, err)
	}
	for range rounds { // an end comes in whatever is going on
		sb := mustCreate(t, o, alice, CreateRequest{})
		all.Go(func() { o.Pause(ctx, alice, string(sb.ID), PauseRequest{}) })
		all.Go(func() { o.Resume(ctx, alice, string(sb.ID), ResumeRequest{}) })
		all.Go(func() { o.CreateSnapshot(ctx, alice, string(sb.ID), SnapshotRequest{Name: string(sb.ID)[2:]}) })
		time.Sleep(50 * time.Millisecond)
		if got, err := o.Destroy(ctx, alice, string(sb.ID)); err != nil || got.State != store.Ended || !got.Receipt.Clean {
			t.Errorf("destroy: %+v, %v", got, err)
		}
		all.Wait()
	}
	if got, err := o.Destroy(ctx, alice, id); err != nil || !got.Receipt.Clean {
		t.Errorf("destroy: %+v, %v", got, err)
	}
	snaps, err := o.ListSnapshots(ctx, alice.Tenant)
	for _, s := range snaps {
		if _, e := o.RemoveSnapshot(ctx, alice, string(s.ID)); e != nil {
			err = e
		}
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "snapshots", "*")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	o.ledger.mu.Lock()
	defer o.ledger.mu.Unlock()
	if o.ledger.committed != 0 || o.ledger.sandboxes != 0 || o.ledger.tenants[alice.Tenant]["memory"] != 0 || o.ledger.tenants[alice.Tenant]["snapshots"] != 0 {
		t.Errorf("the ledger has %d, %+v", o.ledger.committed, o.ledger.tenants)
	}
}

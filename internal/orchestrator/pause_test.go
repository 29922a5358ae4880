package orchestrator

import (
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestSavesNothing: what a backend without snapshots has is not paused and not saved,
// says so, and runs on; another tenant's is not there.
func TestSavesNothing(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	for who, kind := range map[Caller]sandbox.Kind{alice: sandbox.KindUnsupported, bob: sandbox.KindNotFound} {
		_, err := o.Pause(t.Context(), who, string(sb.ID))
		wantKind(t, err, kind)
		_, err = o.CreateSnapshot(t.Context(), who, string(sb.ID), SnapshotRequest{})
		wantKind(t, err, kind)
		children, err := o.Fork(t.Context(), who, string(sb.ID), ForkRequest{Count: 2})
		wantKind(t, err, kind)
		if len(children) != 0 {
			t.Errorf("%d children", len(children))
		}
	}
	_, err := o.Resume(t.Context(), bob, string(sb.ID))
	wantKind(t, err, sandbox.KindNotFound)
	if got, err := o.Resume(t.Context(), alice, string(sb.ID)); err != nil || got.State != store.Running {
		t.Errorf("resume of one that runs: %+v, %v", got, err)
	}
	idle := time.Minute
	_, err = o.Create(t.Context(), alice, CreateRequest{IdleTimeout: &idle, IdleAction: IdlePause})
	wantKind(t, err, sandbox.KindUnsupported)
	if exit, _ := mustExec(t, o, alice, sb.ID, sh("exit 3")); exit.Code != 3 {
		t.Errorf("it does not run on: %+v", exit)
	}
}

// TestSnapshotsOfTenants: nobody sees, removes or starts from another's.
func TestSnapshotsOfTenants(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	rec, err := w.store.Tenant(alice.Tenant).AddSnapshot(t.Context(), store.SavedSandbox{ID: sandbox.NewSnapshotID(), Name: "warm", Body: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{string(rec.ID), "warm"} {
		_, err := o.RemoveSnapshot(t.Context(), bob, ref)
		wantKind(t, err, sandbox.KindNotFound)
		_, err = o.Create(t.Context(), bob, CreateRequest{From: ref})
		wantKind(t, err, sandbox.KindNotFound)
	}
	if list, err := o.ListSnapshots(t.Context(), bob.Tenant); err != nil || len(list) != 0 {
		t.Errorf("bob sees %v, %v", list, err)
	}
	if got, err := o.RemoveSnapshot(t.Context(), alice, "warm"); err != nil || got.ID != rec.ID {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSnapshotsExpire: those whose time is over go, and no others.
func TestSnapshotsExpire(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	add := func(name string, expires time.Time) {
		t.Helper()
		if _, err := w.store.Tenant(alice.Tenant).AddSnapshot(t.Context(), store.SavedSandbox{ID: sandbox.NewSnapshotID(), Name: name, Expires: expires, Body: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	add("old", time.Now().Add(-time.Hour))
	add("new", time.Now().Add(time.Hour))
	add("kept", time.Time{})
	if err := o.expireSnapshots(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := o.ListSnapshots(t.Context(), alice.Tenant)
	if err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestParkedMemory: what is paused holds no memory of the ledger, and may be refused
// it when it is resumed.
func TestParkedMemory(t *testing.T) {
	q := &Quota{Host: 10, Overcommit: 1, Tenant: TenantQuota{Memory: 300 << 20}}
	l := newLedger(q, func() (int64, int64) { return 64 << 30, 48 << 30 })
	p := promiseOf(alice.Tenant, sandbox.Limits{Memory: 200 << 20})
	if err := l.reserve(p); err != nil {
		t.Fatal(err)
	}
	wantKind(t, l.reserve(p), sandbox.KindCapacity)
	l.park(p)
	if err := l.reserve(p); err != nil {
		t.Errorf("beside one that is paused: %v", err)
	}
	wantKind(t, l.unpark(p, true), sandbox.KindCapacity)
	l.release(p)
	if err := l.unpark(p, true); err != nil {
		t.Error(err)
	}
	l.release(p)
	if l.committed != 0 || len(l.tenants) != 0 {
		t.Errorf("left: %d, %v", l.committed, l.tenants)
	}
}

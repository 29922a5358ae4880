package orchestrator

import (
	"testing"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestDemandOfCopies: what was demanded of a sandbox is demanded of its forks and of what
// is made of its snapshots; and a server that demands more than it has makes no further
// boundary of it, nor weaker images.
func TestDemandOfCopies(t *testing.T) {
	w := newWorld(t)
	onGVisor(t, w)
	o := w.start()
	demand := policy.Demand{Isolation: sandbox.IsolationUserKernel, By: "policy build"}
	sb := mustCreate(t, o, alice, CreateRequest{Demand: demand})
	id := string(sb.ID)
	snap, err := o.CreateSnapshot(t.Context(), alice, id, SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	children, err := o.Fork(t.Context(), alice, id, ForkRequest{})
	if err != nil || children[0].Err != nil {
		t.Fatal(err, children)
	}
	copied := mustCreate(t, o, alice, CreateRequest{From: string(snap.ID)})
	for _, c := range []Sandbox{children[0].Sandbox, copied} {
		if c.Details.Demand != demand {
			t.Errorf("of a copy is demanded %+v", c.Details.Demand)
		}
		if _, err := o.Destroy(t.Context(), alice, string(c.ID)); err != nil {
			t.Error(err)
		}
	}
	_, err = o.Create(t.Context(), alice, CreateRequest{From: string(snap.ID), Demand: hypervisor})
	wantKind(t, err, sandbox.KindUnsupported)

	if _, err := o.Pause(t.Context(), alice, id, PauseRequest{}); err != nil {
		t.Fatal(err)
	}
	o.Defaults.MinIsolation = sandbox.IsolationHypervisor // as after a restart with another configuration
	_, err = o.Resume(t.Context(), alice, id, ResumeRequest{})
	wantKind(t, err, sandbox.KindUnsupported)
	_, err = o.CreateSnapshot(t.Context(), alice, id, SnapshotRequest{})
	wantKind(t, err, sandbox.KindUnsupported)
	_, err = o.Fork(t.Context(), alice, id, ForkRequest{})
	wantKind(t, err, sandbox.KindUnsupported)
	_, err = o.Create(t.Context(), alice, CreateRequest{From: string(snap.ID)})
	wantKind(t, err, sandbox.KindUnsupported)
	if got, err := o.Get(t.Context(), alice.Tenant, id); err != nil || got.State != store.Paused {
		t.Errorf("%s, %v", got.State, err)
	}
	o.Defaults.MinIsolation = sandbox.IsolationNone
	if _, err := o.Resume(t.Context(), alice, id, ResumeRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := o.RemoveSnapshot(t.Context(), alice, string(snap.ID)); err != nil {
		t.Error(err)
	}
}

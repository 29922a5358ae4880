package client

import (
	"context"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// Pause saves the sandbox to disk and ends its boundary: it goes on where it was with
// Resume, or when it is used. It is idempotent. Errors: KindUnsupported for one with
// a network, KindCapacity for the quota of snapshots; it runs on then.
func (s *Sandbox) Pause(ctx context.Context) (*v1.Sandbox, error) {
	return s.PauseFor(ctx, 0)
}

// PauseFor is Pause for a sandbox that is to be kept for a time while it is paused,
// Never for ever: its life stands still meanwhile, and it has all of it again when it
// goes on. 0 is as Pause: its life goes on, unless it has the expire action pause.
func (s *Sandbox) PauseFor(ctx context.Context, keep time.Duration) (*v1.Sandbox, error) {
	return message(s.c.snapshots.PauseSandbox(ctx, connect.NewRequest(&v1.PauseSandboxRequest{Id: s.id, KeepMs: millis(keep)})))
}

// Resume makes a paused sandbox run again and returns when its agent has answered.
// It is idempotent. Errors: KindCapacity where there is no room for it now; KindConflict
// when what was saved does not fit any more. It stays paused then.
func (s *Sandbox) Resume(ctx context.Context) (*v1.Sandbox, error) {
	return s.ResumeFor(ctx, 0)
}

// ResumeFor is Resume for a sandbox that is to end this long after; Never. 0 is as
// Resume: if its life stood still, it has what it was last given, 5 minutes at least.
// Of one that runs nothing changes.
func (s *Sandbox) ResumeFor(ctx context.Context, timeout time.Duration) (*v1.Sandbox, error) {
	return message(s.c.snapshots.ResumeSandbox(ctx, connect.NewRequest(&v1.ResumeSandboxRequest{Id: s.id, TimeoutMs: millis(timeout)})))
}

// Snapshot saves the sandbox, which goes on; CreateOptions.Snapshot makes others of
// it. name may be empty; ttl is how long it is kept: 0 is the server's default, Never
// for ever. Errors: those of Pause, KindExists for the name.
func (s *Sandbox) Snapshot(ctx context.Context, name string, ttl time.Duration) (*v1.Snapshot, error) {
	return message(s.c.snapshots.CreateSnapshot(ctx, connect.NewRequest(&v1.CreateSnapshotRequest{Id: s.id, Name: name, TtlMs: millis(ttl)})))
}

// Snapshot saves the sandbox with this id or name, which goes on: for planning loops
// that keep ids and try several ways from one point.
//
//	snap, err := c.Snapshot(ctx, ws.ID())
//	plan, err := c.ForkWorkspace(ctx, snap.GetId(), "plan-b")
//
// Errors: those of Pause.
func (c *Client) Snapshot(ctx context.Context, id string) (*v1.Snapshot, error) {
	return c.Sandbox(id).Snapshot(ctx, "", 0)
}

// ForkWorkspace makes a sandbox that goes on from a snapshot, by id or name, and is
// called name where that is not empty. It is Create with nothing but the two.
// Errors: KindNotFound for the snapshot, KindExists for the name, those of Create.
func (c *Client) ForkWorkspace(ctx context.Context, snapshot, name string) (*Sandbox, error) {
	return c.Create(ctx, CreateOptions{Snapshot: snapshot, Name: name})
}

// Snapshots lists the tenant's snapshots, newest first.
func (c *Client) Snapshots(ctx context.Context) ([]*v1.Snapshot, error) {
	res, err := message(c.snapshots.ListSnapshots(ctx, connect.NewRequest(&v1.ListSnapshotsRequest{})))
	return res.GetSnapshots(), err
}

// RemoveSnapshot forgets a snapshot, by id or name; sandboxes that were made of it
// live on. Errors: KindNotFound.
func (c *Client) RemoveSnapshot(ctx context.Context, id string) error {
	_, err := c.snapshots.RemoveSnapshot(ctx, connect.NewRequest(&v1.RemoveSnapshotRequest{Id: id}))
	return err
}

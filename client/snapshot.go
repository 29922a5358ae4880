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
	return message(s.c.snapshots.PauseSandbox(ctx, connect.NewRequest(&v1.PauseSandboxRequest{Id: s.id})))
}

// Resume makes a paused sandbox run again and returns when its agent has answered.
// It is idempotent. Errors: KindCapacity where there is no room for it now; KindConflict
// when what was saved does not fit any more. It stays paused then.
func (s *Sandbox) Resume(ctx context.Context) (*v1.Sandbox, error) {
	return message(s.c.snapshots.ResumeSandbox(ctx, connect.NewRequest(&v1.ResumeSandboxRequest{Id: s.id})))
}

// Snapshot saves the sandbox, which goes on; CreateOptions.Snapshot makes others of
// it. name may be empty; ttl is how long it is kept: 0 is the server's default, Never
// for ever. Errors: those of Pause, KindExists for the name.
func (s *Sandbox) Snapshot(ctx context.Context, name string, ttl time.Duration) (*v1.Snapshot, error) {
	return message(s.c.snapshots.CreateSnapshot(ctx, connect.NewRequest(&v1.CreateSnapshotRequest{Id: s.id, Name: name, TtlMs: millis(ttl)})))
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

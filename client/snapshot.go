package client

import (
	"context"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
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

// WorkspaceOptions say what a workspace is made of: what CreateOptions do and, for a
// machine that boots files of the server's own, which.
type WorkspaceOptions struct {
	CreateOptions
	// KernelImagePath is a kernel, RootfsImagePath an image of a root file system, both
	// below the server's image_dirs. A kernel goes with a root file system.
	KernelImagePath, RootfsImagePath string
}

// CreateWorkspace makes a sandbox called name, of what it says by path if it does:
//
//	ws, err := c.CreateWorkspace(ctx, "my-agent", client.WorkspaceOptions{
//		KernelImagePath: "/srv/images/vmlinux", RootfsImagePath: "/srv/images/rootfs.squashfs"})
//
// The files are made a template first, the same one for the same content, and the
// backend is microvm. Errors: those of BuildTemplateFrom, KindDenied without the scope
// template:boot or for other paths; those of Create.
func (c *Client) CreateWorkspace(ctx context.Context, name string, o WorkspaceOptions) (*Sandbox, error) {
	o.Name = name
	if o.KernelImagePath == "" && o.RootfsImagePath == "" {
		return c.Create(ctx, o.CreateOptions)
	}
	switch {
	case o.Template != "":
		return nil, sandbox.Errorf("create", sandbox.KindInvalid, "a template and image paths exclude each other").WithHint("build a template with the kernel, and name that")
	case o.RootfsImagePath == "":
		return nil, sandbox.Errorf("create", sandbox.KindInvalid, "a kernel without a root file system").WithHint("name a RootfsImagePath, or build a template with the kernel")
	}
	t, err := c.BuildTemplateFrom(ctx, TemplateOptions{KernelImagePath: o.KernelImagePath, RootfsImagePath: o.RootfsImagePath, Languages: languages(o.Language)}, nil)
	if err != nil {
		return nil, err
	}
	o.Template = t.GetDigest()
	if o.Backend == "" {
		o.Backend = "microvm"
	}
	return c.Create(ctx, o.CreateOptions)
}

func languages(one string) []string {
	if one == "" {
		return nil
	}
	return []string{one}
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

// ForkOptions say how many children a fork has, and in what they differ from their
// parent. The zero value is one that lives as its parent.
type ForkOptions struct {
	Count int      // 0: one, or as many as there are Names
	Names []string // of the first ones
	// Timeout and IdleTimeout: 0 is the parent's, Never for ever.
	Timeout, IdleTimeout time.Duration
	Env, Metadata        map[string]string // beside the parent's
	// IdempotencyKey makes a repeated Fork return the first one's children.
	IdempotencyKey string
}

// Child is what became of one child of a fork.
type Child struct {
	*Sandbox             // nil with Err
	Info     *v1.Sandbox // as it was made
	Err      error       // a *sandbox.Error
}

// Fork makes sandboxes that go on where this one is now, with its memory, files,
// programs and interpreters, and with an identity and randomness of their own. This
// one goes on. Of each child there is an outcome: some may fail, with KindCapacity for
// the quota, and the others stand. Errors, when there are none: those of Snapshot, and
// KindConflict for an idempotency key that was used for something else.
func (s *Sandbox) Fork(ctx context.Context, o ForkOptions) ([]Child, error) {
	req := connect.NewRequest(&v1.ForkSandboxRequest{Id: s.id, Count: int32(o.Count), Names: o.Names,
		TimeoutMs: millis(o.Timeout), IdleTimeoutMs: millis(o.IdleTimeout), Env: o.Env, Metadata: o.Metadata})
	if o.IdempotencyKey != "" {
		req.Header().Set("Idempotency-Key", o.IdempotencyKey)
	}
	res, err := message(s.c.snapshots.ForkSandbox(ctx, req))
	if err != nil {
		return nil, err
	}
	children := make([]Child, len(res.GetChildren()))
	for i, c := range res.GetChildren() {
		if e := c.GetError(); e != nil {
			children[i].Err = fromDetail(e)
			continue
		}
		children[i] = Child{Sandbox: s.c.Sandbox(c.GetSandbox().GetId()), Info: c.GetSandbox()}
	}
	return children, nil
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

package service

import (
	"context"
	"errors"
	"slices"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// PauseSandbox saves a sandbox and ends its boundary; again: the same answer.
// Errors: KindNotFound, KindGone, KindUnsupported, KindConflict, KindCapacity,
// KindNoSpace; the sandbox runs on then.
func (s *Service) PauseSandbox(ctx context.Context, req *v1.PauseSandboxRequest) (*v1.Sandbox, error) {
	who, _, err := s.allow(ctx, "SnapshotService.PauseSandbox")
	if err != nil {
		return nil, err
	}
	keep, err := optionalMillis("pause", "keep_ms", req.KeepMs)
	if err != nil {
		return nil, err
	}
	sb, err := s.Orchestrator.Pause(ctx, who, req.GetId(), orchestrator.PauseRequest{Keep: keep})
	if err != nil {
		return nil, err
	}
	return toSandbox(sb), nil
}

// ResumeSandbox makes a paused sandbox run again. Errors: KindNotFound, KindGone,
// KindCapacity, KindNoSpace, KindConflict; the sandbox stays paused then.
func (s *Service) ResumeSandbox(ctx context.Context, req *v1.ResumeSandboxRequest) (*v1.Sandbox, error) {
	who, _, err := s.allow(ctx, "SnapshotService.ResumeSandbox")
	if err != nil {
		return nil, err
	}
	timeout, err := optionalMillis("resume", "timeout_ms", req.TimeoutMs)
	if err != nil {
		return nil, err
	}
	sb, err := s.Orchestrator.Resume(ctx, who, req.GetId(), orchestrator.ResumeRequest{Timeout: timeout})
	if err != nil {
		return nil, err
	}
	return toSandbox(sb), nil
}

// ForkSandbox makes sandboxes that go on where one is now. Under an idempotency key it
// does so once, whoever goes away meanwhile, and asking again shows the same children; a
// fork of which no child came is as if it had not been asked for. Errors: KindInvalid,
// KindConflict (idempotency key), and those of PauseSandbox; what fails for one child is
// in the answer.
func (s *Service) ForkSandbox(ctx context.Context, req *v1.ForkSandboxRequest) (*v1.ForkSandboxResponse, error) {
	const method = "SnapshotService.ForkSandbox"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	f := orchestrator.ForkRequest{Count: int(req.GetCount()), Names: req.GetNames(), Env: req.GetEnv(), Metadata: req.GetMetadata()}
	if f.Timeout, err = optionalMillis("fork", "timeout_ms", req.TimeoutMs); err != nil {
		return nil, err
	}
	if f.IdleTimeout, err = optionalMillis("fork", "idle_timeout_ms", req.IdleTimeoutMs); err != nil {
		return nil, err
	}
	if keyFrom(ctx) != "" {
		return s.forkOnce(ctx, method, p, who, req, f)
	}
	children, err := s.fork(ctx, method, p, who, req.GetId(), f)
	if err != nil {
		return nil, err
	}
	return s.toChildren(req.GetId(), children), nil
}

// fork makes children, unless they would have what their caller could not ask for.
func (s *Service) fork(ctx context.Context, method string, p auth.Principal, who orchestrator.Caller, id string, f orchestrator.ForkRequest) ([]orchestrator.Child, error) {
	parent, err := s.Orchestrator.Get(ctx, who.Tenant, id)
	if err != nil {
		return nil, err
	}
	if n := parent.Details.Network; n != nil {
		if err := s.maySet(ctx, method, p, n.Transforms); err != nil {
			return nil, err
		}
	}
	return s.Orchestrator.Fork(ctx, who, id, f)
}

// errChildless says that no child came of a fork, each for a reason of its own.
var errChildless = errors.New("no child could be made")

// forkOnce is fork under an idempotency key, whose result is the ids of the children,
// made or not, as they were chosen before.
func (s *Service) forkOnce(ctx context.Context, method string, p auth.Principal, who orchestrator.Caller, req *v1.ForkSandboxRequest, f orchestrator.ForkRequest) (*v1.ForkSandboxResponse, error) {
	f.IDs = f.ForkIDs()
	var ids []string
	for _, id := range f.IDs {
		ids = append(ids, string(id))
	}
	undo := func(ctx context.Context, abandoned string) error { // nobody learned of them
		var errs []error
		for _, id := range strings.Fields(abandoned) {
			if _, err := s.Orchestrator.Destroy(ctx, who, id); sandbox.KindOf(err) != sandbox.KindNotFound {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	var children []orchestrator.Child
	result, err := s.once(ctx, who, "fork", req, strings.Join(ids, " "), func(ctx context.Context) (err error) {
		children, err = s.fork(ctx, method, p, who, req.GetId(), f)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(children, func(c orchestrator.Child) bool { return c.Err == nil }) {
			err = errChildless
		}
		return err
	}, undo)
	switch {
	case err != nil && !errors.Is(err, errChildless):
		return nil, err
	case children != nil:
		return s.toChildren(req.GetId(), children), nil
	}
	for _, id := range strings.Fields(result) {
		c := orchestrator.Child{}
		if c.Sandbox, c.Err = s.Orchestrator.Get(context.WithoutCancel(ctx), who.Tenant, id); sandbox.KindOf(c.Err) == sandbox.KindNotFound {
			c.Err = sandbox.Errorf("fork", sandbox.KindNotFound, "this child could not be made when the request was carried out, and the answer then said why; or its record is gone").WithID(id)
		}
		children = append(children, c)
	}
	return s.toChildren(req.GetId(), children), nil
}

// toChildren is what a caller is told of the children of a parent.
func (s *Service) toChildren(parent string, children []orchestrator.Child) *v1.ForkSandboxResponse {
	resp := &v1.ForkSandboxResponse{Children: make([]*v1.ForkedSandbox, len(children))}
	for i, c := range children {
		if c.Err == nil {
			resp.Children[i] = &v1.ForkedSandbox{Outcome: &v1.ForkedSandbox_Sandbox{Sandbox: toSandbox(c.Sandbox)}}
		} else {
			resp.Children[i] = &v1.ForkedSandbox{Outcome: &v1.ForkedSandbox_Error{Error: s.childError(parent, c.Err)}}
		}
	}
	return resp
}

// childError is what a caller is told of a child that there is not: what a call of its
// own that failed would say.
func (s *Service) childError(parent string, err error) *v1.ErrorDetail {
	var e *sandbox.Error
	if !errors.As(err, &e) {
		s.Log.Error("a child of a fork", "sandbox", parent, "error", err)
		e = sandbox.Errorf("fork", sandbox.KindOf(err), "the child could not be made").WithHint("the server's log says more")
	}
	return &v1.ErrorDetail{Kind: string(e.Kind), Message: text(e.Message()), Hint: text(e.Hint), Op: text(e.Op), Id: text(e.ID),
		RetryAfterMs: e.RetryAfter.Milliseconds()}
}

// CreateSnapshot saves a sandbox, which goes on. Errors: those of PauseSandbox;
// KindExists when the name is taken, and not to be.
func (s *Service) CreateSnapshot(ctx context.Context, req *v1.CreateSnapshotRequest) (*v1.Snapshot, error) {
	who, _, err := s.allow(ctx, "SnapshotService.CreateSnapshot")
	if err != nil {
		return nil, err
	}
	ttl, err := optionalMillis("snapshot", "ttl_ms", req.TtlMs)
	if err != nil {
		return nil, err
	}
	snap, err := s.Orchestrator.CreateSnapshot(ctx, who, req.GetId(), orchestrator.SnapshotRequest{Name: req.GetName(), TTL: ttl, TakeName: req.GetTakeName()})
	if err != nil {
		return nil, err
	}
	return toSnapshot(snap), nil
}

// ListSnapshots lists the tenant's snapshots, newest first.
func (s *Service) ListSnapshots(ctx context.Context, _ *v1.ListSnapshotsRequest) (*v1.ListSnapshotsResponse, error) {
	who, _, err := s.allow(ctx, "SnapshotService.ListSnapshots")
	if err != nil {
		return nil, err
	}
	list, err := s.Orchestrator.ListSnapshots(ctx, who.Tenant)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListSnapshotsResponse{}
	for _, snap := range list {
		resp.Snapshots = append(resp.Snapshots, toSnapshot(snap))
	}
	return resp, nil
}

// RemoveSnapshot forgets a snapshot. Errors: KindNotFound.
func (s *Service) RemoveSnapshot(ctx context.Context, req *v1.RemoveSnapshotRequest) (*v1.RemoveSnapshotResponse, error) {
	who, _, err := s.allow(ctx, "SnapshotService.RemoveSnapshot")
	if err != nil {
		return nil, err
	}
	if _, err := s.Orchestrator.RemoveSnapshot(ctx, who, req.GetId()); err != nil {
		return nil, err
	}
	return &v1.RemoveSnapshotResponse{}, nil
}

func toSnapshot(s orchestrator.Snapshot) *v1.Snapshot {
	pids := int64(s.Limits.PIDs)
	return &v1.Snapshot{Id: string(s.ID), Name: s.Name, SandboxId: string(s.Sandbox), Template: s.Template, Bytes: s.Size,
		CreatedAt: stamp(s.Created), ExpiresAt: stamp(s.Expires), Digest: s.Digest,
		Limits: &v1.Limits{MemoryBytes: &s.Limits.Memory, Cpus: &s.Limits.CPUs, Pids: &pids, DiskBytes: &s.Limits.Disk}}
}

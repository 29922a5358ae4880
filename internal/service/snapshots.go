package service

import (
	"context"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
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

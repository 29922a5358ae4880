package service

import (
	"cmp"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// stamp converts a time; the zero time is absent.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func toSandbox(sb orchestrator.Sandbox) *v1.Sandbox {
	out := &v1.Sandbox{
		Id: string(sb.ID), Name: sb.Name, State: string(sb.State), Reason: string(sb.Reason), Detail: sb.Detail,
		Backend: sb.Backend, Isolation: sb.Isolation.String(), Template: sb.Template, TemplateDigest: sb.TemplateDigest,
		LanguagePack: sb.Details.Pack, Tier: sb.Tier, Metadata: sb.Metadata,
		Limits:        toLimits(sb.Limits, sb.Explicit, sb.Enforced),
		IdleTimeoutMs: sb.IdleTimeout.Milliseconds(), TimeoutMs: sb.MaxLife.Milliseconds(),
		CreatedAt: stamp(sb.Created), StartedAt: stamp(sb.Started), ExpiresAt: stamp(sb.ExpiresAt), EndedAt: stamp(sb.Ended),
		Usage: toUsage(sb.Usage), Receipt: toReceipt(sb.Receipt), ReadonlyRoot: sb.ReadonlyRoot,
		CreateMs: ms(sb.Details.Boot), Principal: sb.Principal, Notes: sb.Details.Notes, Network: toNetwork(sb.Details.Network), Bindings: sb.Bindings(),
	}
	out.Egress, out.EgressMore = toFlows(sb.Details.Flows)
	if sb.IdleTimeout > 0 {
		out.IdleAction = string(cmp.Or(sb.Details.IdleAction, orchestrator.IdleDestroy))
	}
	if d := sb.Details.Demand; d.Isolation > sandbox.IsolationNone {
		out.MinIsolation, out.DemandedBy = d.Isolation.String(), text(d.By)
	}
	out.Snapshot, out.ForkedFrom = sb.Details.From, string(sb.Details.Parent)
	out.ExpireAction = string(cmp.Or(sb.Details.ExpireAction, orchestrator.ExpireDestroy))
	out.Wake = string(cmp.Or(sb.Details.Wake, orchestrator.WakeUse))
	if p := sb.Details.Pause; p != nil && sb.State == store.Paused {
		out.PausedAt, out.PausedBytes = stamp(p.Since), p.Image.Size
	}
	if sb.State == store.Stopping { // decided, and not yet over
		out.Receipt = nil
	}
	return out
}

func toLimits(l sandbox.Limits, explicit, enforced sandbox.LimitSet) *v1.EffectiveLimits {
	one := func(v float64, set sandbox.LimitSet) *v1.EffectiveLimit {
		return &v1.EffectiveLimit{Value: v, Enforced: enforced&set != 0, Explicit: explicit&set != 0}
	}
	return &v1.EffectiveLimits{MemoryBytes: one(float64(l.Memory), sandbox.LimitMemory), Cpus: one(l.CPUs, sandbox.LimitCPU),
		Pids: one(float64(l.PIDs), sandbox.LimitPIDs), DiskBytes: one(float64(l.Disk), sandbox.LimitDisk)}
}

func toUsage(u sandbox.Usage) *v1.Usage {
	return &v1.Usage{CpuMs: ms(u.CPU), MemoryBytes: u.Memory, MemoryPeakBytes: u.MemoryPeak, OverheadBytes: u.Overhead,
		DiskBytes: u.Disk, Pids: int64(u.PIDs), OomKills: int64(u.OOMKills)}
}

func toReceipt(r *sandbox.Receipt) *v1.Receipt {
	if r == nil {
		return nil
	}
	out := &v1.Receipt{Instance: string(r.Instance), Clean: r.Clean, Time: stamp(r.Time), Objects: make([]*v1.ReceiptObject, len(r.Objects))}
	for i, o := range r.Objects {
		out.Objects[i] = &v1.ReceiptObject{Kind: text(o.Kind), Name: text(o.Name), Gone: o.Gone, Detail: text(o.Detail),
			Check: text(o.Check), CheckedAt: stamp(o.Checked)}
	}
	return out
}

func toFile(f guest.FileInfo) *v1.FileInfo {
	kind := "other"
	switch {
	case f.Mode.IsRegular():
		kind = "file"
	case f.Mode.IsDir():
		kind = "directory"
	case f.Target != "" || f.Mode.Type().String()[0] == 'L':
		kind = "symlink"
	}
	return &v1.FileInfo{Name: text(f.Name()), Path: text(f.Path), Type: kind, Size: f.Size, Mode: fmt.Sprintf("%o", permissions(f)),
		ModifiedAt: stamp(f.ModTime), Uid: int64(f.UID), Gid: int64(f.GID), LinkTarget: text(f.Target), Metadata: f.Attributes}
}

package service

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ListBackends reports what each backend enforces here, now, and what "auto"
// takes; empty if nothing that isolates works.
func (s *Service) ListBackends(ctx context.Context, req *v1.ListBackendsRequest) (*v1.ListBackendsResponse, error) {
	if _, _, err := s.allow(ctx, "SystemService.ListBackends"); err != nil {
		return nil, err
	}
	infos, auto, err := s.Orchestrator.Infos(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListBackendsResponse{Auto: auto}
	for _, i := range infos {
		c := i.Capabilities
		resp.Backends = append(resp.Backends, &v1.Backend{Name: i.Name, Isolation: i.Isolation.String(), Version: i.Version,
			Available: i.Available, Reason: i.Reason, Hint: i.Hint, Limits: c.Limits.Names(), ReadonlyRoot: c.ReadonlyRoot,
			Network: c.Wire, Snapshot: c.Snapshot, Pause: c.Pause, Fork: c.Snapshot, Attest: c.Attest, Boot: c.Boot, Notes: i.Notes, Emulated: i.Emulated})
	}
	return resp, nil
}

// GetQuota tells what the caller's tenant may have and has.
func (s *Service) GetQuota(ctx context.Context, req *v1.GetQuotaRequest) (*v1.GetQuotaResponse, error) {
	who, _, err := s.allow(ctx, "SystemService.GetQuota")
	if err != nil {
		return nil, err
	}
	resp := &v1.GetQuotaResponse{Tenant: string(who.Tenant)}
	for _, u := range s.Orchestrator.Quotas(who.Tenant) {
		q := &v1.Quota{Name: u.Name, Unit: string(u.Unit), Used: u.Used, Description: u.Doc}
		if u.Limit != orchestrator.Unlimited {
			q.Limit = proto.Int64(u.Limit)
		}
		resp.Quotas = append(resp.Quotas, q)
	}
	return resp, nil
}

// GetPool tells which sandboxes are kept ready for the caller's tenant.
func (s *Service) GetPool(ctx context.Context, req *v1.GetPoolRequest) (*v1.GetPoolResponse, error) {
	who, _, err := s.allow(ctx, "SystemService.GetPool")
	if err != nil {
		return nil, err
	}
	shelves, enabled, err := s.Orchestrator.Ready(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.GetPoolResponse{Enabled: enabled}
	places, err := s.Orchestrator.Places(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range places {
		if x.Shape.Tenant == who.Tenant {
			resp.Places = append(resp.Places, &v1.PoolPlaces{Backend: x.Backend, TemplateDigest: x.Shape.Digest, MemoryBytes: x.Shape.Limits.Memory, Cpus: x.Shape.Limits.CPUs,
				Ready: int32(x.Ready), Making: int32(x.Making), Wanted: int32(x.Want), UsedBytes: x.Used})
		}
	}
	for _, x := range shelves {
		if x.Shape.Tenant != who.Tenant {
			continue
		}
		l := x.Shape.Limits
		resp.Shelves = append(resp.Shelves, &v1.PoolShelf{Backend: x.Backend, TemplateDigest: x.Shape.Digest, MemoryBytes: l.Memory, Cpus: l.CPUs,
			Pids: int32(l.PIDs), DiskBytes: l.Disk, ReadonlyRoot: x.Shape.ReadonlyRoot, Ready: int32(x.Stat.Ready), Making: int32(x.Making),
			Wanted: int32(x.Want), Hits: int64(x.Hits), Misses: int64(x.Misses), Failed: int64(x.Failed), Pinned: x.Pinned})
	}
	return resp, nil
}

// PrewarmPool has sandboxes made ready for the caller's tenant. Errors: those of
// CreateSandbox for one that cannot be; KindUnsupported where nothing is kept ready.
func (s *Service) PrewarmPool(ctx context.Context, req *v1.PrewarmPoolRequest) (*v1.PrewarmPoolResponse, error) {
	const method = "SystemService.PrewarmPool"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	sb := req.GetSandbox()
	if sb == nil {
		sb = &v1.CreateSandboxRequest{}
	}
	c, err := s.createRequest(ctx, method, p, sb)
	if err != nil {
		return nil, err
	}
	return &v1.PrewarmPoolResponse{}, s.Orchestrator.Prewarm(ctx, who, c, int(req.GetCount()))
}

// DrainPool ends what is ready for the caller's tenant.
func (s *Service) DrainPool(ctx context.Context, req *v1.DrainPoolRequest) (*v1.DrainPoolResponse, error) {
	who, _, err := s.allow(ctx, "SystemService.DrainPool")
	if err != nil {
		return nil, err
	}
	n, err := s.Orchestrator.Drain(ctx, who)
	return &v1.DrainPoolResponse{Ended: int32(n)}, err
}

// GetVersion says what is running.
func (s *Service) GetVersion(ctx context.Context, req *v1.GetVersionRequest) (*v1.GetVersionResponse, error) {
	if _, _, err := s.allow(ctx, "SystemService.GetVersion"); err != nil {
		return nil, err
	}
	if s.Version == nil {
		return &v1.GetVersionResponse{}, nil
	}
	return proto.CloneOf(s.Version), nil
}

// CreateKey makes a key, at most as strong as the caller. The secret is in this
// answer and nowhere else.
func (s *Service) CreateKey(ctx context.Context, req *v1.CreateKeyRequest) (*v1.CreateKeyResponse, error) {
	const method = "KeyService.CreateKey"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	ttl, err := millis("key", "ttl_ms", req.GetTtlMs())
	if err != nil {
		return nil, err
	}
	role := auth.Role(req.GetRole())
	if role == "" {
		role = auth.Developer
	}
	n := auth.NewKeyRequest{Name: req.GetName(), Role: role, E2B: req.GetE2B()}
	if ttl > 0 {
		n.Expires = time.Now().Add(ttl).UTC()
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, map[string]string{"role": string(role)}); err != nil {
		return nil, err
	}
	secret, k, err := s.Auth.CreateKey(ctx, p, n)
	if err != nil {
		return nil, s.failed(ctx, p, method, req.GetName(), err)
	}
	if err := s.record(ctx, p, method, k.ID, sandbox.OutcomeDone, map[string]string{"role": k.Role}); err != nil {
		return nil, err
	}
	return &v1.CreateKeyResponse{Key: toKey(k), Secret: secret}, nil
}

func toKey(k store.Key) *v1.Key {
	return &v1.Key{Id: k.ID, Name: k.Name, Role: k.Role, CreatedAt: stamp(k.Created), LastUsedAt: stamp(k.LastUsed), ExpiresAt: stamp(k.Expires)}
}

// ListKeys lists the tenant's keys, without revoked ones.
func (s *Service) ListKeys(ctx context.Context, req *v1.ListKeysRequest) (*v1.ListKeysResponse, error) {
	who, _, err := s.allow(ctx, "KeyService.ListKeys")
	if err != nil {
		return nil, err
	}
	list, err := s.Store.Tenant(who.Tenant).ListKeys(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListKeysResponse{}
	for _, k := range list {
		if k.Revoked.IsZero() {
			resp.Keys = append(resp.Keys, toKey(k))
		}
	}
	return resp, nil
}

// DeleteKey revokes a key at once.
func (s *Service) DeleteKey(ctx context.Context, req *v1.DeleteKeyRequest) (*v1.DeleteKeyResponse, error) {
	const method = "KeyService.DeleteKey"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, p, method, req.GetId(), sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	if _, err := s.Auth.RevokeKey(ctx, p, req.GetId()); err != nil {
		return nil, s.failed(ctx, p, method, req.GetId(), err)
	}
	return &v1.DeleteKeyResponse{}, nil
}

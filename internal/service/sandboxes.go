package service

import (
	"context"
	"crypto/sha256"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// CreateSandbox makes a sandbox and returns when the agent inside has answered.
// The end of ctx undoes it, unless the context carries an idempotency key: then
// it goes on, so that a caller who lost the connection gets it by asking again.
//
// Errors: KindInvalid, KindNotFound (template, binding), KindUnsupported, KindExists
// (name), KindCapacity with RetryAfter, KindConflict (idempotency key).
func (s *Service) CreateSandbox(ctx context.Context, req *v1.CreateSandboxRequest) (*v1.Sandbox, error) {
	const method = "SandboxService.CreateSandbox"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	c, err := s.createRequest(ctx, method, p, req)
	if err != nil {
		return nil, err
	}
	if keyFrom(ctx) == "" { // nobody has to know the id before: it may be that of one which is ready
		sb, err := s.Orchestrator.Create(ctx, who, c)
		if err != nil {
			return nil, err
		}
		return toSandbox(sb), nil
	}
	defer s.Orchestrator.Reserve(ctx, who, &c)()
	id, err := s.once(ctx, who, "create", req, string(c.ID), func(ctx context.Context) error {
		_, err := s.Orchestrator.Create(ctx, who, c)
		return err
	}, func(ctx context.Context, abandoned string) error {
		_, err := s.Orchestrator.Destroy(ctx, who, abandoned)
		return err
	})
	if err != nil {
		return nil, err
	}
	sb, err := s.Orchestrator.Get(context.WithoutCancel(ctx), who.Tenant, id) // it exists, whoever still waits
	if err != nil {
		return nil, err
	}
	return toSandbox(sb), nil
}

// once does something that makes an object called id; under an idempotency key
// only if the same request has not been carried out before. It returns the id
// of what was made, now or then. undo removes what a dead process had begun to
// make under the key: nobody ever learned of it.
func (s *Service) once(ctx context.Context, who orchestrator.Caller, op string, req proto.Message, id string,
	do func(context.Context) error, undo func(context.Context, string) error) (string, error) {
	key := keyFrom(ctx)
	if key == "" {
		return id, do(ctx)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return "", sandbox.Wrap(op, id, err)
	}
	hash := sha256.Sum256(append([]byte(op+"\x00"), body...))
	res, err := s.Store.Tenant(who.Tenant).Reserve(ctx, store.Request{Key: key, Hash: hash, Result: id})
	if err != nil {
		return "", err
	}
	if res.Done() {
		return res.Result(), nil
	}
	ctx = context.WithoutCancel(ctx) // see CreateSandbox; the boot has a deadline of its own
	if prev := res.Abandoned(); prev != "" {
		if err := undo(ctx, prev); err != nil && sandbox.KindOf(err) != sandbox.KindNotFound {
			s.Log.Error("what an abandoned request made", "id", prev, "error", err)
		}
	}
	if err := do(ctx); err != nil {
		if e := res.Release(ctx); e != nil {
			s.Log.Error("idempotency key not released", "error", e)
		}
		return "", err
	}
	return id, res.Complete(ctx)
}

// createRequest converts and checks what a rule in the proto cannot say.
func (s *Service) createRequest(ctx context.Context, method string, p auth.Principal, req *v1.CreateSandboxRequest) (c orchestrator.CreateRequest, err error) {
	c = orchestrator.CreateRequest{Name: req.GetName(), Template: req.GetTemplate(), Backend: req.GetBackend(), Env: req.GetEnv(),
		Metadata: req.GetMetadata(), Tier: req.GetTier(), ReadonlyRoot: req.GetReadonlyRoot(), AcceptWeaker: req.GetAcceptWeaker(),
		Pack: req.GetLanguagePack(), Hostname: req.GetHostname(), IdleAction: orchestrator.IdleAction(req.GetIdleAction()), Bindings: req.GetBindings(), From: req.GetSnapshot(),
		ExpireAction: orchestrator.ExpireAction(req.GetExpireAction()), Wake: orchestrator.Wake(req.GetWake())}
	if v := req.GetMinIsolation(); v != "" {
		if c.MinIsolation, err = sandbox.ParseIsolation(v); err != nil {
			return c, err
		}
	}
	if c.IdleTimeout, err = optionalMillis("create", "idle_timeout_ms", req.IdleTimeoutMs); err != nil {
		return c, err
	}
	if c.Timeout, err = optionalMillis("create", "timeout_ms", req.TimeoutMs); err != nil {
		return c, err
	}
	if c.Limits, err = limits(req.GetLimits()); err != nil {
		return c, err
	}
	c.Network, c.Demand, err = s.network(ctx, method, p, req.GetNetwork())
	if err == nil && c.From != "" && c.Network == nil && len(c.Bindings) == 0 {
		err = s.mayInherit(ctx, method, p, c.From)
	}
	return c, err
}

// mayInherit refuses what a sandbox would have of a snapshot by itself, and its caller
// could not ask for: headers that name secrets.
func (s *Service) mayInherit(ctx context.Context, method string, p auth.Principal, snapshot string) error {
	n, err := s.Orchestrator.SavedNetwork(ctx, p.Tenant, snapshot)
	if err != nil || n == nil {
		return err
	}
	return s.maySet(ctx, method, p, n.Transforms)
}

// maySet refuses headers that name secrets to who may not say what those are for.
func (s *Service) maySet(ctx context.Context, method string, p auth.Principal, transforms []orchestrator.Transform) error {
	for _, t := range transforms {
		for _, h := range t.Headers {
			if h.Value == "" {
				continue
			}
			if _, err := auth.Require(ctx, auth.BindingWrite); err != nil {
				s.Refused(ctx, Refusal{Method: method, Principal: p, Err: err})
				return err
			}
		}
	}
	return nil
}

// limits converts explicit limits. Zero would mean "not asked for", so it is
// refused here, and so is what does not fit the types.
func limits(l *v1.Limits) (sandbox.Limits, error) {
	bad := func(name string, v any) (sandbox.Limits, error) {
		return sandbox.Limits{}, sandbox.Errorf("create", sandbox.KindInvalid, "limits.%s %v is out of range", name, v).
			WithHint("leave it out for the default")
	}
	switch {
	case l == nil:
		return sandbox.Limits{}, nil
	case l.MemoryBytes != nil && *l.MemoryBytes <= 0:
		return bad("memory_bytes", *l.MemoryBytes)
	case l.Cpus != nil && !(*l.Cpus > 0):
		return bad("cpus", *l.Cpus)
	case l.Pids != nil && (*l.Pids <= 0 || *l.Pids > math.MaxInt32):
		return bad("pids", *l.Pids)
	case l.DiskBytes != nil && *l.DiskBytes <= 0:
		return bad("disk_bytes", *l.DiskBytes)
	}
	out := sandbox.Limits{Memory: l.GetMemoryBytes(), CPUs: l.GetCpus(), PIDs: int(l.GetPids()), Disk: l.GetDiskBytes()}
	return out, out.Validate()
}

// GetSandbox returns one sandbox by id, dead or alive, or by name, alive.
func (s *Service) GetSandbox(ctx context.Context, req *v1.GetSandboxRequest) (*v1.Sandbox, error) {
	who, _, err := s.allow(ctx, "SandboxService.GetSandbox")
	if err != nil {
		return nil, err
	}
	sb, err := s.Orchestrator.Get(ctx, who.Tenant, req.GetId())
	if err != nil {
		return nil, err
	}
	return toSandbox(sb), nil
}

// GetMetrics returns what a sandbox used over its life.
func (s *Service) GetMetrics(ctx context.Context, req *v1.GetMetricsRequest) (*v1.SandboxMetrics, error) {
	who, _, err := s.allow(ctx, "SandboxService.GetMetrics")
	if err != nil {
		return nil, err
	}
	for name, t := range map[string]*timestamppb.Timestamp{"start": req.GetStart(), "end": req.GetEnd()} {
		if t != nil && !t.IsValid() {
			return nil, sandbox.Errorf("metrics", sandbox.KindInvalid, "%s is not a time", name)
		}
	}
	sb, series, err := s.Orchestrator.Metrics(ctx, who.Tenant, req.GetId())
	if err != nil {
		return nil, err
	}
	out := &v1.SandboxMetrics{IntervalMs: series.Every.Milliseconds(), Limits: toLimits(sb.Limits, sb.Explicit, sb.Enforced)}
	before := orchestrator.Sample{At: sb.Started}
	for _, m := range series.Samples {
		sample := &v1.MetricSample{Time: stamp(m.At), CpuMs: ms(m.CPU), MemoryBytes: m.Memory, DiskBytes: m.Disk, Pids: int64(m.PIDs)}
		if d := m.At.Sub(before.At); d > 0 && m.CPU > before.CPU && !before.At.IsZero() {
			sample.Cpus = float64(m.CPU-before.CPU) / float64(d)
		}
		before = m
		if (req.Start == nil || !m.At.Before(req.Start.AsTime())) && (req.End == nil || m.At.Before(req.End.AsTime())) {
			out.Samples = append(out.Samples, sample)
		}
	}
	return out, nil
}

// ListSandboxes returns one page, newest first.
func (s *Service) ListSandboxes(ctx context.Context, req *v1.ListSandboxesRequest) (*v1.ListSandboxesResponse, error) {
	who, _, err := s.allow(ctx, "SandboxService.ListSandboxes")
	if err != nil {
		return nil, err
	}
	f := store.Filter{Metadata: req.GetMetadata()}
	all := []store.State{store.Creating, store.Running, store.Paused, store.Stopping, store.Ended}
	switch st := req.GetState(); {
	case st == "":
		f.States = all[:4]
	case st == "all":
	case slices.Contains(all, store.State(st)):
		f.States = []store.State{store.State(st)}
	default:
		return nil, sandbox.Errorf("list", sandbox.KindInvalid, "unknown state %.32q", st).
			WithHint("creating, running, paused, stopping, ended, all, or nothing for those that have not ended")
	}
	list, next, err := s.Orchestrator.List(ctx, who.Tenant, f, store.Page{Size: int(req.GetPageSize()), Token: req.GetPageToken()})
	if err != nil {
		return nil, err
	}
	resp := &v1.ListSandboxesResponse{NextPageToken: next, Sandboxes: make([]*v1.Sandbox, len(list))}
	for i, sb := range list {
		out := toSandbox(sb)
		out.Egress, out.EgressMore = nil, 0 // large, as texts are
		for _, d := range out.GetNetwork().GetDocuments() {
			d.Text = ""
		}
		resp.Sandboxes[i] = out
	}
	return resp, nil
}

// DestroySandbox ends a sandbox and returns its receipt; again: the same
// answer. It goes on if ctx ends. Errors: KindNotFound; KindInternal when
// something resisted, which is tried again.
func (s *Service) DestroySandbox(ctx context.Context, req *v1.DestroySandboxRequest) (*v1.DestroySandboxResponse, error) {
	who, _, err := s.allow(ctx, "SandboxService.DestroySandbox")
	if err != nil {
		return nil, err
	}
	sb, err := s.Orchestrator.Destroy(ctx, who, req.GetId())
	if err != nil {
		return nil, err
	}
	return &v1.DestroySandboxResponse{Id: string(sb.ID), State: string(sb.State), Reason: string(sb.Reason),
		Usage: toUsage(sb.Usage), Receipt: toReceipt(sb.Receipt)}, nil
}

// SetTimeout moves the moment the sandbox ends by itself.
func (s *Service) SetTimeout(ctx context.Context, req *v1.SetTimeoutRequest) (*v1.Sandbox, error) {
	who, _, err := s.allow(ctx, "SandboxService.SetTimeout")
	if err != nil {
		return nil, err
	}
	var d time.Duration
	if d, err = millis("timeout", "timeout_ms", req.GetTimeoutMs()); err != nil {
		return nil, err
	}
	sb, err := s.Orchestrator.SetTimeout(ctx, who, req.GetId(), d, req.GetExtendOnly())
	if err != nil {
		return nil, err
	}
	return toSandbox(sb), nil
}

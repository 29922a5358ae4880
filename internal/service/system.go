package service

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
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
			Network: c.Wire, Snapshot: c.Snapshot, Pause: c.Pause, Fork: c.Fork, Attest: c.Attest, Notes: i.Notes})
	}
	return resp, nil
}

// ListTemplates lists what sandboxes may start from, and what could be built.
func (s *Service) ListTemplates(ctx context.Context, req *v1.ListTemplatesRequest) (*v1.ListTemplatesResponse, error) {
	if _, _, err := s.allow(ctx, "SystemService.ListTemplates"); err != nil {
		return nil, err
	}
	list, err := s.Templates.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListTemplatesResponse{}
	built := map[string]bool{}
	for _, t := range list {
		built[t.Name] = true
		resp.Templates = append(resp.Templates, toTemplate(t))
	}
	for _, pack := range []string{template.Python, template.Node, template.Shell} {
		if !built[pack] {
			resp.Templates = append(resp.Templates, &v1.Template{Name: pack, State: "available", LanguagePacks: []string{pack},
				Description: "not built: firebreak template build " + pack})
		}
	}
	return resp, nil
}

func toTemplate(t template.Template) *v1.Template {
	out := &v1.Template{Name: t.Name, Digest: t.Digest, State: "built", SizeBytes: t.Size, LanguagePacks: t.Packs,
		CreatedAt: stamp(t.Created), Mutable: t.Root.Mutable, Description: t.Description}
	if t.Damaged != "" {
		out.State, out.Description = "damaged", t.Damaged
	}
	return out
}

// BuildTemplate builds a template; the last event holds it. The end of ctx, or
// an error from send, stops the build and leaves nothing of it.
func (s *Service) BuildTemplate(ctx context.Context, req *v1.BuildTemplateRequest, send func(*v1.BuildTemplateEvent) error) error {
	const method = "SystemService.BuildTemplate"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return err
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var broken error
	t, err := s.Templates.Build(ctx, req.GetName(), template.BuildOptions{Progress: func(g template.Progress) {
		if broken == nil {
			broken = send(&v1.BuildTemplateEvent{Event: &v1.BuildTemplateEvent_Progress{Progress: &v1.BuildProgress{
				Stage: string(g.Stage), Percent: int32(g.Percent), Text: text(g.Line)}}})
		}
		if broken != nil {
			cancel()
		}
	}})
	if broken != nil {
		err = broken
	}
	outcome, detail := sandbox.OutcomeDone, map[string]string{"digest": t.Digest}
	if err != nil {
		outcome, detail = sandbox.OutcomeFailed, nil
	}
	if e := s.record(context.WithoutCancel(ctx), p, method, req.GetName(), outcome, detail); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return send(&v1.BuildTemplateEvent{Event: &v1.BuildTemplateEvent_Template{Template: toTemplate(t)}})
}

// RemoveTemplate removes a built template. Errors: KindNotFound; KindConflict
// while a sandbox uses it.
func (s *Service) RemoveTemplate(ctx context.Context, req *v1.RemoveTemplateRequest) (*v1.RemoveTemplateResponse, error) {
	const method = "SystemService.RemoveTemplate"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	if err := s.Templates.Remove(ctx, req.GetName()); err != nil {
		return nil, err
	}
	return &v1.RemoveTemplateResponse{}, nil
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
	n := auth.NewKeyRequest{Name: req.GetName(), Role: role}
	if ttl > 0 {
		n.Expires = time.Now().Add(ttl).UTC()
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, map[string]string{"role": string(role)}); err != nil {
		return nil, err
	}
	secret, k, err := s.Auth.CreateKey(ctx, p, n)
	if err != nil {
		return nil, err
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
		return nil, err
	}
	return &v1.DeleteKeyResponse{}, nil
}

package service

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// AddBinding stores a binding, in place of what was there. Errors: KindInvalid with
// what to write instead; KindNotFound for its secret; KindCapacity.
func (s *Service) AddBinding(ctx context.Context, req *v1.AddBindingRequest) (*v1.Binding, error) {
	const method = "SecretService.AddBinding"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	b, err := fromBinding(req)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(b)
	if err != nil {
		return nil, sandbox.Wrap("binding", b.Name, err)
	}
	r := sandbox.Record{Tenant: p.Tenant, Principal: p.ID, Action: s.access[method].GetAction(), Outcome: sandbox.OutcomeAllowed, Object: b.Name,
		Digest: digest(body), Detail: bindingDetail(b)}
	if _, err := s.Recorder.Record(ctx, r); err != nil {
		return nil, sandbox.Wrap("record", b.Name, err)
	}
	row, err := s.Store.Tenant(p.Tenant).SetBinding(ctx, store.Binding{Name: b.Name, Secret: b.Secret, Body: body, Principal: p.ID})
	if err != nil {
		return nil, s.failed(ctx, p, method, b.Name, err)
	}
	return toBinding(row)
}

// fromBinding makes a binding in normal form of what a request says.
func fromBinding(req *v1.AddBindingRequest) (b broker.Binding, err error) {
	if port := req.GetPort(); port < 0 || port > 65535 {
		return b, sandbox.Errorf("binding", sandbox.KindInvalid, "port: %d is none", port).WithHint("a port is a number from 1 to 65535")
	}
	b = broker.Binding{Name: req.GetName(), Secret: req.GetSecret(), Host: req.GetHost(), Port: uint16(req.GetPort()), Plain: req.GetPlain(),
		Methods: req.GetMethods(), Path: req.GetPath(), Inject: broker.Inject{As: req.GetAs(), Name: req.GetField()}, Env: req.GetPlaceholder()}
	switch {
	case req.GetGit() != "":
		b.Git = &broker.Git{Repo: req.GetGit(), Push: req.GetGitPush()}
	case len(req.GetGitPush()) > 0:
		return b, sandbox.Errorf("binding", sandbox.KindInvalid, "git-push: the binding is not for git").WithHint("say for which repository: --git OWNER/NAME")
	}
	if req.GetTier() != "" {
		if b.Tier, err = sandbox.ParseIsolation(req.GetTier()); err != nil {
			return b, err
		}
	}
	return b.Normal()
}

// bindingDetail is what a record says of a binding.
func bindingDetail(b broker.Binding) map[string]string {
	d := map[string]string{"secret": b.Secret, "host": b.Host, "port": strconv.Itoa(int(b.Port)), "path": b.Path, "as": b.Inject.As}
	if b.Plain {
		d["plain"] = "true"
	}
	if len(b.Methods) > 0 {
		d["methods"] = strings.Join(b.Methods, " ")
	}
	if b.Git != nil {
		d["git"], d["push"] = b.Git.Repo, strings.Join(b.Git.Push, " ")
	}
	if b.Inject.Name != "" {
		d["field"] = b.Inject.Name
	}
	if b.Env != "" {
		d["placeholder"] = b.Env
	}
	if b.Tier != sandbox.IsolationNone {
		d["tier"] = b.Tier.String()
	}
	return d
}

func toBinding(row store.Binding) (*v1.Binding, error) {
	var b broker.Binding
	if err := json.Unmarshal(row.Body, &b); err != nil {
		return nil, sandbox.Errorf("binding", sandbox.KindInternal, "what is stored is no binding: %w", err).WithID(row.Name).
			WithHint("add it again: `firebreak binding add`")
	}
	out := &v1.Binding{Name: row.Name, Secret: row.Secret, Host: b.Host, Port: int32(b.Port), Plain: b.Plain, Methods: b.Methods, Path: b.Path,
		As: b.Inject.As, Field: b.Inject.Name, Placeholder: b.Env, Version: row.Version, CreatedAt: stamp(row.Created), UpdatedAt: stamp(row.Updated), Principal: row.Principal}
	if b.Git != nil {
		out.Git, out.GitPush = b.Git.Repo, b.Git.Push
	}
	if b.Tier != sandbox.IsolationNone {
		out.Tier = b.Tier.String()
	}
	return out, nil
}

func noBinding(name string) error {
	return sandbox.Errorf("binding", sandbox.KindNotFound, "there is no binding called %.80q", name).
		WithHint("`firebreak binding ls` lists those there are, `firebreak binding add` makes one")
}

// ListBindings lists the tenant's bindings.
func (s *Service) ListBindings(ctx context.Context, _ *v1.ListBindingsRequest) (*v1.ListBindingsResponse, error) {
	who, _, err := s.allow(ctx, "SecretService.ListBindings")
	if err != nil {
		return nil, err
	}
	list, err := s.Store.Tenant(who.Tenant).ListBindings(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListBindingsResponse{}
	for _, row := range list {
		b, err := toBinding(row)
		if err != nil {
			return nil, err
		}
		resp.Bindings = append(resp.Bindings, b)
	}
	return resp, nil
}

// GetBinding returns one binding. Errors: KindNotFound.
func (s *Service) GetBinding(ctx context.Context, req *v1.GetBindingRequest) (*v1.Binding, error) {
	who, _, err := s.allow(ctx, "SecretService.GetBinding")
	if err != nil {
		return nil, err
	}
	row, err := s.Store.Tenant(who.Tenant).Binding(ctx, req.GetName())
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return nil, noBinding(req.GetName())
	}
	if err != nil {
		return nil, err
	}
	return toBinding(row)
}

// RemoveBinding forgets a binding. Errors: KindNotFound; KindConflict, which names
// them, while living sandboxes have it.
func (s *Service) RemoveBinding(ctx context.Context, req *v1.RemoveBindingRequest) (*v1.RemoveBindingResponse, error) {
	const method = "SecretService.RemoveBinding"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := broker.CheckBindingName(req.GetName()); err != nil {
		return nil, err
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	err = s.Orchestrator.Unbind(who.Tenant, req.GetName(), func() error {
		_, err := s.Store.Tenant(who.Tenant).RemoveBinding(ctx, req.GetName())
		return err
	})
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		err = noBinding(req.GetName())
	}
	if err != nil {
		return nil, s.failed(ctx, p, method, req.GetName(), err)
	}
	return &v1.RemoveBindingResponse{}, nil
}

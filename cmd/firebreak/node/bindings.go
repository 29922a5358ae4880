package node

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// bindings joins what is stored of tenants' bindings, their secrets, and the router.
type bindings struct {
	store   *store.Store
	secrets broker.Source
}

var _ orchestrator.Bindings = (*bindings)(nil)

// newBindings is nil where no secrets are kept.
func newBindings(st *store.Store, b *broker.Broker) *bindings {
	if b == nil {
		return nil
	}
	return &bindings{st, b}
}

func (b *bindings) find(ctx context.Context, tenant sandbox.TenantID, name string) (x broker.Binding, err error) {
	row, err := b.store.Tenant(tenant).Binding(ctx, name)
	if err != nil {
		return x, err
	}
	if err := json.Unmarshal(row.Body, &x); err != nil {
		return x, sandbox.Errorf("binding", sandbox.KindInternal, "what is stored is no binding: %w", err).WithID(name)
	}
	return x, x.Check()
}

// Needs implements orchestrator.Bindings.
func (b *bindings) Needs(ctx context.Context, tenant sandbox.TenantID, name string) (sandbox.Isolation, error) {
	x, err := b.find(ctx, tenant, name)
	return x.Tier, err
}

// resolve is a binding as the router takes it, with its secret, which the caller
// overwrites when the router has it. Errors: KindNotFound; KindUnavailable when the
// secret cannot be had now.
func (b *bindings) resolve(ctx context.Context, tenant sandbox.TenantID, name string) (egress.Binding, error) {
	x, err := b.find(ctx, tenant, name)
	if err != nil {
		return egress.Binding{}, err
	}
	s, err := b.secrets.Get(ctx, tenant, x.Secret)
	if err != nil {
		return egress.Binding{}, err
	}
	defer s.Destroy()
	out := egress.Binding{Name: x.Name, Host: x.Host, Port: x.Port, Plain: x.Plain, Methods: x.Methods, Path: x.Path, As: x.Inject.As, Field: x.Inject.Name, Git: (*egress.Git)(x.Git)}
	s.Use(func(plain []byte) { out.Secret = bytes.Clone(plain) })
	return out, nil
}

// resolveAll is resolve for those of a wire. What cannot be had is left out, and errs
// says why.
func (b *bindings) resolveAll(ctx context.Context, p orchestrator.Egress) (list []egress.Binding, errs []error) {
	for _, name := range p.Bindings {
		x, err := b.resolve(ctx, p.Tenant, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, x)
	}
	return list, errs
}

// wipe overwrites the secrets of bindings that the router has.
func wipe(list []egress.Binding) {
	for i := range list {
		clear(list[i].Secret)
	}
}

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// bindings joins what is stored of tenants' bindings, their secrets, and the router.
type bindings struct {
	store   *store.Store
	secrets *broker.Broker
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
func (b *bindings) Needs(ctx context.Context, tenant sandbox.TenantID, name string) (orchestrator.BindingNeeds, error) {
	x, err := b.find(ctx, tenant, name)
	return orchestrator.BindingNeeds{Isolation: x.Tier, Env: x.Env}, err
}

// resolve is a binding as the router takes it, with its secret, which the caller
// overwrites when the router has it. Errors: KindNotFound; KindUnavailable when the
// secret cannot be had now.
func (b *bindings) resolve(ctx context.Context, p orchestrator.Egress, name string) (egress.Binding, error) {
	x, err := b.find(ctx, p.Tenant, name)
	if err != nil {
		return egress.Binding{}, err
	}
	s, err := b.secrets.Get(ctx, p.Tenant, x.Secret)
	if err != nil {
		return egress.Binding{}, err
	}
	defer s.Destroy()
	out := egress.Binding{Name: x.Name, Host: x.Host, Port: x.Port, Plain: x.Plain, Methods: x.Methods, Path: x.Path, As: x.Inject.As, Field: x.Inject.Name, Git: (*egress.Git)(x.Git)}
	s.Use(func(plain []byte) { out.Secret = bytes.Clone(plain) })
	if own := p.Placeholders[name]; x.Env != "" && own != "" { // of a binding that wants none any more it stands for nothing
		out.Placeholder = egress.Hidden(own)
		for _, text := range p.Inherited[name] {
			out.Inherited = append(out.Inherited, egress.Hidden(text))
		}
	}
	return out, nil
}

// transform is one as the router takes it, with secrets, which the caller overwrites
// when the router has it. Errors: KindNotFound; KindUnavailable when a secret cannot
// be had now.
func (b *bindings) transform(ctx context.Context, from broker.Source, tenant sandbox.TenantID, t orchestrator.Transform) (out egress.Transform, err error) {
	out = egress.Transform{Host: t.Host, Port: 443}
	defer func() {
		if err != nil {
			out.Wipe()
		}
	}()
	for _, h := range t.Headers {
		value, secrets, err := b.header(ctx, from, tenant, h)
		if err != nil {
			return out, err
		}
		out.Headers = append(out.Headers, egress.TransformHeader{Name: h.Name, Value: value})
		for _, s := range secrets {
			if slices.ContainsFunc(out.Secrets, func(had egress.Hidden) bool { return bytes.Equal(had, s) }) {
				clear(s)
				continue
			}
			out.Secrets = append(out.Secrets, s)
		}
	}
	return out, nil
}

// header is the value of one, and the secrets in it.
func (b *bindings) header(ctx context.Context, from broker.Source, tenant sandbox.TenantID, h orchestrator.TransformHeader) (value []byte, secrets [][]byte, err error) {
	if h.Value != "" {
		v, err := broker.ParseHeaderValue(h.Value)
		if err != nil {
			return nil, nil, err
		}
		return v.Resolve(ctx, from, tenant)
	}
	s, err := b.secrets.Open(tenant, orchestrator.SealedName, h.Sealed)
	if err != nil {
		return nil, nil, err
	}
	defer s.Destroy()
	s.Use(func(plain []byte) { value = bytes.Clone(plain) })
	if credential := broker.Credential(h.Name, value); credential != nil { // nobody writes one down twice
		secrets = append(secrets, credential)
	}
	return value, secrets, nil
}

// granted is what a wire's requests may be made with.
type granted struct {
	bindings   []egress.Binding
	transforms []egress.Transform
}

// resolveAll is resolve for those of a wire. What cannot be had is left out, and errs
// says why.
func (b *bindings) resolveAll(ctx context.Context, p orchestrator.Egress) (g granted, errs []error) {
	for _, name := range p.Bindings {
		x, err := b.resolve(ctx, p, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		g.bindings = append(g.bindings, x)
	}
	from := &opened{had: map[string]*broker.Secret{}}
	if b != nil {
		from.Source = b.secrets
	}
	defer from.forget()
	for _, t := range p.Transforms {
		if b == nil {
			return g, append(errs, sandbox.Errorf("transform", sandbox.KindUnsupported, "no secrets are kept here").WithID(t.Host))
		}
		x, err := b.transform(ctx, from, p.Tenant, t)
		if err != nil {
			errs = append(errs, sandbox.Wrap("transform", t.Host, err))
			continue
		}
		g.transforms = append(g.transforms, x)
	}
	return g, errs
}

// opened opens each secret of a tenant once, however often headers refer to it.
type opened struct {
	broker.Source // of one tenant's
	had           map[string]*broker.Secret
}

// Get implements broker.Source. What it returns is the caller's own.
func (o *opened) Get(ctx context.Context, tenant sandbox.TenantID, name string) (*broker.Secret, error) {
	had := o.had[name]
	if had == nil {
		var err error
		if had, err = o.Source.Get(ctx, tenant, name); err != nil {
			return nil, err
		}
		o.had[name] = had
	}
	var out *broker.Secret
	had.Use(func(plain []byte) { out = broker.NewSecret(bytes.Clone(plain)) })
	return out, nil
}

// forget overwrites them.
func (o *opened) forget() {
	for _, s := range o.had {
		s.Destroy()
	}
}

// using is what of p is made with a secret.
func (b *bindings) using(ctx context.Context, p orchestrator.Egress, secret string) orchestrator.Egress {
	out := orchestrator.Egress{Tenant: p.Tenant, Placeholders: p.Placeholders, Inherited: p.Inherited}
	for _, name := range p.Bindings {
		if x, err := b.find(ctx, p.Tenant, name); err == nil && x.Secret == secret {
			out.Bindings = append(out.Bindings, name)
		}
	}
	for _, t := range p.Transforms {
		if slices.ContainsFunc(t.Headers, func(h orchestrator.TransformHeader) bool {
			v, err := broker.ParseHeaderValue(h.Value)
			return err == nil && slices.Contains(v.Secrets(), secret)
		}) {
			out.Transforms = append(out.Transforms, t)
		}
	}
	return out
}

// wipe overwrites what the router has.
func (g *granted) wipe() {
	for i := range g.bindings {
		g.bindings[i].Wipe()
	}
	for i := range g.transforms {
		g.transforms[i].Wipe()
	}
}

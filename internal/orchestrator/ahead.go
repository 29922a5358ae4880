package orchestrator

import (
	"context"

	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ahead is a Backend that has instances ready: package pool's.
type ahead interface {
	Claim(sandbox.Spec) (pool.Claimed, bool)
	Return(sandbox.InstanceID)
}

// claim makes the sandbox one that is ready, if there is one. It has its name
// already, so whoever brings an id or a name for the guest gets one of his own. Until
// it is created, the plan's release gives it back.
func (p *plan) claim(req *CreateRequest) {
	b, ok := p.backend.(ahead)
	if !ok || req.ID != "" || req.Hostname != "" {
		return
	}
	c, ok := b.Claim(p.spec)
	if !ok {
		return
	}
	p.spec.Instance, p.spec.Sandbox, p.spec.Hostname = c.Instance, c.Sandbox, string(c.Sandbox)
	p.sb.ID, p.sb.Instance, p.sb.Details.Hostname = c.Sandbox, c.Instance, p.spec.Hostname
	release := p.release
	p.release = func() {
		b.Return(c.Instance)
		release()
	}
}

// Stock is pool.Options' Stock, for the templates that sandboxes are made of here.
// Errors: KindNotFound for a template that is gone.
func (o *Orchestrator) Stock(ctx context.Context, s pool.Shape) (pool.Stock, error) {
	t, err := o.Templates.Resolve(ctx, s.Digest)
	if err != nil {
		return pool.Stock{}, err
	}
	release, err := o.Templates.Acquire(t.Digest)
	if err != nil {
		return pool.Stock{}, err
	}
	st := pool.Stock{Shape: s, Root: t.Root, Release: release}
	if r := runners[t.Default]; r.standby {
		st.Pack, st.Env = t.Default, environment(t.Env, r.env, nil)
	}
	return st, nil
}

// Shape is what a sandbox that is asked for with nothing but defaults has in common
// with others. Errors: as Create.
func (o *Orchestrator) Shape(ctx context.Context) (pool.Shape, error) {
	p, err := o.plan(ctx, Caller{}, CreateRequest{})
	if err != nil {
		return pool.Shape{}, err
	}
	p.release()
	s, _ := pool.ShapeOf(p.spec)
	return s, nil
}

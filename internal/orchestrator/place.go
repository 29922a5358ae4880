package orchestrator

import (
	"context"

	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// places are where the backend called name has instances ready to restore into; nil:
// it has none. Their methods are to be called on what is not nil.
func (o *Orchestrator) places(ctx context.Context, name string) *pool.Places {
	b, _, err := o.made(ctx, name)
	if p, ok := b.(interface{ Places() *pool.Places }); ok && err == nil {
		return p.Places()
	}
	return nil
}

// incarnation is what an instance of the sandbox is made by; its root is known by its
// digest only.
func (sb *Sandbox) incarnation() sandbox.Spec {
	return sandbox.Spec{Sandbox: sb.ID, Tenant: sb.Tenant, Hostname: sb.Details.Hostname, Root: sandbox.Root{Digest: sb.TemplateDigest}, ReadonlyRoot: sb.ReadonlyRoot,
		Limits: sb.Limits, Explicit: sb.Explicit, AcceptWeaker: sb.AcceptWeaker, MinIsolation: sb.Details.Demand.Isolation}
}

// expect has a place made for a sandbox that was just paused: it is likely that
// somebody wants it back.
func (l *live) expect(ctx context.Context) {
	sb := l.snapshotWithEnv()
	if p := l.o.places(ctx, sb.Backend); p != nil && sb.Details.Network == nil {
		p.Expect(sb.incarnation(), false, 1)
	}
}

// forgo gives up the place of a sandbox that ends while it is paused.
func (l *live) forgo(ctx context.Context) {
	sb := l.snapshotWithEnv()
	if p := l.o.places(ctx, sb.Backend); p != nil {
		p.Forgo(sb.incarnation())
	}
}

// place is the id of the sandbox's next instance. That may be there already, without a
// guest; vacate is for when it is not restored into.
func (l *live) place(ctx context.Context) (id sandbox.InstanceID, vacate func()) {
	sb := l.snapshotWithEnv()
	if p := l.o.places(ctx, sb.Backend); p != nil && sb.Details.Network == nil {
		if c, ok := p.Claim(sb.incarnation(), false); ok {
			return c.Instance, func() { p.Vacate(c.Instance) }
		}
	}
	return sandbox.NewInstanceID(), func() {}
}

// claimPlace finds an instance without a guest for what a plan goes on from. It has
// the name of its sandbox, so whoever brings an id or a name for the guest gets one of
// his own. Others like it are made for the next.
func (p *plan) claimPlace(req *CreateRequest) {
	b, ok := p.backend.(interface{ Places() *pool.Places })
	if !ok || p.from == nil || p.sb.Details.Network != nil || p.spec.Hostname != string(p.spec.Sandbox) {
		return
	}
	places := b.Places()
	if places == nil || req.ID != "" {
		return
	}
	if c, ok := places.Claim(p.spec, true); ok {
		p.spec.Instance, p.spec.Sandbox, p.spec.Hostname = c.Instance, c.Sandbox, string(c.Sandbox)
		p.sb.ID, p.sb.Instance, p.sb.Details.Hostname = c.Sandbox, c.Instance, p.spec.Hostname
		p.vacate = func() { places.Vacate(c.Instance) }
	}
}

// expectChildren has places made for the children of the sandbox.
func (l *live) expectChildren(ctx context.Context, n int) {
	sb := l.snapshotWithEnv()
	if p := l.o.places(ctx, sb.Backend); p != nil && sb.Details.Network == nil {
		p.Expect(sb.incarnation(), true, n)
	}
}

// momentary is saver for an image that this server needs now and nobody later. nil
// stays nil.
func (l *live) momentary(saver sandbox.Snapshotter) sandbox.Snapshotter {
	if h, ok := saver.(sandbox.Holder); ok && l.snapshotWithEnv().Details.Network == nil {
		return holder{h}
	}
	return saver
}

// holder is a Snapshotter whose image has no directory.
type holder struct{ sandbox.Holder }

// Snapshot implements sandbox.Snapshotter.
func (h holder) Snapshot(ctx context.Context, _ string) (sandbox.Snapshot, error) { return h.Hold(ctx) }

// letGo ends what was held for s, if anything was.
func (o *Orchestrator) letGo(ctx context.Context, s savedState) {
	if !s.Image.Held {
		return
	}
	b, _, err := o.made(context.WithoutCancel(ctx), s.Backend)
	if r, ok := b.(interface{ Release(sandbox.Snapshot) }); ok && err == nil {
		r.Release(o.images.snapshot(s.Image, Sandbox{}))
	}
}

package orchestrator

import (
	"context"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// classed is the model as if its boundary were one.
type classed struct {
	sandbox.Backend
	info sandbox.Info
}

func (b classed) Info(ctx context.Context) (sandbox.Info, error) {
	i, err := b.Backend.Info(ctx)
	i.Name, i.Isolation, i.Emulated, i.Capabilities.Wire = b.info.Name, b.info.Isolation, b.info.Emulated, true
	return i, err
}

func (b classed) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	if err := b.info.Check(sandbox.Spec{MinIsolation: spec.MinIsolation}); err != nil {
		return nil, err
	}
	spec.MinIsolation, spec.Wire = sandbox.IsolationNone, nil
	return b.Backend.Create(ctx, spec)
}

// twoClasses is a world with a backend of gVisor's class, and an emulated one of a
// virtual machine's.
func twoClasses(t *testing.T) (*world, *wires) {
	t.Helper()
	w, n := newWiredWorld(t)
	fast := classed{w.sim, sandbox.Info{Name: "fast", Isolation: sandbox.IsolationUserKernel, Available: true}}
	other := sim.New(sim.Config{})
	slow := classed{other, sandbox.Info{Name: "slow", Isolation: sandbox.IsolationHypervisor, Available: true, Emulated: true}}
	t.Cleanup(func() {
		if list, err := other.List(context.Background()); err != nil || len(list) > 0 {
			t.Errorf("left: %v, %v", list, err)
		}
	})
	w.cfg = func(c *Config) {
		c.Network, c.Backends, c.Defaults.Backend = n, []sandbox.Backend{fast, slow}, Auto
	}
	return w, n
}

// hypervisor is what a policy demands that was stored under the name strong.
var hypervisor = policy.Demand{Isolation: sandbox.IsolationHypervisor, By: "policy strong"}

// TestPolicyDemands: what a policy demands decides which backend is taken, or that none
// is; it says who demands it; and a sandbox is held to it from then on.
func TestPolicyDemands(t *testing.T) {
	w, n := twoClasses(t)
	o := w.start()
	strong := policyOf("min_isolation: hypervisor\nallow: []")
	strong.Demand = hypervisor

	// Nothing demanded; demanded by a policy with rules, and by one without.
	weak := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: []")})
	if weak.Backend != "fast" || weak.Details.Demand != (policy.Demand{}) {
		t.Errorf("%s, %+v", weak.Backend, weak.Details.Demand)
	}
	for name, req := range map[string]CreateRequest{"rules": {Network: strong}, "none": {Demand: hypervisor}, "and the request less": {Demand: hypervisor, MinIsolation: sandbox.IsolationSharedKernel}} {
		sb := mustCreate(t, o, alice, req)
		if sb.Backend != "slow" || sb.Isolation != sandbox.IsolationHypervisor || sb.Details.Demand != hypervisor || (sb.Details.Network != nil) != (req.Network != nil) {
			t.Errorf("%s: %s, %+v, %v", name, sb.Backend, sb.Details.Demand, sb.Details.Network)
		}
		if note := strings.Join(sb.Details.Notes, "; "); !strings.Contains(note, "backend slow chosen: policy strong demands hypervisor") {
			t.Errorf("%s: it does not say why: %q", name, note)
		}
		if r := w.audit.find(t, sb.ID, "sandbox.create allowed"); r.Detail["min_isolation"] != "hypervisor" || r.Detail["demanded_by"] != "policy strong" {
			t.Errorf("%s: %v", name, r.Detail)
		}
	}
	// A weaker one by name, and what nobody has: refused, whatever is accepted.
	for name, c := range map[string]struct {
		req  CreateRequest
		hint string
	}{
		"by name":    {CreateRequest{Backend: "fast", Demand: hypervisor}, "slow (emulated"},
		"with rules": {CreateRequest{Backend: "fast", Network: strong, AcceptWeaker: true}, "slow (emulated"},
		"nobody":     {CreateRequest{Demand: policy.Demand{Isolation: sandbox.IsolationConfidential, By: "document"}}, "doctor"},
		"by request": {CreateRequest{Backend: "fast", MinIsolation: sandbox.IsolationHypervisor}, "slow (emulated"},
	} {
		before := len(living(t, o))
		_, err := o.Create(t.Context(), alice, c.req)
		if e := wantKind(t, err, sandbox.KindUnsupported); !strings.Contains(e.Hint, c.hint) || !strings.Contains(e.Error(), "demands") {
			t.Errorf("%s: %v (%s)", name, e, e.Hint)
		}
		if after := len(living(t, o)); after != before {
			t.Errorf("%s: %d sandboxes, then %d", name, before, after)
		}
	}
	// An update that demands more than there is changes nothing; one that is met stays.
	wire, _ := n.of(weak.Instance)
	if e := wantKind(t, third(o.UpdateNetwork(t.Context(), alice, string(weak.ID), *strong)), sandbox.KindUnsupported); !strings.Contains(e.Hint, "slow") {
		t.Errorf("%v (%s)", e, e.Hint)
	}
	if now, _ := n.of(weak.Instance); now.Generation != wire.Generation {
		t.Errorf("the wire follows a policy that was refused: %+v", now)
	}
	met := policyOf("min_isolation: user-kernel\nallow: []")
	met.Demand = policy.Demand{Isolation: sandbox.IsolationUserKernel, By: "document"}
	for _, next := range []*NetworkPolicy{met, policyOf("allow: []")} {
		got, _, err := o.UpdateNetwork(t.Context(), alice, string(weak.ID), *next)
		if err != nil || got.Details.Demand != met.Demand {
			t.Errorf("%+v, %v", got.Details.Demand, err)
		}
	}
	if rec, err := w.store.Tenant(alice.Tenant).Sandbox(t.Context(), weak.ID); err != nil || unpack(rec).Details.Demand != met.Demand {
		t.Errorf("what is stored demands %+v, %v", unpack(rec).Details.Demand, err)
	}
	// One without a network device, too.
	bare := mustCreate(t, o, alice, CreateRequest{})
	wantKind(t, third(o.UpdateNetwork(t.Context(), alice, string(bare.ID), NetworkPolicy{Demand: hypervisor})), sandbox.KindUnsupported)
	if got, _, err := o.UpdateNetwork(t.Context(), alice, string(bare.ID), NetworkPolicy{Demand: met.Demand}); err != nil || got.Details.Demand != met.Demand {
		t.Errorf("%+v, %v", got.Details.Demand, err)
	}
}

// third is the last of three results.
func third[A, B any](_ A, _ B, err error) error { return err }

// TestPoolIsNotEnough: what is ready and of a weaker class than a policy demands is
// handed to nobody for it, by no way.
func TestPoolIsNotEnough(t *testing.T) {
	w := newWorld(t)
	r := w.ready(1)
	slow := sim.New(sim.Config{})
	r.Backends = append(r.Backends, classed{slow, sandbox.Info{Name: "slow", Isolation: sandbox.IsolationHypervisor, Available: true, Emulated: true}})
	sb := mustCreate(t, r.Orchestrator, alice, CreateRequest{Backend: Auto, Demand: hypervisor})
	if sb.Backend != "slow" || r.hits() != 0 {
		t.Errorf("%s, %d were taken of the pool", sb.Backend, r.hits())
	}
	req := CreateRequest{Demand: hypervisor} // the default backend is the pool's
	giveBack := r.Reserve(t.Context(), alice, &req)
	_, err := r.Create(t.Context(), alice, req)
	giveBack()
	wantKind(t, err, sandbox.KindUnsupported)
	if r.hits() != 0 {
		t.Errorf("%d were taken of the pool", r.hits())
	}
	plain := mustCreate(t, r.Orchestrator, alice, CreateRequest{})
	if plain.Backend != "sim" || r.hits() != 1 {
		t.Errorf("%s, %d were taken of the pool", plain.Backend, r.hits())
	}
	r.destroy(t, sb.ID)
	r.destroy(t, plain.ID)
}

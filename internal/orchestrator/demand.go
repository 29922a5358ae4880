package orchestrator

import (
	"context"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// demanded is the strongest boundary that anybody demands of what req asks for: its
// caller, its policies, what it goes on from, and who configured the server.
func (o *Orchestrator) demanded(req *CreateRequest) policy.Demand {
	d := policy.Demand{Isolation: req.MinIsolation, By: "the request"}.Stronger(req.Demand)
	if req.Network != nil {
		d = d.Stronger(req.Network.Demand)
	}
	if d = d.Stronger(o.ownDemand()); d.Isolation == sandbox.IsolationNone {
		return policy.Demand{}
	}
	return d
}

// ownDemand is what is demanded of every sandbox here.
func (o *Orchestrator) ownDemand() policy.Demand {
	return policy.Demand{Isolation: o.Defaults.MinIsolation, By: "the server's configuration"}
}

// enough refuses a backend that works and is weaker than what is demanded, and names
// those that are not. KindUnsupported.
func (o *Orchestrator) enough(ctx context.Context, op string, info sandbox.Info, d policy.Demand) error {
	if !info.Available || info.Isolation >= d.Isolation {
		return nil
	}
	return o.weaker(ctx, sandbox.Errorf(op, sandbox.KindUnsupported, "backend %s isolates by %s, and %s demands %s", info.Name, info.Isolation, d.By, d.Isolation), d)
}

// weaker gives an error about a backend that is not enough its hint.
func (o *Orchestrator) weaker(ctx context.Context, e *sandbox.Error, d policy.Demand) error {
	var able []string
	for _, b := range o.Backends {
		i, err := b.Info(ctx)
		switch {
		case err != nil || !i.Available || i.Isolation < d.Isolation:
		case i.Emulated:
			able = append(able, i.Name+" (emulated, so slow)")
		default:
			able = append(able, i.Name)
		}
	}
	if len(able) == 0 {
		return e.WithHint("nothing here isolates so: `firebreak doctor` says what is missing")
	}
	return e.WithHint("what does here: %s; make a sandbox of that, by its name or by leaving the backend out", strings.Join(able, ", "))
}

// strong refuses to make another boundary for a sandbox, or to save it for one, that
// would be weaker than what is demanded of it, now that the server may demand more.
func (l *live) strong(ctx context.Context, op string) error {
	sb := l.snapshotWithEnv()
	_, info, err := l.o.made(ctx, sb.Backend)
	if err != nil {
		return err
	}
	return sandbox.Wrap(op, string(l.id), l.o.enough(ctx, op, info, sb.Details.Demand.Stronger(l.o.ownDemand())))
}

// heldTo writes down what is demanded of a sandbox from now on, which is met. An earlier,
// stronger demand stays.
func (l *live) heldTo(ctx context.Context, d policy.Demand) error {
	if d.Isolation == sandbox.IsolationNone {
		return nil
	}
	err := l.editDetails(ctx, func(old *Details) { old.Demand = old.Demand.Stronger(d) })
	if err == nil {
		l.mu.Lock()
		l.sb.Details.Demand = l.sb.Details.Demand.Stronger(d)
		l.mu.Unlock()
	}
	return err
}

// meets refuses a policy that demands more than the sandbox's boundary is: nothing makes
// that stronger while it lives. KindUnsupported.
func (l *live) meets(ctx context.Context, d policy.Demand) error {
	l.mu.Lock()
	has := l.sb.Isolation
	l.mu.Unlock()
	if has >= d.Isolation {
		return nil
	}
	return l.o.weaker(ctx, sandbox.Errorf("update network", sandbox.KindUnsupported, "the sandbox is isolated by %s, and %s demands %s; it keeps the policy it has", has, d.By, d.Isolation).
		WithID(string(l.id)), d)
}

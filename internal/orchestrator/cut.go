package orchestrator

import (
	"context"
	"maps"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Cutter is a Network whose wires can be cut while their instances run.
type Cutter interface {
	// Cut ends all connections of a wire, which stays: nothing passes it until it is
	// adopted. It returns what was used of budgets in all; nil of a wire that nobody
	// serves. Idempotent. Errors: ctx's, and then it has to be called again.
	Cut(ctx context.Context, id sandbox.InstanceID) (map[string]policy.Used, error)
}

// cutWire ends the connections of a sandbox that is about to be saved, so that
// nothing which it does between that and its end is seen outside, and notes what it
// used and whose authority it goes on to trust. Preconditions: l.wiring is held.
func (l *live) cutWire(ctx context.Context) error {
	n := l.network()
	if n == nil {
		return nil
	}
	c, ok := l.o.Network.(Cutter)
	if !ok {
		return noWires("cut")
	}
	used, err := c.Cut(ctx, l.instance)
	if err != nil {
		return err
	}
	failpoint.Hit("pause/after-cut")
	l.mu.Lock()
	defer l.mu.Unlock()
	next := *l.sb.Details.Network
	if used = bounded(used); len(used) > 0 {
		next.Used = used
	}
	if next.Authority == "" {
		next.Authority = string(l.instance)
	}
	l.sb.Details.Network = &next
	return nil
}

// saved is what a snapshot keeps of a sandbox's network: what may be reached, and what
// its programs know that go on elsewhere. Budgets begin anew there.
func (n *NetworkState) saved() *NetworkState {
	if n == nil {
		return nil
	}
	return &NetworkState{NetworkPolicy: n.NetworkPolicy, Generation: n.Generation, Epoch: n.Epoch, Bindings: n.Bindings, Placeholders: n.Placeholders, Inherited: n.Inherited}
}

// maxInherited bounds the placeholders of earlier sandboxes that one binding has.
const maxInherited = 4

// inherit makes n the network of a sandbox in which programs go on that began in
// another one, whose network was of. Addresses that they have for names lead nowhere,
// and what they have for secrets stands, on this wire alone, for those of the bindings
// of the same names that the sandbox has itself; else it is a text like any other.
func (n *NetworkState) inherit(of *NetworkState) {
	n.Epoch = of.Epoch + 1
	for name := range n.Placeholders {
		old := slices.Clone(of.Inherited[name])
		if p := of.Placeholders[name]; p != "" {
			old = append([]string{p}, old...)
		}
		if len(old) == 0 {
			continue
		}
		if n.Inherited == nil {
			n.Inherited = map[string][]string{}
		}
		n.Inherited[name] = old[:min(len(old), maxInherited)]
	}
}

// ownEnv is the sandbox's environment without what says where its bindings are: what
// is made of it has its own.
func (s Sandbox) ownEnv() map[string]string {
	env, n := maps.Clone(s.Details.Env), s.Details.Network
	if n == nil {
		return env
	}
	for _, name := range n.Bindings {
		if key := baseURL(name); env[key] == bindingURL(name) {
			delete(env, key)
		}
	}
	maps.DeleteFunc(env, func(_, value string) bool {
		for _, p := range n.Placeholders {
			if value == p {
				return true
			}
		}
		return false
	})
	return env
}

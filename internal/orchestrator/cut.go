package orchestrator

import (
	"context"

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

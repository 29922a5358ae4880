package orchestrator

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Accounts is a Network that tells what a wire has used of the budgets of its
// rules, so that they hold over a restart.
type Accounts interface {
	// Used is what was used, by the ids of rules, what Egress.Used said included;
	// nil of a wire that nobody serves. It is cheap.
	Used(id sandbox.InstanceID) map[string]policy.Used
}

// maxUsed bounds of how many rules it is kept what was used. A sandbox that had
// more, over its updates, keeps those it used most.
const maxUsed = 2000

// keepFlows writes down what the sandbox wanted and what it used of its budgets,
// if that has changed: every few seconds, and at a stop. A server that is killed
// forgets as much. It is not done as flows come: all sandboxes' are recorded one
// after the other, and none should wait for a database.
func (l *live) keepFlows(ctx context.Context) {
	if l.network() == nil || !l.wiring.TryLock() { // who holds it changes the wire: next time
		return
	}
	defer l.wiring.Unlock()
	n := l.network()
	next := *n
	if a, ok := l.o.Network.(Accounts); ok {
		if used := bounded(a.Used(l.instance)); len(used) > 0 {
			next.Used = used
		}
	}
	l.mu.Lock()
	changed, report := l.kept.changed, l.kept.report()
	l.kept.changed = false
	l.mu.Unlock()
	if l.dead() || !changed && maps.Equal(next.Used, n.Used) {
		return
	}
	err := l.editDetails(ctx, func(d *Details) { d.Network, d.Flows = &next, report })
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.kept.changed = l.kept.changed || changed
		l.o.Log.Warn("what a sandbox wanted and used could not be kept; it is tried again", "sandbox", l.id, "error", err)
		return
	}
	l.sb.Details.Network = &next
}

func bounded(used map[string]policy.Used) map[string]policy.Used {
	for id, u := range used {
		u.Concurrent = 0 // of now
		used[id] = u
	}
	if len(used) <= maxUsed {
		return used
	}
	ids := slices.SortedFunc(maps.Keys(used), func(a, b string) int {
		return cmp.Or(cmp.Compare(used[b].Connections, used[a].Connections), cmp.Compare(a, b))
	})
	for _, id := range ids[maxUsed:] {
		delete(used, id)
	}
	return used
}

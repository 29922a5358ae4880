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

// keepUsed writes down what the sandbox has used of its budgets, if that has
// changed: every few seconds, and at a stop. A server that is killed forgets as
// much.
func (l *live) keepUsed(ctx context.Context) {
	a, ok := l.o.Network.(Accounts)
	if !ok || l.network() == nil || !l.wiring.TryLock() { // who holds it changes the wire: next time
		return
	}
	defer l.wiring.Unlock()
	used, n := bounded(a.Used(l.instance)), l.network()
	if len(used) == 0 || maps.Equal(used, n.Used) || l.dead() {
		return
	}
	next := *n
	next.Used = used
	if err := l.editDetails(ctx, func(d *Details) { d.Network = &next }); err != nil {
		l.o.Log.Warn("what a sandbox used of its budgets could not be kept", "sandbox", l.id, "error", err)
		return
	}
	l.mu.Lock()
	l.sb.Details.Network = &next
	l.mu.Unlock()
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

package orchestrator

import (
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// boundary is the memory a sandbox needs beside what its guest may use.
const boundary = 32 << 20

// promise is what a sandbox, or one about to be made, holds of the ledger.
type promise struct {
	tenant       sandbox.TenantID
	memory, disk int64
}

func promiseOf(tenant sandbox.TenantID, l sandbox.Limits) promise {
	return promise{tenant, l.Memory, l.Disk}
}

// ledger counts what has been promised: to live sandboxes, to those waiting for
// their boot, to programs and builds under way. It is the one place that knows,
// because a data directory has one owner: what is checked and counted under one
// lock cannot be exceeded by callers together. Recovery counts again from the
// records.
type ledger struct {
	quota *Quota
	host  func() (total, available int64) // memory

	mu        sync.Mutex
	committed int64                       // guarded by mu; memory of all, with boundaries
	sandboxes int64                       // guarded by mu; of all tenants
	tenants   map[sandbox.TenantID]counts // guarded by mu; those that use something
	refused   map[string]int64            // guarded by mu; refusals by what was used up
}

// counts is use by a Resource's name; absent is zero.
type counts map[string]int64

func newLedger(q *Quota, host func() (int64, int64)) *ledger {
	return &ledger{quota: q, host: host, tenants: map[sandbox.TenantID]counts{}, refused: map[string]int64{}}
}

// reserve promises p, a sandbox, everything it may use. Errors: KindCapacity.
// release gives it back.
func (l *ledger) reserve(p promise) error {
	total, available := l.host()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.quota.Host > 0 && l.sandboxes >= int64(l.quota.Host) {
		l.refused["host_sandboxes"]++
		return full("create", 5*time.Second, "this host has %d sandboxes, the limit is %d", l.sandboxes, l.quota.Host).
			WithHint("retry when one has ended; max_sandboxes in firebreak.yaml sets the limit")
	}
	for _, need := range []struct {
		name   string
		amount int64
	}{{"sandboxes", 1}, {"memory", p.memory}, {"disk", p.disk}, {"kept", 0}} {
		if err := l.check("create", p.tenant, need.name, need.amount); err != nil {
			return err
		}
	}
	if err := l.fits(p.memory+boundary, l.committed, total, available); err != nil {
		l.refused["host_memory"]++
		return err
	}
	l.count(p, 1)
	return nil
}

// recheck looks at the host's memory once more, for a promise that had to wait
// for its boot. Errors: KindCapacity.
func (l *ledger) recheck(p promise) error {
	total, available := l.host()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fits(p.memory+boundary, l.committed-p.memory-boundary, total, available)
}

// fits checks need against the host's memory. Preconditions: l.mu is held.
func (l *ledger) fits(need, committed, total, available int64) error {
	if total <= 0 {
		return nil
	}
	const hint = "destroy a sandbox, or ask for less memory (--memory)"
	keep := min(total/16, 512<<20) // for the host itself
	if need > available-keep {
		return full("create", 10*time.Second, "the host is out of memory: %s needed, %s available",
			sandbox.FormatSize(need), sandbox.FormatSize(max(0, available-keep))).WithHint(hint)
	}
	budget := int64(float64(total) * l.quota.Overcommit)
	if committed+need > budget {
		return full("create", 10*time.Second, "the host's memory is promised: %s of %s, %s more needed",
			sandbox.FormatSize(committed), sandbox.FormatSize(budget), sandbox.FormatSize(need)).WithHint(hint)
	}
	return nil
}

// check refuses what the tenant may not have more of; with need 0, what it has
// all of already. Preconditions: l.mu is held.
func (l *ledger) check(op string, tenant sandbox.TenantID, name string, need int64) error {
	r, q := resource(name), l.quota.Of(tenant)
	limit, used := *r.Field(&q), l.tenants[tenant][name]
	if limit < 0 || used+need <= limit && (need > 0 || used < limit) {
		return nil
	}
	l.refused[name]++
	return r.exceeded(op, used, need, limit)
}

// count adds n sandboxes with the promise p. Preconditions: l.mu is held.
func (l *ledger) count(p promise, n int64) {
	l.committed += n * (p.memory + boundary)
	l.sandboxes += n
	l.add(p.tenant, "sandboxes", n)
	l.add(p.tenant, "memory", n*p.memory)
	l.add(p.tenant, "disk", n*p.disk)
}

// add changes one count. Preconditions: l.mu is held.
func (l *ledger) add(tenant sandbox.TenantID, name string, n int64) {
	c := l.tenants[tenant]
	if c == nil {
		c = counts{}
		l.tenants[tenant] = c
	}
	if c[name] += n; c[name] == 0 {
		delete(c, name)
	}
	if len(c) == 0 {
		delete(l.tenants, tenant)
	}
}

// adopt counts a sandbox that exists, whatever the budget says.
func (l *ledger) adopt(p promise) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(p, 1)
}

func (l *ledger) release(p promise) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(p, -1)
}

// park gives back the memory of a sandbox that is paused; unpark promises it again,
// which may be refused if it is checked. Errors: KindCapacity.
func (l *ledger) park(p promise) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.committed -= p.memory + boundary
	l.add(p.tenant, "memory", -p.memory)
}

func (l *ledger) unpark(p promise, checked bool) error {
	total, available := l.host()
	l.mu.Lock()
	defer l.mu.Unlock()
	if checked {
		if err := l.check("resume", p.tenant, "memory", p.memory); err != nil {
			return err
		}
		if err := l.fits(p.memory+boundary, l.committed, total, available); err != nil {
			l.refused["host_memory"]++
			return err
		}
	}
	l.committed += p.memory + boundary
	l.add(p.tenant, "memory", p.memory)
	return nil
}

// storable refuses n bytes more of saved sandboxes than the tenant may have; store
// counts them. Errors: KindCapacity.
func (l *ledger) storable(op string, tenant sandbox.TenantID, n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.check(op, tenant, "snapshots", max(1, n))
}

func (l *ledger) store(tenant sandbox.TenantID, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(tenant, "snapshots", n)
}

// take counts one more of a resource until free is called, once. Unchecked, it
// only counts. Errors: KindCapacity.
func (l *ledger) take(op string, tenant sandbox.TenantID, name string, checked bool) (free func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if checked {
		if err := l.check(op, tenant, name, 1); err != nil {
			return nil, err
		}
	}
	l.add(tenant, name, 1)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.add(tenant, name, -1)
	}, nil
}

// keep counts n more bytes left on disk; keepable is how many more may be.
func (l *ledger) keep(tenant sandbox.TenantID, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(tenant, "kept", n)
}

func (l *ledger) keepable(tenant sandbox.TenantID) int64 {
	q := l.quota.Of(tenant)
	if q.Kept < 0 {
		return 1 << 62
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, q.Kept-l.tenants[tenant]["kept"])
}

// setKept replaces what is counted as left on disk.
func (l *ledger) setKept(kept map[sandbox.TenantID]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t, c := range maps.Clone(l.tenants) {
		l.add(t, "kept", -c["kept"])
	}
	for t, n := range kept {
		l.add(t, "kept", n)
	}
}

// of returns what the tenant uses, by resource.
func (l *ledger) of(tenant sandbox.TenantID) counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := maps.Clone(l.tenants[tenant])
	if c == nil {
		c = counts{}
	}
	return c
}

// Load reports how many callers wait, by what they wait for, and how many were
// refused for want of capacity since the start, by what was used up: a tenant's
// resource, or something of the host's.
func (o *Orchestrator) Load() (waiting, refused map[string]int64) {
	o.ledger.mu.Lock()
	refused = maps.Clone(o.ledger.refused)
	o.ledger.mu.Unlock()
	waiting = map[string]int64{}
	for _, g := range []*gate{o.gate, o.starts} {
		waiting[g.what], refused[g.what+"_queue"] = g.waiting()
	}
	return waiting, refused
}

// full is the error of what may succeed later.
func full(op string, retry time.Duration, format string, args ...any) *sandbox.Error {
	e := sandbox.Errorf(op, sandbox.KindCapacity, format, args...)
	e.RetryAfter = max(time.Second, retry/2)
	return e
}

func formatCount(n int64) string { return strconv.FormatInt(n, 10) }

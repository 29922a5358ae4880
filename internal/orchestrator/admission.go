package orchestrator

import (
	"bufio"
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// gate lets a bounded number of boots run at once. The others wait, for a
// bounded time and in a bounded queue, and tenants take turns, so that one
// tenant's burst does not make the others wait behind all of it.
type gate struct {
	wait time.Duration
	max  int // waiting at most

	mu      sync.Mutex
	free    int                                // guarded by mu
	queued  int                                // guarded by mu
	queues  map[sandbox.TenantID][]chan<- bool // guarded by mu; in order of arrival
	tenants []sandbox.TenantID                 // guarded by mu; those with a queue, next turn first
}

func newGate(q Quota) *gate {
	return &gate{wait: q.Wait, max: q.Waiting, free: q.Creating, queues: map[sandbox.TenantID][]chan<- bool{}}
}

// enter waits for a place; leave gives it back and must be called once.
// Errors: KindCapacity when the queue is full or the wait too long, or ctx's.
func (g *gate) enter(ctx context.Context, tenant sandbox.TenantID) (leave func(), err error) {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return g.leave, nil
	}
	if g.queued >= g.max {
		g.mu.Unlock()
		return nil, full(g.wait, "too many sandboxes are being created").
			WithHint("retry, or create fewer at once")
	}
	turn := make(chan bool, 1)
	if len(g.queues[tenant]) == 0 {
		g.tenants = append(g.tenants, tenant)
	}
	g.queues[tenant] = append(g.queues[tenant], turn)
	g.queued++
	g.mu.Unlock()

	t := time.NewTimer(g.wait)
	defer t.Stop()
	select {
	case <-turn:
		return g.leave, nil
	case <-t.C:
		err = full(g.wait, "no boot slot became free within %s", g.wait).WithHint("retry, or create fewer at once")
	case <-ctx.Done():
		err = sandbox.Wrap("create", "", ctx.Err())
	}
	if !g.forget(tenant, turn) { // the place came just now
		return g.leave, nil
	}
	return nil, err
}

// leave hands the place to the next tenant's oldest waiter, or frees it.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.tenants) == 0 {
		g.free++
		return
	}
	t := g.tenants[0]
	g.tenants = g.tenants[1:]
	turn := g.queues[t][0]
	if g.queues[t] = g.queues[t][1:]; len(g.queues[t]) > 0 {
		g.tenants = append(g.tenants, t)
	} else {
		delete(g.queues, t)
	}
	g.queued--
	turn <- true
}

// forget takes a waiter out of the queue; false when it is no longer there.
func (g *gate) forget(tenant sandbox.TenantID, turn chan<- bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queues[tenant]
	for i, c := range q {
		if c != turn {
			continue
		}
		q = append(q[:i:i], q[i+1:]...)
		g.queued--
		if len(q) > 0 {
			g.queues[tenant] = q
			return true
		}
		delete(g.queues, tenant)
		for j, t := range g.tenants {
			if t == tenant {
				g.tenants = append(g.tenants[:j:j], g.tenants[j+1:]...)
				break
			}
		}
		return true
	}
	return false
}

// boundary is the memory a sandbox needs beside what its guest may use.
const boundary = 32 << 20

// ledger counts the memory promised to live sandboxes against the host's.
type ledger struct {
	overcommit float64
	host       func() (total, available int64)

	mu        sync.Mutex
	committed int64 // guarded by mu
}

// reserve promises limit bytes and the boundary's own. Errors: KindCapacity.
// release gives them back.
func (l *ledger) reserve(limit int64) error {
	need := limit + boundary
	total, available := l.host()
	l.mu.Lock()
	defer l.mu.Unlock()
	const hint = "destroy a sandbox, or ask for less memory (--memory)"
	if total > 0 {
		keep := min(total/16, 512<<20) // for the host itself
		if need > available-keep {
			return full(10*time.Second, "the host is out of memory: %s needed, %s available",
				sandbox.FormatSize(need), sandbox.FormatSize(max(0, available-keep))).WithHint(hint)
		}
		budget := int64(float64(total) * l.overcommit)
		if l.committed+need > budget {
			return full(10*time.Second, "the host's memory is promised: %s of %s, %s more needed",
				sandbox.FormatSize(l.committed), sandbox.FormatSize(budget), sandbox.FormatSize(need)).WithHint(hint)
		}
	}
	l.committed += need
	return nil
}

// adopt counts a sandbox that exists, whatever the budget says.
func (l *ledger) adopt(limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.committed += limit + boundary
}

func (l *ledger) release(limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.committed -= limit + boundary
}

func full(retry time.Duration, format string, args ...any) *sandbox.Error {
	e := sandbox.Errorf("create", sandbox.KindCapacity, format, args...)
	e.RetryAfter = max(time.Second, retry/2)
	return e
}

// hostMemory reads /proc/meminfo; zeros where there is none.
func hostMemory() (total, available int64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		name, rest, _ := strings.Cut(sc.Text(), ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			total = kib << 10
		case "MemAvailable":
			return total, kib << 10
		}
	}
	return 0, 0
}

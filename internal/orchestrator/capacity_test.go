package orchestrator

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestQuotas(t *testing.T) {
	w := newWorld(t)
	w.cfg = func(c *Config) { c.Quota = Quota{Tenant: TenantQuota{Sandboxes: 2}, Host: 3} }
	o := w.start()
	one := mustCreate(t, o, alice, CreateRequest{})
	mustCreate(t, o, alice, CreateRequest{})
	refused := func(who Caller) {
		t.Helper()
		_, err := o.Create(t.Context(), who, CreateRequest{})
		if e := wantKind(t, err, sandbox.KindCapacity); e.RetryAfter <= 0 || e.Hint == "" {
			t.Errorf("%+v", e)
		}
	}
	refused(alice)
	mustCreate(t, o, bob, CreateRequest{})
	refused(bob)
	if _, err := o.Destroy(t.Context(), alice, string(one.ID)); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, o, bob, CreateRequest{})
	refused(alice)
}

func TestMemoryIsPromisedOnce(t *testing.T) {
	w := newWorld(t)
	available := atomic.Int64{}
	available.Store(7 << 30)
	w.cfg = func(c *Config) {
		c.Memory = func() (int64, int64) { return 8 << 30, available.Load() }
		c.Quota.Overcommit = 1
	}
	o := w.start()
	req := CreateRequest{Limits: sandbox.Limits{Memory: 3 << 30}}
	first := mustCreate(t, o, alice, req)
	mustCreate(t, o, bob, req)
	_, err := o.Create(t.Context(), bob, req)
	wantKind(t, err, sandbox.KindCapacity)
	if _, err := o.Destroy(t.Context(), alice, string(first.ID)); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, o, bob, req)
	available.Store(1 << 30)
	_, err = o.Create(t.Context(), alice, CreateRequest{Limits: sandbox.Limits{Memory: 1 << 30}})
	wantKind(t, err, sandbox.KindCapacity)
	mustCreate(t, o, alice, CreateRequest{Limits: sandbox.Limits{Memory: 64 << 20}})
	o.ledger.mu.Lock()
	want := int64(2*(3<<30+boundary) + 64<<20 + boundary)
	if o.ledger.committed != want {
		t.Errorf("%d committed, want %d", o.ledger.committed, want)
	}
	o.ledger.mu.Unlock()
	w.close(o)
	if o.ledger.committed != 0 {
		t.Errorf("%d committed after the end", o.ledger.committed)
	}
}

func TestGateIsBoundedAndFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 10 * time.Second
		g := newGate("create", "boot", 1, 8, patience, nil)
		leave, err := g.enter(t.Context(), "a", patience)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		wait := func(tenant sandbox.TenantID) {
			wg.Go(func() {
				leave, err := g.enter(t.Context(), tenant, patience)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, string(tenant))
				mu.Unlock()
				leave()
			})
			synctest.Wait()
		}
		refused := func(tenant sandbox.TenantID) {
			t.Helper()
			_, err := g.enter(t.Context(), tenant, patience)
			if e := wantKind(t, err, sandbox.KindCapacity); e.RetryAfter <= 0 || e.Hint == "" {
				t.Errorf("%+v", e)
			}
		}
		for range 4 {
			wait("a")
		}
		refused("a") // alone: half of the queue
		wait("b")
		wait("b")
		refused("b")
		wait("c")
		refused("c")
		refused("a")
		leave()
		wg.Wait()
		if got := fmt.Sprint(order); got != "[a b c a b a a]" {
			t.Errorf("order %s", got)
		}
		leave, _ = g.enter(t.Context(), "a", patience)
		refused("b") // nobody leaves in time
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = g.enter(ctx, "b", patience)
		wantKind(t, err, sandbox.KindCanceled)
		if g.queued != 0 || len(g.queues) != 0 || len(g.tenants) != 0 {
			t.Errorf("still queued: %d %v %v", g.queued, g.queues, g.tenants)
		}
		leave()
		leave()
		if g.free != 1 || len(g.active) != 0 {
			t.Errorf("%d free, %v active", g.free, g.active)
		}
	})
}

// A waiter that gives up leaves no hole: those behind it move up, and its
// tenant's turn is not spent on it.
func TestGateWithoutHoles(t *testing.T) {
	g := newGate("create", "boot", 2, 100, time.Second, func(tenant sandbox.TenantID) int { return map[sandbox.TenantID]int{"small": 1}[tenant] })
	queue := func(tenant sandbox.TenantID) *ticket {
		t.Helper()
		k, err := g.queue(tenant)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	has := func(k *ticket) bool {
		select {
		case <-k.turn:
			return true
		default:
			return false
		}
	}
	a1, a2 := queue("a"), queue("a")
	a3, b1, b2, small1, small2 := queue("a"), queue("b"), queue("b"), queue("small"), queue("small")
	b1.leave()
	a3.leave()
	a3.leave()
	a1.leave()
	if !has(b2) || has(small1) {
		t.Errorf("after one left: b %t, small %t", has(b2), has(small1))
	}
	b2.leave()
	a2.leave()
	if !has(small1) || has(small2) || g.free != 1 {
		t.Errorf("a tenant may hold one place: %t %t, %d free", has(small1), has(small2), g.free)
	}
	if c := queue("c"); !has(c) {
		t.Error("whoever is at its own limit holds others up")
	} else {
		c.leave()
	}
	small1.leave()
	if !has(small2) {
		t.Error("its next one did not come up")
	}
	small2.leave()
	if g.free != 2 || g.queued != 0 || len(g.active)+len(g.queues)+len(g.tenants) != 0 {
		t.Errorf("left: %+v", g)
	}
}

// However a create is cut short, nothing is left, and the record says why.
func TestCreateCutShort(t *testing.T) {
	for name, c := range map[string]struct {
		sim    sim.Config
		after  time.Duration
		end    bool
		kind   sandbox.Kind
		reason sandbox.Reason
	}{
		"the caller goes away": {sim.Config{Boot: 5 * time.Second}, time.Second, false, sandbox.KindCanceled, sandbox.ReasonOperator},
		"the agent is silent":  {sim.Config{Frozen: true}, time.Hour, false, sandbox.KindTimeout, sandbox.ReasonTimeout},
		"somebody destroys it": {sim.Config{Boot: 5 * time.Second}, time.Second, true, sandbox.KindGone, sandbox.ReasonOperator},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.sim = sim.New(c.sim)
				o := w.start()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req := CreateRequest{ID: sandbox.NewID()}
				if c.end {
					time.AfterFunc(c.after, func() {
						if _, err := o.Destroy(t.Context(), alice, string(req.ID)); err != nil {
							t.Error(err)
						}
					})
				} else {
					time.AfterFunc(c.after, cancel)
				}
				_, err := o.Create(ctx, alice, req)
				wantKind(t, err, c.kind)
				sb, err := o.Get(t.Context(), alice.Tenant, string(req.ID))
				if err != nil || sb.State != store.Ended || sb.Reason != c.reason || sb.Receipt == nil || !sb.Receipt.Clean {
					t.Errorf("%+v, %v", sb, err)
				}
				if list, err := w.sim.List(t.Context()); err != nil || len(list) != 0 {
					t.Errorf("left: %v, %v", list, err)
				}
				if o.ledger.committed != 0 || o.gate.free != o.Quota.Creating {
					t.Errorf("%d bytes and %d boots still counted", o.ledger.committed, o.Quota.Creating-o.gate.free)
				}
			})
		})
	}
}

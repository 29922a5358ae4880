package pool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// preparing is a model of a backend that prepares: a blank is an instance that was
// made, and an image is the id of one that has not been changed.
type preparing struct {
	*sim.Backend
	cold   atomic.Int64 // restores that found nothing prepared
	hurt   atomic.Bool  // what was prepared cannot be used
	fail   atomic.Bool  // nothing can be prepared
	hold   chan struct{}
	mu     sync.Mutex
	blanks map[sandbox.InstanceID]sandbox.Spec // guarded by mu: prepared, ever
}

func (b *preparing) Prepare(ctx context.Context, s sandbox.Spec) (sandbox.Blank, error) {
	if b.hold != nil {
		select {
		case <-b.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if b.fail.Load() {
		return nil, errors.New("there is no room")
	}
	inst, err := b.Create(ctx, s)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blanks[s.Instance] = s
	return &model{b, inst}, nil
}

func (b *preparing) Restore(ctx context.Context, s sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	b.cold.Add(1)
	if from.Digest != "good" {
		return nil, sandbox.Errorf("restore", sandbox.KindConflict, "it was changed")
	}
	return b.Create(ctx, s)
}

func (b *preparing) Release(sandbox.Snapshot) {}

func (b *preparing) prepared() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.blanks)
}

type model struct {
	b    *preparing
	inst sandbox.Instance
}

func (m *model) ID() sandbox.InstanceID { return m.inst.ID() }

func (m *model) Destroy(ctx context.Context) (sandbox.Receipt, error) { return m.inst.Destroy(ctx) }

func (m *model) Restore(ctx context.Context, from sandbox.Snapshot) (sandbox.Instance, error) {
	var err error
	switch {
	case m.b.hurt.Load():
		err = errors.New("its sentry has died")
	case from.Digest != "good":
		err = sandbox.Errorf("restore", sandbox.KindConflict, "it was changed")
	default:
		return m.inst, nil
	}
	_, left := m.inst.Destroy(context.WithoutCancel(ctx))
	return nil, errors.Join(err, left)
}

var good = sandbox.Snapshot{Digest: "good"}

// places returns Places over such a model. When the test ends nothing is left.
func places(t *testing.T, o PlacesOptions) (*Places, *preparing) {
	t.Helper()
	b, s := &preparing{Backend: sim.New(sim.Config{}), blanks: map[sandbox.InstanceID]sandbox.Spec{}}, &stock{}
	o.Stock = s.find
	p := NewPlaces(b, o).(*Places)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if list, err := b.List(context.Background()); err != nil || len(list) > 0 {
			t.Errorf("left behind: %v, %v", list, err)
		}
		if n := s.held.Load(); n != 0 {
			t.Errorf("%d leases of templates are left", n)
		}
	})
	return p, b
}

func (p *Places) await(t *testing.T, n int) {
	t.Helper()
	eventually(t, "places are ready", func() bool { return p.Ready() == n })
}

// named is spec as that of a sandbox that there is.
func named(tenant sandbox.TenantID) sandbox.Spec {
	s := spec()
	s.Tenant, s.Sandbox = tenant, sandbox.NewID()
	s.Hostname = string(s.Sandbox)
	return s
}

// A sandbox that was paused finds its own place, once, and nobody else does.
func TestPlace(t *testing.T) {
	p, b := places(t, PlacesOptions{Max: 4})
	s := named("acme")
	if _, ok := p.Claim(s, false); ok {
		t.Fatal("there is one that nobody expects")
	}
	p.Expect(s, false, 1)
	p.await(t, 1)
	if list, err := p.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("a place is seen: %v, %v", list, err)
	}
	for what, change := range map[string]func(*sandbox.Spec){
		"tenant":   func(s *sandbox.Spec) { s.Tenant = "other" },
		"sandbox":  func(s *sandbox.Spec) { s.Sandbox = sandbox.NewID() },
		"hostname": func(s *sandbox.Spec) { s.Hostname = "other" },
		"template": func(s *sandbox.Spec) { s.Root.Digest += "0" },
		"memory":   func(s *sandbox.Spec) { s.Limits.Memory++ },
		"readonly": func(s *sandbox.Spec) { s.ReadonlyRoot = true },
		"network":  func(s *sandbox.Spec) { s.Wire = &sandbox.Wire{} },
	} {
		other := s
		change(&other)
		if c, ok := p.Claim(other, false); ok {
			t.Errorf("%s: got %+v", what, c)
		}
	}
	if c, ok := p.Claim(s, true); ok {
		t.Errorf("a sandbox that is to be gets another's: %+v", c)
	}
	c, ok := p.Claim(s, false)
	if !ok || c.Sandbox != s.Sandbox {
		t.Fatalf("claim: %+v, %v", c, ok)
	}
	if _, ok := p.Claim(s, false); ok {
		t.Error("it is there twice")
	}
	s.Instance = c.Instance
	inst, err := p.Restore(t.Context(), s, good)
	if err != nil || inst.ID() != c.Instance || b.cold.Load() != 0 {
		t.Fatalf("restore: %v, %v", inst, err)
	}
	b.mu.Lock()
	if made := b.blanks[c.Instance]; made.Hostname != s.Hostname || made.Sandbox != s.Sandbox || made.Tenant != "acme" {
		t.Errorf("it was made as %+v", made)
	}
	b.mu.Unlock()
	if list, _ := p.List(t.Context()); len(list) != 1 || list[0].Instance != c.Instance {
		t.Errorf("what was handed out is not seen: %v", list)
	}
	p.Vacate(c.Instance) // it is not a place any more
	if st, err := inst.Status(t.Context()); err != nil || !st.Alive {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := inst.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// Sandboxes that are to be take the names that were made with their places, within
// the tenant, and others take their place.
func TestPlacesAnew(t *testing.T) {
	p, b := places(t, PlacesOptions{Max: 3})
	s := named("acme")
	p.Expect(s, true, 2)
	p.await(t, 2)
	if st := p.Stats(t.Context()); len(st) != 1 || st[0].Shape.Tenant != "acme" || st[0].Ready != 2 || st[0].Want != 2 || st[0].Making != 0 {
		t.Errorf("%+v", st)
	}
	other := s
	other.Tenant = "other"
	if _, ok := p.Claim(other, true); ok {
		t.Error("another tenant got one")
	}
	seen := map[sandbox.ID]bool{}
	for range 2 {
		c, ok := p.Claim(s, true)
		if !ok || !c.Sandbox.Valid() || c.Sandbox == s.Sandbox || seen[c.Sandbox] {
			t.Fatalf("%+v, %v", c, ok)
		}
		seen[c.Sandbox] = true
		as := s
		as.Instance, as.Sandbox, as.Hostname = c.Instance, c.Sandbox, string(c.Sandbox)
		inst, err := p.Restore(t.Context(), as, good)
		if err != nil {
			t.Fatal(err)
		}
		defer inst.Destroy(context.Background())
	}
	// Also for the other tenant, who has asked: two and one.
	p.await(t, 3)
	if b.cold.Load() != 0 || b.prepared() != 5 {
		t.Errorf("%d were prepared", b.prepared())
	}
}

// One that is still being made is waited for.
func TestPlaceInTheMaking(t *testing.T) {
	p, b := places(t, PlacesOptions{Max: 4})
	b.hold = make(chan struct{})
	s := named("acme")
	p.Expect(s, false, 1)
	var c Claimed
	eventually(t, "it is begun", func() (ok bool) { c, ok = p.Claim(s, false); return ok })
	s.Instance = c.Instance
	done := make(chan error, 1)
	go func() {
		inst, err := p.Restore(t.Context(), s, good)
		if err == nil {
			_, err = inst.Destroy(t.Context())
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(b.hold)
	if err := <-done; err != nil || b.cold.Load() != 0 {
		t.Errorf("%v, %d cold", err, b.cold.Load())
	}
}

// What cannot be used, or made, is done without; what was changed is refused.
func TestPlaceIsNoGood(t *testing.T) {
	p, b := places(t, PlacesOptions{Max: 4})
	claim := func() sandbox.Spec {
		t.Helper()
		s := named("acme")
		p.Expect(s, false, 1)
		p.await(t, 1)
		c, ok := p.Claim(s, false)
		if !ok {
			t.Fatal("there is none")
		}
		s.Instance = c.Instance
		return s
	}
	s := claim()
	if _, err := p.Restore(t.Context(), s, sandbox.Snapshot{Digest: "bad"}); sandbox.KindOf(err) != sandbox.KindConflict || b.cold.Load() != 0 {
		t.Errorf("a bad image: %v", err)
	}
	s = claim()
	b.hurt.Store(true)
	inst, err := p.Restore(t.Context(), s, good)
	if err != nil || b.cold.Load() != 1 || inst.ID() != s.Instance {
		t.Fatalf("%v, %v, %d cold", inst, err, b.cold.Load())
	}
	inst.Destroy(t.Context())
	s = claim()
	wrong := s
	wrong.Tenant = "other"
	if _, err := p.Restore(t.Context(), wrong, good); err == nil {
		t.Error("it was restored into for another tenant")
	}
	b.fail.Store(true)
	s = named("acme")
	p.Expect(s, false, 1)
	eventually(t, "it fails", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, x := range p.spots {
			if x.sandbox == s.Sandbox && !x.pause.IsZero() {
				return true
			}
		}
		return false
	})
	if c, ok := p.Claim(s, false); ok {
		t.Errorf("there is one: %+v", c)
	}
}

// There are no more than may be; who was expected last comes first.
func TestPlacesBound(t *testing.T) {
	p, b := places(t, PlacesOptions{Max: 2})
	var all []sandbox.Spec
	for range 5 {
		s := named("acme")
		all = append(all, s)
		p.Expect(s, false, 1)
		time.Sleep(time.Millisecond) // later by the clock
	}
	eventually(t, "the last two", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		n := 0
		for _, s := range all[3:] {
			k, _ := kindOf(s, false)
			if x := p.spots[k]; x != nil && len(x.ready) == 1 {
				n++
			}
		}
		return n == 2
	})
	eventually(t, "there are two", func() bool { list, _ := b.List(t.Context()); return len(list) == 2 })
	for range 4 * maxShelves {
		p.Claim(named("acme"), false)
		s := named("acme")
		s.Limits.Memory += int64(len(s.Sandbox))
		p.Expect(s, false, 0)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.spots) > maxShelves {
		t.Errorf("%d kinds are known", len(p.spots))
	}
}

// What nobody uses is given up, and so is what is drained.
func TestPlacesEnd(t *testing.T) {
	p, b := places(t, PlacesOptions{Max: 4, Idle: 200 * time.Millisecond})
	p.Expect(named("acme"), false, 1)
	eventually(t, "it is made", func() bool { return b.prepared() == 1 })
	eventually(t, "it is given up", func() bool { list, _ := b.List(t.Context()); return len(list) == 0 })

	q, _ := places(t, PlacesOptions{Max: 4})
	q.Expect(named("acme"), false, 1)
	q.Expect(named("other"), true, 2)
	q.await(t, 3)
	gone := named("acme")
	q.Expect(gone, false, 1)
	q.await(t, 4)
	q.Forgo(gone)
	q.await(t, 3)
	if n := q.Drain("acme"); n != 1 || q.Ready() != 2 {
		t.Errorf("%d were drained, %d are left", n, q.Ready())
	}
	if n := q.Drain(""); n != 2 || q.Ready() != 0 {
		t.Errorf("%d were drained, %d are left", n, q.Ready())
	}
	s := named("acme")
	q.Expect(s, false, 1)
	q.await(t, 1)
	if c, ok := q.Claim(s, false); !ok {
		t.Error("there is none") // and Close takes it along
	} else {
		q.Vacate(c.Instance)
	}
}

// Ready says how many places there are that nobody has claimed.
func (p *Places) Ready() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.spots {
		for _, x := range s.ready {
			select {
			case <-x.made:
				n++
			default:
			}
		}
	}
	return n
}

package pool

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stock is what a test's pool makes entries of, and counts who holds it.
type stock struct {
	held atomic.Int64
	fail atomic.Bool
}

func (s *stock) find(_ context.Context, shape Shape) (Stock, error) {
	if s.fail.Load() {
		return Stock{}, errors.New("there is no template")
	}
	s.held.Add(1)
	return Stock{Shape: shape, Root: sandbox.Root{Digest: shape.Digest}, Pack: "python", Release: sync.OnceFunc(func() { s.held.Add(-1) })}, nil
}

// open returns a pool over a model of a backend. When the test ends nothing is left
// of either.
func open(t *testing.T, o Options) (*Pool, *sim.Backend, *stock) {
	t.Helper()
	b, s := sim.New(sim.Config{}), &stock{}
	o.Stock = s.find
	p := New(b, o)
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
	return p, b, s
}

func spec() sandbox.Spec {
	return sandbox.Spec{Root: sandbox.Root{Digest: "sha256:" + strings.Repeat("a", 64)}, Limits: sandbox.Limits{Memory: 64 << 20, CPUs: 1, PIDs: 64, Disk: 8 << 20}}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// ready waits until there are n entries like s.
func (p *Pool) ready(t *testing.T, s sandbox.Spec, n int) {
	t.Helper()
	shape, _ := ShapeOf(s)
	eventually(t, "entries are ready", func() bool {
		for _, st := range p.Stats() {
			if st.Shape == shape && st.Ready == n && st.Making == 0 {
				return true
			}
		}
		return false
	})
}

func TestClaim(t *testing.T) {
	p, b, s := open(t, Options{Size: 2, Max: 4})
	if _, ok := p.Claim(spec()); ok {
		t.Fatal("an empty pool has something")
	}
	p.ready(t, spec(), 2) // since somebody has asked
	c, ok := p.Claim(spec())
	if !ok || !c.Sandbox.Valid() {
		t.Fatalf("claim: %+v, %v", c, ok)
	}
	if d, ok := p.Claim(spec()); !ok || d.Instance == c.Instance {
		t.Fatalf("the second claim: %+v, %v", d, ok)
	} else {
		p.Return(d.Instance)
	}
	if list, err := p.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("entries are seen: %v, %v", list, err)
	}
	as := spec()
	as.Instance, as.Sandbox = c.Instance, c.Sandbox
	inst, err := p.Create(t.Context(), as)
	if err != nil || inst.ID() != c.Instance {
		t.Fatalf("create: %v, %v", inst, err)
	}
	if list, _ := p.List(t.Context()); len(list) != 1 || list[0].Instance != c.Instance {
		t.Errorf("what was handed out is not seen: %v", list)
	}
	p.Return(c.Instance) // it is not the pool's any more
	conn, err := inst.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sess, err := guest.Open(t.Context(), conn, guest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sess.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	sess.Close()
	p.ready(t, spec(), 2) // again
	if r, err := inst.Destroy(t.Context()); err != nil || !r.Clean {
		t.Errorf("destroy: %+v, %v", r, err)
	}
	if n := s.held.Load(); n != 2 {
		t.Errorf("%d templates are held", n)
	}
	if list, _ := b.List(t.Context()); len(list) != 2 {
		t.Errorf("the backend has %v", list)
	}
}

// What an entry was not made for is not made of it.
func TestOtherShapes(t *testing.T) {
	p, _, _ := open(t, Options{Size: 1, Max: 8})
	shape, _ := ShapeOf(spec())
	p.Pin(shape, true)
	p.ready(t, spec(), 1)
	for name, change := range map[string]func(*sandbox.Spec){
		"tenant":   func(s *sandbox.Spec) { s.Tenant = "other" },
		"template": func(s *sandbox.Spec) { s.Root.Digest = "sha256:" + strings.Repeat("b", 64) },
		"memory":   func(s *sandbox.Spec) { s.Limits.Memory++ },
		"cpus":     func(s *sandbox.Spec) { s.Limits.CPUs = 2 },
		"pids":     func(s *sandbox.Spec) { s.Limits.PIDs++ },
		"disk":     func(s *sandbox.Spec) { s.Limits.Disk++ },
		"readonly": func(s *sandbox.Spec) { s.ReadonlyRoot = true },
		"network":  func(s *sandbox.Spec) { s.Wire = &sandbox.Wire{} },
	} {
		s := spec()
		change(&s)
		if c, ok := p.Claim(s); ok {
			t.Errorf("%s: got %+v", name, c)
		}
	}
	if _, ok := p.Claim(spec()); !ok {
		t.Error("the entry is gone")
	}
}

// Each entry goes to one, however many ask at once.
func TestClaimedOnce(t *testing.T) {
	p, _, _ := open(t, Options{Size: 8, Max: 8})
	shape, _ := ShapeOf(spec())
	p.Pin(shape, true)
	p.ready(t, spec(), 8)
	var mu sync.Mutex
	seen := map[sandbox.InstanceID]int{}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if c, ok := p.Claim(spec()); ok {
				mu.Lock()
				seen[c.Instance]++
				mu.Unlock()
				p.Return(c.Instance)
			}
		})
	}
	all.Wait()
	if len(seen) < 8 {
		t.Errorf("%d claims were served, of 8 entries", len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was claimed %d times", id, n)
		}
	}
}

func TestBounds(t *testing.T) {
	p, b, _ := open(t, Options{Size: 3, Max: 4, Limit: 5 * 64 << 20})
	two := spec()
	two.Root.Digest = "sha256:" + strings.Repeat("c", 64)
	for _, s := range []sandbox.Spec{spec(), two} {
		shape, _ := ShapeOf(s)
		p.Pin(shape, true)
	}
	eventually(t, "four entries", func() bool { list, _ := b.List(t.Context()); return len(list) == 4 })
	time.Sleep(50 * time.Millisecond)
	if list, _ := b.List(t.Context()); len(list) != 4 {
		t.Errorf("%d entries", len(list))
	}
	for _, st := range p.Stats() {
		if st.Ready != 2 { // the room is shared
			t.Errorf("%+v", st)
		}
	}
	large := spec()
	large.Limits.Memory = 6 * 64 << 20
	p.Claim(large)
	time.Sleep(50 * time.Millisecond)
	shape, _ := ShapeOf(large)
	for _, st := range p.Stats() {
		if st.Shape == shape && st.Ready+st.Making > 0 {
			t.Errorf("beyond the memory that there is for it: %+v", st)
		}
	}
}

// What nobody asks for any more is not kept.
func TestIdle(t *testing.T) {
	p, b, _ := open(t, Options{Size: 2, Max: 4, Idle: 300 * time.Millisecond})
	p.Claim(spec())
	p.ready(t, spec(), 2)
	eventually(t, "it is given up", func() bool {
		p.poke()
		list, _ := b.List(t.Context())
		return len(list) == 0
	})
}

// Who asks for something else each time takes no memory by it.
func TestManyShapes(t *testing.T) {
	p, _, s := open(t, Options{Size: 1, Max: 1, Idle: time.Minute})
	s.fail.Store(true)
	for i := range 4 * maxShelves {
		x := spec()
		x.Limits.Memory += int64(i)
		p.Claim(x)
	}
	if n := len(p.Stats()); n > maxShelves {
		t.Errorf("%d shapes are known", n)
	}
}

// Demand that grows has more kept.
func TestDemand(t *testing.T) {
	var d demand
	now := time.Now()
	for range 60 { // two a second
		now = now.Add(time.Second / 2)
		d.note(now)
	}
	if r := d.at(now); r < 0.8 || r > 2.5 {
		t.Errorf("a rate of two a second is taken for %.2f", r)
	}
	if r := d.at(now.Add(5 * time.Minute)); r > 0.05 {
		t.Errorf("five minutes later it is still %.2f", r)
	}
	if r := new(demand).at(now); r != 0 {
		t.Errorf("of nothing: %.2f", r)
	}
}

// An entry that ends while it waits is replaced, and given to nobody.
func TestEntryEnds(t *testing.T) {
	p, b, _ := open(t, Options{Size: 1, Max: 2})
	shape, _ := ShapeOf(spec())
	p.Pin(shape, true)
	p.ready(t, spec(), 1)
	list, _ := b.List(t.Context())
	inst, err := b.Attach(t.Context(), list[0].Instance)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another takes its place", func() bool {
		c, ok := p.Claim(spec())
		defer p.Return(c.Instance)
		return ok && c.Instance != list[0].Instance
	})
}

// A template that cannot be had is tried again, later, and costs nothing meanwhile.
func TestCannotBeMade(t *testing.T) {
	p, b, s := open(t, Options{Size: 1, Max: 2})
	s.fail.Store(true)
	p.Claim(spec())
	eventually(t, "it fails", func() bool { st := p.Stats(); return len(st) == 1 && st[0].Failed > 0 })
	time.Sleep(50 * time.Millisecond)
	if st := p.Stats(); st[0].Failed != 1 || st[0].Ready+st[0].Making != 0 {
		t.Errorf("%+v", st)
	}
	if list, _ := b.List(t.Context()); len(list) != 0 {
		t.Errorf("%v", list)
	}
	s.fail.Store(false)
	p.mu.Lock()
	for _, sh := range p.shelves {
		sh.pause = time.Time{}
	}
	p.mu.Unlock()
	p.poke()
	p.ready(t, spec(), 1)
}

func TestDrain(t *testing.T) {
	p, b, _ := open(t, Options{Size: 3, Max: 4})
	shape, _ := ShapeOf(spec())
	p.Pin(shape, true)
	p.ready(t, spec(), 3)
	c, _ := p.Claim(spec())
	if n := p.Drain(); n < 2 {
		t.Errorf("%d were drained", n)
	}
	eventually(t, "only the claimed one is left", func() bool { list, _ := b.List(t.Context()); return len(list) == 1 })
	as := spec()
	as.Instance = c.Instance
	inst, err := p.Create(t.Context(), as)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// Close takes what is claimed and not handed out along, and leaves what was.
func TestClose(t *testing.T) {
	dir := t.TempDir()
	other := sim.New(sim.Config{Dir: dir})
	defer other.Close()
	b, s := sim.New(sim.Config{Dir: dir}), &stock{}
	p := New(b, Options{Size: 3, Max: 4, Stock: s.find})
	shape, _ := ShapeOf(spec())
	p.Pin(shape, true)
	p.ready(t, spec(), 3)
	c, _ := p.Claim(spec())
	if _, ok := p.Claim(spec()); !ok {
		t.Fatal("no second one")
	}
	as := spec()
	as.Instance = c.Instance
	inst, err := p.Create(t.Context(), as)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := p.Claim(spec()); ok {
		t.Error("a closed pool has something")
	}
	list, _ := other.List(t.Context())
	if !slices.ContainsFunc(list, func(st sandbox.Status) bool { return st.Instance == c.Instance }) || len(list) != 1 {
		t.Errorf("left are %v", list)
	}
	if n := s.held.Load(); n != 0 {
		t.Errorf("%d templates are held", n)
	}
	if _, err := inst.Destroy(context.Background()); err != nil {
		t.Error(err)
	}
}

// What was claimed for somebody who did not come is the next one's, untouched.
func TestGiveBack(t *testing.T) {
	p, b, _ := open(t, Options{Size: 1, Max: 1})
	shape, _ := ShapeOf(spec())
	p.Pin(shape, true)
	p.ready(t, spec(), 1)
	c, ok := p.Claim(spec())
	if !ok {
		t.Fatal("nothing was ready")
	}
	p.GiveBack(c.Instance)
	p.GiveBack(c.Instance) // it is not claimed any more
	again, ok := p.Claim(spec())
	if !ok || again.Instance != c.Instance || again.Session.Err() != nil {
		t.Fatalf("the second claim: %+v, %v", again, ok)
	}
	if st := p.Stats(); st[0].Hits != 1 {
		t.Errorf("%+v", st)
	}
	p.Return(c.Instance)
	p.GiveBack(c.Instance) // it is being destroyed
	as := spec()
	as.Instance = c.Instance
	if inst, err := p.Create(t.Context(), as); err == nil {
		if r, err := inst.Destroy(t.Context()); err != nil || !r.Clean {
			t.Errorf("%+v, %v", r, err)
		}
	}
	eventually(t, "it is gone", func() bool {
		list, err := b.List(t.Context())
		return err == nil && !slices.ContainsFunc(list, func(st sandbox.Status) bool { return st.Instance == c.Instance })
	})
	if other, ok := p.Claim(spec()); ok && other.Instance == c.Instance {
		t.Error("what was returned is given to somebody")
	}
}

// What a tenant has asked for is made before anybody takes it, and ended for that
// tenant alone.
func TestPrewarmAndDrainOfTenant(t *testing.T) {
	p, _, _ := open(t, Options{Size: 1, Max: 6, Idle: time.Minute})
	one, two := spec(), spec()
	one.Tenant, two.Tenant = "one", "two"
	s1, _ := ShapeOf(one)
	s2, _ := ShapeOf(two)
	p.Prewarm(s1, 3)
	p.Prewarm(s2, 1)
	p.ready(t, one, 3)
	p.ready(t, two, 1)
	if n := p.DrainTenant("one"); n != 3 {
		t.Errorf("%d were ended", n)
	}
	for _, st := range p.Stats() {
		if st.Shape == s1 && st.Ready+st.Making+st.Want > 0 || st.Shape == s2 && st.Ready != 1 {
			t.Errorf("%+v", st)
		}
	}
	if _, ok := p.Claim(one); ok {
		t.Error("something is left")
	}
	p.ready(t, one, 1) // asked for again, and no more than others
}

// TestWeaker: an entry whose boundary is weaker than a spec demands is none, and stays
// for others.
func TestWeaker(t *testing.T) {
	p, b, _ := open(t, Options{Size: 1, Max: 2})
	info, err := b.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := spec()
	shape, _ := ShapeOf(s)
	p.Pin(shape, true)
	p.ready(t, s, 1)
	s.MinIsolation = info.Isolation + 1
	if c, ok := p.Claim(s); ok {
		t.Errorf("%s is handed to who demands more than it is", c.Instance)
	}
	s.MinIsolation = info.Isolation
	c, ok := p.Claim(s)
	if !ok {
		t.Error("it is not there for those whom it is good enough")
	}
	p.Return(c.Instance)
}

// TestShares: who wants as much as there can be keeps it only as long as nobody else wants
// some; then each gets as much as the other, and that does not change to and fro.
func TestShares(t *testing.T) {
	p, _, _ := open(t, Options{Size: 1, Max: 4})
	of := func(tenant sandbox.TenantID) Shape {
		s := spec()
		s.Tenant = tenant
		shape, _ := ShapeOf(s)
		return shape
	}
	greedy, other, third := of("greedy"), of("other"), of("third")
	has := func(shape Shape) (n int) {
		for _, st := range p.Stats() {
			if st.Shape == shape {
				n = st.Ready
			}
		}
		return n
	}
	p.Prewarm(greedy, 4)
	eventually(t, "one tenant has all", func() bool { return has(greedy) == 4 })
	s := spec()
	s.Tenant = "other"
	if _, ok := p.Claim(s); ok {
		t.Fatal("there was one")
	}
	eventually(t, "another has what he asks for", func() bool { return has(other) == 1 && has(greedy) == 3 })
	p.Prewarm(other, 4)
	eventually(t, "two have as much", func() bool { return has(other) == 2 && has(greedy) == 2 })
	p.Prewarm(greedy, 4) // again
	for range 20 {
		p.poke()
		time.Sleep(time.Millisecond)
		if has(other) < 2 {
			t.Fatalf("%d and %d", has(greedy), has(other))
		}
	}
	p.Prewarm(third, 1)
	eventually(t, "a third has his", func() bool { return has(third) == 1 && has(greedy)+has(other) == 3 })
	if n := p.DrainTenant("other") + p.DrainTenant("third"); n < 2 {
		t.Errorf("%d were drained", n)
	}
	eventually(t, "what nobody else wants is had again", func() bool { return has(greedy) == 4 })
}

// What a claim is decided by is looked at while something is ready, and not without.
func TestLook(t *testing.T) {
	var looks atomic.Int64
	p, _, _ := open(t, Options{Size: 1, Max: 1, Look: func() { looks.Add(1) }})
	time.Sleep(LookEvery + LookEvery/2)
	if n := looks.Load(); n != 0 {
		t.Errorf("looked %d times with nothing ready", n)
	}
	p.Claim(spec())
	p.ready(t, spec(), 1)
	eventually(t, "it is looked at twice", func() bool { return looks.Load() >= 2 })
}

// A claim brings the status that its entry had when it was made.
func TestClaimStatus(t *testing.T) {
	p, _, _ := open(t, Options{Size: 1, Max: 1})
	p.Claim(spec())
	p.ready(t, spec(), 1)
	c, ok := p.Claim(spec())
	if !ok || !c.Status.Alive || c.Status.Instance != c.Instance {
		t.Errorf("%v %+v", ok, c.Status)
	}
	p.GiveBack(c.Instance)
}

package policy

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type countedCloser struct{ n atomic.Int64 }

func (c *countedCloser) Close() error { c.n.Add(1); return nil }

func TestLive(t *testing.T) {
	one, two := compile(t, Options{}, "allow: [a.example.com]"), compile(t, Options{}, "allow: [b.example.com]")
	l := NewLive(one)
	f := flow(t, "a.example.com:443 tls 1.1.1.1")
	d := l.Table().Decide(t.Context(), f)
	if !d.Allow || d.Generation != 1 || one.Generation() != 0 {
		t.Fatalf("%+v", d)
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	release, err := l.Admit(d.Generation, ours)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	over := new(countedCloser)
	gone, err := l.Admit(d.Generation, over)
	if err != nil {
		t.Fatal(err)
	}
	gone()
	gen, closed := l.Update(two)
	if gen != 2 || closed != 1 || over.n.Load() != 0 || l.Table().Decide(t.Context(), f).Allow {
		t.Errorf("generation %d, %d closed", gen, closed)
	}
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if _, err := l.Admit(d.Generation, over); !errors.Is(err, ErrStale) || over.n.Load() != 0 {
		t.Errorf("an old decision: %v", err)
	}
}

// TestLiveRace: whatever the order, no connection that an older policy admitted
// is open after the update.
func TestLiveRace(t *testing.T) {
	table := compile(t, Options{}, "allow: [a.example.com]")
	l := NewLive(table)
	type conn struct {
		countedCloser
		generation uint64
	}
	var mu sync.Mutex
	var admitted []*conn // guarded by mu
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				c := &conn{generation: l.Table().Generation()}
				if _, err := l.Admit(c.generation, c); err == nil {
					mu.Lock()
					admitted = append(admitted, c)
					mu.Unlock()
				}
			}
		})
	}
	for range 50 {
		l.Update(table)
	}
	wg.Wait()
	last, _ := l.Update(table)
	for _, c := range admitted {
		if c.generation >= last || c.n.Load() != 1 {
			t.Fatalf("generation %d was closed %d times", c.generation, c.n.Load())
		}
	}
	if last != 52 || len(admitted) == 0 {
		t.Errorf("generation %d, %d connections", last, len(admitted))
	}
}

func rule(t *testing.T, budget string) *Compiled {
	t.Helper()
	return compile(t, Options{}, "allow: [{id: r, host: ['*.a.example', a.example], budget: {"+budget+"}}]").Rules()[0]
}

func exhausted(t *testing.T, err error, budget string) {
	t.Helper()
	var e *BudgetError
	if !errors.As(err, &e) || e.Budget != budget || e.Rule != "r" || e.Limit == 0 {
		t.Errorf("%v, want the budget of %s used up", err, budget)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBudgets(t *testing.T) {
	var a Accountant
	r := rule(t, "upload: 10B, download: 20B, connections: 4, concurrent: 2")
	one, err := a.Connect(r)
	must(t, err)
	two, err := a.Connect(r)
	must(t, err)
	_, err = a.Connect(r)
	exhausted(t, err, "concurrent")
	one.Close()
	one.Close()
	three, err := a.Connect(r)
	must(t, err)
	must(t, two.Upload(4))
	must(t, three.Upload(6))
	exhausted(t, three.Upload(1), "upload")
	must(t, three.Upload(0))
	must(t, two.Download(19))
	exhausted(t, three.Download(2), "download")
	must(t, three.Download(1))
	two.Close()
	three.Close()
	_, err = a.Connect(r)
	exhausted(t, err, "upload")
	if u := a.Used(r); u != (Used{10, 20, 3, 0, 0}) {
		t.Errorf("used %+v", u)
	}
	// An update with a larger budget goes on from there; another sandbox begins anew.
	larger := rule(t, "connections: 4")
	four, err := a.Connect(larger)
	must(t, err)
	four.Close()
	_, err = a.Connect(larger)
	exhausted(t, err, "connections")
	if _, err := new(Accountant).Connect(r); err != nil {
		t.Error(err)
	}
	many, err := new(Accountant).Connect(rule(t, "names: 1"))
	must(t, err)
	must(t, many.Upload(1<<62))
}

// TestPermitBudgets: what passes on a connection by another rule than its own is
// charged to that one, too, and to it alone if it may not.
func TestPermitBudgets(t *testing.T) {
	table := compile(t, Options{}, `allow:
  - {id: get, host: a.example, methods: GET, budget: {upload: 100B}}
  - {id: r, host: a.example, methods: POST, budget: {upload: 10B, download: 20B, connections: 3, concurrent: 1}}`)
	get, post := table.Rules()[0], table.Rules()[1]
	var a Accountant
	one, err := a.Connect(get)
	must(t, err)
	must(t, one.Upload(50))
	must(t, one.Permit(get))
	must(t, one.Permit(post))
	must(t, one.Permit(post)) // once
	must(t, one.Upload(10))
	must(t, one.Download(20))
	exhausted(t, one.Upload(1), "upload")
	exhausted(t, one.Download(1), "download")
	two, err := a.Connect(get)
	must(t, err)
	exhausted(t, two.Permit(post), "concurrent")
	must(t, two.Upload(40)) // it goes on as before
	if got, want := a.Used(get), (Used{100, 20, 2, 2, 0}); got != want {
		t.Errorf("the connection's rule: %+v, want %+v", got, want)
	}
	one.Close()
	one.Close()
	exhausted(t, two.Permit(post), "upload")
	if got, want := a.Used(post), (Used{10, 20, 1, 0, 0}); got != want {
		t.Errorf("the request's rule: %+v, want %+v", got, want)
	}
	if err := one.Permit(post); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// TestPermitTogether: requests that begin at once on one connection are one to a
// rule, and its end is that of all.
func TestPermitTogether(t *testing.T) {
	var a Accountant
	own, r := rule(t, "connections: 1000"), rule(t, "connections: 50")
	own.ID = "own"
	var wg sync.WaitGroup
	for range 50 {
		m, err := a.Connect(own)
		must(t, err)
		for range 4 {
			wg.Go(func() {
				if err := m.Permit(r); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				_ = m.Upload(1) // has no bound
			})
		}
		wg.Go(m.Close)
	}
	wg.Wait()
	if u := a.Used(r); u.Concurrent != 0 || u.Connections > 50 || a.Used(own).Concurrent != 0 {
		t.Errorf("%+v", u)
	}
}

func TestNameBudget(t *testing.T) {
	var a Accountant
	r := rule(t, "names: 2")
	for range 3 {
		must(t, a.Name(r, host(t, "x.a.example")))
		must(t, a.Name(r, host(t, "y.a.example")))
		exhausted(t, a.Name(r, host(t, "z.a.example")), "names")
		must(t, a.Name(r, host(t, "a.example"))) // written out
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a Accountant
		r := rule(t, "rate: 6/m")
		burst := func(want int) {
			t.Helper()
			for range want {
				m, err := a.Connect(r)
				must(t, err)
				m.Close()
			}
			_, err := a.Connect(r)
			exhausted(t, err, "rate")
		}
		burst(6)
		time.Sleep(9 * time.Second)
		burst(0)
		time.Sleep(time.Second)
		burst(1)
		time.Sleep(35 * time.Second)
		burst(3)
		time.Sleep(time.Hour)
		burst(6) // never more than the rate at once
	})
}

// TestBudgetsTogether: connections that share a budget never exceed it.
func TestBudgetsTogether(t *testing.T) {
	var a Accountant
	r := rule(t, "upload: 1000B, connections: 100, concurrent: 3, names: 5")
	var sent, made, atOnce, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				_ = a.Name(r, host(t, string(rune('a'+(i+j)%20))+".a.example"))
				m, err := a.Connect(r)
				if err != nil {
					continue
				}
				made.Add(1)
				now := atOnce.Add(1)
				for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
				}
				for range 5 {
					if m.Upload(7) == nil {
						sent.Add(7)
					}
				}
				atOnce.Add(-1)
				m.Close()
			}
		})
	}
	wg.Wait()
	u := a.Used(r)
	if sent.Load() > 1000 || u.Upload != sent.Load() || u.Connections != made.Load() || made.Load() > 100 || most.Load() > 3 || u.Concurrent != 0 || u.Names != 5 {
		t.Errorf("used %+v; sent %d in %d connections, %d at once", u, sent.Load(), made.Load(), most.Load())
	}
}

// TestRestore: what was used before a restart is used after it.
func TestRestore(t *testing.T) {
	var a Accountant
	r := rule(t, "upload: 10B, download: 20B, connections: 4, rate: 3/h, names: 2")
	must(t, a.Name(r, host(t, "one.a.example")))
	one, err := a.Connect(r)
	must(t, err)
	must(t, one.Upload(7))
	must(t, one.Download(8))
	b := Restore(a.All())
	if got, want := b.All()["r"], (Used{7, 8, 1, 0, 1}); got != want || len(b.All()) != 1 {
		t.Errorf("restored %+v, want %+v", b.All(), want)
	}
	must(t, b.Name(r, host(t, "two.a.example")))
	exhausted(t, b.Name(r, host(t, "three.a.example")), "names")
	two, err := b.Connect(r)
	must(t, err)
	must(t, two.Upload(3))
	exhausted(t, two.Upload(1), "upload")
	exhausted(t, two.Download(13), "download")
	if b.All()["r"].Concurrent != 1 || a.All()["r"].Upload != 7 {
		t.Errorf("%+v, before %+v", b.All(), a.All())
	}
	// One of three connections of this hour was before.
	rate := rule(t, "rate: 3/h")
	c := Restore(map[string]Used{"r": {Connections: 1}})
	for range 2 {
		_, err := c.Connect(rate)
		must(t, err)
	}
	_, err = c.Connect(rate)
	exhausted(t, err, "rate")
}

//go:build linux

package control

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestServes: a connection through the process, what is recorded of it, a new
// policy, and the end of the wire.
func TestServes(t *testing.T) {
	p, s := newPlace(t), newSink(t)
	k, j := startKeeper(t, nil)
	ctx := t.Context()
	must(t, k.Attach(ctx, Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap))
	if err := k.Attach(ctx, Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap); sandbox.KindOf(err) != sandbox.KindExists {
		t.Errorf("attached twice: %v", err)
	}
	c := p.mustEcho("good.example", s.port)
	eventually(t, "the connection is recorded", func() bool {
		return j.count(func(e egress.Event) bool {
			return e.Wire == "in1" && e.Kind == egress.KindConnect && e.Decision == egress.Allow && e.Rule == "good" && e.Host == "good.example" && e.Generation == 1
		}) == 1
	})
	if st, err := k.Stats(ctx); err != nil || st.Wires != 1 || st.Connections != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := p.connect("other.example", s.port, 20*time.Second); err == nil {
		t.Error("another name has an address")
	}
	g, closed, err := k.Update(ctx, "in1", rules(s.port, ", budget: {connections: 9}"))
	if err != nil || g != 2 || closed != 1 {
		t.Errorf("generation %d, %d closed, %v", g, closed, err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection is open after the update: %v", err)
	}
	p.mustEcho("good.example", s.port)
	for range 2 {
		must(t, k.Detach(ctx, "in1"))
	}
	eventually(t, "both ends are recorded", func() bool {
		return j.count(func(e egress.Event) bool { return e.Kind == egress.KindClose && e.Upload == 5 && e.Download == 5 }) == 2
	})
	if st, err := k.Stats(ctx); err != nil || st.Wires != 0 || st.Connections != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, _, err := k.Update(ctx, "in1", rules(s.port, "")); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("updated without a wire: %v", err)
	}
}

// TestRefused: what is wrong is the caller's to know, before the router is.
func TestRefused(t *testing.T) {
	p := newPlace(t)
	k, _ := startKeeper(t, nil)
	ctx := t.Context()
	good := rules("443", "")
	notTap, _, err := os.Pipe()
	must(t, err)
	defer notTap.Close()
	for name, c := range map[string]struct {
		wire Wire
		tap  *os.File
		kind sandbox.Kind
		text string
	}{
		"an id":      {Wire{ID: "../x", Policies: good}, p.tap, sandbox.KindInvalid, "is no wire"},
		"an epoch":   {Wire{ID: "in1", Epoch: -1, Policies: good}, p.tap, sandbox.KindInvalid, "is no wire"},
		"no YAML":    {Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("allow: {{")}}}, p.tap, sandbox.KindInvalid, "policy:1: "},
		"no rule":    {Wire{ID: "in1", Policies: Policies{Documents: [][]byte{good.Documents[0], []byte("allow:\n- host: ???\n")}}}, p.tap, sandbox.KindInvalid, "policy 2:2: "},
		"no Rego":    {Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("allow: [a.example]\nrego: |\n  package other\n")}}}, p.tap, sandbox.KindInvalid, "package"},
		"an include": {Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("include: [mine]\n")}}}, p.tap, sandbox.KindNotFound, "mine"},
		"too much":   {Wire{ID: "in1", Policies: Policies{Included: map[string][]byte{"x": make([]byte, maxPolicies)}}}, p.tap, sandbox.KindTooLarge, "KiB"},
		"no TAP":     {Wire{ID: "in1", Policies: good}, notTap, sandbox.KindInvalid, "no TAP"},
	} {
		t.Run(name, func(t *testing.T) {
			err := k.Attach(ctx, c.wire, c.tap)
			if sandbox.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v (%s), want %s", err, sandbox.KindOf(err), c.kind)
			}
		})
	}
	must(t, k.Attach(ctx, Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("include: [mine]\n")}, Included: map[string][]byte{"mine": good.Documents[0]}}}, p.tap))
	if _, _, err := k.Update(ctx, "in1", Policies{Documents: [][]byte{[]byte("[")}}); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("updated to no policy: %v", err)
	}
	if st, err := k.Stats(ctx); err != nil || st.Wires != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := k.Attach(gone, Wire{ID: "in2", Policies: good}, p.tap); sandbox.KindOf(err) != sandbox.KindCanceled {
		t.Errorf("attached for nobody: %v", err)
	}
	must(t, k.Attach(ctx, Wire{ID: "in2", Policies: good}, newPlace(t).tap))
}

// TestKilled: a router that is killed is followed by one that serves the same
// wires, with the policies they have by then.
func TestKilled(t *testing.T) {
	s := newSink(t)
	k, j := startKeeper(t, nil)
	ctx := t.Context()
	var places []*place
	for i := range 5 {
		p := newPlace(t)
		must(t, k.Attach(ctx, Wire{ID: fmt.Sprint("in", i), Policies: rules(s.port, fmt.Sprintf(", budget: {connections: %d}", 900+i))}, p.tap))
		places = append(places, p)
	}
	if g, _, err := k.Update(ctx, "in0", rules(s.port, ", note: new")); err != nil || g != 2 {
		t.Fatal(g, err)
	}
	var took []time.Duration
	for round := range 3 {
		var open []io.Closer
		for _, p := range places {
			open = append(open, p.mustEcho("good.example", s.port))
		}
		// The names are asked for and the connection is tried again and again, as by
		// somebody who waits for it.
		pid, begun := router(t, k), time.Now()
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		eventually(t, "the next router serves", func() bool {
			c, err := places[0].connect("good.example", s.port, 20*time.Millisecond)
			if err != nil {
				return false
			}
			defer c.Close()
			return echoes(c, "again") == nil
		})
		took = append(took, time.Since(begun))
		for _, p := range places {
			p.mustEcho("good.example", s.port)
		}
		if now := router(t, k); now == pid {
			t.Fatalf("round %d: %d was not killed", round, pid)
		}
		for _, c := range open {
			c.Close()
		}
		time.Sleep(steady) // it was no failure of the router
	}
	t.Logf("serves again after %v", took)
	if best := min(took[0], took[1], took[2]); best > 2*time.Second {
		t.Errorf("serves again after %v at best; promised are 100 ms of a machine that does nothing else", best)
	}
	if g, _, err := k.Update(ctx, "in0", rules(s.port, "")); err != nil || g != 3 {
		t.Errorf("generation %d after restarts, %v", g, err)
	}
	eventually(t, "generations go on", func() bool {
		return j.count(func(e egress.Event) bool { return e.Wire == "in0" && e.Kind == egress.KindConnect && e.Generation == 2 }) >= 7
	})
	if n := j.count(func(e egress.Event) bool { return e.Wire == "in0" && e.Generation == 1 }); n != 0 {
		t.Errorf("%d events of the policy before", n)
	}
}

// TestNoRouter: while there is none nothing leaves, and nothing hangs; when there
// is one again it has what was attached and detached meanwhile.
func TestNoRouter(t *testing.T) {
	p, q, s := newPlace(t), newPlace(t), newSink(t)
	file := filepath.Join(t.TempDir(), "router")
	program, err := os.ReadFile(routerProgram(t)[0])
	must(t, err)
	must(t, os.WriteFile(file, program, 0o755))
	k, _ := startKeeper(t, func(o *Options) { o.Argv = []string{file, "router"} })
	ctx := t.Context()
	must(t, k.Attach(ctx, Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap))
	must(t, k.Attach(ctx, Wire{ID: "in2", Policies: rules(s.port, "")}, q.tap))
	c := p.mustEcho("good.example", s.port)
	where, err := p.addr("good.example", 20*time.Second)
	must(t, err)
	must(t, os.Remove(file))
	conns, bytes := s.conns.Load(), s.bytes.Load()
	must(t, syscall.Kill(router(t, k), syscall.SIGKILL))
	eventually(t, "the router is gone", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.current == nil })
	_, _ = io.WriteString(c, "more")
	if _, err := p.addr("good.example", 300*time.Millisecond); err == nil {
		t.Error("a name has an address")
	}
	if _, err := p.dial(where+":"+s.port, 300*time.Millisecond); err == nil {
		t.Error("there is a connection")
	}
	if s.conns.Load() != conns || s.bytes.Load() != bytes {
		t.Errorf("%d connections and %d bytes more", s.conns.Load()-conns, s.bytes.Load()-bytes)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := k.Stats(short); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("statistics of nothing: %v", err)
	}
	if err := k.Attach(short, Wire{ID: "in3", Policies: rules(s.port, "")}, q.tap); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("attached to nothing: %v", err)
	}
	must(t, k.Detach(ctx, "in2"))
	must(t, os.WriteFile(file, program, 0o755))
	eventually(t, "the next router serves", func() bool {
		c, err := p.connect("good.example", s.port, time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		return echoes(c, "again") == nil
	})
	if st, err := k.Stats(ctx); err != nil || st.Wires != 1 {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestBudgetsSurvive: what was used before the router died is used after it.
func TestBudgetsSurvive(t *testing.T) {
	p, s := newPlace(t), newSink(t)
	k, _ := startKeeper(t, nil)
	ctx := t.Context()
	must(t, k.Attach(ctx, Wire{ID: "in1", Policies: rules(s.port, ", budget: {upload: 10KiB, connections: 4}")}, p.tap))
	p.mustEcho("good.example", s.port).Close()
	c := p.mustEcho("good.example", s.port)
	must(t, echoes(c, strings.Repeat("x", 9000)))
	eventually(t, "the use is reported", func() bool { u := k.Used("in1")["good"]; return u.Connections == 2 && u.Upload == 9010 })
	must(t, syscall.Kill(router(t, k), syscall.SIGKILL))
	eventually(t, "the next router serves", func() bool {
		_, err := p.addr("good.example", time.Second)
		return err == nil
	})
	c = p.mustEcho("good.example", s.port)
	if err := echoes(c, strings.Repeat("y", 1500)); err == nil {
		t.Error("more bytes left than the budget has")
	}
	p.mustEcho("good.example", s.port)
	c, err := p.connect("good.example", s.port, 20*time.Second)
	if err == nil {
		err = echoes(c, "one too many")
		c.Close()
	}
	if err == nil || s.conns.Load() != 4 {
		t.Errorf("%d connections where 4 may be", s.conns.Load())
	}
	if s.bytes.Load() > 10<<10 {
		t.Errorf("%d bytes where 10 KiB may be", s.bytes.Load())
	}
}

// TestUnrecorded: where nothing can be recorded nothing leaves, and when it can be
// again it does.
func TestUnrecorded(t *testing.T) {
	p, s := newPlace(t), newSink(t)
	k, j := startKeeper(t, nil)
	must(t, k.Attach(t.Context(), Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap))
	p.mustEcho("good.example", s.port).Close()
	where, err := p.addr("good.example", 20*time.Second)
	must(t, err)
	try := func() error {
		c, err := p.dial(where+":"+s.port, 20*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		return echoes(c, "hello")
	}
	j.fail.Store(true)
	eventually(t, "it is known that nothing is recorded", func() bool { return try() != nil })
	conns := s.conns.Load()
	for range 5 {
		if try() == nil {
			t.Error("a connection that is not recorded")
		}
	}
	if n := s.conns.Load() - conns; n != 0 {
		t.Errorf("%d connections that are not recorded", n)
	}
	j.fail.Store(false)
	eventually(t, "it goes on", func() bool { return try() == nil })
}

// TestLag: a journal that does not answer holds up what happens after as many
// events as may be on their way, and nothing that is not in it happens.
func TestLag(t *testing.T) {
	p, s := newPlace(t), newSink(t)
	k, j := startKeeper(t, nil)
	must(t, k.Attach(t.Context(), Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap))
	p.mustEcho("good.example", s.port).Close()
	where, err := p.addr("good.example", 20*time.Second)
	must(t, err)
	before := s.conns.Load()
	j.hold.Lock()
	denied := 0
	for end := time.Now().Add(time.Minute); denied < 3 && time.Now().Before(end); {
		c, err := p.dial(where+":"+s.port, 20*time.Second)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			err = echoes(c, "hello")
			c.Close()
		}
		if err != nil {
			denied++
		}
	}
	made := s.conns.Load() - before
	j.hold.Unlock()
	if denied < 3 || made > maxLag {
		t.Errorf("%d connections, %d denied", made, denied)
	}
	allowed := func(e egress.Event) bool { return e.Kind == egress.KindConnect && e.Decision == egress.Allow }
	eventually(t, "it goes on", func() bool {
		c, err := p.dial(where+":"+s.port, time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		return echoes(c, "hello") == nil
	})
	eventually(t, "all that happened is recorded", func() bool { return int64(j.count(allowed)) >= s.conns.Load() })
}

// TestNames: the router, which reads no file, knows what changed in one.
func TestNames(t *testing.T) {
	p, s := newPlace(t), newSink(t)
	hosts := hostsFile(t, "127.0.0.1 another.example\n")
	k, _ := startKeeper(t, func(o *Options) { o.Hosts = hosts })
	must(t, k.Attach(t.Context(), Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap))
	must(t, os.WriteFile(hosts+".new", []byte("127.0.0.1 good.example\n"), 0o600))
	must(t, os.Rename(hosts+".new", hosts))
	eventually(t, "the name is known", func() bool {
		c, err := p.connect("good.example", s.port, 20*time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		return echoes(c, "hello") == nil
	})
}

// TestHangs: a router that does not answer is as good as dead.
func TestHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("not run: takes as long as a router has to answer")
	}
	k, _ := startKeeper(t, nil)
	pid := router(t, k)
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	eventually(t, "another router serves", func() bool { return router(t, k) != pid })
	_, err := k.Stats(t.Context())
	must(t, err)
}

// TestWireGone: a wire whose device is gone is served no more, and the others are.
func TestWireGone(t *testing.T) {
	p, q, s := newPlace(t), newPlace(t), newSink(t)
	k, _ := startKeeper(t, nil)
	ctx := t.Context()
	must(t, k.Attach(ctx, Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap))
	must(t, k.Attach(ctx, Wire{ID: "in2", Policies: rules(s.port, "")}, q.tap))
	p.in(func() {
		eth, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkDel(eth)
		}
		if err != nil {
			t.Error(err)
		}
	})
	pid := router(t, k)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "another router serves", func() bool { return router(t, k) != pid })
	q.mustEcho("good.example", s.port).Close()
	if _, _, err := k.Update(ctx, "in1", rules(s.port, "")); err == nil {
		t.Error("a wire without a device has a new policy")
	}
	if st, err := k.Stats(ctx); err != nil || st.Wires != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	must(t, k.Detach(ctx, "in1"))
	must(t, k.Detach(ctx, "in2"))
}

// TestAtOnce: wires come, change and go while routers die, and what is left is what
// was attached last.
func TestAtOnce(t *testing.T) {
	s := newSink(t)
	k, _ := startKeeper(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	var all, killer sync.WaitGroup
	for i := range 4 {
		p := newPlace(t)
		all.Go(func() {
			id := fmt.Sprint("in", i)
			for range 25 {
				must(t, k.Attach(ctx, Wire{ID: id, Policies: rules(s.port, "")}, p.tap))
				if _, _, err := k.Update(ctx, id, rules(s.port, ", note: x")); err != nil {
					t.Error(err)
				}
				short, cancel := context.WithTimeout(ctx, time.Millisecond)
				_ = k.Detach(short, id) // in time or not
				cancel()
				if err := k.Detach(ctx, id); err != nil {
					t.Error(err)
				}
			}
			must(t, k.Attach(ctx, Wire{ID: id, Policies: rules(s.port, "")}, p.tap))
		})
	}
	killer.Go(func() {
		for ctx.Err() == nil {
			k.mu.Lock()
			c := k.current
			k.mu.Unlock()
			if c != nil {
				c.process.kill()
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	all.Wait()
	stop()
	killer.Wait()
	eventually(t, "all wires are served, and no other", func() bool {
		st, err := k.Stats(t.Context())
		return err == nil && st.Wires == 4
	})
	for i := range 4 {
		must(t, k.Detach(t.Context(), fmt.Sprint("in", i)))
	}
	if st, err := k.Stats(t.Context()); err != nil || st.Wires != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

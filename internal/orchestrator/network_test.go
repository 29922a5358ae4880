package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestWire: from before the instance until after it, and in the receipt.
func TestWire(t *testing.T) {
	w, n := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
	if got, open := n.of(sb.Instance); !open || string(got.Documents[0]) != "allow: [a.example.com]" || got.Generation != 1 || got.Epoch != 0 {
		t.Errorf("%+v, %v", got, open)
	}
	if s := n.spec[sb.Instance]; s == nil || s.NetNS != "/wires/"+string(sb.Instance) {
		t.Errorf("the backend got %+v", s)
	}
	if sb.Details.Network == nil || sb.Details.Network.Generation != 1 || sb.Details.Network.Documents[0].Text != "allow: [a.example.com]" {
		t.Errorf("%+v", sb.Details.Network)
	}
	n.during = func(method string) {
		if list, _ := w.sim.List(context.Background()); method == "close" && len(list) > 0 {
			t.Errorf("the wire is closed before the instance is gone")
		}
	}
	dead, err := o.Destroy(t.Context(), alice, string(sb.ID))
	if err != nil || !dead.Receipt.Clean || !slices.ContainsFunc(dead.Receipt.Objects, func(x sandbox.Object) bool { return x.Kind == "namespace" && x.Gone }) {
		t.Errorf("%+v, %v", dead.Receipt, err)
	}
	rec := w.audit.find(t, sb.ID, "sandbox.create allowed")
	if rec.Digest != sb.Details.Network.Digest() || rec.Policy != 1 || rec.Detail["network"] != "policy" || rec.Detail["policies"] != "p0" {
		t.Errorf("%+v", rec)
	}
	if rec := w.audit.find(t, sb.ID, "sandbox.receipt done"); rec.Digest != dead.Receipt.Digest() {
		t.Errorf("%+v", rec)
	}
}

// find returns the first record of "action outcome" about a sandbox.
func (e *evidence) find(t *testing.T, id sandbox.ID, what string) sandbox.Record {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.records {
		if r.Sandbox == id && r.Action+" "+string(r.Outcome) == what {
			return r
		}
	}
	t.Fatalf("no record %q", what)
	return sandbox.Record{}
}

// TestNoRulesNoWire: nothing is made, asked or said.
func TestNoRulesNoWire(t *testing.T) {
	w, n := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	if n.spec[sb.Instance] != nil || len(n.calls) != 0 || sb.Details.Network != nil {
		t.Errorf("spec %+v, calls %q, %+v", n.spec[sb.Instance], n.calls, sb.Details.Network)
	}
	if rec := w.audit.find(t, sb.ID, "sandbox.create allowed"); rec.Detail["network"] != "none" || rec.Digest != "" || rec.Policy != 0 {
		t.Errorf("%+v", rec)
	}
	_, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [a.example.com]"))
	if e := wantKind(t, err, sandbox.KindUnsupported); e.Hint == "" {
		t.Error(err)
	}
	if got, closed, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), NetworkPolicy{}); err != nil || closed != 0 || got.Details.Network != nil {
		t.Errorf("nothing is what it has: %+v, %v", got, err)
	}
	if len(n.calls) != 0 {
		t.Errorf("calls %q", n.calls)
	}
}

// TestRefusedNetworks: nothing exists afterwards, not even a record.
func TestRefusedNetworks(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	_, err := o.Create(t.Context(), alice, CreateRequest{Network: policyOf("allow: []")})
	if e := wantKind(t, err, sandbox.KindUnsupported); !strings.Contains(e.Hint, "--allow") {
		t.Errorf("no Network: %v", err)
	}
	_, err = o.CreateRun(t.Context(), alice, RunRequest{Sandbox: CreateRequest{Network: policyOf("allow: []")}, Exec: sh("true")})
	wantKind(t, err, sandbox.KindUnsupported)
	n := newWires()
	w.cfg = func(c *Config) { c.Network = n } // and a backend without a socket
	o = w.start()
	_, err = o.Create(t.Context(), alice, CreateRequest{Network: policyOf("allow: []")})
	if e := wantKind(t, err, sandbox.KindUnsupported); e.Hint == "" {
		t.Errorf("no capability: %v", err)
	}
	w.cfg = n.config(w)
	o = w.start()
	_, err = o.Create(t.Context(), alice, CreateRequest{Network: policyOf(strings.Repeat("#", maxPolicyBytes), "x")})
	wantKind(t, err, sandbox.KindTooLarge)
	_, err = o.Create(t.Context(), alice, CreateRequest{Network: policyOf(make([]string, maxPolicyDocuments+1)...)})
	wantKind(t, err, sandbox.KindTooLarge)
	if list, _, err := o.List(t.Context(), alice.Tenant, store.Filter{States: []store.State{store.Creating, store.Running, store.Stopping, store.Ended}}, store.Page{}); err != nil || len(list) != 0 || len(n.calls) != 0 {
		t.Errorf("%d records, calls %q, %v", len(list), n.calls, err)
	}
}

// TestFailedWires: whatever part fails, the sandbox is not and its wire is gone.
func TestFailedWires(t *testing.T) {
	for _, c := range []string{"open", "boot"} {
		w, n := newWiredWorld(t)
		o := w.start()
		switch c {
		case "open":
			n.set("open", sandbox.Errorf("open wire", sandbox.KindCapacity, "too many"))
		case "boot":
			w.roots.damaged = sandbox.Errorf("check", sandbox.KindInternal, "damaged") // found while it boots
		}
		_, err := o.Create(t.Context(), alice, CreateRequest{Network: policyOf("allow: []")})
		if err == nil {
			t.Fatalf("%s: no error", c)
		}
		list, _, _ := o.List(t.Context(), alice.Tenant, store.Filter{States: []store.State{store.Ended}}, store.Page{})
		if len(list) != 1 || !list[0].Receipt.Clean || n.called("close") != 1 {
			t.Errorf("%s: %+v, calls %q", c, list, n.calls)
		}
		if left, _ := n.List(t.Context()); len(left) > 0 {
			t.Errorf("%s: %v", c, left)
		}
	}
}

// TestStuckWire: what resists is in the receipt, and tried again.
func TestStuckWire(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		n := newWires()
		w.cfg = n.config(w)
		o = w.start()
		sb := mustCreate(w.t, o, alice, CreateRequest{Network: policyOf("allow: []")})
		n.stuck = true
		_, err := o.Destroy(w.t.Context(), alice, string(sb.ID))
		if err == nil {
			w.t.Fatal("no error")
		}
		got, dead := ended(w.t, o, sb.ID)
		if !dead || got.Receipt.Clean || got.Receipt.Objects[len(got.Receipt.Objects)-1].Detail != "busy" {
			w.t.Errorf("%+v", got.Receipt)
		}
		n.mu.Lock()
		n.stuck = false
		n.mu.Unlock()
		sleep(sweepEvery + time.Second)
		if left, _ := n.List(w.t.Context()); len(left) > 0 {
			w.t.Errorf("%v", left)
		}
	})
}

func TestUpdateNetwork(t *testing.T) {
	w, n := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
	n.open[sb.Instance].flows = 3
	next := policyOf("allow: [b.example.com]")
	n.during = func(method string) { // what is meant is written down before it is so
		if rec, err := w.store.Tenant(alice.Tenant).Sandbox(context.Background(), sb.ID); method == "update" && (err != nil || !strings.Contains(string(rec.Extra), "b.example.com")) {
			t.Errorf("%s, %v", rec.Extra, err)
		}
	}
	got, closed, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *next)
	if err != nil || closed != 3 || got.Details.Network.Generation != 2 || got.Details.Network.Documents[0].Text != "allow: [b.example.com]" {
		t.Fatalf("%+v, %d, %v", got.Details.Network, closed, err)
	}
	if wire, _ := n.of(sb.Instance); string(wire.Documents[0]) != "allow: [b.example.com]" || wire.Generation != 2 {
		t.Errorf("%+v", wire)
	}
	before := w.audit.find(t, sb.ID, "sandbox.network allowed")
	after := w.audit.find(t, sb.ID, "sandbox.network done")
	if before.Class != sandbox.Gate || before.Digest != next.Digest() || before.Policy != 2 || after.Class != sandbox.Flow || after.Detail["closed"] != "3" || after.Policy != 2 {
		t.Errorf("%+v, %+v", before, after)
	}
	n.during = nil
	if _, _, err := o.UpdateNetwork(t.Context(), bob, string(sb.ID), *next); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("another tenant: %v", err)
	}
	// Evidence that cannot be had: nothing changes.
	w.audit.set(errors.New("full"))
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [c.example.com]")); err == nil {
		t.Error("it was updated without evidence")
	}
	w.audit.set(nil)
	if wire, _ := n.of(sb.Instance); wire.Generation != 2 {
		t.Errorf("%+v", wire)
	}
	// Everything taken away.
	if got, _, err = o.UpdateNetwork(t.Context(), alice, string(sb.ID), NetworkPolicy{}); err != nil || got.Details.Network.Generation != 3 || len(got.Details.Network.Documents) != 0 {
		t.Errorf("%+v, %v", got.Details.Network, err)
	}
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
		t.Fatal(err)
	}
	_, _, err = o.UpdateNetwork(t.Context(), alice, string(sb.ID), *next)
	wantKind(t, err, sandbox.KindGone)
}

// TestUpdateFails: the policy before is in force again, in the store too.
func TestUpdateFails(t *testing.T) {
	w, n := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
	tries := 0
	n.during = func(method string) {
		if method == "update" {
			if tries++; tries > 1 {
				n.set("update", nil)
			}
		}
	}
	n.set("update", sandbox.Errorf("update", sandbox.KindUnavailable, "the router is gone"))
	_, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [b.example.com]"))
	wantKind(t, err, sandbox.KindUnavailable)
	now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	rec, _ := w.store.Tenant(alice.Tenant).Sandbox(t.Context(), sb.ID)
	if err != nil || now.Details.Network.Documents[0].Text != "allow: [a.example.com]" || now.Details.Network.Generation != 1 || strings.Contains(string(rec.Extra), "b.example.com") {
		t.Errorf("%+v, %v", now.Details.Network, err)
	}
	w.audit.find(t, sb.ID, "sandbox.network failed")
	if wire, _ := n.of(sb.Instance); string(wire.Documents[0]) != "allow: [a.example.com]" || tries != 2 || now.Details.Network.Problem != "" {
		t.Errorf("%+v after %d tries, %+v", wire, tries, now.Details.Network)
	}
	// Where that cannot be known either, it counts as cut off until it is taken up.
	n.during = nil
	n.set("update", sandbox.Errorf("update", sandbox.KindTimeout, "no answer"))
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [b.example.com]")); err == nil {
		t.Error("no error")
	}
	if now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID)); err != nil || !strings.Contains(now.Details.Network.Problem, "no answer") {
		t.Errorf("%+v, %v", now.Details.Network, err)
	}
	if err := o.sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID)); err != nil || now.Details.Network.Problem != "" || n.called("adopt") != 1 {
		t.Errorf("%+v, %v", now.Details.Network, err)
	}
}

// TestWireAfterRestart: what was meant is taken up, in another epoch.
func TestWireAfterRestart(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = n.kept(w)
	first := w.start()
	sb := mustCreate(t, first, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
	plain := mustCreate(t, first, alice, CreateRequest{})
	if _, _, err := first.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [b.example.com]")); err != nil {
		t.Fatal(err)
	}
	if err := first.RecordEgress(sb.Instance, EgressEvent{Kind: "connect", Host: "x.example.com", Port: 443, Decision: "deny", Reason: "no_rule"}); err != nil {
		t.Fatal(err)
	}
	first.find(alice.Tenant, string(sb.ID)).keepFlows(t.Context())
	w.abandon(first)
	stray := sandbox.NewInstanceID()
	if _, err := n.Open(t.Context(), stray, Egress{}); err != nil {
		t.Fatal(err)
	}
	w.cfg = n.config(w)
	o := w.start()
	wire, _ := n.of(sb.Instance)
	if string(wire.Documents[0]) != "allow: [b.example.com]" || wire.Epoch != 1 || wire.Generation != 2 || n.called("adopt") != 1 {
		t.Errorf("%+v, calls %q", wire, n.calls)
	}
	if _, left := n.of(stray); left {
		t.Error("a wire of nobody is left")
	}
	now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	if err != nil || now.Details.Network.Problem != "" || len(now.Details.Flows.Flows) != 1 || now.Details.Flows.Flows[0].Host != "x.example.com" {
		t.Errorf("%+v, %v", now.Details, err)
	}
	if err := o.RecordEgress(sb.Instance, EgressEvent{Kind: "connect", Host: "x.example.com", Port: 443, Decision: "deny"}); err != nil {
		t.Error(err)
	}
	for _, id := range []sandbox.ID{sb.ID, plain.ID} {
		if dead, err := o.Destroy(t.Context(), alice, string(id)); err != nil || !dead.Receipt.Clean {
			t.Errorf("%+v, %v", dead, err)
		}
	}
}

// TestBudgetsAfterRestart: what was used is used, after a stop and, but for some
// seconds, after a kill; and over updates.
func TestBudgetsAfterRestart(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		n := newWires()
		w.cfg = n.kept(w)
		o = w.start()
		sb := mustCreate(w.t, o, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
		use := func(upload int64) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.open[sb.Instance].Used = map[string]policy.Used{"r": {Upload: upload, Connections: 1, Concurrent: 1}}
		}
		use(5)
		sleep(2 * measureEvery)
		w.abandon(o)
		w.cfg = n.kept(w)
		o = w.start()
		if wire, _ := n.of(sb.Instance); wire.Used["r"] != (policy.Used{Upload: 5, Connections: 1}) {
			w.t.Errorf("after a kill: %+v", wire.Used)
		}
		use(9)
		if err := o.Close(w.t.Context()); err != nil {
			w.t.Error(err)
		}
		w.cfg = n.config(w)
		o = w.start()
		if wire, _ := n.of(sb.Instance); wire.Used["r"].Upload != 9 || wire.Epoch != 2 {
			w.t.Errorf("after a stop: %+v", wire)
		}
		got, _, err := o.UpdateNetwork(w.t.Context(), alice, string(sb.ID), *policyOf("allow: [b.example.com]"))
		if err != nil || got.Details.Network.Used["r"].Upload != 9 {
			w.t.Errorf("after an update: %+v, %v", got.Details.Network, err)
		}
		if _, err := o.Destroy(w.t.Context(), alice, string(sb.ID)); err != nil {
			w.t.Error(err)
		}
	})
}

func TestUsedIsBounded(t *testing.T) {
	used := map[string]policy.Used{}
	for i := range 3 * maxUsed {
		used[fmt.Sprint(i)] = policy.Used{Connections: int64(i)}
	}
	if got := bounded(used); len(got) != maxUsed || got[fmt.Sprint(3*maxUsed-1)].Connections == 0 {
		t.Errorf("%d kept", len(got))
	}
}

// TestWireCannotBeTakenUp: the sandbox lives, cut off, and says so; the reaper
// tries again, and so does whoever updates its policy.
func TestWireCannotBeTakenUp(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		n := newWires()
		w.cfg = n.kept(w)
		first := w.start()
		sb := mustCreate(w.t, first, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
		other := mustCreate(w.t, first, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
		w.abandon(first)
		n.set("adopt", sandbox.Errorf("adopt", sandbox.KindUnavailable, "no router"))
		w.cfg = n.config(w)
		o = w.start()
		if now, err := o.Get(w.t.Context(), alice.Tenant, string(sb.ID)); err != nil || now.State != store.Running || !strings.Contains(now.Details.Network.Problem, "no router") {
			w.t.Fatalf("%+v, %v", now.Details.Network, err)
		}
		n.set("adopt", nil)
		if got, _, err := o.UpdateNetwork(w.t.Context(), alice, string(other.ID), *policyOf("allow: [b.example.com]")); err != nil || got.Details.Network.Problem != "" || n.called("update") != 0 {
			w.t.Errorf("%+v, %v", got.Details.Network, err)
		}
		if wire, _ := n.of(other.Instance); string(wire.Documents[0]) != "allow: [b.example.com]" {
			w.t.Errorf("%+v", wire)
		}
		sleep(sweepEvery + time.Second)
		if now, err := o.Get(w.t.Context(), alice.Tenant, string(sb.ID)); err != nil || now.Details.Network.Problem != "" {
			w.t.Errorf("%+v, %v", now.Details.Network, err)
		}
		for _, id := range []sandbox.ID{sb.ID, other.ID} {
			if dead, err := o.Destroy(w.t.Context(), alice, string(id)); err != nil || !dead.Receipt.Clean {
				w.t.Errorf("%+v, %v", dead, err)
			}
		}
	})
}

// TestNetworkGone: a server that makes no networks any more cannot say that a
// wire is gone, and does not.
func TestNetworkGone(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = n.kept(w)
	first := w.start()
	sb := mustCreate(t, first, alice, CreateRequest{Network: policyOf("allow: []")})
	w.abandon(first)
	w.cfg = nil
	o := w.start()
	if now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID)); err != nil || now.Details.Network.Problem == "" {
		t.Errorf("%+v, %v", now.Details.Network, err)
	}
	_, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), NetworkPolicy{})
	wantKind(t, err, sandbox.KindUnsupported)
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err == nil {
		t.Error("nobody looked for its wire, and it counts as gone")
	}
	if got, err := o.Get(t.Context(), alice.Tenant, string(sb.ID)); err != nil || got.State != store.Ended || got.Receipt.Clean || got.Receipt.Objects[len(got.Receipt.Objects)-1].Kind != "wire" {
		t.Errorf("%+v", got.Receipt)
	}
	w.cfg = n.config(w)
	w.start() // the next one that can removes it
}

// TestWireSurvivesCrashes kills a create, an update and an end with a wire at each
// of their points: the next process finds the sandbox whole or removes it whole.
func TestWireSurvivesCrashes(t *testing.T) {
	scenario := func(o *Orchestrator, id sandbox.ID) {
		ctx := context.Background()
		if _, err := o.Create(ctx, alice, CreateRequest{ID: id, Network: policyOf("allow: [a.example.com]")}); err != nil {
			return
		}
		if _, _, err := o.UpdateNetwork(ctx, alice, string(id), *policyOf("allow: [b.example.com]")); err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // it may never answer
		defer cancel()
		_, _ = o.Destroy(ctx, alice, string(id))
	}
	var points []string
	func() {
		w, n := newWiredWorld(t)
		w.cfg = n.kept(w)
		o := w.start()
		var mu sync.Mutex
		restore := failpoint.Intercept(func(name string) {
			mu.Lock()
			defer mu.Unlock()
			operation, _, _ := strings.Cut(name, "/")
			if slices.Contains([]string{"create", "network", "end"}, operation) && !slices.Contains(points, name) {
				points = append(points, name)
			}
		})
		scenario(o, sandbox.NewID())
		restore()
	}()
	for _, want := range []string{"create/before-wire", "create/after-wire", "create/after-boot", "create/after-trust", "network/after-intent", "network/after-effect", "network/after-trust", "end/after-wire"} {
		if !slices.Contains(points, want) {
			t.Fatalf("%q has no %s", points, want)
		}
	}
	for _, point := range points {
		t.Run(strings.ReplaceAll(point, "/", "-"), func(t *testing.T) {
			w, n := newWiredWorld(t)
			w.cfg = n.kept(w)
			first := w.start()
			id := sandbox.NewID()
			if !crashAt(point, func() { scenario(first, id) }) {
				t.Fatal("not hit")
			}
			w.abandon(first)
			w.cfg = n.config(w)
			o := w.start()
			sb, err := o.Get(t.Context(), alice.Tenant, string(id))
			wire, open := n.of(sb.Instance)
			switch {
			case sandbox.KindOf(err) == sandbox.KindNotFound: // before its intent
			case err != nil:
				t.Fatal(err)
			case sb.State == store.Running:
				if !open || string(wire.Documents[0]) != sb.Details.Network.Documents[0].Text || wire.Epoch != 1 || sb.Details.Network.Problem != "" {
					t.Errorf("%+v, wire %+v (%v)", sb.Details.Network, wire, open)
				}
				eventually(t, "the sandbox trusts whom its wire is", func() bool {
					return trusted(t, o, id, "/etc/firebreak/ca.pem") == certificate(wire.Documents)
				})
				if _, err := o.Destroy(t.Context(), alice, string(id)); err != nil {
					t.Error(err)
				}
			case sb.State != store.Ended || !sb.Receipt.Clean || open:
				t.Errorf("%+v, open %v", sb, open)
			}
			if left, _ := n.List(t.Context()); len(left) > 0 {
				t.Errorf("wires left: %v", left)
			}
		})
	}
}

// TestUpdateDuringEnd: an end waits for an update that is under way, and an update
// that comes too late changes nothing.
func TestUpdateDuringEnd(t *testing.T) {
	w, n := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: []")})
	ended := make(chan struct{})
	n.during = func(method string) {
		if method == "update" {
			go func() {
				defer close(ended)
				if dead, err := o.Destroy(context.Background(), alice, string(sb.ID)); err != nil || !dead.Receipt.Clean {
					t.Errorf("%+v, %v", dead.Receipt, err)
				}
			}()
			<-o.find(alice.Tenant, string(sb.ID)).dying
		}
	}
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [a.example.com]")); err != nil && sandbox.KindOf(err) != sandbox.KindGone {
		t.Error(err)
	}
	<-ended
}

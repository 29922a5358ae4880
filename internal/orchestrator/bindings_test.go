package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// grants are bindings of alice's, and what they need.
type grants map[string]sandbox.Isolation

func (g grants) Needs(_ context.Context, tenant sandbox.TenantID, name string) (BindingNeeds, error) {
	needs, known := g[name]
	if tenant != alice.Tenant || !known {
		return BindingNeeds{}, sandbox.Errorf("binding", sandbox.KindNotFound, "not here")
	}
	env, _ := map[string]string{"keyed": "API_KEY", "twin": "API_KEY", "own": "OPENAI_BASE_URL"}[name]
	return BindingNeeds{Isolation: needs, Env: env}, nil
}

// binds adds bindings to what a world's Orchestrators are made of.
func binds(cfg func(*Config), g grants) func(*Config) {
	return func(c *Config) {
		cfg(c)
		c.Bindings = g
	}
}

// TestBindings: a sandbox that is granted bindings has a wire which they alone pass,
// knows where they are, and says which it has; a caller's own variable wins.
func TestBindings(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = binds(n.config(w), grants{"openai": sandbox.IsolationNone, "my-api": sandbox.IsolationNone, "mine": sandbox.IsolationNone})
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Bindings: []string{"openai", "my-api", "mine"}, Env: map[string]string{"MINE_BASE_URL": "http://127.0.0.1/"}})
	got, open := n.of(sb.Instance)
	if !open || len(got.Documents) != 0 || got.Tenant != alice.Tenant || !slices.Equal(got.Bindings, []string{"openai", "my-api", "mine"}) {
		t.Errorf("the wire is %+v, %v", got, open)
	}
	if _, out := mustExec(t, o, alice, sb.ID, sh("echo $OPENAI_BASE_URL $MY_API_BASE_URL $MINE_BASE_URL")); out.out.String() != "http://openai.binding.internal http://my-api.binding.internal http://127.0.0.1/\n" {
		t.Errorf("its environment has %q", out.out.String())
	}
	if now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID)); err != nil || !slices.Equal(now.Bindings(), []string{"openai", "my-api", "mine"}) {
		t.Errorf("%v, %v", now.Bindings(), err)
	}
	if r := w.audit.find(t, sb.ID, "sandbox.create allowed"); r.Detail["bindings"] != "openai my-api mine" || r.Detail["network"] != "policy" {
		t.Errorf("%+v", r)
	}
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [a.example.com]")); err != nil {
		t.Error(err)
	}
	if got, _ := n.of(sb.Instance); len(got.Bindings) != 3 || len(got.Documents) != 1 {
		t.Errorf("after an update the wire is %+v", got)
	}
}

// TestRefusedBindings: nothing exists afterwards, not even a record.
func TestRefusedBindings(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = binds(n.config(w), grants{"openai": sandbox.IsolationNone, "strong": sandbox.IsolationHypervisor})
	o := w.start()
	refused := func(what string, who Caller, kind sandbox.Kind, hint string, names ...string) {
		t.Helper()
		for _, backend := range []string{"sim", ""} {
			_, err := o.Create(t.Context(), who, CreateRequest{Backend: backend, Bindings: names, AcceptWeaker: true})
			if e := wantKind(t, err, kind); !strings.Contains(e.Hint, hint) {
				t.Errorf("%s: the hint is %q", what, e.Hint)
			}
		}
	}
	refused("unknown", alice, sandbox.KindNotFound, "firebreak binding ls", "openai", "missing")
	refused("another tenant's", bob, sandbox.KindNotFound, "firebreak binding ls", "openai")
	refused("too weak a backend", alice, sandbox.KindUnsupported, "stronger backend", "strong")
	refused("too many", alice, sandbox.KindInvalid, "at most 32", slices.Repeat([]string{"openai"}, maxBindings+1)...)
	_, err := o.CreateRun(t.Context(), alice, RunRequest{Sandbox: CreateRequest{Bindings: []string{"missing"}}, Exec: sh("true")})
	wantKind(t, err, sandbox.KindNotFound)
	w.cfg = n.config(w) // nobody has any
	o = w.start()
	refused("without a server", alice, sandbox.KindUnsupported, "firebreak serve", "openai")
	w.cfg = func(c *Config) { c.Bindings = grants{"openai": sandbox.IsolationNone} } // no networks
	o = w.start()
	refused("without networks", alice, sandbox.KindUnsupported, "--binding", "openai")
	all := store.Filter{States: []store.State{store.Creating, store.Running, store.Stopping, store.Ended}}
	if list, _, err := o.List(t.Context(), alice.Tenant, all, store.Page{}); err != nil || len(list) != 0 || len(n.calls) != 0 {
		t.Errorf("%d records, calls %q, %v", len(list), n.calls, err)
	}
}

// TestBindingsAfterRestart: they are taken up; one that is gone is cut off, which the
// report says, and cuts nothing else off.
func TestBindingsAfterRestart(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = binds(n.kept(w), grants{"openai": sandbox.IsolationNone, "gone": sandbox.IsolationNone, "strong": sandbox.IsolationNone})
	first := w.start()
	sb := mustCreate(t, first, alice, CreateRequest{Bindings: []string{"openai", "gone", "strong"}})
	w.abandon(first)
	n.mu.Lock()
	n.broken = "its secret cannot be read"
	n.mu.Unlock()
	w.cfg = binds(n.config(w), grants{"openai": sandbox.IsolationNone, "strong": sandbox.IsolationHypervisor})
	o := w.start()
	wire, _ := n.of(sb.Instance)
	now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	if err != nil || !slices.Equal(wire.Bindings, []string{"openai"}) || wire.Tenant != alice.Tenant || now.Details.Network.Problem != "" {
		t.Errorf("%+v, %+v, %v", wire, now.Details.Network, err)
	}
	for _, part := range []string{`"gone"`, `"strong"`, "hypervisor", n.broken} {
		if !strings.Contains(now.Details.Network.Unbound, part) {
			t.Errorf("the report says %q, and nothing of %s", now.Details.Network.Unbound, part)
		}
	}
	if !slices.Equal(now.Bindings(), []string{"openai", "gone", "strong"}) {
		t.Errorf("its bindings are %v", now.Bindings())
	}
	if err := o.sweep(t.Context()); err != nil || n.called("adopt") != 1 {
		t.Errorf("it is taken up again and again: %q, %v", n.calls, err)
	}
}

// TestUnbind: a binding that a living sandbox has is not removed.
func TestUnbind(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = binds(n.config(w), grants{"openai": sandbox.IsolationNone, "other": sandbox.IsolationNone})
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Bindings: []string{"openai"}})
	mustCreate(t, o, alice, CreateRequest{Bindings: []string{"other"}})
	removed := 0
	remove := func() error { removed++; return nil }
	e := wantKind(t, o.Unbind(alice.Tenant, "openai", remove), sandbox.KindConflict)
	if removed != 0 || !strings.Contains(e.Error(), string(sb.ID)) || e.Hint == "" {
		t.Errorf("removed %d times: %v", removed, e)
	}
	if err := o.Unbind(bob.Tenant, "openai", remove); err != nil || removed != 1 {
		t.Errorf("another tenant's: %v", err)
	}
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
		t.Fatal(err)
	}
	if err := o.Unbind(alice.Tenant, "openai", func() error { return errors.New("disk") }); err == nil {
		t.Error("the error of removing is lost")
	}
	if err := o.Unbind(alice.Tenant, "openai", remove); err != nil || removed != 2 {
		t.Errorf("nobody has it: %v", err)
	}
}

// TestRecordRequests: the first request that a binding lets pass is durable before it is sent
// on, all are evidence of their own kind, and a sandbox's events and report have them.
func TestRecordRequests(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = binds(n.config(w), grants{"openai": sandbox.IsolationNone})
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Bindings: []string{"openai"}})
	request := func(method, decision, reason string, count int) EgressEvent {
		return EgressEvent{Kind: "request", Host: "api.example.com", Port: 443, Protocol: "http", Decision: decision, Reason: reason, Binding: "openai", Method: method, Count: count}
	}
	w.audit.set(errors.New("full"))
	if err := o.RecordEgress(sb.Instance, request("POST", "allow", "binding", 0)); err == nil {
		t.Error("it passes without evidence")
	}
	w.audit.set(nil)
	foreign := request("POST", "allow", "binding", 0)
	foreign.Binding = "another"
	wantKind(t, o.RecordEgress(sb.Instance, foreign), sandbox.KindInvalid)
	for _, e := range []EgressEvent{request("POST", "deny", "method", 0), request("POST", "allow", "binding", 0), request("GET", "allow", "binding", 0),
		request("POST", "deny", "path", 3)} {
		if err := o.RecordEgress(sb.Instance, e); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, r := range w.audit.records {
		if strings.HasPrefix(r.Action, "binding.") {
			class := map[sandbox.Class]string{sandbox.Gate: "gate", sandbox.Flow: "flow"}[r.Class]
			got = append(got, strings.Join([]string{r.Action, class, string(r.Outcome), r.Object, r.Detail["method"], r.Detail["host"], r.Detail["reason"], r.Detail["count"]}, " "))
		}
	}
	if want := []string{"binding.denied flow denied openai POST api.example.com:443 method ", "binding.invoked gate allowed openai POST api.example.com:443  ",
		"binding.invoked flow allowed openai GET api.example.com:443  ", "binding.denied flow denied openai POST api.example.com:443 path 3"}; !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	events := 0
	for _, e := range w.told.of(sb.ID) {
		var f FlowEvent
		if e.Type == event.Egress && json.Unmarshal(e.Data, &f) == nil && f.Kind == "request" && f.Binding == "openai" && f.Method != "" {
			events++
		}
	}
	now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	if flows := now.Details.Flows.Flows; err != nil || events != 4 || len(flows) != 4 || flows[3].Count != 3 || flows[3].Reason != "path" {
		t.Errorf("%d events, %+v, %v", events, flows, err)
	}
	if s := o.Egress(); s.Flows[[2]string{"request", "allow"}] != 2 || s.Flows[[2]string{"request", "deny"}] != 4 {
		t.Errorf("%+v", s)
	}
}

// TestPlaceholders: a binding that wants one puts it into a variable; it is another in
// each sandbox, and the same after a restart. Two bindings do not share a variable.
func TestPlaceholders(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = binds(n.kept(w), grants{"keyed": sandbox.IsolationNone, "twin": sandbox.IsolationNone, "plain": sandbox.IsolationNone})
	o := w.start()
	of := func(o *Orchestrator, sb Sandbox) string {
		t.Helper()
		_, out := mustExec(t, o, alice, sb.ID, sh("echo $API_KEY"))
		wire, _ := n.of(sb.Instance)
		if got := strings.TrimSpace(out.out.String()); wire.Placeholders["keyed"] != got || len(wire.Placeholders) != 1 {
			t.Errorf("the environment has %q, the wire %q", got, wire.Placeholders)
		}
		return strings.TrimSpace(out.out.String())
	}
	one, two := mustCreate(t, o, alice, CreateRequest{Bindings: []string{"keyed", "plain"}}), mustCreate(t, o, alice, CreateRequest{Bindings: []string{"keyed"}})
	first := of(o, one)
	if !regexp.MustCompile(`^fbp_[0-9A-Za-z]{40}$`).MatchString(first) || first == of(o, two) {
		t.Errorf("%q, %q", first, of(o, two))
	}
	_, err := o.Create(t.Context(), alice, CreateRequest{Bindings: []string{"keyed", "twin"}})
	if e := wantKind(t, err, sandbox.KindInvalid); !strings.Contains(e.Message(), "API_KEY") {
		t.Error(err)
	}
	own := mustCreate(t, o, alice, CreateRequest{Bindings: []string{"keyed"}, Env: map[string]string{"API_KEY": "mine"}})
	if _, out := mustExec(t, o, alice, own.ID, sh("echo $API_KEY")); out.out.String() != "mine\n" {
		t.Errorf("a caller's own variable is %q", out.out.String())
	}
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(one.ID), *policyOf("allow: [a.example.com]")); err != nil {
		t.Error(err)
	}
	of(o, one)
	w.abandon(o)
	w.cfg = binds(n.config(w), grants{"keyed": sandbox.IsolationNone, "plain": sandbox.IsolationNone})
	if got := of(w.start(), one); got != first {
		t.Errorf("after a restart it is %q, not %q", got, first)
	}
}

// TestTransforms: headers that are set are the policy's: kept, taken up, replaced with
// it, and part of its digest.
func TestTransforms(t *testing.T) {
	w, n := newWiredWorld(t)
	w.cfg = n.kept(w)
	o := w.start()
	set := func(value string) *NetworkPolicy {
		p := policyOf("allow: [a.example.com]")
		p.Transforms = []Transform{{Host: "a.example.com", Headers: []TransformHeader{{Name: "X-Key", Value: value}}}}
		return p
	}
	sb := mustCreate(t, o, alice, CreateRequest{Network: set("${e2b.secrets.a}")})
	got := func() string {
		wire, _ := n.of(sb.Instance)
		if len(wire.Transforms) == 0 {
			return ""
		}
		return wire.Transforms[0].Headers[0].Value
	}
	if got() != "${e2b.secrets.a}" || set("x").Digest() == set("y").Digest() {
		t.Errorf("%q", got())
	}
	if r := w.audit.find(t, sb.ID, "sandbox.create allowed"); r.Detail["transforms"] != "a.example.com" {
		t.Errorf("%+v", r)
	}
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *set("${e2b.secrets.b}")); err != nil || got() != "${e2b.secrets.b}" {
		t.Errorf("%q, %v", got(), err)
	}
	w.abandon(o)
	w.cfg = n.config(w)
	if o = w.start(); got() != "${e2b.secrets.b}" {
		t.Errorf("after a restart %q", got())
	}
	if _, _, err := o.UpdateNetwork(t.Context(), alice, string(sb.ID), *policyOf("allow: [a.example.com]")); err != nil || got() != "" {
		t.Errorf("%q, %v", got(), err)
	}
	many := set("x")
	for range maxTransforms {
		many.Transforms = append(many.Transforms, many.Transforms[0])
	}
	_, err := o.Create(t.Context(), alice, CreateRequest{Network: many})
	wantKind(t, err, sandbox.KindTooLarge)
}

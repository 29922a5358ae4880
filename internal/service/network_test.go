package service

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/policy/rego"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// switchboard is a Network that compiles what it is given, as a router does, and
// keeps the table.
type switchboard struct {
	mu     sync.Mutex
	tables map[sandbox.InstanceID]*policy.Table // guarded by mu
}

func (n *switchboard) compile(id sandbox.InstanceID, p orchestrator.Egress) error {
	var docs []*policy.Document
	for i, text := range p.Documents {
		d, err := policy.Parse(fmt.Sprint("document ", i), text)
		if err != nil {
			return err
		}
		docs = append(docs, d)
	}
	t, err := policy.Compile(policy.Options{Judge: rego.Options{}.Judge}, docs...)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tables[id] = t
	return err
}

func (n *switchboard) Open(_ context.Context, id sandbox.InstanceID, p orchestrator.Egress) (*sandbox.Wire, error) {
	return &sandbox.Wire{NetNS: "/wires/" + string(id), Link: "eth0"}, n.compile(id, p)
}
func (n *switchboard) Adopt(_ context.Context, id sandbox.InstanceID, p orchestrator.Egress) (string, error) {
	return "", n.compile(id, p)
}
func (n *switchboard) Update(_ context.Context, id sandbox.InstanceID, p orchestrator.Egress) (uint64, int, error) {
	return p.Generation, 2, n.compile(id, p)
}
func (n *switchboard) Close(_ context.Context, id sandbox.InstanceID) ([]sandbox.Object, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.tables, id)
	return []sandbox.Object{{Kind: "namespace", Name: "/wires/" + string(id), Gone: true}}, nil
}
func (n *switchboard) List(context.Context) ([]sandbox.InstanceID, error) { return nil, nil }

// only is the table of the one wire there is.
func (n *switchboard) only(t *testing.T) *policy.Table {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, table := range n.tables {
		if len(n.tables) == 1 {
			return table
		}
	}
	t.Fatalf("%d wires", len(n.tables))
	return nil
}

// socketed is the model with a socket for wires.
type socketed struct{ sandbox.Backend }

func (b socketed) Info(ctx context.Context) (sandbox.Info, error) {
	i, err := b.Backend.Info(ctx)
	i.Capabilities.Wire = true
	return i, err
}
func (b socketed) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	spec.Wire = nil
	return b.Backend.Create(ctx, spec)
}

func newWiredRig(t *testing.T) (*rig, *switchboard) {
	t.Helper()
	n := &switchboard{tables: map[sandbox.InstanceID]*policy.Table{}}
	b := sim.New(sim.Config{})
	return newRigWith(t, b, func(c *orchestrator.Config) { c.Network, c.Backends = n, []sandbox.Backend{socketed{b}} }), n
}

func ruleIDs(t *policy.Table) (ids []string) {
	for _, r := range t.Rules() {
		ids = append(ids, r.ID)
	}
	return ids
}

// TestNetworkOfSandbox: what a request says in any of its forms is what the router
// gets, and stays so whatever becomes of the policies that were named.
func TestNetworkOfSandbox(t *testing.T) {
	r, n := newWiredRig(t)
	ctx := as(t.Context(), "default", auth.Owner)
	if _, err := r.SetPolicy(ctx, &v1.SetPolicyRequest{Name: "base", Text: "allow: [base.example.com]\n"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetPolicy(ctx, &v1.SetPolicyRequest{Name: "build", Text: "include: [base, npm]\ndeny: [bad.example.com]\nrego: |\n  package firebreak\n  allow := true\n"}); err != nil {
		t.Fatal(err)
	}
	sb, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: &v1.NetworkRules{
		Allow: []string{"a.example.com", "*.cdn.example.com:8443"}, Policy: []string{"build", "own"},
		Document:  "include: [own]\nallow: [doc.example.com]",
		Documents: map[string]string{"own": "allow: [own.example.com]"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ids := ruleIDs(n.only(t))
	for _, want := range []string{"build/deny bad.example.com", "allow doc.example.com:443", "own/allow own.example.com:443", "base/allow base.example.com:443",
		"allow a.example.com:443", "allow *.cdn.example.com:8443"} {
		if !slices.Contains(ids, want) {
			t.Errorf("%q has no %q", ids, want)
		}
	}
	if !slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(id, "npm/") }) {
		t.Errorf("%q has nothing of npm", ids)
	}
	if len(n.only(t).Modules()) != 1 || n.only(t).Observes() {
		t.Errorf("%d modules, observes %v", len(n.only(t).Modules()), n.only(t).Observes())
	}
	sources := map[string]string{}
	for _, d := range sb.GetNetwork().GetDocuments() {
		sources[d.GetName()] = d.GetSource()
		if d.GetText() == "" || len(d.GetDigest()) != 64 || strings.Contains(d.GetText(), "include") {
			t.Errorf("%+v", d)
		}
	}
	if sb.Network.Generation != 1 || sb.Network.Mode != "enforce" || len(sb.Network.Digest) != 64 ||
		sources["build"] != "stored" || sources["base"] != "stored" || sources["npm"] != "built-in" || sources["own"] != "request" || len(sources) != 5 {
		t.Errorf("%+v, %q", sb.Network, sources)
	}
	// The policy that was named changes, and goes: the sandbox keeps its own.
	if _, err := r.SetPolicy(ctx, &v1.SetPolicyRequest{Name: "build", Text: "allow: [other.example.com]"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.RemovePolicy(ctx, &v1.RemovePolicyRequest{Name: "base"}); err != nil {
		t.Fatal(err)
	}
	now, err := r.GetSandbox(ctx, &v1.GetSandboxRequest{Id: sb.Id})
	if err != nil || now.Network.Digest != sb.Network.Digest || !slices.Equal(ruleIDs(n.only(t)), ids) {
		t.Errorf("%+v, %v", now.GetNetwork(), err)
	}
	list, err := r.ListSandboxes(ctx, &v1.ListSandboxesRequest{})
	if err != nil || len(list.Sandboxes) != 1 || list.Sandboxes[0].Network.Documents[0].Text != "" || list.Sandboxes[0].Network.Digest != sb.Network.Digest {
		t.Errorf("%v, %v", list, err)
	}
	up, err := r.UpdateNetwork(ctx, &v1.UpdateNetworkRequest{Id: sb.Id, Policy: []string{"build"}})
	if err != nil || up.ClosedConnections != 2 || up.Network.Generation != 2 || !slices.Equal(ruleIDs(n.only(t)), []string{"build/allow other.example.com:443"}) {
		t.Errorf("%+v, %v, %q", up, err, ruleIDs(n.only(t)))
	}
	if up, err = r.UpdateNetwork(ctx, &v1.UpdateNetworkRequest{Id: sb.Id}); err != nil || len(n.only(t).Rules()) != 0 || up.Network.Generation != 3 || n.only(t).Observes() {
		t.Errorf("%+v, %v", up, err)
	}
}

// TestNetworkModes: it observes only if all that people wrote does; what is built
// in, and --allow, have no say.
func TestNetworkModes(t *testing.T) {
	r, n := newWiredRig(t)
	ctx := as(t.Context(), "default", auth.Owner)
	const watch, keep = "mode: observe\nallow: []", "allow: [a.example.com]"
	for name, c := range map[string]struct {
		rules   *v1.NetworkRules
		observe bool
	}{
		"document":         {&v1.NetworkRules{Document: watch}, true},
		"with allow":       {&v1.NetworkRules{Document: watch, Allow: []string{"x.example.com"}}, true},
		"with built-in":    {&v1.NetworkRules{Document: watch, Policy: []string{"pypi"}}, true},
		"with another":     {&v1.NetworkRules{Document: watch, Policy: []string{"own"}, Documents: map[string]string{"own": keep}}, false},
		"both":             {&v1.NetworkRules{Document: watch, Policy: []string{"own"}, Documents: map[string]string{"own": watch}}, true},
		"included":         {&v1.NetworkRules{Document: "include: [own]", Documents: map[string]string{"own": watch}}, false},
		"includes":         {&v1.NetworkRules{Document: "mode: observe\ninclude: [own]", Documents: map[string]string{"own": keep}}, true},
		"built-in alone":   {&v1.NetworkRules{Policy: []string{"pypi", "pypi"}}, false},
		"allow alone":      {&v1.NetworkRules{Allow: []string{"x.example.com"}}, false},
		"allows nothing":   {&v1.NetworkRules{Document: "allow: []"}, false},
		"named, observing": {&v1.NetworkRules{Policy: []string{"own"}, Documents: map[string]string{"own": watch}}, true},
	} {
		sb, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: c.rules})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := n.only(t).Observes(); got != c.observe || (sb.Network.Mode == "observe") != c.observe {
			t.Errorf("%s: the router observes %v, told %q", name, got, sb.Network.Mode)
		}
		if _, err := r.DestroySandbox(ctx, &v1.DestroySandboxRequest{Id: sb.Id}); err != nil {
			t.Fatal(err)
		}
	}
}

// large are documents of as many bytes as one may have.
func large(names ...string) map[string]string {
	docs := map[string]string{}
	for _, n := range names {
		docs[n] = "allow: []\n" + strings.Repeat("#", 250<<10)
	}
	return docs
}

// TestCompilersAreShared: a tenant whose Rego takes long keeps no other from
// compiling theirs, and who gives up leaves nothing.
func TestCompilersAreShared(t *testing.T) {
	c := newCompilers()
	busy, err := c.enter(t.Context(), "busy")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := c.enter(ctx, "busy"); sandbox.KindOf(err) != sandbox.KindCanceled {
				t.Error(err)
			}
		})
	}
	other, err := c.enter(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	other()
	cancel()
	wg.Wait()
	busy()
	if len(c.own) != 0 || len(c.places) != 0 {
		t.Errorf("%d tenants, %d places", len(c.own), len(c.places))
	}
}

// TestNetworkRefusals: what is wrong is said with its place, and nothing exists.
func TestNetworkRefusals(t *testing.T) {
	r, n := newWiredRig(t)
	ctx := as(t.Context(), "default", auth.Owner)
	many := strings.Repeat("- a.example.com\n", maxSandboxRules+1)
	for name, c := range map[string]struct {
		rules *v1.NetworkRules
		kind  sandbox.Kind
		says  string
	}{
		"no rule":          {&v1.NetworkRules{Allow: []string{"https://a.example.com"}}, sandbox.KindInvalid, "https://a.example.com"},
		"no YAML":          {&v1.NetworkRules{Document: "allow: [*.example.com]"}, sandbox.KindInvalid, "document:1"},
		"unknown key":      {&v1.NetworkRules{Document: "version: 1\nalow: []"}, sandbox.KindInvalid, "document:2"},
		"metadata":         {&v1.NetworkRules{Document: "allow: [169.254.169.254]"}, sandbox.KindInvalid, "document:1"},
		"Rego":             {&v1.NetworkRules{Document: "allow: []\nrego: |\n  package other\n"}, sandbox.KindInvalid, "document:3"},
		"nobody's":         {&v1.NetworkRules{Policy: []string{"nobody"}}, sandbox.KindNotFound, "nobody"},
		"nobody's include": {&v1.NetworkRules{Document: "include: [nobody]"}, sandbox.KindNotFound, "nobody"},
		"unused":           {&v1.NetworkRules{Documents: map[string]string{"a": "allow: []"}}, sandbox.KindInvalid, "refers"},
		"built in":         {&v1.NetworkRules{Policy: []string{"pypi"}, Documents: map[string]string{"pypi": "allow: []"}}, sandbox.KindInvalid, "built-in"},
		"wrong in a file":  {&v1.NetworkRules{Policy: []string{"a"}, Documents: map[string]string{"a": "allow: 3"}}, sandbox.KindInvalid, "documents.a:1"},
		"too much":         {&v1.NetworkRules{Policy: []string{"a", "b", "c", "d", "e"}, Documents: large("a", "b", "c", "d", "e")}, sandbox.KindTooLarge, "more than 1 MiB"},
		"too many rules":   {&v1.NetworkRules{Document: "allow:\n" + many}, sandbox.KindTooLarge, "rules"},
	} {
		_, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: c.rules})
		if sandbox.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		_, err = r.CreateRun(ctx, &v1.CreateRunRequest{Sandbox: &v1.CreateSandboxRequest{Network: c.rules}, Program: &v1.RunProgram{Code: new("1")}})
		if sandbox.KindOf(err) != c.kind {
			t.Errorf("%s, run: %v", name, err)
		}
	}
	if list, err := r.ListSandboxes(ctx, &v1.ListSandboxesRequest{State: "all"}); err != nil || len(list.Sandboxes) != 0 || len(n.tables) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	sb, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: &v1.NetworkRules{}})
	if err != nil || sb.Network != nil || len(n.tables) != 0 {
		t.Errorf("nothing said: %+v, %v", sb, err)
	}
}

// TestDemandedIsolation: what policies demand of a boundary, stored, given or included,
// is held against it in every request that makes one or changes its policy, and told.
func TestDemandedIsolation(t *testing.T) {
	r, n := newWiredRig(t) // whose boundary is none
	ctx := as(t.Context(), "default", auth.Owner)
	p, err := r.SetPolicy(ctx, &v1.SetPolicyRequest{Name: "strong", Text: "min_isolation: hypervisor\n"})
	if err != nil || p.MinIsolation != "hypervisor" {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err = r.GetPolicy(ctx, &v1.GetPolicyRequest{Name: "strong"}); err != nil || p.MinIsolation != "hypervisor" {
		t.Errorf("%+v, %v", p, err)
	}
	sb, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: &v1.NetworkRules{Document: "allow: []"}})
	if err != nil || sb.MinIsolation != "" {
		t.Fatalf("%+v, %v", sb, err)
	}
	wires := len(n.tables)
	for name, c := range map[string]struct {
		rules *v1.NetworkRules
		by    string
	}{
		"stored":          {&v1.NetworkRules{Policy: []string{"strong"}}, "policy strong demands hypervisor"},
		"with others":     {&v1.NetworkRules{Policy: []string{"pypi", "strong"}, Allow: []string{"a.example.com"}}, "policy strong demands hypervisor"},
		"included":        {&v1.NetworkRules{Document: "include: [strong]\nmin_isolation: shared-kernel"}, "policy strong demands hypervisor"},
		"given":           {&v1.NetworkRules{Document: "min_isolation: confidential\ninclude: [strong]"}, "document demands confidential"},
		"given by name":   {&v1.NetworkRules{Policy: []string{"a"}, Documents: map[string]string{"a": "min_isolation: shared-kernel"}}, "documents.a demands shared-kernel"},
		"while observing": {&v1.NetworkRules{Document: "mode: observe\nmin_isolation: shared-kernel"}, "document demands shared-kernel"},
	} {
		_, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: c.rules, AcceptWeaker: true})
		if sandbox.KindOf(err) != sandbox.KindUnsupported || !strings.Contains(err.Error(), c.by) {
			t.Errorf("%s: %v", name, err)
		}
		_, err = r.CreateRun(ctx, &v1.CreateRunRequest{Sandbox: &v1.CreateSandboxRequest{Network: c.rules}, Program: &v1.RunProgram{Code: new("1")}})
		if sandbox.KindOf(err) != sandbox.KindUnsupported {
			t.Errorf("%s, run: %v", name, err)
		}
		_, err = r.UpdateNetwork(ctx, &v1.UpdateNetworkRequest{Id: sb.Id, Allow: c.rules.Allow, Policy: c.rules.Policy, Document: c.rules.Document, Documents: c.rules.Documents})
		if sandbox.KindOf(err) != sandbox.KindUnsupported || !strings.Contains(err.Error(), c.by) {
			t.Errorf("%s, update: %v", name, err)
		}
	}
	if got, err := r.GetSandbox(ctx, &v1.GetSandboxRequest{Id: sb.Id}); err != nil || got.Network.Generation != 1 || len(n.tables) != wires {
		t.Errorf("%+v, %v, %d wires", got.GetNetwork(), err, len(n.tables))
	}
}

// TestDemandWithoutRules: a policy that demands a boundary and says nothing else gives no
// network device.
func TestDemandWithoutRules(t *testing.T) {
	n := &switchboard{tables: map[sandbox.InstanceID]*policy.Table{}}
	b := sim.New(sim.Config{})
	r := newRigWith(t, b, func(c *orchestrator.Config) {
		c.Network, c.Backends = n, []sandbox.Backend{walled{socketed{b}}}
	})
	ctx := as(t.Context(), "default", auth.Owner)
	for doc, connected := range map[string]bool{"min_isolation: hypervisor": false, "min_isolation: hypervisor\nallow: []": true} {
		sb, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: &v1.NetworkRules{Document: doc}})
		if err != nil || sb.MinIsolation != "hypervisor" || sb.DemandedBy != "document" || (sb.Network != nil) != connected {
			t.Errorf("%q: %+v, %v", doc, sb, err)
		}
	}
}

// walled is a backend as if its boundary were a virtual machine.
type walled struct{ socketed }

func (b walled) Info(ctx context.Context) (sandbox.Info, error) {
	i, err := b.socketed.Info(ctx)
	i.Isolation = sandbox.IsolationHypervisor
	return i, err
}
func (b walled) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	spec.MinIsolation = sandbox.IsolationNone
	return b.socketed.Create(ctx, spec)
}

// TestPolicies: who may, what is refused, and what is left as evidence.
func TestPolicies(t *testing.T) {
	r := newRig(t)
	owner, viewer, developer := as(t.Context(), "default", auth.Owner), as(t.Context(), "default", auth.Viewer), as(t.Context(), "default", auth.Developer)
	other := as(t.Context(), "other", auth.Owner)
	text := "# why\nallow: [a.example.com, {cidr: 10.0.0.0/8}]\n"
	set, err := r.SetPolicy(owner, &v1.SetPolicyRequest{Name: "build", Text: text})
	if err != nil || set.Version != 1 || len(set.Warnings) != 1 || set.Text != text {
		t.Fatalf("%+v, %v", set, err)
	}
	for _, ctx := range []context.Context{viewer, developer} {
		if _, err := r.SetPolicy(ctx, &v1.SetPolicyRequest{Name: "build", Text: text}); sandbox.KindOf(err) != sandbox.KindDenied {
			t.Error(err)
		}
		if got, err := r.GetPolicy(ctx, &v1.GetPolicyRequest{Name: "build"}); err != nil || got.Text != text || got.Principal != "key-owner" {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := r.GetPolicy(other, &v1.GetPolicyRequest{Name: "build"}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Error(err)
	}
	if got, err := r.GetPolicy(other, &v1.GetPolicyRequest{Name: "pypi"}); err != nil || !got.BuiltIn || got.Text == "" {
		t.Errorf("%+v, %v", got, err)
	}
	list, err := r.ListPolicies(viewer, &v1.ListPoliciesRequest{})
	if err != nil || len(list.Policies) != 1+len(policy.Presets()) || list.Policies[0].Name != "build" || list.Policies[0].Text != "" || !list.Policies[1].BuiltIn || list.Policies[1].Text != "" {
		t.Errorf("%v, %v", list, err)
	}
	for name, c := range map[string]struct {
		req  *v1.SetPolicyRequest
		kind sandbox.Kind
		says string
	}{
		"built in":       {&v1.SetPolicyRequest{Name: "pypi", Text: "allow: []"}, sandbox.KindInvalid, "built-in"},
		"no name":        {&v1.SetPolicyRequest{Name: "../x", Text: "allow: []"}, sandbox.KindInvalid, "name"},
		"another's name": {&v1.SetPolicyRequest{Name: "a", Text: "name: b\nallow: []"}, sandbox.KindInvalid, "calls itself b"},
		"no policy":      {&v1.SetPolicyRequest{Name: "a", Text: "allow: []\nx: 1"}, sandbox.KindInvalid, "a:2"},
		"no include":     {&v1.SetPolicyRequest{Name: "a", Text: "include: [nobody]"}, sandbox.KindNotFound, "nobody"},
		"empty":          {&v1.SetPolicyRequest{Name: "a", Text: ""}, sandbox.KindInvalid, "empty"},
		"not what it is": {&v1.SetPolicyRequest{Name: "build", Text: "allow: []", IfDigest: "none"}, sandbox.KindConflict, ""},
	} {
		if _, err := r.SetPolicy(owner, c.req); sandbox.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.SetPolicy(owner, &v1.SetPolicyRequest{Name: "self", Text: "include: [self, build]\nallow: [s.example.com]"}); err != nil {
		t.Errorf("a circle: %v", err)
	}
	if again, err := r.SetPolicy(owner, &v1.SetPolicyRequest{Name: "build", Text: "allow: []", IfDigest: set.Digest}); err != nil || again.Version != 2 {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := r.RemovePolicy(owner, &v1.RemovePolicyRequest{Name: "build"}); err != nil {
		t.Error(err)
	}
	_, err = r.RemovePolicy(owner, &v1.RemovePolicyRequest{Name: "build"})
	wantKind(t, err, sandbox.KindNotFound)
	_, err = r.RemovePolicy(owner, &v1.RemovePolicyRequest{Name: "pypi"})
	wantKind(t, err, sandbox.KindInvalid)
	check(t, r.log.Close())
	var got []string
	for e, err := range audit.Scan(r.dir+"/audit", 1) {
		if err != nil {
			t.Fatal(err)
		}
		if x := e.Record; strings.HasPrefix(x.Action, "policy.") && x.Outcome != sandbox.OutcomeDenied {
			got = append(got, fmt.Sprint(x.Action, " ", x.Outcome, " ", x.Object, " ", len(x.Digest)))
		}
	}
	want := []string{"policy.set allowed build 64", "policy.set allowed build 64", "policy.set failed build 0", "policy.set allowed self 64", "policy.set allowed build 64",
		"policy.remove allowed build 0", "policy.remove allowed build 0", "policy.remove failed build 0"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestEgressOnTheWire: decisions are events, and in reports of sandboxes and runs.
func TestEgressOnTheWire(t *testing.T) {
	r, n := newWiredRig(t)
	ctx := as(t.Context(), "default", auth.Owner)
	sb, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: &v1.NetworkRules{Document: "allow: []"}})
	if err != nil {
		t.Fatal(err)
	}
	var id sandbox.InstanceID
	for id = range n.tables {
	}
	e := orchestrator.EgressEvent{Kind: "connect", Host: "a.example.com", Port: 8443, Decision: "deny", Reason: "no_rule", Hint: "to permit it: --allow a.example.com:8443", Generation: 1}
	if err := r.Orchestrator.RecordEgress(id, e); err != nil {
		t.Fatal(err)
	}
	seen := 0
	check(t, r.WatchEvents(ctx, &v1.WatchEventsRequest{Id: sb.Id, NoFollow: true}, func(ev *v1.Event) error {
		if ev.Type == "egress" {
			seen++
			if f := ev.GetEgress(); f.GetHost() != "a.example.com" || f.GetPort() != 8443 || f.GetDecision() != "deny" || f.GetKind() != "connect" || ev.Detail != e.Hint || ev.Reason != "no_rule" {
				t.Errorf("%v", ev)
			}
		} else if ev.Egress != nil {
			t.Errorf("%v", ev)
		}
		return nil
	}))
	now, err := r.GetSandbox(ctx, &v1.GetSandboxRequest{Id: sb.Id})
	if err != nil || seen != 1 || len(now.Egress) != 1 || now.Egress[0].Hint != e.Hint || now.Egress[0].Count != 1 {
		t.Errorf("%d events, %v, %v", seen, now.GetEgress(), err)
	}
}

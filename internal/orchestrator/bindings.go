package orchestrator

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bindings tells what a sandbox has to be like that is to use a binding. What the
// binding is, and its secret, only Network learns.
type Bindings interface {
	// Needs is what a tenant's binding asks of a sandbox that is to have it. Errors:
	// KindNotFound.
	Needs(ctx context.Context, tenant sandbox.TenantID, name string) (BindingNeeds, error)
}

// BindingNeeds is what a binding asks of a sandbox.
type BindingNeeds struct {
	Isolation sandbox.Isolation // the weakest
	Env       string            // the variable that is to hold a placeholder of its secret; empty: none
}

// maxBindings is how many a sandbox may have.
const maxBindings = 32

// bound adds the network that bindings need: a wire which nothing else passes.
func (r *CreateRequest) bound() {
	if len(r.Bindings) > 0 && r.Network == nil {
		r.Network = &NetworkPolicy{Mode: string(policy.ModeEnforce)}
	}
}

// state is the network that the sandbox begins with; nil for none.
func (r *CreateRequest) state() *NetworkState {
	if r.Network == nil {
		return nil
	}
	n := &NetworkState{NetworkPolicy: *r.Network, Generation: 1, Authority: string(r.ID), Bindings: slices.Clone(r.Bindings), Placeholders: r.placeholders}
	if r.parent != nil {
		n.inherit(r.parent)
	}
	return n
}

// checkBindings decides whether a sandbox of this backend may have the bindings that are
// asked for, and returns where it finds them, by the variables that say so. It makes
// the placeholders that some of them want.
func (o *Orchestrator) checkBindings(ctx context.Context, tenant sandbox.TenantID, r *CreateRequest, info sandbox.Info) (map[string]string, error) {
	names := r.Bindings
	switch {
	case len(names) == 0:
		return nil, nil
	case o.Bindings == nil:
		return nil, noBindings()
	case len(names) > maxBindings:
		return nil, sandbox.Errorf("create", sandbox.KindInvalid, "%d bindings are asked for", len(names)).WithHint("a sandbox has at most %d", maxBindings)
	}
	env, of := map[string]string{}, map[string]string{}
	r.placeholders = map[string]string{}
	set := func(variable, value, name string) error {
		if other, taken := of[variable]; taken {
			return sandbox.Errorf("create", sandbox.KindInvalid, "the bindings %.64q and %.64q want the same variable, %s", other, name, variable).
				WithHint("leave one of them out, or give one another --placeholder")
		}
		env[variable], of[variable] = value, name
		return nil
	}
	for _, name := range names {
		needs, err := o.checkBinding(ctx, tenant, name, info.Isolation)
		if err == nil && of[baseURL(name)] != name { // asked for again: once
			err = set(baseURL(name), bindingURL(name), name)
		}
		if err == nil && needs.Env != "" && r.placeholders[name] == "" {
			r.placeholders[name] = newPlaceholder()
			err = set(needs.Env, r.placeholders[name], name)
		}
		if err != nil {
			return nil, err
		}
	}
	return env, nil
}

// checkBinding decides whether a tenant's sandbox that is so isolated may have a
// binding.
func (o *Orchestrator) checkBinding(ctx context.Context, tenant sandbox.TenantID, name string, isolation sandbox.Isolation) (BindingNeeds, error) {
	needs, err := o.Bindings.Needs(ctx, tenant, name)
	switch {
	case sandbox.KindOf(err) == sandbox.KindNotFound:
		return needs, sandbox.Errorf("create", sandbox.KindNotFound, "there is no binding called %.64q", name).
			WithHint("`firebreak binding ls` lists yours, `firebreak binding add` makes one")
	case err != nil:
		return needs, sandbox.Wrap("create", "", err)
	case isolation < needs.Isolation:
		return needs, sandbox.Errorf("create", sandbox.KindUnsupported, "the binding %.64q is for sandboxes isolated by %s or better, and this one is by %s", name, needs.Isolation, isolation).
			WithHint("leave the binding out, or choose a stronger backend; `firebreak doctor` says which work here")
	}
	return needs, nil
}

// entitled are those bindings of e that the sandbox may still use: one may have been
// removed, or be for stronger boundaries now. The errors say why not the others.
func (l *live) entitled(ctx context.Context, e *Egress) (names []string, errs []error) {
	if len(e.Bindings) > 0 && l.o.Bindings == nil {
		return nil, []error{noBindings()}
	}
	l.mu.Lock()
	isolation := l.sb.Isolation
	l.mu.Unlock()
	for _, name := range e.Bindings {
		if _, err := l.o.checkBinding(ctx, l.tenant, name, isolation); err != nil {
			errs = append(errs, err)
			continue
		}
		names = append(names, name)
	}
	return names, errs
}

func noBindings() error {
	return sandbox.Errorf("create", sandbox.KindUnsupported, "bindings are kept by a server, and this is a run without one").
		WithHint("start `firebreak serve`: `firebreak secret set` and `firebreak binding add` need it, and `run` finds it by itself")
}

// baseURL is the variable that says where a sandbox finds a binding.
func baseURL(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "_BASE_URL"
}

// bindingURL is what it says.
func bindingURL(name string) string { return "http://" + name + "." + policy.BindingZone }

// Unbind calls remove if no living sandbox of the tenant has the binding, and
// keeps one from getting it meanwhile. Errors: KindConflict, which names them;
// those of remove.
func (o *Orchestrator) Unbind(tenant sandbox.TenantID, name string, remove func() error) error {
	o.granting.Lock()
	defer o.granting.Unlock()
	var ids []string
	o.mu.Lock()
	for _, l := range o.lives {
		if l.tenant == tenant && slices.Contains(l.bindings, name) {
			ids = append(ids, string(l.id))
		}
	}
	o.mu.Unlock()
	if len(ids) == 0 {
		return remove()
	}
	slices.Sort(ids)
	more := ""
	if n := len(ids) - maxNamed; n > 0 {
		ids, more = ids[:maxNamed], " and others"
	}
	return sandbox.Errorf("remove binding", sandbox.KindConflict, "sandboxes use it: %s%s", strings.Join(ids, ", "), more).WithID(name).
		WithHint("end them with `firebreak rm`, or wait for their end")
}

// maxNamed is how many sandboxes an error names.
const maxNamed = 10

// invocation is the record of a request through a binding. What is in its path, its
// query and its body is nobody's business.
func (e *EgressEvent) invocation() sandbox.Record {
	r := sandbox.Record{Class: sandbox.Flow, Action: "binding.invoked", Outcome: sandbox.OutcomeAllowed, Policy: e.Generation,
		Object: e.Binding, Detail: map[string]string{"method": e.Method, "host": net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))}}
	if e.Decision == "deny" {
		r.Action, r.Outcome = "binding.denied", sandbox.OutcomeDenied
		r.Detail["reason"] = e.Reason
	}
	if e.Count > 1 {
		r.Detail["count"] = strconv.Itoa(e.Count)
	}
	return r
}

// invokedBefore reports whether this process has recorded, durably, that the sandbox
// made a request through a binding. noteInvoked notes that it has.
func (l *live) invokedBefore(binding string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.invoked[binding]
}

func (l *live) noteInvoked(binding string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.invoked == nil {
		l.invoked = map[string]bool{}
	}
	l.invoked[binding] = true
}

package control

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Update makes p the policies of a wire, and transforms what sets headers of its
// requests. When it returns, every connection that the ones before allowed is closed;
// closed says how many, as far as a router that died meanwhile could say. Errors: KindNotFound, those about documents, with
// nothing changed; KindUnavailable and ctx's, after which the new ones may hold.
func (k *Keeper) Update(ctx context.Context, id string, p Policies, transforms ...egress.Transform) (generation uint64, closed int, err error) {
	const op = "egress update"
	if err := checkTransforms(transforms); err != nil {
		return 0, 0, sandbox.Errorf(op, sandbox.KindTooLarge, "%w", err).WithID(id)
	}
	table, err := k.compiler.compile(p)
	if err != nil {
		return 0, 0, err
	}
	w, err := k.find(ctx, op, id)
	if err != nil {
		return 0, 0, err
	}
	defer w.unlock()
	k.mu.Lock()
	bindings := w.bindings
	k.mu.Unlock()
	vouched, err := k.derive(w.vouching, table, bindings)
	if err != nil {
		return 0, 0, err
	}
	k.mu.Lock()
	if w.tap == nil {
		k.mu.Unlock()
		vouched.Wipe()
		return 0, 0, sandbox.Errorf(op, sandbox.KindNotFound, "the wire is being detached").WithID(id)
	}
	before, trusted, set, by := w.policies, w.authority, w.transforms, w.by
	w.policies, w.authority, w.transforms = p.clone(), vouched, cloneTransforms(transforms) // before anything is asked: a router that follows begins with these
	w.generation++
	w.know(table)
	generation = w.generation
	sent := &wire{Policies: p, Bindings: cloneBindings(w.bindings), Transforms: cloneTransforms(transforms), Authority: vouched.Clone()}
	k.mu.Unlock()
	defer sent.forget()
	a, err := k.pass(ctx, w, by, &down{Op: opUpdate, ID: id, Wire: sent})
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		trusted.Wipe()
		wipeTransforms(set)
		if a == nil { // another router has begun, with the new ones
			return generation, 0, nil
		}
		return generation, a.Closed, nil
	case ctx.Err() != nil:
		return 0, 0, sandbox.Errorf(op, sandbox.KindOf(ctx.Err()), "%w", ctx.Err()).WithID(id)
	case w.by != by:
		return generation, 0, err
	}
	w.policies, w.generation, w.authority, w.transforms = before, generation-1, trusted, set
	return 0, 0, err
}

// pass has the router that serves a wire do m. Nil without an error: there is another
// one, which has begun with the wire as it is now. Errors: the router's, or why that
// does not serve the wire; KindUnavailable; ctx's.
func (k *Keeper) pass(ctx context.Context, w *kept, by *session, m *down) (*up, error) {
	for {
		s, err := k.session(ctx, "egress "+m.Op, w.id)
		if err != nil {
			return nil, err
		}
		k.mu.Lock()
		again, why := w.by != by, w.err
		k.mu.Unlock()
		if again || s != by {
			return nil, why
		}
		if a, err := s.call(ctx, m, -1, answerWait); !errors.Is(err, errLost) {
			return a, err
		}
	}
}

// Grant gives a wire the secrets of bindings and transforms as they are now, from
// its next request on: of bindings that are otherwise as they were, and of transforms
// for hosts that have one. What else is given is left out: it is for the next attach.
// No connection is closed. Errors: KindNotFound, KindUnavailable, ctx's.
func (k *Keeper) Grant(ctx context.Context, id string, bindings []egress.Binding, transforms []egress.Transform) error {
	const op = "egress grant"
	if err := errors.Join(checkBindings(bindings), checkTransforms(transforms)); err != nil {
		return sandbox.Errorf(op, sandbox.KindTooLarge, "%w", err).WithID(id)
	}
	w, err := k.find(ctx, op, id)
	if err != nil {
		return err
	}
	defer w.unlock()
	k.mu.Lock()
	if w.tap == nil {
		k.mu.Unlock()
		return sandbox.Errorf(op, sandbox.KindNotFound, "the wire is being detached").WithID(id)
	}
	by := w.by
	w.bindings, w.transforms = renewed(w.bindings, bindings), reset(w.transforms, transforms)
	sent := &wire{Bindings: cloneBindings(w.bindings), Transforms: cloneTransforms(w.transforms)}
	k.mu.Unlock()
	defer sent.forget()
	_, err = k.pass(ctx, w, by, &down{Op: opGrant, ID: id, Wire: sent})
	return err
}

// renewed is old, with the secrets of those in next that are the same otherwise. It
// owns what of old it has.
func renewed(old, next []egress.Binding) []egress.Binding {
	for i := range old {
		o := &old[i]
		for j := range next {
			if n := &next[j]; n.Name == o.Name && n.Host == o.Host && n.Port == o.Port && n.Plain == o.Plain && slices.Equal(n.Methods, o.Methods) && n.Path == o.Path &&
				n.As == o.As && n.Field == o.Field && sameGit(n.Git, o.Git) && bytes.Equal(n.Placeholder, o.Placeholder) &&
				slices.EqualFunc(n.Inherited, o.Inherited, func(a, b egress.Hidden) bool { return bytes.Equal(a, b) }) {
				clear(o.Secret)
				o.Secret = slices.Clone(n.Secret)
			}
		}
	}
	return old
}

func sameGit(a, b *egress.Git) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Repo == b.Repo && slices.Equal(a.Push, b.Push))
}

// reset is old, with the headers of next for the same hosts. It owns what of old it
// has.
func reset(old, next []egress.Transform) []egress.Transform {
	for i := range old {
		for _, n := range cloneTransforms(next) {
			if n.Host == old[i].Host && n.Port == old[i].Port {
				old[i].Wipe()
				old[i] = n
			} else {
				n.Wipe()
			}
		}
	}
	return old
}

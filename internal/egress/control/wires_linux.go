package control

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Attach serves a wire, by this router and those after it. It keeps a descriptor
// of tap, which stays the caller's. Errors: KindInvalid, KindTooLarge and others of
// package policy about the documents, KindExists, KindUnavailable, ctx's; the wire
// is not attached then.
func (k *Keeper) Attach(ctx context.Context, o Wire, tap *os.File) (err error) {
	const op = "egress attach"
	if !wireID.MatchString(o.ID) || o.Epoch < 0 {
		return sandbox.Errorf(op, sandbox.KindInvalid, "%.80q, epoch %d, is no wire", o.ID, o.Epoch)
	}
	if err := checkBindings(o.Bindings); err != nil {
		return sandbox.Errorf(op, sandbox.KindTooLarge, "%w", err).WithID(o.ID)
	}
	if err := checkTransforms(o.Transforms); err != nil {
		return sandbox.Errorf(op, sandbox.KindTooLarge, "%w", err).WithID(o.ID)
	}
	table, err := k.compiler.compile(o.Policies)
	if err != nil {
		return err
	}
	vouching := cmp.Or(o.Authority, o.ID)
	trusted, err := k.derive(vouching, table, o.Bindings)
	if err != nil {
		return err
	}
	own, err := duplicate(tap)
	if err != nil {
		trusted.Wipe()
		return sandbox.Errorf(op, sandbox.KindInvalid, "%w", err).WithID(o.ID)
	}
	w := &kept{
		id: o.ID, vouching: vouching, one: make(chan struct{}, 1), tap: own, epoch: o.Epoch, policies: o.Policies.clone(), rules: map[string]bool{},
		used: maps.Clone(o.Used), generation: 1, bindings: cloneBindings(o.Bindings), transforms: cloneTransforms(o.Transforms), authority: trusted,
	}
	if w.used == nil {
		w.used = map[string]policy.Used{}
	}
	w.know(table)
	w.one <- struct{}{}
	defer w.unlock()
	if err := k.add(w); err != nil {
		own.Close()
		w.forget()
		return err
	}
	for {
		s, err := k.session(ctx, op, w.id)
		if err != nil {
			return k.undo(ctx, w, err)
		}
		k.mu.Lock()
		served, why := w.by == s, w.err // it began after add, and was given the wire
		k.mu.Unlock()
		if !served {
			if why = ctx.Err(); why == nil { // the answer may be as quick as the caller
				why = k.give(ctx, s, w)
			}
		}
		switch {
		case errors.Is(why, errLost):
			continue
		case why != nil:
			return k.undo(ctx, w, why)
		}
		return nil
	}
}

// undo takes back an Attach that failed with err, which it returns, also when ctx
// has ended.
func (k *Keeper) undo(ctx context.Context, w *kept, err error) error {
	if ctx.Err() != nil && sandbox.KindOf(err) != sandbox.KindUnavailable {
		err = sandbox.Errorf("egress attach", sandbox.KindOf(ctx.Err()), "%w", ctx.Err()).WithID(w.id)
	}
	return errors.Join(err, k.remove(context.WithoutCancel(ctx), w))
}

// add makes w one of the keeper's wires.
func (k *Keeper) add(w *kept) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.closed:
		return sandbox.Errorf("egress attach", sandbox.KindUnavailable, "the router is being stopped").WithID(w.id)
	case k.wires[w.id] != nil:
		return sandbox.Errorf("egress attach", sandbox.KindExists, "the wire is attached already").WithID(w.id)
	case len(k.wires) >= maxWires:
		return sandbox.Errorf("egress attach", sandbox.KindCapacity, "a router has at most %d wires", maxWires).WithID(w.id)
	}
	k.wires[w.id] = w
	return nil
}

// find returns a wire that nothing else is done to until it is unlocked.
func (k *Keeper) find(ctx context.Context, op, id string) (*kept, error) {
	k.mu.Lock()
	w := k.wires[id]
	k.mu.Unlock()
	if w == nil {
		return nil, sandbox.Errorf(op, sandbox.KindNotFound, "the wire is not attached").WithID(id)
	}
	if err := w.lock(ctx); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wires[id] != w {
		w.unlock()
		return nil, sandbox.Errorf(op, sandbox.KindNotFound, "the wire is not attached").WithID(id)
	}
	return w, nil
}

// Detach ends a wire. When it returns, nothing of it is left in the router or
// here. Idempotent. Errors: ctx's, and then it has to be called again.
func (k *Keeper) Detach(ctx context.Context, id string) error {
	_, err := k.Cut(ctx, id)
	return err
}

// Cut is Detach, and what was used of the wire's rules in all, by their ids; nil of
// one that is not attached.
func (k *Keeper) Cut(ctx context.Context, id string) (map[string]policy.Used, error) {
	w, err := k.find(ctx, "egress detach", id)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer w.unlock()
	if err := k.remove(ctx, w); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(w.used), nil
}

// remove ends a wire that the caller has locked.
func (k *Keeper) remove(ctx context.Context, w *kept) error {
	k.mu.Lock()
	if w.tap != nil {
		w.tap.Close() // no router gets it any more
		w.tap = nil
		w.forget()
	}
	s := w.by
	k.mu.Unlock()
	if s != nil {
		a, err := k.part(ctx, s, w.id)
		switch {
		case errors.Is(err, errLost): // and with it the wire
		case err != nil:
			return sandbox.Errorf("egress detach", sandbox.KindOf(err), "%w", err).WithID(w.id)
		default:
			k.mu.Lock()
			w.learn(a.Used)
			k.mu.Unlock()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.wires, w.id)
	return nil
}

// part has a router detach a wire, after it has answered that it serves it: one
// that is just given its wires would otherwise be told so in the wrong order.
func (k *Keeper) part(ctx context.Context, s *session, id string) (*up, error) {
	for {
		k.mu.Lock()
		current, changed := k.current, k.changed
		k.mu.Unlock()
		if current == s {
			return s.call(ctx, &down{Op: opDetach, ID: id}, -1, detachWait)
		}
		select {
		case <-changed:
		case <-s.lost:
			return nil, errLost
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Close ends all wires and the router. When it returns, nothing of them is left.
// Again: nothing.
func (k *Keeper) Close() error {
	k.mu.Lock()
	if !k.closed {
		k.closed = true
		k.announce()
		k.stop()
	}
	k.mu.Unlock()
	k.done.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.seed)
	for id, w := range k.wires {
		if w.tap != nil {
			w.tap.Close()
			w.tap = nil
			w.forget()
		}
		delete(k.wires, id)
	}
	return nil
}

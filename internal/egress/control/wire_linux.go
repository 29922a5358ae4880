package control

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/egress/dns"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Wire is what is to be served.
type Wire struct {
	ID string // of the instance
	// Authority is the id that the wire's authority is derived with, of whoever it is that
	// goes on over several instances; empty: ID.
	Authority string
	// Epoch is of its first dns.NewPool; each router after the first one begins
	// another, since it does not know the pool of the one before.
	Epoch int
	Policies
	// Used is what was used of budgets before, by the id of the rule.
	Used map[string]policy.Used
	// Bindings are what requests may be made through. The keeper copies them, and
	// overwrites its copies of the secrets when the wire is detached.
	Bindings []egress.Binding
	// Transforms set headers of requests, until the first Update. They are kept as
	// bindings are.
	Transforms []egress.Transform
}

// kept is a wire as the keeper has it: what the next router needs.
type kept struct {
	id       string
	vouching string        // whose authority it is
	one      chan struct{} // holds an element while something is done to the wire

	// All that follows is guarded by Keeper.mu.
	tap      *os.File // nil while it is being detached
	epoch    int
	served   int // by how many routers until now
	policies Policies
	rules    map[string]bool // all there ever were, by id
	used     map[string]policy.Used
	bindings []egress.Binding
	// transforms are those of the policies.
	transforms []egress.Transform
	// authority is whom the sandbox trusts, for the hosts of policies and bindings.
	authority *authority.Authority

	generation uint64 // of policies
	by         *session
	base       uint64 // what to add to by's generations
	err        error  // why by does not serve it
}

// lock waits until nobody does anything to the wire. Errors: ctx ended.
func (w *kept) lock(ctx context.Context) error {
	select {
	case w.one <- struct{}{}:
		return nil
	case <-ctx.Done():
		return sandbox.Errorf("egress", sandbox.KindOf(ctx.Err()), "%w", ctx.Err()).WithID(w.id)
	}
}

func (w *kept) unlock() { <-w.one }

// poolStride is between the pools of successive routers: far from those of the
// epochs that follow, which the wire's owner counts.
const poolStride = 11

// next is the wire as the session s is told to serve it from now on. The caller
// holds Keeper.mu.
func (w *kept) next(s *session) *wire {
	m := &wire{Policies: w.policies, Epoch: (w.epoch + w.served*poolStride) % dns.Epochs, Used: map[string]policy.Used{}, Bindings: cloneBindings(w.bindings),
		Transforms: cloneTransforms(w.transforms), Authority: w.authority.Clone()}
	for id, u := range w.used {
		u.Concurrent = 0 // nothing is left of those
		m.Used[id] = u
	}
	w.served++
	w.by, w.err, w.base = s, nil, w.generation-1 // a router begins with 1
	return m
}

// forget overwrites what of the wire is secret. The caller holds Keeper.mu.
func (w *kept) forget() {
	wipe(w.bindings)
	wipeTransforms(w.transforms)
	w.authority.Wipe()
}

// forget overwrites what of a wire's message is secret.
func (m *wire) forget() {
	wipe(m.Bindings)
	wipeTransforms(m.Transforms)
	m.Authority.Wipe()
}

// learn adds what a router says was used. It can say too much, to the sandbox's
// harm; what is less than before, or of no rule, is not believed. The caller holds
// Keeper.mu.
func (w *kept) learn(used map[string]policy.Used) {
	for id, u := range used {
		if !w.rules[id] {
			continue
		}
		o := w.used[id]
		w.used[id] = policy.Used{
			Upload: max(o.Upload, u.Upload), Download: max(o.Download, u.Download), Connections: max(o.Connections, u.Connections),
			Concurrent: u.Concurrent, Names: max(o.Names, u.Names),
		}
	}
}

// know adds the rules of a table to those the wire has had. The caller holds
// Keeper.mu.
func (w *kept) know(t *policy.Table) {
	for _, r := range t.Rules() {
		w.rules[r.ID] = true
	}
}

// duplicate is another descriptor of f, which stays in the mode it is in.
func duplicate(f *os.File) (*os.File, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := c.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 3) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}

package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/egress/control"
	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// network joins what makes wires and what has them served. The router begins with
// the first wire: who needs none has no such process.
type network struct {
	dir     string // of the wires' namespaces
	private []netip.Prefix
	bound   *bindings // nil: there are none
	// derive makes what is the same after a restart; nil: nothing has to be.
	derive func(label string) ([]byte, error)
	record func(sandbox.InstanceID, orchestrator.EgressEvent) error
	log    *slog.Logger

	starting sync.Mutex // held while the router is started

	mu     sync.Mutex
	closed bool                          // guarded by mu
	keeper *control.Keeper               // guarded by mu; nil before the first wire
	ahead  map[sandbox.InstanceID]uint64 // guarded by mu; of the keeper's generations, ours
}

var (
	_ orchestrator.Network     = (*network)(nil)
	_ orchestrator.Accounts    = (*network)(nil)
	_ orchestrator.Granter     = (*network)(nil)
	_ orchestrator.Cutter      = (*network)(nil)
	_ orchestrator.Authorities = (*network)(nil)
)

// authorities is what the seed of sandboxes' authorities is derived for.
const authorities = "sandbox authorities"

// newNetwork returns the wires of a node, and what ends their router.
func newNetwork(o options, b *broker.Broker, bound *bindings, record func(sandbox.InstanceID, orchestrator.EgressEvent) error) (orchestrator.Network, func() error) {
	var derive func(string) ([]byte, error)
	if b != nil {
		derive = b.Derive
	}
	n := &network{derive: derive, dir: filepath.Join(o.dir, "wires"), private: o.config.EgressPrivate, bound: bound, record: record, log: o.log,
		ahead: map[sandbox.InstanceID]uint64{}}
	return n, n.close
}

// router is the keeper, which is started if need be.
func (n *network) router(ctx context.Context) (*control.Keeper, error) {
	n.starting.Lock()
	defer n.starting.Unlock()
	n.mu.Lock()
	k, closed := n.keeper, n.closed
	n.mu.Unlock()
	if closed {
		return nil, sandbox.Errorf("egress", sandbox.KindUnavailable, "the router is being stopped")
	}
	if k != nil {
		return k, nil
	}
	var seed []byte
	if n.derive != nil {
		var err error
		if seed, err = n.derive(authorities); err != nil {
			return nil, err
		}
		defer clear(seed)
	}
	k, err := control.Start(ctx, control.Options{Logger: n.log, Private: n.private, Record: n.decided, Seed: seed})
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.keeper = k
	return k, nil
}

// running is the keeper, nil if it was never needed.
func (n *network) running() *control.Keeper {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keeper
}

// decided hands a decision of the router's on.
func (n *network) decided(e egress.Event) error {
	id := sandbox.InstanceID(e.Wire)
	n.mu.Lock()
	generation := e.Generation + n.ahead[id]
	n.mu.Unlock()
	return n.record(id, orchestrator.EgressEvent{
		Time: e.Time, Kind: e.Kind, Host: e.Host, Port: e.Port, Address: e.Address, Protocol: e.Protocol, Decision: e.Decision,
		Rule: e.Rule, Reason: e.Reason, Hint: e.Hint, Binding: e.Binding, Method: e.Method, Generation: generation, Upload: e.Upload, Download: e.Download, Count: e.Count,
	})
}

// Open implements orchestrator.Network.
func (n *network) Open(ctx context.Context, id sandbox.InstanceID, p orchestrator.Egress) (*sandbox.Wire, error) {
	k, err := n.router(ctx) // first: without one a wire is of no use
	if err != nil {
		return nil, err
	}
	g, unbound := n.bound.resolveAll(ctx, p)
	defer g.wipe()
	if len(unbound) > 0 {
		return nil, unbound[0]
	}
	link, err := wire.Open(n.dir, string(id))
	if err != nil {
		return nil, err
	}
	if err := n.attach(ctx, k, id, p, g, link); err != nil {
		_, left := wire.Remove(n.dir, string(id))
		return nil, errors.Join(err, left)
	}
	return &link.Wire, nil
}

// Adopt implements orchestrator.Network.
func (n *network) Adopt(ctx context.Context, id sandbox.InstanceID, p orchestrator.Egress) (unbound string, err error) {
	k, err := n.router(ctx)
	if err != nil {
		return "", err
	}
	if err := k.Detach(ctx, string(id)); err != nil { // an earlier attempt's
		return "", err
	}
	link, err := wire.Reopen(n.dir, string(id))
	if err != nil {
		return "", err
	}
	g, errs := n.bound.resolveAll(ctx, p)
	defer g.wipe()
	var why []string
	for _, err := range errs {
		why = append(why, err.Error())
	}
	return strings.Join(why, "; "), n.attach(ctx, k, id, p, g, link)
}

// attach has a wire served. The keeper has descriptors, and copies of the secrets, of
// its own afterwards.
func (n *network) attach(ctx context.Context, k *control.Keeper, id sandbox.InstanceID, p orchestrator.Egress, g granted, link *wire.Link) error {
	defer link.Tap.Close()
	n.generation(id, p.Generation, 1)
	return k.Attach(ctx, control.Wire{ID: string(id), Authority: p.Authority, Epoch: p.Epoch, Policies: control.Policies{Documents: p.Documents}, Used: p.Used, Bindings: g.bindings, Transforms: g.transforms}, link.Tap)
}

// generation notes that the keeper's generation is ours.
func (n *network) generation(id sandbox.InstanceID, ours, keepers uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ahead[id] = max(ours, keepers) - keepers
}

// Update implements orchestrator.Network.
func (n *network) Update(ctx context.Context, id sandbox.InstanceID, p orchestrator.Egress) (generation uint64, closed int, err error) {
	k := n.running()
	if k == nil {
		return 0, 0, sandbox.Errorf("egress update", sandbox.KindNotFound, "the wire is not attached").WithID(string(id))
	}
	g, unbound := n.bound.resolveAll(ctx, orchestrator.Egress{Tenant: p.Tenant, Transforms: p.Transforms})
	defer g.wipe()
	if len(unbound) > 0 { // asked for now, and not there
		return 0, 0, unbound[0]
	}
	its, closed, err := k.Update(ctx, string(id), control.Policies{Documents: p.Documents}, g.transforms...)
	if err != nil {
		return 0, 0, err
	}
	n.generation(id, p.Generation, its)
	return max(p.Generation, its), closed, nil
}

// Grant implements orchestrator.Granter.
func (n *network) Grant(ctx context.Context, id sandbox.InstanceID, p orchestrator.Egress, secret string) error {
	k := n.running()
	if k == nil || n.bound == nil {
		return nil
	}
	p = n.bound.using(ctx, p, secret)
	if len(p.Bindings)+len(p.Transforms) == 0 {
		return nil
	}
	g, errs := n.bound.resolveAll(ctx, p)
	defer g.wipe() // what could not be had stays as the wire has it
	return errors.Join(append(errs, k.Grant(ctx, string(id), g.bindings, g.transforms))...)
}

// Used implements orchestrator.Accounts.
func (n *network) Used(id sandbox.InstanceID) map[string]policy.Used {
	if k := n.running(); k != nil {
		return k.Used(string(id))
	}
	return nil
}

// Cut implements orchestrator.Cutter.
func (n *network) Cut(ctx context.Context, id sandbox.InstanceID) (map[string]policy.Used, error) {
	if k := n.running(); k != nil {
		return k.Cut(ctx, string(id))
	}
	return nil, nil
}

// Authority implements orchestrator.Authorities.
func (n *network) Authority(id sandbox.InstanceID) (certificate, hash string, err error) {
	k := n.running()
	if k == nil {
		return "", "", nil
	}
	text := k.Authority(string(id))
	if len(text) == 0 {
		return "", "", nil
	}
	hash, err = authority.SubjectHash(text)
	return string(text), hash, err
}

// Close implements orchestrator.Network.
func (n *network) Close(ctx context.Context, id sandbox.InstanceID) ([]sandbox.Object, error) {
	ctx = context.WithoutCancel(ctx)
	var err error
	if k := n.running(); k != nil {
		err = k.Detach(ctx, string(id))
	}
	n.mu.Lock()
	delete(n.ahead, id)
	n.mu.Unlock()
	if _, missing := os.Lstat(filepath.Join(n.dir, string(id))); errors.Is(missing, os.ErrNotExist) {
		return nil, err
	}
	objects, left := wire.Remove(n.dir, string(id))
	return objects, errors.Join(err, left)
}

// List implements orchestrator.Network.
func (n *network) List(context.Context) ([]sandbox.InstanceID, error) {
	names, err := wire.List(n.dir)
	ids := make([]sandbox.InstanceID, len(names))
	for i, name := range names {
		ids[i] = sandbox.InstanceID(name)
	}
	return ids, err
}

// close ends the router. The wires of sandboxes that live on stay, and nothing
// passes them.
func (n *network) close() error {
	n.starting.Lock()
	defer n.starting.Unlock()
	n.mu.Lock()
	k := n.keeper
	n.closed = true
	n.mu.Unlock()
	if k == nil {
		return nil
	}
	return k.Close()
}

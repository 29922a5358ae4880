package orchestrator

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// wires is a Network that only notes what it is told. It outlives the
// Orchestrators of a world, as namespaces do.
type wires struct {
	mu     sync.Mutex
	open   map[sandbox.InstanceID]*wire
	fail   map[string]error // by method
	stuck  bool             // Close finds an object that resists
	broken string           // what Adopt says of bindings
	calls  []string
	spec   map[sandbox.InstanceID]*sandbox.Wire // as the backend was given it
	during func(method string)                  // called in each method, with nothing held
}

type wire struct {
	Egress
	served bool // by the process that is now
	flows  int
}

func newWires() *wires {
	return &wires{open: map[sandbox.InstanceID]*wire{}, fail: map[string]error{}, spec: map[sandbox.InstanceID]*sandbox.Wire{}}
}

func (n *wires) begin(method string, id sandbox.InstanceID) error {
	n.mu.Lock()
	n.calls = append(n.calls, method)
	during := n.during
	n.mu.Unlock()
	if during != nil {
		during(method)
	}
	n.mu.Lock()
	err := n.fail[method]
	n.mu.Unlock()
	if !id.Valid() {
		return fmt.Errorf("%q is no instance", id)
	}
	return err
}

func (n *wires) Open(ctx context.Context, id sandbox.InstanceID, p Egress) (*sandbox.Wire, error) {
	if err := n.begin("open", id); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open[id] != nil {
		return nil, errors.New("it is open")
	}
	n.open[id] = &wire{Egress: p, served: true}
	return &sandbox.Wire{NetNS: "/wires/" + string(id), Link: "eth0"}, nil
}

func (n *wires) Adopt(ctx context.Context, id sandbox.InstanceID, p Egress) (string, error) {
	if err := n.begin("adopt", id); err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.open[id]
	if w == nil {
		return "", sandbox.Errorf("adopt", sandbox.KindNotFound, "there is no wire")
	}
	if p.Epoch <= w.Epoch {
		return "", fmt.Errorf("epoch %d after %d", p.Epoch, w.Epoch)
	}
	*w = wire{Egress: p, served: true, flows: w.flows}
	return n.broken, nil
}

func (n *wires) Update(ctx context.Context, id sandbox.InstanceID, p Egress) (uint64, int, error) {
	if err := n.begin("update", id); err != nil {
		return 0, 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.open[id]
	if w == nil || !w.served {
		return 0, 0, errors.New("nobody serves it")
	}
	closed := w.flows
	w.Egress, w.flows = p, 0
	return p.Generation, closed, nil
}

func (n *wires) Close(ctx context.Context, id sandbox.InstanceID) ([]sandbox.Object, error) {
	if err := n.begin("close", id); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open[id] == nil {
		return nil, nil
	}
	o := sandbox.Object{Kind: "namespace", Name: "/wires/" + string(id), Gone: true, Check: "stat", Checked: time.Now().UTC()}
	if n.stuck {
		o.Gone, o.Detail = false, "busy"
		return []sandbox.Object{o}, errors.New("a namespace is busy")
	}
	delete(n.open, id)
	return []sandbox.Object{o}, nil
}

func (n *wires) Used(id sandbox.InstanceID) map[string]policy.Used {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.open[id]; w != nil && w.served {
		return maps.Clone(w.Used)
	}
	return nil
}

// certificate is what a wire's authority has that lets pass what documents say.
func certificate(documents [][]byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bytes.Join(documents, nil)}))
}

func (n *wires) Authority(id sandbox.InstanceID) (string, string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.open[id]
	if w == nil || !w.served {
		return "", "", nil
	}
	return certificate(w.Documents), "0123abcd", n.fail["authority"]
}

func (n *wires) List(context.Context) (ids []sandbox.InstanceID, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.open {
		ids = append(ids, id)
	}
	return ids, n.fail["list"]
}

func (n *wires) set(method string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail[method] = err
}

func (n *wires) of(id sandbox.InstanceID) (wire, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.open[id]; w != nil {
		return *w, true
	}
	return wire{}, false
}

func (n *wires) called(method string) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.calls {
		if c == method {
			count++
		}
	}
	return count
}

// plugged is the model with a socket for wires, which it only remembers.
type plugged struct {
	sandbox.Backend
	net *wires
}

func (b plugged) Info(ctx context.Context) (sandbox.Info, error) {
	i, err := b.Backend.Info(ctx)
	i.Capabilities.Wire = true
	return i, err
}

func (b plugged) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	b.net.mu.Lock()
	b.net.spec[spec.Instance] = spec.Wire
	b.net.mu.Unlock()
	if spec.Wire != nil {
		if _, open := b.net.of(spec.Instance); !open || spec.Wire.NetNS == "" {
			return nil, errors.New("the wire is not there")
		}
	}
	spec.Wire = nil
	return b.Backend.Create(ctx, spec)
}

// newWiredWorld is a world with a Network. At its end no wire may be left.
func newWiredWorld(t *testing.T) (*world, *wires) {
	t.Helper()
	w, n := newWorld(t), newWires()
	w.cfg = n.config(w)
	t.Cleanup(func() {
		if left, _ := n.List(context.Background()); len(left) > 0 && !n.stuck {
			t.Errorf("wires left: %v", left)
		}
	})
	return w, n
}

func (n *wires) config(w *world) func(*Config) {
	return func(c *Config) {
		c.Network, c.Backends = n, []sandbox.Backend{plugged{w.sim, n}}
	}
}

// kept is config for a process that others follow.
func (n *wires) kept(w *world) func(*Config) {
	return func(c *Config) {
		n.config(w)(c)
		c.DestroyOnClose = false
	}
}

// policyOf is a policy of documents.
func policyOf(texts ...string) *NetworkPolicy {
	p := &NetworkPolicy{Mode: "enforce"}
	for i, text := range texts {
		p.Documents = append(p.Documents, PolicyDocument{Name: fmt.Sprint("p", i), Source: "request", Digest: fmt.Sprintf("%064x", len(text)), Text: text})
	}
	return p
}

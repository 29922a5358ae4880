//go:build linux

package egress

import (
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/log"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Config is what a Router needs.
type Config struct {
	Logger *slog.Logger
	// Dialer is what connections are made with; Allow is set for each from what its
	// policy opens.
	Dialer netaddr.Dialer
	// Record takes each decision before it has an effect, and the end of each
	// connection. An error denies: what cannot be recorded does not happen. It is
	// called from many goroutines and may block; what it holds up is the sandbox
	// concerned. Nil denies everything.
	Record func(Event) error
	Limits Limits
	// Roots are who vouches for the hosts of bindings; nil: whom the system trusts. It
	// is called when a wire with one is attached.
	Roots func() *x509.CertPool
}

// Limits bound one wire, whatever its policy says. The zero value of each means
// its default.
type Limits struct {
	HalfOpen    int           // connections that are being made; 96
	Connections int           // connections at once; 1024
	Rate        int           // connections per second, after as many at once; 100. More wait
	Idle        time.Duration // after which a connection is ended on which nothing is said; 30 min
	Sniff       time.Duration // how long a connection may take to say what it is for; 10 s
}

func (l Limits) withDefaults() Limits {
	if l.HalfOpen <= 0 {
		l.HalfOpen = 96
	}
	if l.Connections <= 0 {
		l.Connections = 1024
	}
	if l.Rate <= 0 {
		l.Rate = 100
	}
	if l.Idle <= 0 {
		l.Idle = 30 * time.Minute
	}
	if l.Sniff <= 0 {
		l.Sniff = 10 * time.Second
	}
	return l
}

// Wire is what is to be served.
type Wire struct {
	ID    string        // of the instance
	Epoch int           // of dns.NewPool
	Table *policy.Table // until the first Update
	// Used is what was used of budgets before, by the id of the rule.
	Used map[string]policy.Used
	// Bindings are what requests may be made through, by their names; of those that
	// share one the last counts. The router owns the secrets.
	Bindings []Binding
	// Transforms set headers of requests. The router owns what is hidden in them.
	Transforms []Transform
	// Authority is whom the sandbox trusts, for its hosts, until the first Update; nil:
	// nobody, and what would have to be looked into is denied. The router owns the key.
	Authority *authority.Authority
}

// Router serves the wires of sandboxes. All methods may be called at once.
type Router struct {
	config Config
	total  counters

	mu     sync.Mutex
	wires  map[string]*wire // guarded by mu; nil once closed
	ending sync.WaitGroup   // of wires that are being detached
}

// quiet keeps the stack from writing to standard error what a sandbox made it
// think.
var quiet sync.Once

// New makes a router that serves nothing yet.
func New(c Config) *Router {
	quiet.Do(func() { log.SetTarget(&log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}}) })
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dialer.Machine == nil {
		c.Dialer.Machine = new(netaddr.Machine)
	}
	if c.Record == nil {
		c.Record = func(Event) error { return errors.New("there is nothing to record with") }
	}
	c.Limits = c.Limits.withDefaults()
	return &Router{config: c, wires: map[string]*wire{}}
}

// Attach serves a wire. It owns tap and the secrets of bindings from now on, also
// if it fails: a TAP device with IFF_NO_PI and IFF_VNET_HDR, that does not block.
// Costs a fifth of a millisecond. Errors: KindExists, KindInvalid for a tap or a
// binding that is none, KindUnavailable after Close.
func (r *Router) Attach(w Wire, tap *os.File) (err error) {
	defer func() {
		if err != nil {
			tap.Close()
			wipe(w.Bindings, w.Transforms)
			w.Authority.Wipe()
		}
	}()
	if w.ID == "" || w.Table == nil {
		return sandbox.Errorf("egress attach", sandbox.KindInvalid, "a wire has an id and a policy").WithID(w.ID)
	}
	if err := checkTap(tap); err != nil {
		return sandbox.Errorf("egress attach", sandbox.KindInvalid, "%w", err).WithID(w.ID)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.wires == nil:
		return sandbox.Errorf("egress attach", sandbox.KindUnavailable, "the router is closed").WithID(w.ID)
	case r.wires[w.ID] != nil:
		return sandbox.Errorf("egress attach", sandbox.KindExists, "the wire is served already").WithID(w.ID)
	}
	served, err := newWire(r, w, tap)
	if sandbox.KindOf(err) == sandbox.KindInvalid {
		return err
	}
	if err != nil {
		return sandbox.Errorf("egress attach", sandbox.KindInternal, "%w", err).WithID(w.ID)
	}
	r.wires[w.ID] = served
	return nil
}

func (r *Router) find(op, id string) (*wire, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.wires[id]
	if w == nil {
		return nil, sandbox.Errorf(op, sandbox.KindNotFound, "the wire is not served").WithID(id)
	}
	return w, nil
}

// Update makes t the policy of a wire, and a its authority unless that is nil, and
// closes the connections that the one before allowed, all of them, before it returns.
// It returns the new generation and how many it closed. It owns the key of a. Errors:
// KindNotFound, KindInvalid for what is no authority; nothing has changed then.
func (r *Router) Update(id string, t *policy.Table, a *authority.Authority) (generation uint64, closed int, err error) {
	defer a.Wipe()
	w, err := r.find("egress update", id)
	if err != nil {
		return 0, 0, err
	}
	if a != nil {
		i, err := authority.NewIssuer(a)
		if err != nil {
			return 0, 0, err
		}
		w.issuer.Store(i) // before the policy: what it allows is vouched for
	}
	generation, closed = w.live.Update(t)
	return generation, closed, nil
}

// Grant makes bindings and transforms those of a wire, from its next request on. It
// owns what is hidden in them, also if it fails. Errors: KindNotFound, KindInvalid for
// one that is none; nothing has changed then.
func (r *Router) Grant(id string, bindings []Binding, transforms []Transform) error {
	w, err := r.find("egress grant", id)
	if err == nil && !w.begin() {
		err = sandbox.Errorf("egress grant", sandbox.KindNotFound, "the wire has ended").WithID(id)
	}
	if err != nil {
		wipe(bindings, transforms)
		return err
	}
	defer w.work.Done()
	if err := w.bound.grant(bindings, transforms); err != nil {
		wipe(bindings, transforms)
		return sandbox.Errorf("egress grant", sandbox.KindInvalid, "%w", err).WithID(id)
	}
	return nil
}

// wipe overwrites what is hidden.
func wipe(bindings []Binding, transforms []Transform) {
	for i := range bindings {
		bindings[i].Wipe()
	}
	for i := range transforms {
		transforms[i].Wipe()
	}
}

// Used is what the sandbox has used of its rules, by their ids, until now.
// Errors: KindNotFound.
func (r *Router) Used(id string) (map[string]policy.Used, error) {
	w, err := r.find("egress used", id)
	if err != nil {
		return nil, err
	}
	return w.account.All(), nil
}

// Detach ends a wire: its connections are reset, its goroutines and descriptors
// gone, and their ends recorded, when it returns. It returns what was used.
// Again, or while another call detaches it: nothing, without an error.
func (r *Router) Detach(id string) (map[string]policy.Used, error) {
	r.mu.Lock()
	w := r.wires[id]
	if w == nil {
		r.mu.Unlock()
		return nil, nil
	}
	delete(r.wires, id)
	r.ending.Add(1)
	r.mu.Unlock()
	defer r.ending.Done()
	return w.end(), nil
}

// Stats sums up.
func (r *Router) Stats() Stats {
	s := r.total.stats()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Wires = len(r.wires)
	return s
}

// Close detaches all wires and waits for those that are being detached. Again:
// nothing.
func (r *Router) Close() error {
	r.mu.Lock()
	wires := r.wires
	r.wires = nil
	r.ending.Add(len(wires))
	r.mu.Unlock()
	for _, w := range wires {
		go func() {
			defer r.ending.Done()
			w.end()
		}()
	}
	r.ending.Wait()
	return nil
}

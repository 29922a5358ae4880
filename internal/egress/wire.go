//go:build linux

package egress

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/egress/dns"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// generous is how many connections of a wire may have large buffers. Those beyond
// do with little, so that thousands that are never read from cost megabytes.
const generous = 16

// wire is one that is served.
type wire struct {
	router  *Router
	id      string
	live    *policy.Live
	account *policy.Accountant
	pool    *dns.Pool
	ledger  *ledger
	names   resolver
	recent  recent
	dials   *rate.Limiter
	bound   *bound
	issuer  atomic.Pointer[authority.Issuer] // nil: the sandbox trusts nobody here
	trust   trust
	told    told
	link    *link
	stack   *stack.Stack
	cancel  context.CancelFunc // of what its goroutines do

	mu    sync.Mutex
	flows map[*flow]struct{} // guarded by mu
	ended bool               // guarded by mu; nothing begins any more
	work  sync.WaitGroup     // goroutines; added to under mu while not ended
}

func newWire(r *Router, w Wire, tap *os.File) (*wire, error) {
	ctx, cancel := context.WithCancel(context.Background())
	limits := &r.config.Limits
	out := &wire{
		router: r, id: w.ID, live: policy.NewLive(w.Table), account: policy.Restore(w.Used), pool: dns.NewPool(w.Epoch), cancel: cancel,
		ledger: newLedger(r.config.Logger, r.config.Record),
		dials:  rate.NewLimiter(rate.Limit(limits.Rate), limits.Rate),
		flows:  map[*flow]struct{}{},
	}
	if w.Authority != nil {
		i, err := authority.NewIssuer(w.Authority)
		w.Authority.Wipe()
		if err != nil {
			cancel()
			return nil, err
		}
		out.issuer.Store(i)
	}
	out.names = resolver{wire: out, answerer: dns.Answerer{Policy: out.live, Account: out.account, Pool: out.pool}, told: map[netaddr.Host]uint64{}}
	bound, err := newBound(ctx, out, w.Bindings, w.Transforms)
	if err != nil {
		cancel()
		return nil, sandbox.Errorf("egress attach", sandbox.KindInvalid, "%w", err).WithID(w.ID)
	}
	out.bound, out.names.answerer.Zone = bound, bound.zone
	out.link, err = newLink(tap, out.refuse, func(err error) { r.config.Logger.Warn("the wire's device is gone", "wire", w.ID, "err", err) })
	if err == nil {
		out.stack, err = newStack(out.link, limits.HalfOpen, func(req *tcp.ForwarderRequest) { out.serve(ctx, req) })
	}
	if err == nil {
		err = out.names.listen(ctx)
	}
	if err != nil {
		cancel()
		bound.proxy.Close()
		if out.stack != nil {
			out.link.shut()
			out.stack.Destroy()
		}
		return nil, err
	}
	return out, nil
}

// begin notes that something is to be done in a goroutine; not ok: the wire has
// ended. Call work.Done when it is.
func (w *wire) begin() (ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.work.Add(1)
	}
	return !w.ended
}

// enter notes a connection; not ok: there are as many as there can be.
func (w *wire) enter(f *flow) (ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended || len(w.flows) >= w.router.config.Limits.Connections {
		return false
	}
	f.small = len(w.flows) >= generous
	w.flows[f] = struct{}{}
	w.router.total.connections.Add(1)
	return true
}

func (w *wire) leave(f *flow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.flows, f)
	w.router.total.connections.Add(-1)
}

// end closes everything, waits, and returns what was used.
func (w *wire) end() map[string]policy.Used {
	w.mu.Lock()
	w.ended = true
	flows := make([]*flow, 0, len(w.flows))
	for f := range w.flows {
		flows = append(flows, f)
	}
	w.mu.Unlock()
	w.cancel()
	for _, f := range flows {
		f.stop(ReasonDetached, nil)
	}
	w.bound.hangUp()
	w.names.close()
	w.link.shut()
	w.stack.RemoveNIC(nicID)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.work.Wait()
		w.stack.Wait()
	}()
	for waiting := true; waiting; {
		w.stack.Close() // again for handshakes that began meanwhile
		select {
		case <-done:
			waiting = false
		case <-time.After(10 * time.Millisecond):
		}
	}
	w.bound.proxy.Close()
	w.ledger.end()
	return w.account.All()
}

// refuse tells of a packet that the link dropped, without holding it up.
func (w *wire) refuse(x refusal) {
	e := w.event(KindConnect, netaddr.HostOf(x.to.Addr()), x.to.Port())
	e.Protocol, e.Reason, e.Generation = x.protocol, policy.ReasonProtocol.String(), w.live.Table().Generation()
	e.Hint = "only TCP leaves a sandbox, and what it asks the DNS at " + gatewayAddr.String()
	w.router.total.denied.Add(1)
	e.Decision, e.Count = Deny, 1
	if !w.ledger.fold(e) || !w.begin() {
		return
	}
	go func() {
		defer w.work.Done()
		w.ledger.tell(e)
	}()
}

func (w *wire) event(kind string, h netaddr.Host, port uint16) Event {
	return Event{Wire: w.id, Time: time.Now().UTC(), Kind: kind, Host: h.String(), Port: port, Count: 1}
}

// deny tells of something that is denied.
func (w *wire) deny(e Event) {
	w.router.total.denied.Add(1)
	w.ledger.deny(e)
}

// host says what a connection to an address of this wire's is for. Not ok: an
// address that means nothing, or nothing any more.
func (w *wire) host(to netip.Addr) (h netaddr.Host, ok bool) {
	if dns.Range.Contains(to) {
		h, ok = w.pool.Host(to)
		if !ok {
			h = netaddr.HostOf(to)
		}
		return h, ok
	}
	return netaddr.HostOf(to), to != gatewayAddr && to != guestAddr
}

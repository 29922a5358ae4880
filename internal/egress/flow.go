//go:build linux

package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// patience is how long a client may keep silent where the server may have to
// speak first.
const patience = 300 * time.Millisecond

// flow is one connection of a sandbox.
type flow struct {
	wire  *wire
	host  netaddr.Host
	port  uint16
	queue waiter.Queue
	small bool   // its buffers are
	first []byte // what the sandbox said before it was decided about

	cancel context.CancelFunc
	active atomic.Int64 // when bytes last moved, in nanoseconds of Unix time

	uploaded, downloaded atomic.Int64

	event   Event         // of the decision that allows it
	meter   *policy.Meter // nil: no rule allows it
	release func()        // out of Live
	settles bool          // it was read, and ended well

	mu       sync.Mutex
	endpoint tcpip.Endpoint // guarded by mu until it is set; the sandbox's side
	conn     *net.TCPConn   // guarded by mu until it is set; the other side
	idle     *time.Timer    // guarded by mu
	stopped  bool           // guarded by mu
	reason   string         // guarded by mu; why, if stopped
	cause    error          // guarded by mu
}

// serve handles a SYN, in a goroutine of its own.
func (w *wire) serve(ctx context.Context, r *tcp.ForwarderRequest) {
	if !w.begin() {
		r.Complete(false)
		return
	}
	defer w.work.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	id := r.ID()
	to := netip.AddrFrom4(id.LocalAddress.As4())
	f := &flow{wire: w, port: id.LocalPort, cancel: cancel}
	if to == gatewayAddr && f.port == portDNS {
		f.serveDNS(ctx, r)
		return
	}
	var known bool
	f.host, known = w.host(to)
	if name, in := bindingOf(f.host); known && in {
		f.serveBinding(ctx, r, name)
		return
	}
	sniffed, raw := f.speaks(w.live.Table())
	if at := w.bound.proxy.At(f.host, f.port); at.Opens || at.Sets {
		sniffed = true
	}
	switch {
	case !known:
		f.deny(policy.Flow{}, policy.ReasonAddress.String(), "the address means nothing here; names have to be asked for again")
	case !sniffed && !raw:
		fl := policy.Flow{Host: f.host, Port: f.port}
		t := w.live.Table()
		d := t.Could(fl)
		f.deny(fl, d.Reason.String(), t.Hint(fl, d))
	case w.dials.Wait(ctx) != nil:
		r.Complete(false) // the wire has ended
		return
	case !w.enter(f):
		f.deny(policy.Flow{}, ReasonLimit, "the sandbox has too many connections at once")
	default:
		defer w.leave(f)
		f.carry(ctx, r, sniffed, raw)
		return
	}
	r.Complete(true)
}

// speaks says what some rule lets pass on the connection: what can be told from
// its first bytes, and what cannot.
func (f *flow) speaks(t *policy.Table) (sniffed, raw bool) {
	could := func(p policy.Protocol, claimed netaddr.Host) bool {
		return t.Could(policy.Flow{Host: f.host, Port: f.port, Protocol: p, Claimed: claimed}).Allow
	}
	return could(policy.ProtocolTLS, f.host) || could(policy.ProtocolHTTP, f.host), could(policy.ProtocolTCP, netaddr.Host{})
}

// carry does all for a connection that may be allowed: accepts it, learns what it
// is for, decides, dials, relays. Where nothing has to be learnt from the sandbox
// it is accepted last, so that it is refused if the other side refuses.
func (f *flow) carry(ctx context.Context, r *tcp.ForwarderRequest, sniffed, raw bool) {
	defer f.finish()
	if !sniffed {
		if g, ok := f.admit(ctx, policy.ProtocolTCP, netaddr.Host{}); !ok || !f.reach(ctx, g) || !f.accept(r) {
			r.Complete(true)
			return
		}
		r.Complete(false)
		f.relay(ctx)
		return
	}
	if !f.accept(r) {
		r.Complete(true)
		return
	}
	r.Complete(false)
	p, claimed, ok := f.sniff(ctx, raw)
	if !ok {
		return
	}
	if g, ok := f.open(p, claimed); ok {
		f.visit(ctx, g)
		return
	}
	if g, ok := f.admit(ctx, p, claimed); ok {
		f.pass(ctx, g)
	}
}

// accept makes the connection to the sandbox. Not ok: it went away, or the wire
// ended.
func (f *flow) accept(r *tcp.ForwarderRequest) bool {
	ep, err := r.CreateEndpoint(&f.queue)
	if err != nil {
		return false
	}
	o := ep.SocketOptions()
	o.SetDelayOption(false)
	if f.small { // and stay as they are
		o.SetReceiveBufferSize(firstBuffer, true)
		o.SetSendBufferSize(firstBuffer, true)
	}
	o.SetKeepAlive(true)
	for _, k := range []tcpip.SettableSocketOption{new(tcpip.KeepaliveIdleOption(time.Minute)), new(tcpip.KeepaliveIntervalOption(30 * time.Second))} {
		_ = ep.SetSockOpt(k) // cannot fail
	}
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, 6)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endpoint = ep
	return !f.stopped
}

// Close implements io.Closer for policy.Live.
func (f *flow) Close() error {
	f.stop(ReasonUpdated, nil)
	return nil
}

// stop breaks the connection off on both sides. The first reason counts.
func (f *flow) stop(reason string, cause error) {
	f.mu.Lock()
	if f.stopped {
		f.mu.Unlock()
		return
	}
	f.stopped, f.reason, f.cause = true, reason, cause
	ep, conn := f.endpoint, f.conn
	f.mu.Unlock()
	f.cancel()
	if conn != nil {
		_ = conn.SetLinger(0) // a reset; if that fails it is an end
		conn.Close()
	}
	if ep != nil {
		ep.Abort()
	}
}

// finish lets go of what there is and records the end of what was allowed.
func (f *flow) finish() {
	f.mu.Lock()
	ep, conn, stopped := f.endpoint, f.conn, f.stopped
	reason, cause := f.reason, f.cause
	f.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	if f.release != nil {
		f.release()
	}
	if f.meter != nil {
		f.meter.Close()
	}
	if f.event.Decision != "" {
		if !stopped {
			reason = ReasonDone
		}
		f.recordEnd(reason, cause)
	}
	if ep != nil {
		if conn == nil && !f.settles || stopped {
			ep.Abort()
		} else {
			f.settle(ep)
		}
		ep.Close()
	}
}

func (f *flow) recordEnd(reason string, cause error) {
	e := f.event
	e.Kind, e.Time, e.Reason, e.Hint = KindClose, time.Now().UTC(), reason, ""
	e.Upload, e.Download = f.uploaded.Load(), f.downloaded.Load()
	if cause != nil {
		e.Hint = cause.Error()
	}
	if err := f.wire.router.config.Record(e); err != nil {
		f.wire.router.config.Logger.Error("the end of a connection is not recorded", "wire", e.Wire, "host", e.Host, "port", e.Port, "err", err)
	}
}

// settle waits until the sandbox has taken what is left for it, so that the
// connection counts as long as it holds memory.
func (f *flow) settle(ep tcpip.Endpoint) {
	entry, gone := waiter.NewChannelEntry(waiter.EventHUp)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	if ep.Readiness(waiter.EventHUp) != 0 {
		return
	}
	t := time.NewTimer(f.wire.router.config.Limits.Idle)
	defer t.Stop()
	select {
	case <-gone:
	case <-t.C:
		ep.Abort()
	}
}

// deny tells that the connection is denied.
func (f *flow) deny(fl policy.Flow, reason, hint string) {
	e := f.wire.event(KindConnect, f.host, f.port)
	e.Reason, e.Hint, e.Generation = reason, hint, f.wire.live.Table().Generation()
	if fl.Protocol != policy.ProtocolUnknown {
		e.Protocol = fl.Protocol.String()
	}
	if fl.Addr.IsValid() {
		e.Address = fl.Addr.String()
	}
	f.wire.deny(e)
}

// serveDNS answers queries on a connection.
func (f *flow) serveDNS(ctx context.Context, r *tcp.ForwarderRequest) {
	f.host = netaddr.HostOf(gatewayAddr)
	if !f.wire.enter(f) {
		f.deny(policy.Flow{}, ReasonLimit, "the sandbox has too many connections at once")
		r.Complete(true)
		return
	}
	defer f.wire.leave(f)
	ok := f.accept(r)
	r.Complete(!ok && f.endpoint == nil)
	if ok {
		f.wire.names.stream(ctx, gonet.NewTCPConn(&f.queue, f.endpoint))
	} else if f.endpoint != nil {
		f.endpoint.Close()
	}
}

// sniff reads what the sandbox says first. Not ok: nothing, and the connection is
// over or denied.
func (f *flow) sniff(ctx context.Context, raw bool) (p policy.Protocol, claimed netaddr.Host, ok bool) {
	limit := f.wire.router.config.Limits.Sniff
	if raw {
		limit = min(limit, patience)
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	entry, more := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	f.first = make([]byte, 0, 2<<10)
	for {
		if len(f.first) == cap(f.first) {
			f.first = append(make([]byte, 0, 2*cap(f.first)), f.first...)
		}
		n, err := readInto(f.endpoint, f.first[len(f.first):cap(f.first)])
		f.first = f.first[:len(f.first)+n]
		if n > 0 {
			if p, claimed, ok = look(f.first, f.port); ok {
				return p, claimed, true
			}
			continue
		}
		over := !errors.Is(err, errWait)
		if !over {
			select {
			case <-more:
				continue
			case <-t.C:
			case <-ctx.Done():
				return 0, netaddr.Host{}, false
			}
		}
		switch {
		case len(f.first) > 0, raw && !over: // it is what it is
			return policy.ProtocolTCP, netaddr.Host{}, true
		case !over:
			f.deny(policy.Flow{}, ReasonSilent, "a connection on which the server speaks first needs a rule with `protocol: tcp`")
		}
		return 0, netaddr.Host{}, false
	}
}

//go:build linux

package egress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

const (
	portHTTP  = 80
	maxMethod = 24 // bytes of one in an event
)

// bound is the bindings of one wire.
type bound struct {
	wire  *wire
	ctx   context.Context // the wire's
	proxy *inspect.Proxy

	mu    sync.Mutex
	ended bool                   // guarded by mu
	open  map[*upstream]struct{} // guarded by mu
}

func newBound(ctx context.Context, w *wire, bindings []Binding, transforms []Transform) (*bound, error) {
	targets, err := targetsOf(bindings)
	if err != nil {
		return nil, err
	}
	b := &bound{wire: w, ctx: ctx, open: map[*upstream]struct{}{}}
	c := &w.router.config
	b.proxy, err = inspect.New(inspect.Options{
		Zone: policy.BindingZone, Roots: c.Roots, Dial: b.dial, Reach: b.visited, Ask: func(t *inspect.Target) inspect.Asker { return asker{b, t} }, Head: c.Limits.Sniff, Idle: c.Limits.Idle,
	}, targets, setsOf(transforms)...)
	return b, err
}

// grant gives the wire's requests others to be made with, from the next one on.
// Errors: one of them cannot be; nothing has changed then.
func (b *bound) grant(bindings []Binding, transforms []Transform) error {
	targets, err := targetsOf(bindings)
	if err != nil {
		return err
	}
	return b.proxy.Grant(targets, setsOf(transforms))
}

// targetsOf are bindings as the proxy has them.
func targetsOf(bindings []Binding) (targets []*inspect.Target, err error) {
	byName := map[string]int{}
	for _, x := range bindings {
		h, err := netaddr.ParseHost(x.Host)
		if err != nil {
			return nil, err
		}
		if _, in := bindingOf(h); in {
			return nil, errors.New("a binding leads to a binding")
		}
		t := &inspect.Target{Name: x.Name, Host: h, Port: x.Port, Plain: x.Plain, Methods: x.Methods, Path: x.Path, As: x.As, Field: x.Field, Git: (*inspect.Git)(x.Git), Secret: x.Secret,
			Placeholder: x.Placeholder}
		for _, p := range x.Inherited {
			t.Inherited = append(t.Inherited, p)
		}
		if i, again := byName[x.Name]; again {
			targets[i].Wipe()
			targets[i] = t
			continue
		}
		byName[x.Name] = len(targets)
		targets = append(targets, t)
	}
	return targets, nil
}

// setsOf are transforms as the proxy has them.
func setsOf(transforms []Transform) (sets []*inspect.Transform) {
	for _, x := range transforms {
		t := &inspect.Transform{Host: x.Host, Port: x.Port}
		for _, h := range x.Headers {
			t.Headers = append(t.Headers, inspect.Header{Name: h.Name, Value: h.Value})
		}
		for _, s := range x.Secrets {
			t.Secrets = append(t.Secrets, s)
		}
		sets = append(sets, t)
	}
	return sets
}

// bindingOf is the name of the binding that a host would be, if it is in their
// zone.
func bindingOf(h netaddr.Host) (name string, in bool) {
	if h.Name() == policy.BindingZone {
		return "", true
	}
	return strings.CutSuffix(h.Name(), "."+policy.BindingZone)
}

// zone is dns.Answerer's Zone: names of bindings, and of hosts for which the sandbox
// has a placeholder.
func (b *bound) zone(h netaddr.Host) (in, exists bool) {
	if name, in := bindingOf(h); in {
		return true, b.proxy.Has(name)
	}
	if !b.proxy.Opens(h) {
		return false, false
	}
	// A rule that is about the name has its say, and its budget.
	opens := opened(b.wire.live.Table().Could(policy.Flow{Host: h}))
	return opens, opens
}

// serveBinding handles a connection to a name in the zone of bindings, which no
// policy is about.
func (f *flow) serveBinding(ctx context.Context, r *tcp.ForwarderRequest, name string) {
	w := f.wire
	deny := func(reason, hint string) {
		e := w.event(KindConnect, f.host, f.port)
		e.Binding, e.Reason, e.Hint, e.Generation = name, reason, hint, w.live.Table().Generation()
		w.deny(e)
		r.Complete(true)
	}
	switch {
	case !w.bound.proxy.Has(name):
		deny(ReasonUnbound, "the sandbox has no such binding")
	case f.port != portHTTP:
		deny(policy.ReasonPort.String(), "a binding is HTTP, on port 80")
	case w.dials.Wait(ctx) != nil:
		r.Complete(false) // the wire has ended
	case !w.enter(f):
		deny(ReasonLimit, "the sandbox has too many connections at once")
	default:
		defer w.leave(f)
		ok := f.accept(r)
		r.Complete(!ok && f.endpoint == nil)
		if f.endpoint == nil {
			return
		}
		defer f.endpoint.Close()
		conn := gonet.NewTCPConn(&f.queue, f.endpoint)
		if ok && w.bound.proxy.Serve(ctx, conn, name) {
			f.settle(f.endpoint)
		} else {
			f.endpoint.Abort()
		}
		_ = conn.SetDeadline(time.Time{}) // its timers
	}
}

// asker decides about the requests of one binding.
type asker struct {
	*bound
	to *inspect.Target
}

// Decide implements inspect.Asker. What a rule denies, no binding permits.
func (a asker) Decide(_ context.Context, method, path string) *inspect.Refusal {
	b, t, w := a.bound, a.to, a.wire
	table := w.live.Table()
	fl := policy.Flow{Host: t.Host, Port: t.Port}
	e := b.event(t, method)
	e.Generation = table.Generation()
	if d := table.CouldRequest(fl, policy.Request{Method: method, Path: path, Binding: t.Name}); d.Reason == policy.ReasonDenied || d.Reason == policy.ReasonAddress {
		e.Reason, e.Hint = d.Reason.String(), table.Hint(fl, d)
		if d.Rule != nil {
			e.Rule = d.Rule.ID
		}
		w.deny(e)
		return &inspect.Refusal{Status: http.StatusForbidden, Reason: e.Reason, Text: "the policy denies the binding's host"}
	}
	if !b.reached(t) { // and so it will be dialled
		ctx, cancel := context.WithTimeout(b.ctx, dialTime)
		defer cancel()
		var no *inspect.Refusal
		if _, _, err := b.resolve(ctx, table, t); errors.As(err, &no) {
			e.Reason, e.Hint = no.Reason, no.Text
			w.deny(e)
			return no
		}
	}
	e.Decision, e.Reason = Allow, ReasonBinding
	if err := w.ledger.allow(e); err != nil {
		e.Reason, e.Hint = ReasonUnrecorded, "what cannot be recorded does not happen"
		w.deny(e)
		return &inspect.Refusal{Status: http.StatusServiceUnavailable, Reason: e.Reason, Text: e.Hint}
	}
	return nil
}

// Refused implements inspect.Asker.
func (a asker) Refused(method string, no *inspect.Refusal) {
	e := a.event(a.to, method)
	e.Reason, e.Hint, e.Generation = no.Reason, no.Text, a.wire.live.Table().Generation()
	a.wire.deny(e)
}

func (b *bound) event(t *inspect.Target, method string) Event {
	e := b.wire.event(KindRequest, t.Host, t.Port)
	e.Protocol, e.Binding, e.Method = policy.ProtocolHTTP.String(), t.Name, method[:min(len(method), maxMethod)]
	return e
}

// dial is inspect.Options' Dial. The connection ends with the policy, as others
// do, and with the wire.
func (b *bound) dial(ctx context.Context, t *inspect.Target) (net.Conn, error) {
	w := b.wire
	if !w.begin() {
		return nil, net.ErrClosed
	}
	defer w.work.Done()
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	for range retries {
		table := w.live.Table()
		conn, err := b.reach(ctx, table, t)
		if err != nil {
			return nil, err
		}
		u := &upstream{Conn: conn, bound: b, to: t}
		release, err := w.live.Admit(table.Generation(), u)
		if err == nil && b.enter(u, release) {
			w.router.total.allowed.Add(1)
			return u, nil
		}
		conn.Close()
	}
	return nil, &inspect.Refusal{Status: http.StatusServiceUnavailable, Reason: ReasonStale, Text: "the policy changed while it was asked; try again"}
}

// resolve finds the addresses of a binding's host, which neither a deny rule nor
// the dialer refuses. What is private an operator has to have opened. Errors:
// *inspect.Refusal, those of the dialer.
func (b *bound) resolve(ctx context.Context, table *policy.Table, t *inspect.Target) (*netaddr.Dialer, []netip.Addr, error) {
	w := b.wire
	d := w.router.config.Dialer
	if d.Lookup != nil {
		d.Lookup = w.recent.through(d.Lookup, t.Port)
	}
	d.Allow = func(_ netaddr.Host, _ uint16, a netip.Addr, c netaddr.Class) bool { return table.Permits(a, c) }
	addrs, err := d.Resolve(ctx, t.Host, t.Port)
	for _, a := range addrs {
		if table.Could(policy.Flow{Host: t.Host, Port: t.Port, Addr: a}).Reason == policy.ReasonDenied {
			return nil, nil, forbidden(policy.ReasonDenied)
		}
	}
	return &d, addrs[:min(len(addrs), maxAddrs)], refusalFor(err)
}

// refusalFor is err, or what the sandbox is told where it is that an address is
// not dialled.
func refusalFor(err error) error {
	var refused *netaddr.RefusedError
	switch {
	case !errors.As(err, &refused):
		return err
	case refused.Class.Openable():
		return forbidden(policy.ReasonPrivate)
	}
	return forbidden(policy.ReasonAddress)
}

func forbidden(reason policy.Reason) *inspect.Refusal {
	return &inspect.Refusal{Status: http.StatusForbidden, Reason: reason.String(), Text: "the binding's host is, or has an address, where nothing may be sent"}
}

// reach connects to a binding's host.
func (b *bound) reach(ctx context.Context, table *policy.Table, t *inspect.Target) (net.Conn, error) {
	d, addrs, err := b.resolve(ctx, table, t)
	if err != nil {
		return nil, err
	}
	conn, err := d.DialPinned(ctx, "tcp", t.Host, t.Port, addrs)
	if err != nil {
		b.wire.recent.forget(t.Host.Name(), t.Port)
		return nil, refusalFor(err)
	}
	return conn, nil
}

// reached reports whether there is a connection to a binding's host.
func (b *bound) reached(t *inspect.Target) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for u := range b.open {
		if u.to == t {
			return true
		}
	}
	return false
}

// enter notes a connection to a host. Not ok: it was closed meanwhile, or the wire
// has ended.
func (b *bound) enter(u *upstream, release func()) (ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended || u.closed {
		release()
		return false
	}
	u.release = release
	b.open[u] = struct{}{}
	return true
}

// hangUp closes the connections to hosts. None begins afterwards.
func (b *bound) hangUp() {
	b.mu.Lock()
	b.ended = true
	open := make([]*upstream, 0, len(b.open))
	for u := range b.open {
		open = append(open, u)
	}
	b.mu.Unlock()
	for _, u := range open {
		u.Close()
	}
}

// upstream is a connection to a binding's host.
type upstream struct {
	net.Conn
	bound   *bound
	to      *inspect.Target // nil: a site
	noted   *Event          // nil: a connection of the sandbox's was recorded for it
	closed  bool            // guarded by bound.mu
	release func()          // guarded by bound.mu; out of Live
}

// Read implements net.Conn.
func (u *upstream) Read(p []byte) (int, error) {
	n, err := u.Conn.Read(p)
	u.bound.wire.router.total.download.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (u *upstream) Write(p []byte) (int, error) {
	n, err := u.Conn.Write(p)
	u.bound.wire.router.total.upload.Add(int64(n))
	return n, err
}

// Close implements net.Conn. Again: nothing.
func (u *upstream) Close() error {
	b := u.bound
	b.mu.Lock()
	was, release := u.closed, u.release
	u.closed = true
	delete(b.open, u)
	b.mu.Unlock()
	if was {
		return nil
	}
	if release != nil {
		release()
	}
	if u.noted != nil {
		if b.wire.begin() { // who closes it does not wait
			go func() {
				defer b.wire.work.Done()
				b.wire.over(u.noted, ReasonDone)
			}()
		} else {
			b.wire.over(u.noted, ReasonDone)
		}
	}
	return u.Conn.Close()
}

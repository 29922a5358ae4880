//go:build linux

package egress

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// unread reports whether what a grant allows passes without being read.
func (g *grant) unread() bool {
	return g.flow.Protocol == policy.ProtocolTCP || g.decision.Rule != nil && g.decision.Rule.Opaque
}

// pass carries a connection that is allowed: to a server, unread, or to the proxy,
// which reads it. Where it would be unread, and a secret of the wire's goes to the
// same host, it does not pass.
func (f *flow) pass(ctx context.Context, g grant) {
	switch {
	case !g.unread():
		f.visit(ctx, g)
	case f.wire.bound.proxy.At(f.host, f.port).Read(g.flow.Protocol == policy.ProtocolTCP):
		f.deny(g.flow, policy.ReasonInspect.String(), "a binding of the sandbox leads to this host, or headers are set for it, so that what is sent there has to be read; allow it by TLS, and without `inspect: none`")
	case f.reach(ctx, g):
		f.relay(ctx)
	}
}

// visit has the proxy read a connection, and send on of it what the policy allows.
func (f *flow) visit(ctx context.Context, g grant) {
	w := f.wire
	site := inspect.Site{Host: f.host, Name: f.host, Port: f.port, Plain: g.flow.Protocol == policy.ProtocolHTTP}
	if g.flow.Claimed.IsValid() { // another one only where the rule is about the address
		site.Name = g.flow.Claimed
	}
	config, issuer := w.trust.config(w.issuer.Load())
	if !site.Plain && issuer == nil {
		f.deny(g.flow, policy.ReasonInspect.String(), "the sandbox has no authority, without which TLS cannot be read")
		return
	}
	e := w.granted(g.flow, g.decision)
	e.Address = g.flow.Addr.String()
	ask := inspect.Asker(visitor{wire: w, grant: g, meter: f.meter})
	if g.bound {
		e.Address, e.Reason, ask = "", ReasonBinding, opener{visitor{wire: w, grant: g}}
	}
	if !f.noted(e, g.flow) {
		return
	}
	w.told.note(e)
	w.router.total.allowed.Add(1)
	f.active.Store(time.Now().UnixNano())
	f.watch(w.router.config.Limits.Idle)
	defer f.unwatch()
	conn := net.Conn(&guest{TCPConn: gonet.NewTCPConn(&f.queue, f.endpoint), flow: f, first: f.first})
	defer func() { _ = conn.SetDeadline(time.Time{}) }() // its timers
	f.first = nil
	read := conn
	if !site.Plain {
		c, no := inspect.Accept(ctx, conn, config, w.router.config.Limits.Sniff, func() (*tls.Certificate, error) { return vouch(issuer, site.Name) })
		if no != nil {
			if no.Reason != "" {
				f.deny(g.flow, no.Reason, no.Text)
			}
			f.stop(ReasonReset, nil)
			return
		}
		read = c
	}
	heard, begun := &hearing{Asker: ask}, time.Now()
	f.settles = w.bound.proxy.Visit(ctx, read, &inspect.Visit{Site: site, Generation: g.decision.Generation, Narrow: g.table.Particular(g.flow), Ask: heard})
	if t, ok := read.(*inspect.Conn); ok && heard.silent(begun) && ctx.Err() == nil && !t.ConnectionState().DidResume {
		no := inspect.Silent()
		f.deny(g.flow, no.Reason, no.Text)
	}
}

// visitor decides about the requests on one connection.
type visitor struct {
	wire *wire
	grant
	meter *policy.Meter // nil: no rule allows the connection
}

// Decide implements inspect.Asker.
func (v visitor) Decide(ctx context.Context, method, path string) *inspect.Refusal {
	w := v.wire
	e := v.event(method)
	d := v.table.DecideRequest(ctx, v.flow, policy.Request{Method: method, Path: path})
	e.Decision, e.Reason = verdict(d), d.Reason.String()
	if d.Rule != nil {
		e.Rule = d.Rule.ID
	}
	if !d.Allow {
		if d.Err != nil {
			w.router.config.Logger.Warn("the policy gave no answer", "wire", w.id, "host", v.flow.Host.String(), "err", d.Err)
		}
		e.Hint = v.table.Hint(v.flow, d)
		w.deny(e)
		return &inspect.Refusal{Status: http.StatusForbidden, Reason: e.Reason, Text: "the policy denies this request (" + e.Reason + ")"}
	}
	if d.Rule != nil && v.meter != nil {
		if err := v.meter.Permit(d.Rule); err != nil { // another rule than the connection's
			e.Decision, e.Reason, e.Hint = Deny, policy.ReasonBudget.String(), err.Error()
			w.deny(e)
			return &inspect.Refusal{Status: http.StatusForbidden, Reason: e.Reason, Text: e.Hint}
		}
	}
	if err := w.ledger.allow(e); err != nil {
		e.Reason, e.Hint = ReasonUnrecorded, "what cannot be recorded does not happen"
		w.deny(e)
		return &inspect.Refusal{Status: http.StatusServiceUnavailable, Reason: e.Reason, Text: e.Hint}
	}
	return nil
}

// Refused implements inspect.Asker.
func (v visitor) Refused(method string, no *inspect.Refusal) {
	e := v.event(method)
	e.Reason, e.Hint = no.Reason, no.Text
	v.wire.deny(e)
}

func (v visitor) event(method string) Event {
	e := v.wire.event(KindRequest, v.flow.Host, v.flow.Port)
	e.Protocol, e.Method, e.Generation = v.flow.Protocol.String(), method[:min(len(method), maxMethod)], v.decision.Generation
	return e
}

// visited is inspect.Options' Reach: a connection to a site, under the policy that
// allowed the visit. It ends with that, and with the wire.
func (b *bound) visited(ctx context.Context, s inspect.Site, generation uint64) (net.Conn, error) {
	w := b.wire
	if !w.begin() {
		return nil, net.ErrClosed
	}
	defer w.work.Done()
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	stale := &inspect.Refusal{Status: http.StatusServiceUnavailable, Reason: ReasonStale, Text: "the policy has changed; try again"}
	g := grant{table: w.live.Table(), flow: policy.Flow{Host: s.Host, Port: s.Port, Protocol: policy.ProtocolTLS, Claimed: s.Name}}
	if s.Plain {
		g.flow.Protocol = policy.ProtocolHTTP
	}
	if g.table.Generation() != generation {
		return nil, stale
	}
	var no *denial
	if g.addrs, g.decision, no = w.decide(ctx, g.table, g.flow); no != nil {
		return nil, w.unvisited(g, no)
	}
	e := w.granted(g.flow, g.decision)
	var noted *Event
	conn, err := w.reach(ctx, g, func(a netip.Addr) error {
		w.over(noted, ReasonUnreachable)
		noted, e.Address, e.Time = nil, a.String(), time.Now().UTC()
		if w.told.has(e) {
			return nil // a connection of the sandbox's was recorded with it
		}
		if err := w.router.config.Record(e); err != nil {
			return &inspect.Refusal{Status: http.StatusServiceUnavailable, Reason: ReasonUnrecorded, Text: "what cannot be recorded does not happen"}
		}
		w.told.note(e)
		now := e
		noted = &now
		return nil
	})
	if err != nil {
		w.over(noted, ReasonUnreachable)
		return nil, err
	}
	u := &upstream{Conn: conn, bound: b, noted: noted}
	if release, err := w.live.Admit(generation, u); err != nil || !b.enter(u, release) {
		conn.Close()
		w.over(noted, ReasonUpdated)
		return nil, stale
	}
	return u, nil
}

// over records the end of a connection that was recorded by itself; of nil nothing.
func (w *wire) over(noted *Event, reason string) {
	if noted == nil {
		return
	}
	e := *noted
	e.Kind, e.Time, e.Reason = KindClose, time.Now().UTC(), reason
	if err := w.router.config.Record(e); err != nil {
		w.router.config.Logger.Error("the end of a connection is not recorded", "wire", e.Wire, "host", e.Host, "port", e.Port, "err", err)
	}
}

// unvisited is what the sandbox is told of a denial, which is told of.
func (w *wire) unvisited(g grant, no *denial) error {
	if no.reason == "" {
		return net.ErrClosed
	}
	e := w.granted(no.flow, g.decision)
	e.Reason, e.Hint = no.reason, no.hint
	if no.flow.Addr.IsValid() {
		e.Address = no.flow.Addr.String()
	}
	w.deny(e)
	status, text := http.StatusForbidden, "the policy denies this host, or its address"
	if no.reason == ReasonUnresolved {
		status, text = http.StatusBadGateway, "the host has no address"
	}
	return &inspect.Refusal{Status: status, Text: text}
}

// trust is how TLS of one authority is accepted: all its connections share a
// config, so that sessions resume.
type trust struct {
	mu   sync.Mutex
	of   *authority.Issuer // guarded by mu
	with *tls.Config       // guarded by mu
}

func (t *trust) config(i *authority.Issuer) (*tls.Config, *authority.Issuer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of != i {
		t.of, t.with = i, inspect.ServerConfig()
	}
	return t.with, i
}

// told is which connections to sites are on record, so that what is dialled for
// one of the sandbox's is not recorded twice.
type told struct {
	mu    sync.Mutex
	known map[toldKey]struct{} // guarded by mu; at most maxTold
}

type toldKey struct {
	host, address, protocol string
	port                    uint16
	generation              uint64
}

const maxTold = 256

func (e *Event) toldKey() toldKey {
	return toldKey{e.Host, e.Address, e.Protocol, e.Port, e.Generation}
}

// note says that e is on record.
func (t *told) note(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxTold {
		t.known = map[toldKey]struct{}{} // what is dialled next is recorded once more
	}
	t.known[e.toldKey()] = struct{}{}
}

// has reports whether something like e is on record.
func (t *told) has(e Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.known[e.toldKey()]
	return ok
}

// guest is the sandbox's side of a connection that is read: what passes is charged
// before it does.
type guest struct {
	*gonet.TCPConn
	flow  *flow
	first []byte // what was read before
}

// Read implements net.Conn.
func (g *guest) Read(b []byte) (n int, err error) {
	f := g.flow
	if len(g.first) > 0 {
		n = copy(b, g.first)
		g.first = g.first[n:]
	} else if n, err = g.TCPConn.Read(b); n == 0 {
		return 0, err
	}
	if f.meter != nil {
		if err := f.meter.Upload(n); err != nil {
			f.stop(policy.ReasonBudget.String(), err)
			return 0, err
		}
	}
	f.uploaded.Add(int64(n))
	f.active.Store(time.Now().UnixNano())
	return n, err
}

// Write implements net.Conn.
func (g *guest) Write(b []byte) (n int, err error) {
	f := g.flow
	for len(b) > 0 && err == nil {
		part := b[:min(len(b), chunk)]
		if f.meter != nil {
			if err := f.meter.Download(len(part)); err != nil {
				f.stop(policy.ReasonBudget.String(), err)
				return n, err
			}
		}
		var took int
		took, err = g.TCPConn.Write(part)
		n += took
		b = b[took:]
		f.downloaded.Add(int64(took))
		f.active.Store(time.Now().UnixNano())
	}
	return n, err
}

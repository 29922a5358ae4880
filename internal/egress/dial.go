//go:build linux

package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

const (
	dialTime = 10 * time.Second // resolving included
	maxAddrs = 4                // of a name that are tried
	retries  = 4                // of a decision whose policy changed meanwhile
)

// grant is a connection that is allowed.
type grant struct {
	flow     policy.Flow // as it was decided about, for the first of addrs
	decision policy.Decision
	table    *policy.Table
	addrs    []netip.Addr // each of which was decided about
	bound    bool         // by no rule, for requests through a binding alone
}

// admit decides about the connection, now that what it is for is known: the name
// is resolved once, and each address is decided about. Not ok: it is denied; that
// was told.
func (f *flow) admit(ctx context.Context, p policy.Protocol, claimed netaddr.Host) (g grant, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	g.flow = policy.Flow{Host: f.host, Port: f.port, Protocol: p, Claimed: claimed}
	for range retries {
		g.table = f.wire.live.Table()
		var no *denial
		if g.addrs, g.decision, no = f.wire.decide(ctx, g.table, g.flow); no != nil {
			if no.reason != "" {
				f.deny(no.flow, no.reason, no.hint)
			}
			return g, false
		}
		release, err := f.wire.live.Admit(g.decision.Generation, f)
		if err != nil {
			continue // policy.ErrStale: asked again under the new policy
		}
		f.release = release
		if g.decision.Rule != nil {
			if f.meter, err = f.wire.account.Connect(g.decision.Rule); err != nil {
				f.deny(g.flow, policy.ReasonBudget.String(), err.Error())
				return g, false
			}
		}
		g.flow.Addr = g.addrs[0]
		return g, true
	}
	f.deny(g.flow, ReasonStale, "the policy changed while it was asked; try again")
	return g, false
}

// denial is why a connection is not made; without a reason nobody has to know.
type denial struct {
	flow         policy.Flow
	reason, hint string
}

// decide resolves the host and decides about each address that may be dialled.
func (w *wire) decide(ctx context.Context, t *policy.Table, fl policy.Flow) (addrs []netip.Addr, d policy.Decision, no *denial) {
	because := func() *denial { return &denial{fl, d.Reason.String(), t.Hint(fl, d)} }
	if d = t.Could(fl); !d.Allow { // before a name is asked for
		return nil, d, because()
	}
	addrs, err := w.dialer(t, fl).Resolve(ctx, fl.Host, fl.Port)
	var refused *netaddr.RefusedError
	switch {
	case errors.As(err, &refused):
		fl.Addr = refused.Addr
		if d = t.Could(fl); d.Allow { // the machine has another address since the policy was made
			d.Allow, d.Reason, d.Class = false, policy.ReasonPrivate, refused.Class
		}
		return nil, d, because()
	case err != nil:
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, d, &denial{fl, ReasonUnresolved, err.Error()}
		}
		return nil, d, &denial{}
	}
	addrs = addrs[:min(len(addrs), maxAddrs)]
	for _, a := range addrs {
		fl.Addr = a
		if d = t.Decide(ctx, fl); !d.Allow {
			if d.Err != nil {
				w.router.config.Logger.Warn("the policy gave no answer", "wire", w.id, "host", fl.Host.String(), "err", d.Err)
			}
			return nil, d, because()
		}
	}
	return addrs, d, nil
}

// dialer is the router's, with what the policy opens for the flow.
func (w *wire) dialer(t *policy.Table, fl policy.Flow) *netaddr.Dialer {
	d := w.router.config.Dialer
	if d.Lookup != nil {
		d.Lookup = w.recent.through(d.Lookup, fl.Port)
	}
	d.Allow = func(_ netaddr.Host, _ uint16, a netip.Addr, c netaddr.Class) bool {
		fl.Addr = a
		could := t.Could(fl)
		return could.Allow && could.Class == c
	}
	return &d
}

// granted is the event that says so.
func (w *wire) granted(fl policy.Flow, d policy.Decision) Event {
	e := w.event(KindConnect, fl.Host, fl.Port)
	e.Protocol, e.Decision, e.Reason, e.Generation = fl.Protocol.String(), verdict(d), d.Reason.String(), d.Generation
	if d.Rule != nil {
		e.Rule = d.Rule.ID
	}
	return e
}

// noted records that the connection is allowed, and to where. Not ok: it could not
// be, and the connection is over.
func (f *flow) noted(e Event, fl policy.Flow) bool {
	if err := f.wire.router.config.Record(e); err != nil {
		f.deny(fl, ReasonUnrecorded, "what cannot be recorded does not happen")
		f.stop(ReasonUnrecorded, err)
		return false
	}
	f.event = e
	return true
}

// reach makes the other side of a connection that is relayed. Not ok: nobody
// answers; that was told.
func (f *flow) reach(ctx context.Context, g grant) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	e := f.wire.granted(g.flow, g.decision)
	conn, err := f.wire.reach(ctx, g, func(a netip.Addr) error {
		e.Address, e.Time = a.String(), time.Now().UTC()
		if !f.noted(e, g.flow) {
			return errUnrecorded
		}
		return nil
	})
	if err != nil {
		f.stop(ReasonUnreachable, err)
		return false
	}
	f.wire.router.total.allowed.Add(1)
	return f.connected(conn)
}

var errUnrecorded = errors.New("it could not be recorded")

// reach dials the addresses of a grant, one after the other, each after note was
// told of it, whose error ends that.
func (w *wire) reach(ctx context.Context, g grant, note func(netip.Addr) error) (net.Conn, error) {
	dialer := w.dialer(g.table, g.flow)
	var last error
	for i, a := range g.addrs {
		if err := note(a); err != nil {
			return nil, err
		}
		share := ctx
		if t, ok := ctx.Deadline(); ok && i < len(g.addrs)-1 {
			var cancel context.CancelFunc
			share, cancel = context.WithTimeout(ctx, time.Until(t)/time.Duration(len(g.addrs)-i))
			defer cancel()
		}
		conn, err := dialer.DialPinned(share, "tcp", g.flow.Host, g.flow.Port, []netip.Addr{a})
		if err == nil {
			return conn, nil
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	w.recent.forget(g.flow.Host.Name(), g.flow.Port)
	return nil, last
}

// connected takes the other side. Not ok: the connection was stopped meanwhile.
func (f *flow) connected(conn net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		conn.Close()
		return false
	}
	f.conn = conn.(*net.TCPConn) // which is what dialling "tcp" gives
	return true
}

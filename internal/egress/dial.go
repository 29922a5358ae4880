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

// dial decides about the connection, now that what it is for is known, and makes
// its other side: the name is resolved once, each address is decided about before
// one is dialled, and what was decided is recorded before that. Not ok: it is
// denied, or nobody answers; that was told.
func (f *flow) dial(ctx context.Context, p policy.Protocol, claimed netaddr.Host) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	fl := policy.Flow{Host: f.host, Port: f.port, Protocol: p, Claimed: claimed}
	for range retries {
		t := f.wire.live.Table()
		addrs, d, ok := f.decide(ctx, t, fl)
		if !ok {
			return false
		}
		release, err := f.wire.live.Admit(d.Generation, f)
		if err != nil {
			continue // policy.ErrStale: asked again under the new policy
		}
		f.release = release
		if d.Rule != nil {
			if f.meter, err = f.wire.account.Connect(d.Rule); err != nil {
				f.deny(fl, policy.ReasonBudget.String(), err.Error())
				return false
			}
		}
		return f.reach(ctx, fl, d, addrs, f.dialer(t, fl))
	}
	f.deny(fl, ReasonStale, "the policy changed while it was asked; try again")
	return false
}

// decide resolves the host and decides about each address that may be dialled.
func (f *flow) decide(ctx context.Context, t *policy.Table, fl policy.Flow) (addrs []netip.Addr, d policy.Decision, ok bool) {
	if d = t.Could(fl); !d.Allow { // before a name is asked for
		f.deny(fl, d.Reason.String(), t.Hint(fl, d))
		return nil, d, false
	}
	dialer := f.dialer(t, fl)
	addrs, err := dialer.Resolve(ctx, f.host, f.port)
	var refused *netaddr.RefusedError
	switch {
	case errors.As(err, &refused):
		fl.Addr = refused.Addr
		if d = t.Could(fl); d.Allow { // the machine has another address since the policy was made
			d.Allow, d.Reason, d.Class = false, policy.ReasonPrivate, refused.Class
		}
		f.deny(fl, d.Reason.String(), t.Hint(fl, d))
		return nil, d, false
	case err != nil:
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			f.deny(fl, ReasonUnresolved, err.Error())
		}
		return nil, d, false
	}
	addrs = addrs[:min(len(addrs), maxAddrs)]
	for _, a := range addrs {
		fl.Addr = a
		if d = t.Decide(ctx, fl); !d.Allow {
			if d.Err != nil {
				f.wire.router.config.Logger.Warn("the policy gave no answer", "wire", f.wire.id, "host", f.host.String(), "err", d.Err)
			}
			f.deny(fl, d.Reason.String(), t.Hint(fl, d))
			return nil, d, false
		}
	}
	return addrs, d, true
}

// dialer is the router's, with what the policy opens for the flow.
func (f *flow) dialer(t *policy.Table, fl policy.Flow) *netaddr.Dialer {
	d := f.wire.router.config.Dialer
	if d.Lookup != nil {
		d.Lookup = f.wire.recent.through(d.Lookup, f.port)
	}
	d.Allow = func(_ netaddr.Host, _ uint16, a netip.Addr, c netaddr.Class) bool {
		fl.Addr = a
		could := t.Could(fl)
		return could.Allow && could.Class == c
	}
	return &d
}

// reach dials addrs, one after the other, each after it was recorded.
func (f *flow) reach(ctx context.Context, fl policy.Flow, d policy.Decision, addrs []netip.Addr, dialer *netaddr.Dialer) bool {
	w := f.wire
	e := w.event(KindConnect, f.host, f.port)
	e.Protocol, e.Decision, e.Reason, e.Generation = fl.Protocol.String(), verdict(d), d.Reason.String(), d.Generation
	if d.Rule != nil {
		e.Rule = d.Rule.ID
	}
	var last error
	for i, a := range addrs {
		e.Address, e.Time = a.String(), time.Now().UTC()
		if err := w.router.config.Record(e); err != nil {
			f.deny(fl, ReasonUnrecorded, "what cannot be recorded does not happen")
			f.stop(ReasonUnrecorded, err)
			return false
		}
		f.event = e
		share := ctx
		if t, ok := ctx.Deadline(); ok && i < len(addrs)-1 {
			var cancel context.CancelFunc
			share, cancel = context.WithTimeout(ctx, time.Until(t)/time.Duration(len(addrs)-i))
			defer cancel()
		}
		conn, err := dialer.DialPinned(share, "tcp", f.host, f.port, []netip.Addr{a})
		if err == nil {
			w.router.total.allowed.Add(1)
			return f.connected(conn)
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	w.recent.forget(f.host.Name(), f.port)
	f.stop(ReasonUnreachable, last)
	return false
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

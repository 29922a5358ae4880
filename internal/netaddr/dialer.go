package netaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Dialer reaches hosts by TCP. It resolves a name once, looks at every address
// that was answered, dials one of those and no other, and looks again when the
// kernel is about to connect: no name, no answer that changes (rebinding) and no
// spelling of an address leads to this machine, its networks or a cloud's
// metadata. No proxy is used; it would look at nothing. The zero value reaches
// public addresses. All methods may be called at once.
type Dialer struct {
	// Allow, if not nil, permits an address that is not public. It is asked for
	// classes that are Openable, with the host as it was given.
	Allow func(host Host, port uint16, a netip.Addr, c Class) bool
	// Timeout bounds one call, resolution included; default 15 s.
	Timeout time.Duration
	// Machine knows which addresses are this machine's; default one that is shared.
	Machine *Machine
	// Lookup answers for names; default the pure Go resolver, without its search
	// list for names that have a dot.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
}

// here is the Machine of dialers that have none.
var here Machine

// RefusedError says that an address is not dialled.
type RefusedError struct {
	Host  string // whose address it is
	Addr  netip.Addr
	Class Class
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Host == e.Addr.String() {
		return fmt.Sprintf("%s is not dialled: %s", e.Addr, e.Class)
	}
	return fmt.Sprintf("%s has the address %s, which is not dialled: %s", e.Host, e.Addr, e.Class)
}

// DialContext has the signature http.Transport wants. addr is HOST:PORT. Errors:
// *HostError, *RefusedError, those of package net.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	h, port, err := ParseHostPort(addr)
	switch {
	case err != nil:
		return nil, err
	case port == 0:
		return nil, badHost(addr, "there is no port")
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	addrs, err := d.Resolve(ctx, h, port)
	if err != nil {
		return nil, err
	}
	return d.DialPinned(ctx, network, h, port, addrs)
}

func (d *Dialer) timeout() time.Duration {
	if d.Timeout > 0 {
		return d.Timeout
	}
	return 15 * time.Second
}

// Resolve returns the addresses of h for port, all of which may be dialled, at
// most 16. One that may not makes it a *RefusedError: an honest name does not
// mix them. Other errors: *net.DNSError.
func (d *Dialer) Resolve(ctx context.Context, h Host, port uint16) ([]netip.Addr, error) {
	addrs := []netip.Addr{h.addr}
	if h.name != "" {
		lookup := d.Lookup
		if lookup == nil {
			lookup = lookupName
		}
		var err error
		if addrs, err = lookup(ctx, h.name); err != nil {
			return nil, err
		}
	}
	for i, a := range addrs {
		if err := d.check(h, port, a); err != nil {
			return nil, err
		}
		addrs[i] = a.Unmap()
	}
	const most = 16
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no addresses", Name: h.String(), IsNotFound: true}
	}
	return addrs[:min(len(addrs), most)], nil
}

func lookupName(ctx context.Context, name string) ([]netip.Addr, error) {
	if strings.Contains(name, ".") { // one label is a name of /etc/hosts, which knows no final dot
		name += "."
	}
	r := net.Resolver{PreferGo: true}
	return r.LookupNetIP(ctx, "ip", name)
}

// check decides about one address of h. Errors: *RefusedError.
func (d *Dialer) check(h Host, port uint16, a netip.Addr) error {
	m := d.Machine
	if m == nil {
		m = &here
	}
	c := m.Classify(a)
	if c == Public && a.Zone() == "" || c.Openable() && d.Allow != nil && d.Allow(h, port, a, c) {
		return nil
	}
	return &RefusedError{h.String(), a, c}
}

// DialPinned connects to the first of addrs, which are h's, that answers. It
// dials nothing else, and checks each again as the kernel is told to connect, so
// addrs may come from elsewhere. Each address gets its share of the time that is
// left. Errors: *RefusedError, the first of those of package net.
func (d *Dialer) DialPinned(ctx context.Context, network string, h Host, port uint16, addrs []netip.Addr) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	var first error
	for i, a := range addrs {
		a = a.Unmap()
		if network == "tcp4" && !a.Is4() || network == "tcp6" && !a.Is6() {
			continue
		}
		conn, err := d.dialOne(ctx, h, netip.AddrPortFrom(a, port), len(addrs)-i)
		var refused *RefusedError
		switch {
		case err == nil:
			return conn, nil
		case errors.As(err, &refused):
			return nil, refused
		case first == nil:
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if first == nil {
		first = &net.AddrError{Err: "no suitable address", Addr: h.String()}
	}
	return nil, first
}

// dialOne connects to at, the first of left addresses that remain.
func (d *Dialer) dialOne(ctx context.Context, h Host, at netip.AddrPort, left int) (net.Conn, error) {
	nd := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		got, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if got = netip.AddrPortFrom(got.Addr().Unmap(), got.Port()); got != at { // the pinned one and no other
			return &RefusedError{h.String(), got.Addr(), Classify(got.Addr())}
		}
		return d.check(h, at.Port(), got.Addr())
	}}
	if t, ok := ctx.Deadline(); ok {
		nd.Timeout = max(time.Until(t)/time.Duration(left), min(2*time.Second, time.Until(t)))
		if nd.Timeout <= 0 {
			return nil, context.DeadlineExceeded
		}
	}
	return nd.DialContext(ctx, "tcp", at.String())
}

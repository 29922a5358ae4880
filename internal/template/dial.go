package template

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Registries says how images are fetched. It is the operator's: whoever may
// build templates names an image, never how to reach it.
type Registries struct {
	// AuthFile holds credentials, in the format of docker's config.json; empty:
	// everything is fetched anonymously. Credential helpers are not run.
	AuthFile string
	// Private names registries, as HOST or HOST:PORT, that may have an address
	// of this machine or of a private network.
	Private []string
	// Insecure names registries that are spoken to without TLS. Those of this
	// machine need not be named.
	Insecure []string
	// AnyAddress is for a process whose only caller is the user it runs as, who
	// could reach every address without it.
	AnyAddress bool
}

func (r Registries) private(h netaddr.Host, port uint16) bool {
	return r.AnyAddress || names(r.Private, h, port)
}

// insecure decides about HOST or HOST:PORT, of a URL.
func (r Registries) insecure(hostport string) bool {
	h, port, err := netaddr.ParseHostPort(hostport)
	return err == nil && (h.Name() == "localhost" || h.Addr().IsLoopback() || names(r.Insecure, h, port))
}

// names reports whether list has h, with or without its port.
func names(list []string, h netaddr.Host, port uint16) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		named, p, err := netaddr.ParseHostPort(s)
		return err == nil && named == h && (p == 0 || p == port)
	})
}

// guard is the one way a fetch reaches the network: the dialer, and what it
// refused first, which libraries wrap beyond recognition.
type guard struct {
	dialer netaddr.Dialer

	mu      sync.Mutex
	refused error // guarded by mu
}

func newGuard(o Registries) *guard {
	return &guard{dialer: netaddr.Dialer{Allow: func(h netaddr.Host, port uint16, _ netip.Addr, _ netaddr.Class) bool { return o.private(h, port) }}}
}

// dial is that of an http.Transport.
func (g *guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := g.dialer.DialContext(ctx, network, addr)
	var no *netaddr.RefusedError
	var odd *netaddr.HostError
	switch {
	case errors.As(err, &no) && no.Class.Openable():
		err = sandbox.Errorf(opBuild, sandbox.KindDenied, "the registry %s is at %s, an address of this machine or of a private network (%s)", clip(addr), no.Addr, no.Class).
			WithHint("if the operator of this server trusts it, it belongs into registry_private of firebreak.yaml")
	case errors.As(err, &no):
		err = sandbox.Errorf(opBuild, sandbox.KindDenied, "the registry %s has the address %s, which is never dialled (%s)", clip(addr), no.Addr, no.Class)
	case errors.As(err, &odd):
		err = sandbox.Errorf(opBuild, sandbox.KindDenied, "the registry %w", odd).WithHint("name a registry by its DNS name or by an address as it is usually written")
	default:
		return conn, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused == nil {
		g.refused = err
	}
	return nil, err
}

// refusal is the first address that was refused.
func (g *guard) refusal() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

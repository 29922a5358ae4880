//go:build linux

package egress

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A name's addresses are asked for once for the connections to one of its ports
// that a sandbox makes within remembered. What a connection may be to is decided
// for each, whoever answered.
const (
	remembered    = 2 * time.Second
	maxRemembered = 64 // names and ports of one wire
)

// recent is what was asked for one wire in the last moments. Other sandboxes do
// not share them: whether a name was asked for is theirs to know. All methods
// may be called at once.
type recent struct {
	mu    sync.Mutex
	known map[asked]answered // guarded by mu
}

type asked struct {
	name string
	port uint16
}

type answered struct {
	at    time.Time
	addrs []netip.Addr
}

// resolve is a netaddr.Dialer's Lookup.
type resolve = func(ctx context.Context, name string) ([]netip.Addr, error)

// through is ask, unless it is known what that would say. Errors are not kept.
func (r *recent) through(ask resolve, port uint16) resolve {
	return func(ctx context.Context, name string) ([]netip.Addr, error) {
		k := asked{name, port}
		r.mu.Lock()
		was, known := r.known[k]
		r.mu.Unlock()
		if known && time.Since(was.at) < remembered {
			return slices.Clone(was.addrs), nil // the caller changes it
		}
		addrs, err := ask(ctx, name)
		if err == nil {
			r.keep(k, slices.Clone(addrs))
		}
		return addrs, err
	}
}

func (r *recent) keep(k asked, addrs []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil || len(r.known) >= maxRemembered {
		r.known = map[asked]answered{}
	}
	r.known[k] = answered{time.Now(), addrs}
}

// forget has the next connection ask again: nobody answered at what is known.
func (r *recent) forget(name string, port uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, asked{name, port})
}

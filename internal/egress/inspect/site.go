package inspect

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// Site is a host that a sandbox reaches by its own name.
type Site struct {
	Host  netaddr.Host // that is dialled
	Name  netaddr.Host // that requests and the certificate name: Host, unless that is an address
	Port  uint16
	Plain bool // without TLS
}

// scheme is what is spoken with the host.
func (s Site) scheme() string {
	if s.Plain {
		return "http"
	}
	return "https"
}

// authority is the host as requests name it.
func (s Site) authority() string {
	if s.Plain && s.Port == 80 || !s.Plain && s.Port == 443 {
		if s.Name.Addr().Is6() {
			return "[" + s.Name.String() + "]"
		}
		return s.Name.String()
	}
	return s.Name.WithPort(s.Port)
}

// Visit is one connection of a sandbox to a site.
type Visit struct {
	Site
	// Generation is that of the policy which allows it. No connection to the host is
	// shared by visits of two.
	Generation uint64
	// Narrow says that methods or paths are decided about: requests that ask to be taken
	// for others are refused.
	Narrow bool
	Ask    Asker
}

// Visit speaks with the sandbox on conn, which is to a site and on which TLS, if
// there is any, was accepted (Accept), until one of them has enough or ctx ends.
// It does not close conn, unless it speaks HTTP/2; clean says that the sandbox has
// got what was sent.
func (p *Proxy) Visit(ctx context.Context, conn net.Conn, v *Visit) (clean bool) {
	r := p.sites.enter(p, v)
	if r == nil {
		return false // the policy has changed
	}
	defer p.sites.leave(r)
	s := &session{p, r, v.Ask, v.Narrow}
	if t, ok := conn.(*Conn); ok && t.ConnectionState().NegotiatedProtocol == protocolH2 {
		return p.h2.serve(ctx, t, s)
	}
	c := newClient(s, conn)
	defer c.release()
	c.serve(ctx)
	return ctx.Err() == nil && !c.broken && c.part()
}

// maxUnused is how many sites a wire keeps connections to that it has none to
// itself.
const maxUnused = 32

// sites are the routes to what a wire visits, or has a moment ago.
type sites struct {
	mu         sync.Mutex
	generation uint64              // guarded by mu
	known      map[Site]*visited   // guarded by mu; all of the generation
	of         map[*route]*visited // guarded by mu; known, and older ones that are in use
}

type visited struct {
	*route
	visits int
	last   time.Time // when visits became 0
}

// enter finds the route to a site, or makes it. Nil: it is of an older policy.
func (s *sites) enter(p *Proxy, v *Visit) *route {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.Generation < s.generation {
		return nil
	}
	if v.Generation > s.generation {
		s.generation = v.Generation
		for _, k := range s.known {
			if k.visits == 0 {
				s.drop(k)
			}
		}
		s.known = map[Site]*visited{}
	}
	k := s.known[v.Site]
	if k == nil {
		r := &route{Site: v.Site, face: v.Site}
		generation := v.Generation
		r.transport = p.transport(r, func(ctx context.Context) (net.Conn, error) { return p.o.Reach(ctx, r.Site, generation) })
		k = &visited{route: r}
		if s.of == nil {
			s.of = map[*route]*visited{}
		}
		s.known[v.Site], s.of[r] = k, k
	}
	k.visits++
	return k.route
}

// leave says that a visit is over.
func (s *sites) leave(r *route) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.of[r]
	if k.visits--; k.visits > 0 {
		return
	}
	k.last = time.Now()
	if s.known[r.Site] != k {
		s.drop(k)
		return
	}
	var oldest *visited
	unused := 0
	for _, k := range s.known {
		if k.visits == 0 {
			if unused++; oldest == nil || k.last.Before(oldest.last) {
				oldest = k
			}
		}
	}
	if unused > maxUnused {
		delete(s.known, oldest.Site)
		s.drop(oldest)
	}
}

// drop lets go of a route that is not in use. mu is held.
func (s *sites) drop(k *visited) {
	delete(s.of, k.route)
	k.transport.CloseIdleConnections()
}

// forget lets go of all.
func (s *sites) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.of {
		s.drop(k)
	}
	s.known = nil
}

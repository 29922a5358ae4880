package pool

import (
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// shares are what each tenant who wants something has of a pool that is too small for all
// of them: as much as any other. What one does not want the others may have, and give
// back when he wants it.
type shares struct {
	entries int   // that each may have; one at least
	memory  int64 // and bytes; 0: no bound
	has     map[sandbox.TenantID]holding
}

// holding is what is kept for a tenant, what is being made among it.
type holding struct {
	entries int
	memory  int64
}

// shares are those of now. Preconditions: p.mu is held.
func (p *Pool) shares(now time.Time) shares {
	s := shares{has: map[sandbox.TenantID]holding{}}
	tenants := map[sandbox.TenantID]bool{}
	for _, x := range p.shelves {
		if have := len(x.ready) + x.making; have > 0 {
			h := s.has[x.shape.Tenant]
			h.entries += have
			h.memory += int64(have) * x.shape.Limits.Memory
			s.has[x.shape.Tenant] = h
		}
		if p.want(x, now) > 0 {
			tenants[x.shape.Tenant] = true
		}
	}
	n := max(1, len(tenants))
	s.entries, s.memory = max(1, p.o.Max/n), p.o.Limit/int64(n)
	return s
}

// below reports whether one entry more is within the share of the shelf's tenant.
func (s *shares) below(x *shelf) bool {
	h := s.has[x.shape.Tenant]
	return h.entries < s.entries && (s.memory == 0 || h.memory+x.shape.Limits.Memory <= s.memory)
}

// above is the shelf that is to give something back: of the tenant who has most above
// his share, the fullest. Nil: nobody has.
func (p *Pool) above(s *shares) (most *shelf) {
	for _, x := range p.shelves {
		h := s.has[x.shape.Tenant]
		if len(x.ready) == 0 || h.entries <= s.entries && (s.memory == 0 || h.memory <= s.memory) {
			continue
		}
		if most == nil || h.entries > s.has[most.shape.Tenant].entries || h == s.has[most.shape.Tenant] && len(x.ready) > len(most.ready) {
			most = x
		}
	}
	return most
}

// full reports whether there is no room for one entry more of a shelf.
func (p *Pool) full(x *shelf) bool {
	return p.total >= p.o.Max || p.o.Limit > 0 && p.memory+x.shape.Limits.Memory > p.o.Limit
}

// pop takes the oldest entry of a shelf away, to be destroyed. Preconditions: there is
// one, and p.mu is held.
func (p *Pool) pop(x *shelf) *entry {
	e := x.ready[0]
	x.ready = x.ready[1:]
	p.taken[e.claimed.Instance], e.leaving = e, true
	return e
}

package model

import "github.com/firebreak-dev/firebreak/sandbox"

// A quota is shared by all creates of a tenant, so the search for an order of
// its steps would be one over all of them at once. It is checked by bounds
// instead: whatever the order, so many places were held for certain when one
// more was given, or could have been when one was refused.

// held is a place in a tenant's quota: possibly, and for certain.
type held struct {
	tenant          string
	possibly, truly span
}

// places lists who held one when.
func (p *projection) places() (all []held) {
	for _, b := range p.boxes {
		// Seen ended, its place is about to be free; with its destroy answered, it is.
		all = append(all, held{b.tenant, span{b.made.from, b.killed.to}, span{b.made.to, b.ended.from}})
	}
	for _, c := range p.calls {
		switch {
		case c.verb != create || c.unreached:
		case c.kind == sandbox.KindExists: // it had one until it was refused
			all = append(all, held{tenant: c.tenant, possibly: span{c.from, c.to}})
		case c.lost && !p.seen(c):
			all = append(all, held{tenant: c.tenant, possibly: span{c.from, never}})
		}
	}
	return all
}

// full reports whether there is an instant of c at which all places could have
// been held. The most are held at its beginning or when somebody gets one.
func (p *projection) full(c *call) bool {
	all := p.places()
	most := func(at span) (n int) {
		for _, h := range all {
			if h.tenant == c.tenant && h.possibly.from <= at.from && h.possibly.to >= at.from {
				n++
			}
		}
		return n
	}
	if most(span{from: c.from}) >= p.limit {
		return true
	}
	for _, h := range all {
		if h.possibly.from > c.from && h.possibly.from <= c.to && most(h.possibly) >= p.limit {
			return true
		}
	}
	return false
}

// exceeds reports whether all places were held for certain throughout the time
// in which b was given one.
func (p *projection) exceeds(b *box) bool {
	n := 0
	for _, o := range p.boxes {
		if o != b && o.tenant == b.tenant && o.made.to < b.made.from && o.ended.from > b.made.to {
			n++
		}
	}
	return p.limit > 0 && n >= p.limit
}

package model

import (
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// span is when something happened, at the earliest and at the latest.
type span struct{ from, to time.Duration }

func (s *span) cover(c *call) {
	s.from = min(s.from, c.from)
	if !c.lost && c.kind == "" {
		s.to = min(s.to, c.to)
	}
}

// box is a sandbox as the history knows it.
type box struct {
	id, tenant, label, name string

	made    span
	ready   span
	acked   bool    // a create returned it
	by      []*call // creates that may have made it
	expires int64   // as its create asked
	undone  span    // if nobody was told of it
	killed  span    // by whoever destroyed it
	lives   []int64 // the expiries that may end it
	ended   span    // whatever the cause
}

// projection turns a history into steps on objects.
type projection struct {
	*history
	ops   []porcupine.Operation
	boxes map[string]*box
	sets  map[string][]*call // by sandbox
	c     *call              // whose steps are being added
}

func (p *projection) add(s span, in input) {
	client := 0
	if p.c != nil {
		in.by, client = p.c.String(), p.c.client
	}
	p.ops = append(p.ops, porcupine.Operation{ClientId: client, Input: in, Call: int64(s.from), Return: int64(max(s.from, s.to))})
}

// now adds a step of the present call.
func (p *projection) now(in input) {
	s := span{p.c.from, p.c.to}
	if p.c.lost {
		s.to = never
	}
	p.add(s, in)
}

// project makes what porcupine checks.
func (h *history) project() []porcupine.Operation {
	p := &projection{history: h, boxes: map[string]*box{}, sets: map[string][]*call{}}
	p.meet()
	for _, id := range sorted(p.boxes) {
		p.box(p.boxes[id])
	}
	for _, c := range h.calls {
		if c.unreached {
			continue
		}
		p.c = c
		switch c.verb {
		case create:
			p.create()
		case get, lookup, destroy, timeout, write, read, cat:
			p.one()
		case list:
			p.list()
		}
	}
	return p.ops
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// meet finds the sandboxes, and what may have made and ended each.
func (p *projection) meet() {
	creators := map[string][]*call{}
	for _, c := range p.calls {
		if c.verb == create && !c.unreached {
			k := c.tenant + " " + c.label
			creators[k] = append(creators[k], c)
		}
	}
	for _, c := range p.calls {
		for _, v := range append(c.many[:len(c.many):len(c.many)], c.one) {
			if v.id == "" {
				continue
			}
			b := p.boxes[v.id]
			if b == nil && v.label == "" {
				continue // the answer to a destroy: somebody was told of it before
			}
			if b == nil {
				b = &box{id: v.id, tenant: c.tenant, label: v.label, name: v.name, made: span{never, never}, ready: span{never, never}, killed: span{never, never}, expires: v.created + int64(defaultLife)}
				b.by = creators[c.tenant+" "+v.label]
				for _, by := range b.by {
					b.made.from = min(b.made.from, by.from)
					if by.life != 0 {
						b.expires = v.created + int64(by.life)
					}
				}
				p.boxes[v.id] = b
			}
			b.made.to = min(b.made.to, c.to)
			if c.verb == create || v.state == "running" {
				b.ready.to = min(b.ready.to, c.to)
			}
			if c.verb == create {
				b.acked = true
			}
			b.noteExpiry(c, v.expires)
			b.noteExpiry(c, b.expires)
		}
	}
	for _, c := range p.calls {
		b := p.boxes[c.id]
		if b == nil || b.tenant != c.tenant || c.unreached {
			continue
		}
		switch c.verb {
		case destroy:
			b.killed.cover(c)
		case timeout:
			p.sets[c.id] = append(p.sets[c.id], c)
		}
	}
	for _, b := range p.boxes {
		p.ends(b)
	}
}

// noteExpiry remembers the times at which a sandbox may have ended by itself:
// those that are not hours away.
func (b *box) noteExpiry(c *call, at int64) {
	if at != 0 && at-c.wall < int64(30*time.Minute) && !slices.Contains(b.lives, at) {
		b.lives = append(b.lives, at)
	}
}

// ends works out when a sandbox may have ended.
func (p *projection) ends(b *box) {
	b.undone, b.ended = span{never, never}, span{b.killed.from, never}
	if !b.acked {
		b.undone.from = b.made.from
	}
	for _, at := range b.lives {
		b.ended.from = min(b.ended.from, p.since(at))
	}
	b.ended.from = min(b.ended.from, b.undone.from)
	for _, c := range p.calls {
		for _, v := range append(c.many[:len(c.many):len(c.many)], c.one) {
			if v.id == b.id && v.state == "ended" {
				b.ended.to = min(b.ended.to, c.to)
			}
		}
	}
}

// since converts a time of the server's clock, which is ours.
func (p *projection) since(at int64) time.Duration {
	return time.Duration(at - p.start.UnixNano())
}

// box adds the steps of a sandbox's life.
func (p *projection) box(b *box) {
	p.c = nil
	if len(b.by) == 0 {
		p.add(b.made, input{object: "stranger " + b.id, verb: "is told of it"})
		return
	}
	if p.exceeds(b) {
		p.add(b.made, input{object: "stranger " + b.id, verb: "is one more than the quota allows"})
	}
	object := "sandbox " + b.id
	p.add(b.made, input{object: object, verb: "intend", at: b.expires, by: b.by[0].String()})
	if b.acked {
		p.add(span{b.made.from, b.ready.to}, input{object: object, verb: "ready"})
	} else {
		p.add(span{b.made.from, never}, input{object: object, verb: "maybe ready"})
	}
	for _, v := range []string{"decide", "journal", "end"} {
		if b.killed.from < never {
			p.add(b.killed, input{object: object, verb: v, cause: byOperator})
		}
		if b.undone.from < never {
			p.add(b.undone, input{object: object, verb: v, cause: byUndo})
		}
		for _, at := range b.lives {
			from := p.since(at)
			p.add(span{from, from + p.patient}, input{object: object, verb: v, cause: byTimeout, at: at})
		}
	}
	if b.name != "" {
		p.add(b.made, input{object: "name " + b.tenant + "/" + b.name, verb: "claim", id: b.id})
	}
	if b.ended.from < never && b.name != "" {
		p.add(b.ended, input{object: "name " + b.tenant + "/" + b.name, verb: "free", id: b.id})
	}
}

// create adds what a create tells beyond the sandbox's own life.
func (p *projection) create() {
	c := p.c
	key := input{object: "key " + c.tenant + "/" + c.key, value: c.label}
	if c.kind == "" && !c.lost {
		if c.one.label != c.label || c.one.name != c.name {
			p.now(input{object: "stranger " + c.one.id, verb: "is given for its own"})
		}
		p.see(c.one)
		if c.key != "" {
			key.verb, key.id = "bind", c.one.id
			p.now(key)
		}
		return
	}
	switch {
	case c.kind == sandbox.KindExists:
		p.now(input{object: "name " + c.tenant + "/" + c.name, verb: "taken"})
	case c.kind == sandbox.KindCapacity:
		if !p.full(c) {
			p.now(input{object: "stranger " + c.String(), verb: "is refused with room left"})
		}
	case c.kind == sandbox.KindConflict:
		key.verb = "conflict"
		p.now(key)
		return
	case !c.lost:
		p.now(input{object: "stranger " + c.String(), verb: "fails without a reason: " + c.message})
	case !p.seen(c):
		p.perhaps()
	}
	if c.key != "" {
		for _, key.verb = range []string{"hold", "release"} {
			p.now(key)
		}
	}
}

// seen reports whether what a lost create made is known.
func (p *projection) seen(c *call) bool {
	for _, b := range p.boxes {
		if b.tenant == c.tenant && b.label == c.label {
			return true
		}
	}
	return false
}

// perhaps adds what a create may have done that nobody ever saw.
func (p *projection) perhaps() {
	if c := p.c; c.name != "" {
		for _, verb := range []string{"maybe claim", "maybe free"} {
			p.now(input{object: "name " + c.tenant + "/" + c.name, verb: verb})
		}
	}
}

func (p *projection) see(v view) {
	if b := p.boxes[v.id]; b.tenant != p.c.tenant || p.c.verb != destroy && (b.label != v.label || b.name != v.name) {
		p.now(input{object: "stranger " + v.id, verb: "is shown, or under another name"})
	}
	p.now(input{object: "sandbox " + v.id, verb: "see", seen: v})
}

// list adds what a list says about each sandbox: those in it, and those that
// may have been alive and are not.
func (p *projection) list() {
	c := p.c
	if c.lost {
		return
	}
	if c.kind != "" {
		p.now(input{object: "stranger " + c.String(), verb: "fails: " + c.message})
	}
	in := map[string]bool{}
	for _, v := range c.many {
		if in[v.id] {
			p.now(input{object: "stranger " + v.id, verb: "is listed twice"})
		}
		in[v.id] = true
		p.see(v)
	}
	for _, id := range sorted(p.boxes) {
		b := p.boxes[id]
		if in[id] || b.tenant != c.tenant || c.to < b.made.from || c.from > b.ended.to && !c.all {
			continue
		}
		v := "unseen"
		if c.all {
			v = "unseen in all"
		}
		p.now(input{object: "sandbox " + id, verb: v})
	}
}

// one adds a call about one sandbox.
func (p *projection) one() {
	c := p.c
	if c.verb == lookup {
		p.lookup()
		return
	}
	b := p.boxes[c.id]
	object := "sandbox " + c.id
	switch {
	case b == nil || b.tenant != c.tenant:
		if !c.lost && c.kind != sandbox.KindNotFound {
			p.now(input{object: "stranger " + c.String(), verb: "is told of it"})
		}
		return
	case c.lost && c.verb == timeout:
		p.maybeSet(b)
	case c.lost && c.verb == write:
		p.now(input{object: "file " + c.id + c.path, verb: "maybe write", value: c.value})
	case c.lost:
	case c.kind == sandbox.KindGone && c.verb != get && c.verb != destroy:
		if c.verb == write { // it may have been cut off behind its effect
			p.add(span{c.from, never}, input{object: "file " + c.id + c.path, verb: "maybe write", value: c.value})
		}
		p.now(input{object: object, verb: "gone"})
	case c.kind != "":
		p.now(input{object: "stranger " + c.String(), verb: "fails without a reason: " + c.message})
	case c.verb == get, c.verb == destroy:
		p.see(c.one)
		if c.verb == destroy && c.one.state != "ended" {
			p.now(input{object: "stranger " + c.String(), verb: "is destroyed and has not ended"})
		}
	default:
		p.used(object)
	}
}

// used adds a call that needed the sandbox to run.
func (p *projection) used(object string) {
	c := p.c
	p.now(input{object: object, verb: "use"})
	switch c.verb {
	case timeout:
		own := c.one.expires
		asked := c.wall + int64(c.life)
		late := asked + int64(c.to-c.from) + int64(time.Second)
		p.now(input{object: object, verb: "set", at: own, extend: c.extend, own: own >= asked-int64(time.Second) && own <= late})
	case write:
		p.now(input{object: "file " + c.id + c.path, verb: "write", value: c.value})
	case read, cat:
		if c.cut { // killed, so it saw nothing
			p.now(input{object: object, verb: "gone"})
			return
		}
		p.now(input{object: "file " + c.id + c.path, verb: "read", value: c.value})
	}
}

// maybeSet adds a change of expiry nobody confirmed. Each asks for another
// hour, so if anybody saw it, it is known by that.
func (p *projection) maybeSet(b *box) {
	c := p.c
	asked := c.wall + int64(c.life)
	for _, o := range p.calls {
		for _, v := range append(o.many[:len(o.many):len(o.many)], o.one) {
			if v.id == b.id && v.expires-asked > -int64(20*time.Minute) && v.expires-asked < int64(20*time.Minute) {
				p.now(input{object: "sandbox " + b.id, verb: "maybe set", at: v.expires})
				return
			}
		}
	}
	if len(b.lives) > 0 { // nobody saw it, but it may have kept it alive
		p.now(input{object: "sandbox " + b.id, verb: "maybe set", at: asked})
	}
}

// lookup adds what a get by name says.
func (p *projection) lookup() {
	c := p.c
	in := input{object: "name " + c.tenant + "/" + c.name}
	switch {
	case c.lost:
		return
	case c.kind == "":
		in.verb, in.id = "is", c.one.id
		p.see(c.one)
	case c.kind == sandbox.KindNotFound:
		in.verb = "is nobody's"
	default:
		in.object, in.verb = "stranger "+c.String(), "fails: "+c.message
	}
	p.now(in)
}

package inspect

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// place is where TLS is spoken with a host.
type place struct {
	host netaddr.Host
	port uint16
}

func (s Site) place() place { return place{s.Name, s.Port} }

// named reports whether a site is a host with TLS that was asked for by its name.
func (s Site) named() bool { return !s.Plain && s.Host == s.Name && s.Name.Name() != "" }

// grants are what the requests of a wire may be made with. They do not change;
// others take their place, and when no request has them any more they are wiped.
type grants struct {
	routes     map[string]*route   // of bindings, by their names
	direct     map[place][]*route  // of those with a placeholder, as their hosts themselves
	bound      map[place][]*Target // all bindings with TLS
	leads      map[place]bool      // where any binding leads
	transforms transforms
	secrets    *secrets

	users int  // guarded by Proxy.mu; requests that have them
	past  bool // guarded by Proxy.mu; others are in their place
}

// newGrants makes grants, which own what is secret in them. Errors: one of them
// cannot be, or they are too many.
func (p *Proxy) newGrants(targets []*Target, sets []*Transform) (*grants, error) {
	if len(targets) > MaxTargets {
		return nil, fmt.Errorf("%d bindings; a sandbox has at most %d", len(targets), MaxTargets)
	}
	g := &grants{routes: map[string]*route{}, direct: map[place][]*route{}, bound: map[place][]*Target{}, leads: map[place]bool{}}
	size := 0
	var texts, stands [][]byte
	for _, t := range targets {
		if err := t.check(); err != nil {
			return nil, err
		}
		size += len(t.Secret)
		if err := p.enroll(g, t); err != nil {
			return nil, err
		}
		texts = append(texts, t.Secret)
		if _, value := t.credential(); t.As == "basic" {
			texts = append(texts, []byte(value[len("Basic "):]))
		}
		stands = append(stands, t.placeholders()...)
	}
	var err error
	if g.transforms, err = newTransforms(sets); err != nil {
		return nil, err
	}
	for _, t := range sets {
		for _, s := range t.Secrets {
			size += len(s)
			texts = append(texts, s)
		}
	}
	if size > MaxSecrets {
		return nil, fmt.Errorf("the secrets of all bindings and transforms of a sandbox are longer than %d KiB", MaxSecrets>>10)
	}
	g.secrets = newSecrets(append(texts, stands...))
	if len(stands) > 0 {
		g.secrets.stands = newSecrets(stands)
	}
	return g, nil
}

// enroll makes the routes of a binding.
func (p *Proxy) enroll(g *grants, t *Target) error {
	face, err := netaddr.ParseHost(t.Name + "." + p.o.Zone)
	if err != nil {
		return err
	}
	r := &route{Site: Site{t.Host, t.Host, t.Port, t.Plain}, face: Site{face, face, 80, true}, binding: t}
	r.transport = p.transport(r, func(ctx context.Context) (net.Conn, error) { return p.o.Dial(ctx, t) })
	g.routes[t.Name], g.leads[r.place()] = r, true
	if t.Plain {
		return nil
	}
	g.bound[r.place()] = append(g.bound[r.place()], t)
	if len(t.Placeholder) > 0 {
		g.direct[r.place()] = append(g.direct[r.place()], &route{Site: r.Site, face: r.Site, binding: t, transport: r.transport})
	}
	return nil
}

// Grant gives the wire's requests others to be made with, from the next one on. It
// owns them, also what is secret in them. Errors: as New's; nothing has changed then,
// and the caller overwrites what is secret.
func (p *Proxy) Grant(targets []*Target, sets []*Transform) error {
	g, err := p.newGrants(targets, sets)
	if err != nil {
		return err
	}
	p.mu.Lock()
	was := p.granted
	p.granted, was.past = g, true
	unused := was.users == 0
	p.mu.Unlock()
	if unused {
		was.forget()
	}
	return nil
}

// use returns what a request is made with. Call leave when it is over.
func (p *Proxy) use() *grants {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.granted.users++
	return p.granted
}

func (p *Proxy) leave(g *grants) {
	p.mu.Lock()
	g.users--
	last := g.past && g.users == 0
	p.mu.Unlock()
	if last {
		g.forget()
	}
}

// forget lets go of connections on which nothing is said, and of what is secret.
func (g *grants) forget() {
	for _, r := range g.routes {
		r.transport.CloseIdleConnections()
		r.binding.Wipe()
	}
	g.transforms.wipe()
	g.secrets.wipe()
}

// Has reports whether there is a binding of a name.
func (p *Proxy) Has(name string) bool { return p.routeTo(name) != nil }

func (p *Proxy) routeTo(name string) *route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.granted.routes[name]
}

// Given is what there is for one port of a host.
type Given struct {
	Bound bool // a binding leads there
	Sets  bool // something is added to what the sandbox sends there itself
	Opens bool // a binding lets requests pass that no rule does
}

// Read reports whether what is said there has to be read, as raw TCP or not.
func (g Given) Read(raw bool) bool { return g.Sets || g.Bound && !raw }

// At says what there is for one port of a host.
func (p *Proxy) At(h netaddr.Host, port uint16) Given {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := place{h, port}
	opens := len(p.granted.direct[at]) > 0
	return Given{Bound: p.granted.leads[at], Opens: opens, Sets: opens || p.granted.transforms.of(at) != nil}
}

// Opens reports whether a binding lets requests to a host pass on some port.
func (p *Proxy) Opens(h netaddr.Host) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := range p.granted.direct {
		if at.host == h {
			return true
		}
	}
	return false
}

// renew is the request's route with what it may be made with now.
func (x *exchange) renew() *Refusal {
	t := x.route.binding
	if t == nil {
		return nil
	}
	r := x.with.routes[t.Name]
	if r == nil {
		return &Refusal{Status: http.StatusForbidden, Reason: ReasonPath, Text: "the sandbox has this binding no more", close: true}
	}
	if r != x.route {
		x.session = &session{proxy: x.proxy, route: r, ask: x.proxy.o.Ask(r.binding)}
	}
	return nil
}

package inspect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Options is what a Proxy needs. The zero value of each bound means its default.
type Options struct {
	// Zone is the domain below which the bindings' names are.
	Zone string
	// Roots are who vouches for hosts; nil: whom the system trusts.
	Roots func() *x509.CertPool
	// Dial connects to a binding's host. A *Refusal is what the sandbox is told.
	Dial func(ctx context.Context, t *Target) (net.Conn, error)
	// Ask is who decides about a binding's requests.
	Ask func(t *Target) Asker
	// Reach connects to a site, under the policy of a generation. A *Refusal is what
	// the sandbox is told.
	Reach func(ctx context.Context, s Site, generation uint64) (net.Conn, error)

	Connections int           // to bindings, of the sandbox at once; 256
	Requests    int           // at once; 256
	Head        time.Duration // a request's head may take; 10 s
	Idle        time.Duration // after which one is ended on which nothing is said; 30 min
}

// Error implements error.
func (r *Refusal) Error() string { return r.Text }

// Proxy serves the bindings of one wire, and what it reaches directly. All methods
// may be called at once.
type Proxy struct {
	o           Options
	roots       func() *x509.CertPool
	sites       sites
	h2          multiplexer
	connections chan struct{}
	requests    chan struct{}

	mu      sync.Mutex
	granted *grants // guarded by mu
}

// route is where the requests of a connection go.
type route struct {
	Site
	face       Site    // as the sandbox sees it
	binding    *Target // nil: the site itself
	transport  *http.Transport
	identified atomic.Bool // the host has asked for a client's certificate
}

// New makes a proxy for targets and transforms, which it owns: their secrets too.
// Errors: one of them cannot be, or they are too many.
func New(o Options, targets []*Target, sets ...*Transform) (*Proxy, error) {
	if o.Connections <= 0 {
		o.Connections = 256
	}
	if o.Requests <= 0 {
		o.Requests = 256
	}
	if o.Head <= 0 {
		o.Head = 10 * time.Second
	}
	if o.Idle <= 0 {
		o.Idle = 30 * time.Minute
	}
	p := &Proxy{o: o, connections: make(chan struct{}, o.Connections), requests: make(chan struct{}, o.Requests)}
	p.roots = func() *x509.CertPool { return nil }
	if o.Roots != nil {
		p.roots = sync.OnceValue(o.Roots)
	}
	var err error
	if p.granted, err = p.newGrants(targets, sets); err != nil {
		return nil, err
	}
	p.h2.begin(p)
	return p, nil
}

// transport carries the requests of one route, and of none else.
func (p *Proxy) transport(r *route, dial func(context.Context) (net.Conn, error)) *http.Transport {
	tr := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		TLSHandshakeTimeout:    10 * time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConns:           8,
		MaxIdleConnsPerHost:    8,
		MaxConnsPerHost:        p.o.Requests,
		MaxResponseHeaderBytes: maxHead,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second},
	}
	if !r.Plain {
		tr.TLSClientConfig = &tls.Config{ServerName: r.Name.String(), MinVersion: tls.VersionTLS12, RootCAs: p.roots(), GetClientCertificate: r.anonymous}
	}
	return tr
}

// anonymous notes that the host wants to know who connects. Nobody does.
func (r *route) anonymous(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	r.identified.Store(true)
	return new(tls.Certificate), nil
}

// Serve speaks with the sandbox on conn, which is to the binding called name,
// until one of them has enough or ctx ends. It does not close conn; clean says
// that the sandbox has got what was sent.
func (p *Proxy) Serve(ctx context.Context, conn net.Conn, name string) (clean bool) {
	r := p.routeTo(name)
	if r == nil {
		return false
	}
	c := newClient(&session{proxy: p, route: r, ask: p.o.Ask(r.binding)}, conn)
	defer c.release()
	select {
	case p.connections <- struct{}{}:
		defer func() { <-p.connections }()
		c.serve(ctx)
	default:
		no := &Refusal{Status: http.StatusServiceUnavailable, Reason: ReasonLimit, Text: "the sandbox has too many connections to bindings", close: true}
		c.ask.Refused("", no)
		c.refuse(no, false)
	}
	return ctx.Err() == nil && !c.broken && c.part()
}

// Close lets go of the connections to hosts on which nothing is said, and of the
// secrets. Call it when nothing is served any more.
func (p *Proxy) Close() {
	p.h2.end()
	p.sites.forget()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.granted.forget()
}

// passed is what the sandbox is told of a body that is not sent on.
func passed(err error) *Refusal {
	var no *Refusal
	switch {
	case errors.As(err, &no):
		return no
	case errors.Is(err, errLeak):
		return leaked(err)
	case errors.Is(err, errBomb):
		return &Refusal{Status: http.StatusRequestEntityTooLarge, Reason: ReasonRequest, Text: errBomb.Error(), close: true}
	}
	return nil
}

// why is what the sandbox is told of a host that failed, without addresses.
func (r *route) why(err error) *Refusal {
	if no := passed(err); no != nil {
		return no
	}
	var cert *tls.CertificateVerificationError
	var alert *net.OpError
	text := "the host cannot be reached, or does not speak HTTP"
	switch {
	case errors.As(err, &cert):
		text = "the certificate of the host is not to be trusted: " + certificateProblem(cert.Err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Refusal{Status: http.StatusGatewayTimeout, Text: "the host does not answer in time, or the connection to it was ended"}
	case r.identified.Load(): // its alert may be lost when it hangs up at once
		text = "the host ends the connection, and asks for a client's certificate, which nobody has here; a rule with `inspect: none` lets the sandbox show its own"
	case errors.As(err, &alert) && alert.Op == "remote error":
		text = "the host ends the handshake: " + alert.Err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		text = "the connection to the host was ended"
	}
	return &Refusal{Status: http.StatusBadGateway, Text: text}
}

// certificateProblem says what is wrong with a host's certificate, in words that
// the host has not chosen.
func certificateProblem(err error) string {
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &name):
		return "it is for another name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "it has expired, or is not valid yet"
	case errors.As(err, &unknown):
		return "nobody whom the server trusts vouches for it"
	}
	return "it is not valid"
}

func leak() *Refusal {
	return &Refusal{Status: http.StatusForbidden, Reason: ReasonLeak, Text: "the request holds a secret that this sandbox was not given", close: true}
}

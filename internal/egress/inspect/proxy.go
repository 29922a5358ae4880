package inspect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
	// Decide is asked about a request before anything of it is sent on, and records
	// what it says; nil: it goes on. Refused is told of what is refused apart from
	// that, also later.
	Decide  func(t *Target, method string) *Refusal
	Refused func(t *Target, method string, no *Refusal)

	Connections int           // of the sandbox at once; 256
	Requests    int           // at once; 64
	Head        time.Duration // a request's head may take; 10 s
	Idle        time.Duration // after which one is ended on which nothing is said; 30 min
}

// Error implements error.
func (r *Refusal) Error() string { return r.Text }

// Proxy serves the bindings of one wire. All methods may be called at once.
type Proxy struct {
	o           Options
	routes      map[string]*route
	secrets     *secrets
	connections chan struct{}
	requests    chan struct{}
}

// route is a binding that is served.
type route struct {
	*Target
	host      string // as the sandbox calls it
	header    string // that the secret goes into; of query none
	transport *http.Transport
}

// New makes a proxy for targets, which it owns: their secrets too. Errors: one of
// them cannot be, or they are too many.
func New(o Options, targets []*Target) (*Proxy, error) {
	if o.Connections <= 0 {
		o.Connections = 256
	}
	if o.Requests <= 0 {
		o.Requests = 64
	}
	if o.Head <= 0 {
		o.Head = 10 * time.Second
	}
	if o.Idle <= 0 {
		o.Idle = 30 * time.Minute
	}
	p := &Proxy{o: o, routes: map[string]*route{}, connections: make(chan struct{}, o.Connections), requests: make(chan struct{}, o.Requests)}
	if len(targets) > MaxTargets {
		return nil, fmt.Errorf("%d bindings; a sandbox has at most %d", len(targets), MaxTargets)
	}
	size := 0
	var texts [][]byte
	for _, t := range targets {
		if err := t.check(); err != nil {
			return nil, err
		}
		if size += len(t.Secret); size > MaxSecrets {
			return nil, fmt.Errorf("the secrets of all bindings of a sandbox are longer than %d KiB", MaxSecrets>>10)
		}
		r := &route{Target: t, host: t.Name + "." + o.Zone}
		r.header, _ = t.credential()
		r.transport = p.transport(t)
		p.routes[t.Name] = r
	}
	for _, r := range p.routes {
		texts = append(texts, r.Secret)
		if _, value := r.credential(); r.As == "basic" {
			texts = append(texts, []byte(value[len("Basic "):]))
		}
	}
	p.secrets = newSecrets(texts)
	return p, nil
}

// transport carries the requests of one binding, and of none else.
func (p *Proxy) transport(t *Target) *http.Transport {
	tr := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return p.o.Dial(ctx, t) },
		TLSClientConfig:        &tls.Config{ServerName: t.Host.String(), MinVersion: tls.VersionTLS12},
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
	if p.o.Roots != nil && !t.Plain {
		tr.TLSClientConfig.RootCAs = p.o.Roots()
	}
	return tr
}

// Has reports whether there is a binding of a name.
func (p *Proxy) Has(name string) bool { return p.routes[name] != nil }

// Serve speaks with the sandbox on conn, which is to the binding called name,
// until one of them has enough or ctx ends. It does not close conn; clean says
// that the sandbox has got what was sent.
func (p *Proxy) Serve(ctx context.Context, conn net.Conn, name string) (clean bool) {
	r := p.routes[name]
	if r == nil {
		return false
	}
	c := newClient(p, r, conn)
	defer c.release()
	select {
	case p.connections <- struct{}{}:
		defer func() { <-p.connections }()
		for ctx.Err() == nil && c.one(ctx) {
		}
	default:
		no := &Refusal{Status: http.StatusServiceUnavailable, Reason: ReasonLimit, Text: "the sandbox has too many connections to bindings", close: true}
		p.o.Refused(r.Target, "", no)
		c.refuse(no, false)
	}
	return ctx.Err() == nil && !c.broken && c.part()
}

// Close lets go of the connections to hosts on which nothing is said, and of the
// secrets. Call it when nothing is served any more.
func (p *Proxy) Close() {
	for _, r := range p.routes {
		r.transport.CloseIdleConnections()
		clear(r.Secret)
	}
	p.secrets.wipe()
}

// why is what the sandbox is told of an upstream that failed, without addresses.
func why(err error) *Refusal {
	var no *Refusal
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &no):
		return no
	case errors.Is(err, errLeak):
		return leak()
	case errors.Is(err, errBomb):
		return &Refusal{Status: http.StatusRequestEntityTooLarge, Reason: ReasonRequest, Text: errBomb.Error(), close: true}
	case errors.As(err, &cert):
		return &Refusal{Status: http.StatusBadGateway, Text: "the certificate of the binding's host is not to be trusted"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Refusal{Status: http.StatusGatewayTimeout, Text: "the binding's host does not answer in time, or the connection to it was ended"}
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return &Refusal{Status: http.StatusBadGateway, Text: "the connection to the binding's host was ended"}
	}
	return &Refusal{Status: http.StatusBadGateway, Text: "the binding's host cannot be reached, or does not speak HTTP"}
}

func leak() *Refusal {
	return &Refusal{Status: http.StatusForbidden, Reason: ReasonLeak, Text: "the request holds a secret that this sandbox was not given", close: true}
}

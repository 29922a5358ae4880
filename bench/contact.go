package bench

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

const domain = "contact.example"

// Contact is two proxies that read TLS, in this process, and a server that is every
// host below one name.
type Contact struct {
	server, peer *http.Server
	proxy        *inspect.Proxy
	at           string // the server
	peerAt, at0  string // the proxies
	theirs, mine *x509.CertPool
	name         atomic.Pointer[netaddr.Host] // that is connected to next
	n            int
	closers      []func()
	work         sync.WaitGroup
}

// allowAll lets every request pass.
type allowAll struct{}

// Decide implements inspect.Asker.
func (allowAll) Decide(context.Context, string, string) *inspect.Refusal { return nil }

// Refused implements inspect.Asker.
func (allowAll) Refused(string, *inspect.Refusal) {}

// StartContact starts all of that.
func StartContact() (c *Contact, err error) {
	c = new(Contact)
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"*." + domain}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		return c, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return c, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	c.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }), ErrorLog: log.New(io.Discard, "", 0)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return c, err
	}
	c.at = l.Addr().String()
	secure := tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2", "http/1.1"}})
	c.work.Go(func() { _ = c.server.Serve(secure) })
	return c, errors.Join(c.startPeer(roots), c.startOurs(roots))
}

func (c *Contact) dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", c.at)
}

// startPeer starts goproxy as its documentation has it, but for who it trusts and
// where the hosts are.
func (c *Contact) startPeer(roots *x509.CertPool) error {
	p := goproxy.NewProxyHttpServer()
	p.Logger = log.New(io.Discard, "", 0)
	p.OnRequest().HandleConnect(goproxy.AlwaysMitm)
	p.Tr = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.peerAt, c.peer = l.Addr().String(), &http.Server{Handler: p}
	c.work.Go(func() { _ = c.peer.Serve(l) })
	ca, err := x509.ParseCertificate(goproxy.GoproxyCa.Certificate[0])
	if err != nil {
		return err
	}
	c.theirs = x509.NewCertPool()
	c.theirs.AddCert(ca)
	return nil
}

// startOurs starts what the router reads TLS with.
func (c *Contact) startOurs(roots *x509.CertPool) error {
	a, err := authority.Derive(make([]byte, authority.MinSeed), "bench", policy.Scope{Names: []string{"." + domain}, Networks: []netip.Prefix{}}, time.Now())
	if err != nil {
		return err
	}
	c.mine = x509.NewCertPool()
	c.mine.AppendCertsFromPEM(a.PEM())
	issuer, err := authority.NewIssuer(a)
	if err != nil {
		return err
	}
	c.proxy, err = inspect.New(inspect.Options{Zone: policy.BindingZone, Roots: func() *x509.CertPool { return roots },
		Reach: func(ctx context.Context, _ inspect.Site, _ uint64) (net.Conn, error) { return c.dial(ctx) }}, nil)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.at0 = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	c.closers = append(c.closers, func() { cancel(); l.Close() })
	config := inspect.ServerConfig()
	c.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.work.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				h := *c.name.Load()
				t, no := inspect.Accept(ctx, conn, config, time.Minute, func() (*tls.Certificate, error) { return issuer.Leaf(h, time.Now()) })
				if no == nil {
					c.proxy.Visit(ctx, t, &inspect.Visit{Site: inspect.Site{Host: h, Name: h, Port: 443}, Generation: 1, Ask: allowAll{}})
				}
			})
		}
	})
	return nil
}

// Close ends all of that.
func (c *Contact) Close() {
	for _, s := range []*http.Server{c.server, c.peer} {
		if s != nil {
			s.Close()
		}
	}
	for _, f := range c.closers {
		f()
	}
	c.work.Wait()
	if c.proxy != nil {
		c.proxy.Close()
	}
}

// fresh is a name that nobody has asked for.
func (c *Contact) fresh() string {
	c.n++
	return fmt.Sprintf("h%d.%s", c.n, domain)
}

// Ours is a first contact through what the router has.
func (c *Contact) Ours(context.Context) (time.Duration, error) {
	name := c.fresh()
	h, err := netaddr.ParseHost(name)
	if err != nil {
		return 0, err
	}
	c.name.Store(&h)
	begin := time.Now()
	conn, err := net.Dial("tcp", c.at0)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return c.first(conn, name, c.mine, begin)
}

// Peer is a first contact through goproxy.
func (c *Contact) Peer(context.Context) (time.Duration, error) {
	name := c.fresh()
	begin := time.Now()
	conn, err := net.Dial("tcp", c.peerAt)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "CONNECT %[1]s:443 HTTP/1.1\r\nHost: %[1]s:443\r\n\r\n", name); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil) // with nothing behind it
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the peer's CONNECT: %v %w", resp, err)
	}
	return c.first(conn, name, c.theirs, begin)
}

// first asks by TLS, and waits for the first byte of the answer.
func (c *Contact) first(conn net.Conn, name string, roots *x509.CertPool, begin time.Time) (time.Duration, error) {
	t := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: roots})
	if _, err := io.WriteString(t, "GET / HTTP/1.1\r\nHost: "+name+"\r\n\r\n"); err != nil {
		return 0, err
	}
	in := bufio.NewReader(t)
	if _, err := in.Peek(1); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	resp, err := http.ReadResponse(in, nil)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return took, err
}

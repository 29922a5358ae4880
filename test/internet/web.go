//go:build linux

package internet

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// Request is a request that a web server got.
type Request struct {
	To                                    netip.AddrPort
	SNI, Host, Protocol, Method, Path     string
	Authorization, ContentType, UserAgent string
}

// Start is a start of TLS: the address, and the name that it was for.
type Start struct {
	To   netip.AddrPort
	Name string
}

// web is all web servers.
type web struct {
	mu       sync.Mutex
	sites    map[netip.Addr]http.Handler // guarded by mu
	requests []Request                   // guarded by mu
	starts   []Start                     // guarded by mu
	next     uint32                      // guarded by mu
}

// Metadata is what the addresses of clouds' metadata answer.
const Metadata = `{"Code":"Success","AccessKeyId":"AKIAFIREBREAKTEST","SecretAccessKey":"metadata-secret-of-the-host","Token":"x"}`

// metadataAddrs are where clouds tell secrets.
var metadataAddrs = []string{"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254", "64:ff9b::a9fe:a9fe"}

// Site makes a name with an address of its own, at which handler answers.
func (n *Internet) Site(name string, handler http.Handler) netip.Addr {
	n.web.mu.Lock()
	n.web.next++
	i := n.web.next
	n.web.mu.Unlock()
	a := netip.AddrFrom4([4]byte{151, 101, byte(i >> 8), byte(i)})
	n.SiteAt(a, handler)
	n.Names.Set(name, a.String())
	return a
}

// SiteAt makes handler answer at an address.
func (n *Internet) SiteAt(a netip.Addr, handler http.Handler) {
	n.web.mu.Lock()
	defer n.web.mu.Unlock()
	n.web.sites[a] = handler
}

// Requests are those to some addresses; to all if none is named.
func (n *Internet) Requests(to ...netip.Addr) (list []Request) {
	n.web.mu.Lock()
	defer n.web.mu.Unlock()
	for _, r := range n.web.requests {
		if len(to) == 0 || slices.Contains(to, r.To.Addr()) {
			list = append(list, r)
		}
	}
	return list
}

// Starts are the starts of TLS, to some addresses; all if none is named.
func (n *Internet) Starts(to ...netip.Addr) (list []Start) {
	n.web.mu.Lock()
	defer n.web.mu.Unlock()
	for _, s := range n.web.starts {
		if len(to) == 0 || slices.Contains(to, s.To.Addr()) {
			list = append(list, s)
		}
	}
	return list
}

// Reached answers with where a request has arrived, and what it brought.
var Reached http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	got, _ := io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprintf(w, "reached %v by %s for %s with %d bytes\n", localAddr(r.Context()).Addr(), r.Proto, r.Host, got)
})

// localAddr is the address that a request was sent to.
func localAddr(ctx context.Context) netip.AddrPort {
	a, _ := ctx.Value(http.LocalAddrContextKey).(net.Addr)
	return addrPort(a)
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
	}
	return netip.AddrPort{}
}

// ServeHTTP notes a request and gives it to whoever is at its address.
func (w *web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	to := localAddr(r.Context())
	sni := ""
	if r.TLS != nil {
		sni = r.TLS.ServerName
	}
	w.mu.Lock()
	w.requests = append(w.requests, Request{to, sni, r.Host, r.Proto, r.Method, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), r.UserAgent()})
	h := w.sites[to.Addr()]
	w.mu.Unlock()
	if h == nil {
		h = Reached
	}
	h.ServeHTTP(rw, r)
}

// serve starts everything that answers at all addresses.
func (n *Internet) serve() error {
	n.web = &web{sites: map[netip.Addr]http.Handler{}}
	for _, a := range metadataAddrs {
		n.web.sites[netip.MustParseAddr(a)] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, Metadata) })
	}
	for _, a := range []string{"8.8.8.8", "1.1.1.1", "9.9.9.9"} {
		n.web.sites[netip.MustParseAddr(a)] = http.HandlerFunc(n.resolveHTTPS)
	}
	secure := &tls.Config{NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS10, GetCertificate: n.certify}
	for _, port := range []string{"80", "8080"} {
		if err := n.serveWeb(":"+port, nil); err != nil {
			return err
		}
	}
	for _, port := range []string{"443", "8443"} {
		if err := n.serveWeb(":"+port, secure); err != nil {
			return err
		}
	}
	return n.serveRaw(secure)
}

// certify gives a start of TLS the certificate of the name it is for, or of the
// address.
func (n *Internet) certify(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	at := addrPort(hello.Conn.LocalAddr())
	n.web.mu.Lock()
	n.web.starts = append(n.web.starts, Start{at, hello.ServerName})
	n.web.mu.Unlock()
	if hello.ServerName == "" {
		return n.Authority.leaf(at.Addr().String())
	}
	return n.Authority.leaf(hello.ServerName)
}

// Secure is TLS with a certificate of whatever name is asked for, for HTTP/1.1.
func (n *Internet) Secure() *tls.Config {
	return &tls.Config{NextProtos: []string{"http/1.1"}, GetCertificate: n.certify}
}

// serveWeb serves HTTP at a port of all addresses.
func (n *Internet) serveWeb(address string, secure *tls.Config) error {
	l, err := n.listen(n.far, "tcp", address)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: n.web, ErrorLog: log.New(io.Discard, "", 0)}
	if secure != nil {
		s.TLSConfig = secure.Clone()
	}
	n.closers = append(n.closers, func() { s.Close() })
	n.work.Go(func() {
		if secure != nil {
			_ = s.ServeTLS(l, "", "")
		} else {
			_ = s.Serve(l)
		}
	})
	return nil
}

// serveRaw serves what is not the web, at all addresses.
func (n *Internet) serveRaw(secure *tls.Config) error {
	names := &tls.Config{GetCertificate: secure.GetCertificate}
	handlers := map[string]func(net.Conn){
		"7":   func(c net.Conn) { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) },
		"21":  speakFirst,
		"53":  func(c net.Conn) { n.Names.serveStream(c, "tcp") },
		"853": func(c net.Conn) { n.Names.serveStream(tls.Server(c, names), "tls") },
	}
	for _, port := range []string{"22", "25", "1080", "4444", "9000"} {
		handlers[port] = sayReached
	}
	for port, handle := range handlers {
		l, err := n.listen(n.far, "tcp", ":"+port)
		if err != nil {
			return err
		}
		n.accept(l, handle)
	}
	for network, address := range map[string]string{"udp4": "0.0.0.0:53", "udp6": "[::]:53"} {
		if err := n.servePackets(n.far, network, address); err != nil {
			return err
		}
	}
	return nil
}

// servePackets answers DNS by UDP.
func (n *Internet) servePackets(s *space, network, address string) error {
	var conn net.PacketConn
	var p packets
	err := s.in(func() (err error) {
		if conn, err = net.ListenPacket(network, address); err == nil {
			p, err = newPackets(conn)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("listen at %s: %w", address, err)
	}
	n.closers = append(n.closers, func() { conn.Close() })
	n.work.Go(func() { n.Names.serveUDP(p) })
	return nil
}

// speakFirst greets before it is told anything, then gives back each line.
func speakFirst(c net.Conn) {
	if _, err := io.WriteString(c, "220 reached\r\n"); err == nil {
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	}
}

// sayReached answers the first bytes.
func sayReached(c net.Conn) {
	buf := make([]byte, 4096)
	if _, err := c.Read(buf); err == nil {
		_, _ = fmt.Fprintf(c, "reached %v\n", addrPort(c.LocalAddr()))
		_, _ = io.Copy(io.Discard, c)
	}
}

// resolveHTTPS is DNS by HTTPS, as public resolvers have it.
func (n *Internet) resolveHTTPS(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/dns-query" && r.URL.Path != "/resolve" {
		Reached.ServeHTTP(w, r)
		return
	}
	msg, _ := io.ReadAll(io.LimitReader(r.Body, 65535))
	if name := r.URL.Query().Get("name"); name != "" { // the form that answers in JSON
		q, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: q, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		msg, _ = m.Pack()
	}
	out := n.Names.answer(msg, "https")
	if out == nil {
		http.Error(w, "no query", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/dns-message")
	_, _ = w.Write(out)
}

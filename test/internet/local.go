//go:build linux

package internet

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// Local is the servers at the host's own addresses, loopback included: what a
// router that can be talked into dialling them reaches.
type Local struct {
	mu    sync.Mutex
	conns map[netip.AddrPort]Count // guarded by mu; Packets are connections
}

// LocalPorts are where the host's own servers listen.
var LocalPorts = []uint16{80, 443, 9000}

func (n *Internet) openLocal(nameServers []netip.Addr) (*Local, error) {
	l := &Local{conns: map[netip.AddrPort]Count{}}
	for _, port := range LocalPorts {
		s, err := n.listen(n.host, "tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return nil, err
		}
		n.accept(s, l.serve)
	}
	// A name server on loopback is not beyond the link.
	for _, a := range nameServers {
		if !a.IsLoopback() {
			continue
		}
		network := "udp4"
		if a.Is6() {
			network = "udp6"
		}
		at := netip.AddrPortFrom(a, 53).String()
		if err := n.servePackets(n.host, network, at); err != nil {
			return nil, err
		}
		s, err := n.listen(n.host, "tcp", at)
		if err != nil {
			return nil, err
		}
		n.accept(s, func(c net.Conn) { n.Names.serveStream(c, "tcp") })
	}
	return l, nil
}

// serve counts a connection and what it brings, and answers like a web server.
func (l *Local) serve(c net.Conn) {
	at := addrPort(c.LocalAddr())
	l.add(at, Count{1, 0})
	buf := make([]byte, 4096)
	for answered := false; ; answered = true {
		size, err := c.Read(buf)
		if err != nil {
			return
		}
		l.add(at, Count{0, int64(size)})
		if !answered {
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nsecret of the host\n")
			_ = c.(*net.TCPConn).CloseWrite()
		}
	}
}

func (l *Local) add(at netip.AddrPort, n Count) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := l.conns[at]
	l.conns[at] = Count{sum.Packets + n.Packets, sum.Bytes + n.Bytes}
}

// Connections is how many there were, to all addresses.
func (l *Local) Connections() (sum int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.conns {
		sum += n.Packets
	}
	return sum
}

// String lists them.
func (l *Local) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.conns)
}

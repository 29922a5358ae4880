//go:build linux

package internet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Query is a question that somebody asked.
type Query struct {
	Name      string // without the final dot, as it was written
	Type      string // A, AAAA, TXT …
	Transport string // udp, tcp, tls, https
}

// Names is the DNS of all names, at every address. A name that nobody set does
// not exist.
type Names struct {
	mu      sync.Mutex
	records map[string]*record // guarded by mu; by name in lower case
	queries []Query            // guarded by mu
}

// record is what a name stands for: an answer for each turn, the last one for
// all that follow.
type record struct {
	ttl   uint32
	turns [][]string
	next  int
}

// Set gives a name addresses, or one other name ("cname:other.example"), or texts
// ("txt:…"). "*.NAME" is for everything below NAME that has nothing of its own.
func (n *Names) Set(name string, values ...string) { n.put(name, 60, values) }

// Turns gives a name another answer each time its addresses are asked for, with a
// time to live of 0. The last one stays.
func (n *Names) Turns(name string, turns ...[]string) { n.put(name, 0, turns...) }

// Remove forgets a name.
func (n *Names) Remove(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.records, strings.ToLower(name))
}

func (n *Names) put(name string, ttl uint32, turns ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.records == nil {
		n.records = map[string]*record{}
	}
	n.records[strings.ToLower(name)] = &record{ttl: ttl, turns: turns}
}

// Queries are all questions so far.
func (n *Names) Queries() []Query {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.queries)
}

// Asked are the questions about a name and what is below it.
func (n *Names) Asked(name string) (list []Query) {
	name = strings.ToLower(name)
	for _, q := range n.Queries() {
		if asked := strings.ToLower(q.Name); asked == name || strings.HasSuffix(asked, "."+name) {
			list = append(list, q)
		}
	}
	return list
}

// find is the record of a name, or that of the nearest wildcard over it.
func (n *Names) find(name string) *record {
	if r := n.records[name]; r != nil {
		return r
	}
	for rest := name; ; {
		_, after, ok := strings.Cut(rest, ".")
		if !ok {
			return nil
		}
		if r := n.records["*."+after]; r != nil {
			return r
		}
		rest = after
	}
}

// values are what a name stands for now. Whoever asks for IPv4 addresses takes the turn.
func (n *Names) values(name string, turn bool) (values []string, ttl uint32, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.find(name)
	if r == nil || len(r.turns) == 0 {
		return nil, 0, false
	}
	values = r.turns[min(r.next, len(r.turns)-1)]
	if turn {
		r.next++
	}
	return values, r.ttl, true
}

// answer is the reply to a message; nil if it is none.
func (n *Names) answer(msg []byte, transport string) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(msg)
	if err != nil || head.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	name := strings.TrimSuffix(q.Name.String(), ".")
	n.mu.Lock()
	n.queries = append(n.queries, Query{name, strings.TrimPrefix(q.Type.String(), "Type"), transport})
	n.mu.Unlock()
	m := dnsmessage.Message{Questions: []dnsmessage.Question{q}, Header: dnsmessage.Header{ID: head.ID, Response: true, Authoritative: true,
		RecursionDesired: head.RecursionDesired, RecursionAvailable: true}}
	if !n.fill(&m, q, strings.ToLower(name)) {
		m.RCode = dnsmessage.RCodeNameError
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// fill adds the answers, through at most eight other names.
func (n *Names) fill(m *dnsmessage.Message, q dnsmessage.Question, name string) (exists bool) {
	owner := q.Name
	for range 8 {
		values, ttl, ok := n.values(name, q.Type == dnsmessage.TypeA)
		if !ok {
			return exists
		}
		exists = true
		head := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: ttl}
		next := ""
		for _, v := range values {
			if target, is := strings.CutPrefix(v, "cname:"); is {
				next = strings.ToLower(target)
				head.Type = dnsmessage.TypeCNAME
				owner = dnsmessage.MustNewName(next + ".")
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: owner}})
				continue
			}
			if body := resource(v, q.Type); body != nil {
				head.Type = q.Type
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: body})
			}
		}
		if next == "" {
			return true
		}
		name = next
	}
	return true
}

// resource is a value as an answer to a question of a type, or nil.
func resource(v string, kind dnsmessage.Type) dnsmessage.ResourceBody {
	if text, is := strings.CutPrefix(v, "txt:"); is {
		if kind != dnsmessage.TypeTXT {
			return nil
		}
		return &dnsmessage.TXTResource{TXT: []string{text}}
	}
	a, err := netip.ParseAddr(v)
	switch {
	case err != nil:
		return nil
	case kind == dnsmessage.TypeA && a.Is4():
		return &dnsmessage.AResource{A: a.As4()}
	case kind == dnsmessage.TypeAAAA && a.Is6():
		return &dnsmessage.AAAAResource{AAAA: a.As16()}
	}
	return nil
}

// packets are what a server of UDP reads and writes: with the address of its own
// that a packet was sent to, from which the answer has to come.
type packets struct {
	read  func(b []byte) (size int, to net.IP, from net.Addr, err error)
	write func(b []byte, from net.IP, to net.Addr)
}

// newPackets prepares a socket. No packet may be read before.
func newPackets(conn net.PacketConn) (packets, error) {
	if conn.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
		p := ipv4.NewPacketConn(conn)
		return packets{func(b []byte) (size int, to net.IP, from net.Addr, err error) {
			size, cm, from, err := p.ReadFrom(b)
			if cm != nil {
				to = cm.Dst
			}
			return size, to, from, err
		}, func(b []byte, from net.IP, to net.Addr) {
			_, _ = p.WriteTo(b, &ipv4.ControlMessage{Src: from}, to)
		}}, p.SetControlMessage(ipv4.FlagDst, true)
	}
	p := ipv6.NewPacketConn(conn)
	return packets{func(b []byte) (size int, to net.IP, from net.Addr, err error) {
		size, cm, from, err := p.ReadFrom(b)
		if cm != nil {
			to = cm.Dst
		}
		return size, to, from, err
	}, func(b []byte, from net.IP, to net.Addr) {
		_, _ = p.WriteTo(b, &ipv6.ControlMessage{Src: from}, to)
	}}, p.SetControlMessage(ipv6.FlagDst, true)
}

// serveUDP answers each query from the address it was sent to.
func (n *Names) serveUDP(p packets) {
	buf := make([]byte, 65535)
	for {
		size, to, from, err := p.read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that somebody's reply met
		}
		if out := n.answer(buf[:size], "udp"); out != nil {
			p.write(out, to, from)
		}
	}
}

// serveStream answers the queries on one connection.
func (n *Names) serveStream(conn net.Conn, transport string) {
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, msg); err != nil {
			return
		}
		out := n.answer(msg, transport)
		if out == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

// reset forgets all questions.
func (n *Names) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queries = nil
}

// NameServers are those of the machine's /etc/resolv.conf, which is the host's too.
func NameServers() (list []netip.Addr) {
	text, _ := os.ReadFile("/etc/resolv.conf")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				list = append(list, a.WithZone(""))
			}
		}
	}
	if len(list) == 0 { // what resolvers take then
		list = append(list, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return list
}

// Lookup asks as a plain program on the host would, its name server.
func (n *Internet) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return n.dial(ctx, network, netip.AddrPortFrom(NameServers()[0], 53).String())
	}}
	list, err := r.LookupNetIP(ctx, "ip4", strings.TrimSuffix(name, ".")+".")
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	for i, a := range list {
		list[i] = a.Unmap()
	}
	return list, nil
}

package control

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// maxNames is how much of resolv.conf and hosts is read; what is longer is as if
// it was not there.
const maxNames = 1 << 20

// resolver answers for names from what the keeper read, since a router opens no
// file.
type resolver struct {
	current atomic.Pointer[known]
	second  atomic.Uint32
}

// known is what the files say.
type known struct {
	servers []netip.AddrPort // of DNS, at least one
	hosts   map[string][]netip.Addr
}

func (r *resolver) set(n names) {
	r.current.Store(&known{servers(n.Resolv), hosts(n.Hosts)})
}

// servers are the name servers of a resolv.conf, at most three as resolv.conf(5)
// says.
func servers(text []byte) (list []netip.AddrPort) {
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan() && len(list) < 3; {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a, 53))
		}
	}
	if list == nil {
		list = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}
	}
	return list
}

// hosts reads a file like /etc/hosts.
func hosts(text []byte) map[string][]netip.Addr {
	m := map[string][]netip.Addr{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil || a.Zone() != "" {
			continue
		}
		for _, name := range f[1:] {
			if h, err := netaddr.ParseHost(name); err == nil && h.Name() != "" {
				m[h.Name()] = append(m[h.Name()], a)
			}
		}
	}
	return m
}

// lookup is netaddr.Dialer's Lookup: the hosts file before DNS, no search list.
func (r *resolver) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	k := r.current.Load()
	if addrs := k.hosts[name]; len(addrs) > 0 {
		return append([]netip.Addr(nil), addrs...), nil
	}
	n := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		// Package net could not read resolv.conf either, and asks 127.0.0.1 and then
		// ::1: our first server, and then the others in turn.
		server := k.servers[0]
		if more := k.servers[1:]; len(more) > 0 && strings.HasPrefix(address, "[") {
			server = more[int(r.second.Add(1))%len(more)]
		}
		var d net.Dialer
		return d.DialContext(ctx, network, server.String())
	}}
	return n.LookupNetIP(ctx, "ip", name+".")
}

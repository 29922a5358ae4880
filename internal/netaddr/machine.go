package netaddr

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Machine knows the addresses of this machine: those of the interfaces of the
// network namespace it runs in. They are read again when what is known is older
// than a few seconds, by whoever asks then. The zero value is ready; all methods
// may be called at once.
type Machine struct {
	known atomic.Pointer[ownAddrs]
	read  func() ([]net.Addr, error) // net.InterfaceAddrs, or a test's
}

type ownAddrs struct {
	at    time.Time
	addrs map[netip.Addr]bool // nil: they could not be read
}

// fresh is how long what was read is believed.
const fresh = 5 * time.Second

// Own reports whether a, or the IPv4 address wrapped in it, is one of this
// machine's. While interfaces cannot be read every address is.
func (m *Machine) Own(a netip.Addr) bool {
	k := m.known.Load()
	if k == nil || time.Since(k.at) > fresh {
		k = m.refresh()
	}
	return k.addrs == nil || k.addrs[Effective(a)]
}

func (m *Machine) refresh() *ownAddrs {
	k := &ownAddrs{at: time.Now()}
	read := m.read
	if read == nil {
		read = net.InterfaceAddrs
	}
	list, err := read()
	if err == nil {
		k.addrs = make(map[netip.Addr]bool, len(list))
		for _, x := range list {
			if n, ok := x.(*net.IPNet); ok {
				if a, ok := netip.AddrFromSlice(n.IP); ok {
					k.addrs[Effective(a)] = true
				}
			}
		}
	}
	m.known.Store(k)
	return k
}

// Classify is Classify, and Own for an address of this machine that would be
// public or could be opened. The loopback stays Loopback.
func (m *Machine) Classify(a netip.Addr) Class {
	c := Classify(a)
	if c != Loopback && (c == Public || c.Openable()) && m.Own(a) {
		return Own
	}
	return c
}

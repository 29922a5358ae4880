//go:build linux

package internet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses of the link between the two namespaces.
var (
	HostAddr  = netip.MustParseAddr("10.77.0.2")
	HostAddr6 = netip.MustParseAddr("fd77::2")
	hostMAC   = net.HardwareAddr{2, 0, 0, 0, 77, 2}

	farAddr  = netip.MustParseAddr("10.77.0.1")
	farAddr6 = netip.MustParseAddr("fd77::1")
	farMAC   = net.HardwareAddr{2, 0, 0, 0, 77, 1}
)

const (
	hostLink = "eth0"
	farLink  = "net0"
)

// space is a network namespace. It lives as long as its file, a socket or a
// process in it does.
type space struct{ file *os.File }

// newSpace makes a namespace and calls prepare in it.
func newSpace(prepare func() error) (*space, error) {
	s := new(space)
	err := visit(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		s.file = f
		return err
	}, prepare)
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// in calls f on a thread that is in the namespace. Sockets and processes that
// it makes itself, not in another goroutine, stay there.
func (s *space) in(f func() error) error {
	return visit(func() error {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return nil
	}, f)
}

func (s *space) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// visit calls f on a thread that enter has brought elsewhere. The thread goes back;
// one that cannot ends with its goroutine. The process's main thread, which never
// ends and would keep a namespace for ever, does not visit.
func visit(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- visit(enter, f) // on another one: this is taken
			runtime.UnlockOSThread()
			return
		}
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		if err = enter(); err == nil {
			err = f()
		}
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// sysctl sets what is below /proc/sys/net; that a kernel lacks one is fine.
func sysctl(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		err := os.WriteFile("/proc/sys/net/"+pairs[i], []byte(pairs[i+1]), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// quietLinks: links that come up say nothing by themselves.
func quietLinks() error {
	return sysctl("ipv6/conf/default/addr_gen_mode", "1", "ipv6/conf/default/accept_ra", "0", "ipv6/conf/default/accept_dad", "0",
		"ipv6/conf/default/router_solicitations", "0", "ipv6/conf/default/mldv1_unsolicited_report_interval", "0")
}

// join connects the two namespaces and gives the far one every address. It calls
// watch when the link is there and nothing has passed it.
func join(host, far *space, watch func() error) error {
	err := far.in(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: farLink, HardwareAddr: farMAC}, PeerName: hostLink, PeerHardwareAddr: hostMAC,
			PeerNamespace: netlink.NsFd(host.file.Fd())})
	})
	if err != nil {
		return fmt.Errorf("join the namespaces: %w", err)
	}
	if err := watch(); err != nil {
		return err
	}
	// The far end first: what the near one sends as it comes up must arrive.
	if err := far.in(answerAll); err != nil {
		return fmt.Errorf("set up the internet's side: %w", err)
	}
	if err := host.in(routeOut); err != nil {
		return fmt.Errorf("set up the host's side: %w", err)
	}
	return errors.Join(far.in(func() error { return carries(farLink) }), host.in(func() error { return carries(hostLink) }))
}

// carries waits until a link is up for the kernel, too: before, it throws away what
// is sent, and only TCP sends it again.
func carries(name string) error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the link is %v", link.Attrs().OperState)
		}
	}
}

// answerAll makes every address local, but for those of the link. Both routes are
// in the table that the kernel asks first, also about where an answer may come from.
func answerAll() error {
	link, err := raise(farLink, farAddr, farAddr6)
	if err == nil {
		err = sysctl("ipv6/ip_nonlocal_bind", "1") // an answer may come from an address that is on no link
	}
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := neighbours(link, hostMAC, HostAddr, HostAddr6); err != nil {
		return err
	}
	for _, r := range []struct{ all, link string }{{"0.0.0.0/0", "10.77.0.0/24"}, {"::/0", "fd77::/64"}} {
		_, all, _ := net.ParseCIDR(r.all)
		_, near, _ := net.ParseCIDR(r.link)
		err := netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST})
		if err != nil {
			return fmt.Errorf("answer at %s: %w", r.all, err)
		}
		err = netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: near, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_LINK})
		if err != nil {
			return fmt.Errorf("reach %s: %w", r.link, err)
		}
	}
	return nil
}

// routeOut sends everything to the far end, and lets the host forward.
func routeOut() error {
	link, err := raise(hostLink, HostAddr, HostAddr6)
	if err != nil {
		return err
	}
	if err := neighbours(link, farMAC, farAddr, farAddr6); err != nil {
		return err
	}
	for _, gateway := range []netip.Addr{farAddr, farAddr6} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IP(gateway.AsSlice())}); err != nil {
			return fmt.Errorf("route by %v: %w", gateway, err)
		}
	}
	return sysctl("ipv4/ip_forward", "1", "ipv6/conf/all/forwarding", "1")
}

// raise brings up loopback and a link with its addresses.
func raise(name string, addrs ...netip.Addr) (netlink.Link, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(link)); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return nil, fmt.Errorf("add %v: %w", a, err)
		}
	}
	return link, nil
}

// neighbours makes known who is at the other end, so that nobody asks.
func neighbours(link netlink.Link, mac net.HardwareAddr, addrs ...netip.Addr) error {
	for _, a := range addrs {
		n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
		if err := netlink.NeighAdd(n); err != nil {
			return fmt.Errorf("neighbour %v: %w", a, err)
		}
	}
	return nil
}

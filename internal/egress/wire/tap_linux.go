package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// queue is how many frames wait for a router that does not read. A frame may be
// 64 KiB and is charged to nobody, so this bounds what a guest can make the host
// hold to 16 MiB.
const queue = 256

// openTap attaches to a TAP of the namespace this thread is in, and makes it where
// there is none. Errors: EBUSY while somebody else is attached.
func openTap(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	if err := attach(fd, name); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func attach(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("attach to the tap: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4); err != nil {
		return fmt.Errorf("set the tap's offloads: %w", err)
	}
	return nil
}

// build makes the link in the fresh namespace this thread is in and returns its
// far end. It is persistent only once it is whole: of one whose maker died
// earlier nothing is left.
func build(id string) (tap *os.File, err error) {
	if err := quiet(); err != nil {
		return nil, err
	}
	fd, err := openTap(LinkName)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	step("after-tap")
	if err := filter(filterNew); err != nil { // before the first frame can pass
		return nil, err
	}
	step("after-filter")
	if err := address(id); err != nil {
		return nil, err
	}
	step("after-address")
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return nil, fmt.Errorf("make the tap persistent: %w", err)
	}
	step("after-persist")
	return os.NewFile(uintptr(fd), "tap "+id), nil
}

// quiet switches off what a namespace would do by itself: IPv6 on links to come,
// and forwarding, which it has from the host.
func quiet() error {
	for name, v := range map[string]string{"ipv6/conf/default/disable_ipv6": "1", "ipv4/ip_forward": "0"} {
		err := os.WriteFile("/proc/sys/net/"+name, []byte(v), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without it does not do it
			return err
		}
	}
	return nil
}

// address brings up the links of the namespace this thread is in.
func address(id string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	eth, err := h.LinkByName(LinkName)
	if err != nil {
		return fmt.Errorf("tap: %w", err)
	}
	at, prefix := eth.Attrs().Index, Network.Bits()
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"loopback", func() error { return h.LinkSetUp(lo) }},
		{"name", func() error { return h.LinkSetAlias(eth, id) }},
		{"hardware address", func() error { return h.LinkSetHardwareAddr(eth, GuestMAC) }},
		{"queue", func() error { return h.LinkSetTxQLen(eth, queue) }},
		{"mtu", func() error { return h.LinkSetMTU(eth, MTU) }},
		{"address", func() error { return h.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(Guest, prefix)}) }},
		{"link", func() error { return h.LinkSetUp(eth) }},
		{"route", func() error { return h.RouteAdd(&netlink.Route{LinkIndex: at, Gw: Gateway.AsSlice()}) }},
		{"neighbour", func() error {
			return h.NeighAdd(&netlink.Neigh{LinkIndex: at, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
				IP: Gateway.AsSlice(), HardwareAddr: GatewayMAC})
		}},
	} {
		if err := s.do(); err != nil {
			return fmt.Errorf("set up the %s: %w", s.what, err)
		}
	}
	return nil
}

// reattach returns a new far end of the TAP in the namespace this thread is in.
func reattach(id string) (*os.File, error) {
	var none netlink.LinkNotFoundError
	if _, err := netlink.LinkByName(LinkName); errors.As(err, &none) {
		return nil, errNoLink // attaching would make one, without anything
	} else if err != nil {
		return nil, fmt.Errorf("look for the tap: %w", err)
	}
	fd, err := openTap(LinkName)
	if err != nil {
		return nil, err
	}
	err = filter(filterReplace) // this version's, whole, in one step
	if err == nil {
		// The kernel notices a carrier at its leisure and drops what is sent until
		// then, unless somebody asks.
		_, err = netlink.LinkByName(LinkName)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "tap "+id), nil
}

var errNoLink = errors.New("the namespace has no link: whoever made it has not finished")

// unlink deletes a TAP of the namespace this thread is in, whoever is attached to
// it, and looks for it again.
func unlink(name string) (gone bool, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err == nil {
		if err := h.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
			return false, fmt.Errorf("delete the link: %w", err)
		}
		_, err = h.LinkByName(name)
	}
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return true, nil
	}
	return false, err
}

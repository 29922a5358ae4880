package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// MachineLink is the device that a machine's monitor has in a wire's namespace.
const MachineLink = "vm0"

// plugTable is the nftables table that joins it to the wire's own.
const plugTable = "firebreak-machine"

// Machines plugs virtual machines into wires.
type Machines struct {
	// Rate bounds what goes to a machine and what comes from it, each, in bytes per
	// second and at least 64 KiB; 0: no bound. What is too much waits for a moment, and is
	// dropped then.
	Rate int64
}

// Device is what a machine's device is called and whom it speaks to: the link of its
// monitor, the guest's hardware address and the gateway's.
func (Machines) Device() (link string, guest, gateway net.HardwareAddr) {
	return MachineLink, GuestMAC, GatewayMAC
}

// Plug makes another TAP in a wire's namespace, for the monitor of a virtual
// machine, and has the kernel hand its frames over to the wire's link, and those
// for the guest, which the wire's filter has let pass, to it. Nothing else comes
// from it or to it, and the namespace's kernel keeps no address: it sees no frame.
// No frame passes before Connect.
//
// The descriptor is the TAP: it goes with its last one. With an owner, a user id,
// there is none, and the TAP stays, to be attached to by that user. One machine is
// on a wire at a time.
//
// Errors: KindNotFound when the wire is not there; KindConflict when a machine is on
// it; those of Open.
//
// Cost: 1 to 2 ms.
func (m Machines) Plug(w sandbox.Wire, id string, owner int) (tap *os.File, err error) {
	ns, err := openNamespace(w.NetNS)
	if err != nil {
		return nil, sandbox.Errorf("plug wire", sandbox.KindNotFound, "no such wire: %w", err).WithID(id)
	}
	defer ns.Close()
	err = visit(into(ns), func() error {
		tap, err = m.plug(id, owner)
		return err
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, sandbox.Errorf("plug wire", sandbox.KindConflict, "a machine is on the wire: %w", err).WithID(id)
	case errors.Is(err, errNoLink):
		return nil, sandbox.Errorf("plug wire", sandbox.KindNotFound, "no such wire: %w", err).WithID(id)
	case err != nil:
		return nil, explain("plug wire", id, err)
	}
	return tap, nil
}

// Connect lets frames pass that come from now on. Errors: KindNotFound.
func (Machines) Connect(w sandbox.Wire) error {
	ns, err := openNamespace(w.NetNS)
	if err == nil {
		defer ns.Close()
		err = visit(into(ns), func() error {
			vm, err := netlink.LinkByName(MachineLink)
			if err == nil {
				err = netlink.LinkSetUp(vm)
			}
			return err
		})
	}
	if err != nil {
		return sandbox.Errorf("connect wire", sandbox.KindNotFound, "no machine is on the wire: %w", err)
	}
	return nil
}

// Unplug deletes what Plug made in the namespace at netns, whoever is attached to
// it, and looks for it again. Of a wire that is not there it returns nothing. It is
// idempotent, and finishes what another Unplug or Plug began.
func (Machines) Unplug(netns string) ([]sandbox.Object, error) {
	ns, err := openNamespace(netns)
	if err != nil {
		return nil, nil // its links went with it
	}
	defer ns.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return []sandbox.Object{checked("link", MachineLink+" in "+netns, false, "not looked for")}, err
	}
	gone := false
	err = visit(into(ns), func() (err error) {
		gone, err = unlink(MachineLink)
		return errors.Join(err, unjoin())
	})
	return []sandbox.Object{checked("link", fmt.Sprintf("%s in net:[%d]", MachineLink, st.Ino), gone, "netlink finds no such link in the namespace")}, err
}

// plug makes the link in the namespace this thread is in.
func (m Machines) plug(id string, owner int) (tap *os.File, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	eth, err := h.LinkByName(LinkName)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, errNoLink
	} else if err != nil {
		return nil, fmt.Errorf("look for the tap: %w", err)
	}
	fd, err := openTap(MachineLink)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || owner != 0 {
			unix.Close(fd)
		}
	}()
	failpoint.Hit("wire.plug/after-tap")
	vm, err := h.LinkByName(MachineLink)
	if err != nil {
		return nil, fmt.Errorf("look for the machine's tap: %w", err)
	}
	if err := join(eth.Attrs().Index, vm.Attrs().Index); err != nil { // before the first frame can pass
		return nil, err
	}
	failpoint.Hit("wire.plug/after-join")
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"name", func() error { return h.LinkSetAlias(vm, id) }},
		{"queue", func() error { return h.LinkSetTxQLen(vm, queue) }},
		{"mtu", func() error { return h.LinkSetMTU(vm, MTU) }},
		{"addresses", func() error { return silence(h, eth) }},
		{"rate of what comes from the machine", func() error { return m.limit(h, eth) }},
		{"rate of what goes to it", func() error { return m.limit(h, vm) }},
	} {
		if err := s.do(); err != nil {
			return nil, fmt.Errorf("set up the %s: %w", s.what, err)
		}
	}
	if owner == 0 {
		return os.NewFile(uintptr(fd), "tap of machine "+id), nil
	}
	if err := errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)); err != nil {
		return nil, fmt.Errorf("make the tap persistent: %w", err)
	}
	failpoint.Hit("wire.plug/after-persist")
	return nil, nil
}

// What may pass at once, a segment that the guest has not cut among it, and for how long
// more may wait.
const (
	burst   = 64 << 10
	patient = 20 * time.Millisecond
)

// limit bounds what is sent over a link: a token bucket in the kernel, which takes the
// place of an earlier machine's.
func (m Machines) limit(h *netlink.Handle, link netlink.Link) error {
	if m.Rate <= 0 {
		return nil
	}
	queue := burst + int64(patient.Seconds()*float64(m.Rate))
	err := h.QdiscReplace(&netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)},
		Rate: uint64(m.Rate), Buffer: netlink.Xmittime(uint64(m.Rate), burst), Limit: uint32(min(queue, math.MaxUint32))})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("the kernel has no token buckets (sch_tbf), which machine_network_rate needs: %w", err)
	}
	return err
}

// silence takes the guest's address off the namespace's kernel: the guest has one of
// its own.
func silence(h *netlink.Handle, link netlink.Link) error {
	all, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range all {
		if err := h.AddrDel(link, &a); err != nil {
			return err
		}
	}
	return nil
}

// join puts in what hands frames over, between the two links of the namespace this
// thread is in. It stands behind the filter of the wire, which drops what it drops.
func join(eth, vm int) error {
	err := put(func(c *nftables.Conn) {
		drop := nftables.ChainPolicyDrop
		table := c.CreateTable(&nftables.Table{Name: plugTable, Family: nftables.TableFamilyNetdev})
		for _, way := range []struct {
			name, from string
			to         int
		}{{"from-machine", MachineLink, eth}, {"to-machine", LinkName, vm}} {
			chain := c.AddChain(&nftables.Chain{Name: way.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
				Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter + 1), Policy: &drop, Device: way.from})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uint32(way.to))}, &expr.Dup{RegAddr: 1}}})
		}
	})
	if errors.Is(err, unix.EEXIST) { // of a machine whose maker died
		if err = unjoin(); err == nil {
			return join(eth, vm)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNoForward, err)
	}
	return nil
}

// unjoin takes it out again, if it is there. That has the kernel wait for all who may
// still see it.
func unjoin() error {
	err := put(func(c *nftables.Conn) {
		c.DelTable(&nftables.Table{Name: plugTable, Family: nftables.TableFamilyNetdev})
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// put carries out a transaction.
func put(what func(c *nftables.Conn)) error {
	b := &batch{}
	c, err := nftables.New(nftables.WithTestDial(b.take))
	if err != nil {
		return err
	}
	what(c)
	if err := c.Flush(); !errors.Is(err, errTaken) {
		return err
	}
	// Package nftables does not know "fwd", which has one attribute where "dup" has
	// that one and another.
	b.bytes = bytes.ReplaceAll(b.bytes, []byte("dup\x00"), []byte("fwd\x00"))
	return b.send()
}

var errNoForward = errors.New("have the kernel hand frames over")

// Probe makes a wire without a name, plugs a machine into it, and sends packets
// both ways, allowed ones and others, and looks which arrive. Nil means that
// machines can have a network here. It leaves nothing.
//
// Errors: those of Open.
//
// Cost: that of Open.
func (m Machines) Probe() error {
	return probe(func(tap *os.File) error {
		if err := filters(tap); err != nil {
			return err
		}
		fd, err := m.plug("probe", 0)
		if err != nil {
			return err
		}
		defer fd.Close()
		if err := outlive(fd); err != nil {
			return err
		}
		vm, err := netlink.LinkByName(MachineLink)
		if err == nil {
			err = netlink.LinkSetUp(vm)
		}
		if err == nil {
			err = crosses(fd, tap, probeFrame(GatewayMAC, GuestMAC, Guest, Gateway))
		}
		if err == nil {
			err = crosses(tap, fd, probeFrame(GuestMAC, GatewayMAC, Gateway, Guest))
		}
		return err
	})
}

// outlive has a TAP go with its namespace, which the kernel sees to by itself: with its
// descriptor everybody would have to wait for it.
func outlive(tap *os.File) error {
	rc, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	if e := rc.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) }); e != nil { // Fd would make it wait for frames
		return e
	}
	return err
}

// probeFrame is an empty datagram of DNS between two ends.
func probeFrame(to, from net.HardwareAddr, source, target netip.Addr) []byte {
	return slices.Concat(make([]byte, headerSize), to, from, u16(unix.ETH_P_IP), []byte{0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0},
		source.AsSlice(), target.AsSlice(), u16(DNSPort), u16(DNSPort), u16(8), u16(0))
}

// crosses sends a frame that the filter drops and one that it lets through. The first
// that comes out must be the second.
func crosses(in, out *os.File, good []byte) error {
	bad := slices.Clone(good)
	bad[headerSize+atProtocol] = experimental
	for _, f := range [][]byte{bad, good} {
		if _, err := in.Write(f); err != nil {
			return fmt.Errorf("%w: %w", errNoForward, err)
		}
	}
	rc, err := out.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	got := make([]byte, headerSize+MTU)
	if e := rc.Control(func(fd uintptr) { n, err = unix.Read(int(fd), got) }); e != nil { // what was written has arrived
		return e
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: nothing arrives: %w", errNoForward, err)
	case n < headerSize || !slices.Equal(got[headerSize:n], good[headerSize:]):
		return fmt.Errorf("%w: what must not arrive does", errNoForward)
	}
	return nil
}

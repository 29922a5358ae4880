package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// filterTable is the nftables table in a wire's namespace.
const filterTable = "firebreak"

// Offsets in an Ethernet frame with an IPv4 packet without options, or with ARP.
const (
	atSource    = 6 // of the Ethernet header
	atEtherType = 12
	atVersion   = 14
	atFragment  = 20
	atProtocol  = 23
	atIPSource  = 26
	atIPTarget  = 30
	atFromPort  = 34

	atARP          = 14
	atARPOperation = 20
	atARPSender    = 22 // hardware address, then IP
	atARPTarget    = 38 // IP
)

// The transactions that put the rules on the TAP of the namespace a thread is in,
// the same for every wire: the first where there are none, the second in place of
// what is there, so that no frame passes between. That has the kernel wait for all
// who may still see the old ones.
var (
	filterNew     = sync.OnceValues(func() (*batch, error) { return ruleset(false) })
	filterReplace = sync.OnceValues(func() (*batch, error) { return ruleset(true) })
)

// filter carries out one of the transactions.
func filter(rules func() (*batch, error)) error {
	b, err := rules()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if err := b.send(); err != nil {
		return fmt.Errorf("%w: %w", errNoFilter, err)
	}
	return nil
}

func ruleset(replace bool) (*batch, error) {
	b := &batch{}
	c, err := nftables.New(nftables.WithTestDial(b.take))
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: filterTable, Family: nftables.TableFamilyNetdev}
	if replace {
		c.AddTable(table) // exists now, so that it can be deleted
		c.DelTable(table)
	}
	c.AddTable(table)
	drop := nftables.ChainPolicyDrop
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityFilter, Policy: &drop, Device: LinkName})
	}
	out := chain("from-guest", nftables.ChainHookEgress)
	in := chain("to-guest", nftables.ChainHookIngress)
	// What a guest sends by UDP and ICMP the router refuses, but for queries. It is
	// let through to be told of.
	for _, rule := range rules(end{GuestMAC, Guest}, end{GatewayMAC, Gateway}, atIPSource, protocol(unix.IPPROTO_UDP), protocol(unix.IPPROTO_ICMP)) {
		c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: rule})
	}
	for _, rule := range rules(end{GatewayMAC, Gateway}, end{GuestMAC, Guest}, atIPTarget,
		slices.Concat(protocol(unix.IPPROTO_UDP), is(atFromPort, u16(DNSPort)))) {
		c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: rule})
	}
	if err := c.Flush(); !errors.Is(err, errTaken) {
		return nil, err
	}
	return b, nil
}

// end is one of the two that a wire connects.
type end struct {
	mac net.HardwareAddr
	ip  netip.Addr
}

// rules accept what may go from one end to the other: ARP, TCP, and what else is
// said of an IPv4 packet. The guest's address stands in it at guestAt.
func rules(from, to end, guestAt int, others ...[]expr.Any) [][]expr.Any {
	ipv4 := slices.Concat(
		is(0, slices.Concat(to.mac, from.mac, u16(unix.ETH_P_IP))),
		is(atVersion, []byte{0x45}),                   // without options: what follows is at fixed offsets
		masked(atFragment, u16(0xbfff), []byte{0, 0}), // whole: all bits but "don't fragment" are zero
		is(guestAt, Guest.AsSlice()),
	)
	arp := slices.Concat(
		is(atSource, slices.Concat(from.mac, u16(unix.ETH_P_ARP))),
		is(atARP, []byte{0, 1, 8, 0, 6, 4}), // of Ethernet addresses for IPv4 ones
		between(atARPOperation, u16(1), u16(2)),
		is(atARPSender, slices.Concat(from.mac, from.ip.AsSlice())),
		is(atARPTarget, to.ip.AsSlice()),
	)
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	list := [][]expr.Any{slices.Concat(arp, accept)}
	for _, other := range append([][]expr.Any{protocol(unix.IPPROTO_TCP)}, others...) {
		list = append(list, slices.Concat(ipv4, other, accept))
	}
	return list
}

// protocol demands one of IPv4's.
func protocol(p byte) []expr.Any { return is(atProtocol, []byte{p}) }

// load puts bytes of the frame into a register. A frame that ends before matches
// nothing.
func load(at, n int) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: uint32(at), Len: uint32(n)}
}

// is demands bytes.
func is(at int, want []byte) []expr.Any {
	return []expr.Any{load(at, len(want)), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want}}
}

// masked demands bits.
func masked(at int, mask, want []byte) []expr.Any {
	return []expr.Any{load(at, len(mask)),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want}}
}

// between demands a number of a range.
func between(at int, low, high []byte) []expr.Any {
	return []expr.Any{load(at, len(low)), &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: low, ToData: high}}
}

func u16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

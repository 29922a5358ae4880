package wire

import (
	"net"
	"net/netip"
	"os"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// LinkName is the device in a wire's namespace.
const LinkName = "eth0"

// MTU of every wire.
const MTU = 1500

// DNSPort is the only UDP port from which something comes to a guest.
const DNSPort = 53

// The addresses of every wire. They are constant, do not change them.
var (
	Network = netip.MustParsePrefix("10.200.0.0/30")
	Gateway = netip.MustParseAddr("10.200.0.1") // answers DNS, and is the way to everything else
	Guest   = netip.MustParseAddr("10.200.0.2")

	GatewayMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}
	GuestMAC   = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x02}
)

// Link is an open wire.
type Link struct {
	// Wire is what a backend gets.
	Wire sandbox.Wire
	// Tap is the far end: Ethernet frames behind a virtio-net header of 10 bytes,
	// with partial checksums and TCP segments to be cut (TUN_F_CSUM, TUN_F_TSO4)
	// in both directions. It is non-blocking. Closing it leaves the wire as it is;
	// one descriptor, shared by whoever it was passed to, exists at a time.
	Tap *os.File
}

// wireAt is the wire of a namespace.
func wireAt(netns string) sandbox.Wire {
	return sandbox.Wire{NetNS: netns, Link: LinkName, Address: netip.PrefixFrom(Guest, Network.Bits()), Gateway: Gateway}
}

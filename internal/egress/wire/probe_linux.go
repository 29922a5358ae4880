package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Probe makes a wire without a name, sends two frames over it as a guest could,
// one allowed and one not, and looks which arrives. Nil means that wires can be
// made here, and that their filter holds. It leaves nothing.
//
// Errors: those of Open.
//
// Cost: that of Open and Remove.
func Probe() error {
	err := visit(fresh, func() error {
		self, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer self.Close()
		// A wire is a mount: make one that is nowhere, and goes with its descriptor.
		tree, err := unix.OpenTree(int(self.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("keep the network namespace: %w", err)
		}
		if err == nil {
			defer unix.Close(tree)
		}
		tap, err := build(probeName)
		if err != nil {
			return err
		}
		defer tap.Close()
		defer unlink()
		return filters(tap)
	})
	if err != nil {
		return explain("probe wires", "", err)
	}
	return nil
}

const probeName = "probe"

// filters sends a datagram that the filter drops and one that it lets through. The
// first that comes out at the other end must be the second.
func filters(tap *os.File) error {
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(s)
	eth, err := net.InterfaceByName(LinkName)
	if err != nil {
		return err
	}
	for _, port := range []uint16{DNSPort + 1, DNSPort} {
		to := unix.SockaddrLinklayer{Ifindex: eth.Index, Protocol: htons(unix.ETH_P_IP)}
		err := unix.Sendto(s, datagram(port), 0, &to)
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // which is how the kernel says that it dropped one
			return fmt.Errorf("send a frame: %w", err)
		}
	}
	rc, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	buf := make([]byte, 1<<16)
	for { // what the guest sends has arrived when Sendto returns
		if cerr := rc.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) }); cerr != nil {
			return cerr
		}
		if err != nil {
			return fmt.Errorf("%w: a frame that it must let through is dropped: %w", errNoFilter, err)
		}
		frame := buf[min(n, headerSize):n]
		if !bytes.Equal(frame[:min(len(frame), 14)], datagram(DNSPort)[:14]) {
			continue // of the namespace's kernel, of another kind
		}
		if !bytes.Equal(frame, datagram(DNSPort)) {
			return fmt.Errorf("%w: a frame that it must drop passes", errNoFilter)
		}
		return nil
	}
}

// headerSize is the size of the header in front of each frame.
const headerSize = 10

// datagram is an empty one of the guest's, to a port of the gateway.
func datagram(port uint16) []byte {
	return slices.Concat(GatewayMAC, GuestMAC, u16(unix.ETH_P_IP),
		[]byte{0x45, 0}, u16(28), []byte{0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, Guest.AsSlice(), Gateway.AsSlice(),
		u16(1024), u16(port), u16(8), []byte{0, 0})
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

package wire

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Probe makes a wire without a name, sends two packets over it, one allowed and
// one not, and looks which arrives. Nil means that wires can be made here, and
// that their filter holds. It leaves nothing.
//
// Errors: those of Open.
//
// Cost: that of Open.
func Probe() error { return probe(filters) }

// probe calls try with the far end of a wire without a name, in its namespace.
func probe(try func(tap *os.File) error) error {
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
		tap, err := build("probe")
		if err != nil {
			return err
		}
		defer tap.Close() // the link goes with the namespace, which nothing holds
		return try(tap)
	})
	if err != nil {
		return explain("probe wires", "", err)
	}
	return nil
}

// filters sends a packet that the filter drops and one that it lets through. The
// first that comes out at the other end must be the second.
func filters(tap *os.File) error {
	for _, s := range []struct{ kind, protocol int }{{unix.SOCK_RAW, experimental}, {unix.SOCK_DGRAM, unix.IPPROTO_UDP}} {
		fd, err := unix.Socket(unix.AF_INET, s.kind|unix.SOCK_CLOEXEC, s.protocol)
		if err != nil {
			return fmt.Errorf("open a socket: %w", err)
		}
		// What is dropped may be an error, and what is not an error may be dropped:
		// what arrives says it.
		_ = unix.Sendto(fd, make([]byte, 8), 0, &unix.SockaddrInet4{Port: DNSPort, Addr: Gateway.As4()})
		unix.Close(fd)
	}
	rc, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, headerSize+MTU)
	for { // what was sent has arrived when Sendto returned
		var n int
		if e := rc.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) }); e != nil {
			return e
		}
		if err != nil {
			return fmt.Errorf("%w: a datagram that it must let through did not arrive: %w", errNoFilter, err)
		}
		frame := buf[min(n, headerSize):n]
		switch {
		case len(frame) <= atProtocol: // the kernel's own
		case frame[atProtocol] == experimental:
			return fmt.Errorf("%w: a packet of protocol %d passes", errNoFilter, experimental)
		case frame[atProtocol] == unix.IPPROTO_UDP:
			return nil
		}
	}
}

// experimental is a protocol over IPv4 that no wire lets through (RFC 3692).
const experimental = 253

// headerSize is the size of the virtio-net header in front of each frame.
const headerSize = 10

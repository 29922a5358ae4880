package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Probe makes a wire without a name, sends two datagrams over it, one allowed and
// one not, and looks which arrives. Nil means that wires can be made here, and
// that their filter holds. It leaves nothing.
//
// Errors: those of Open.
//
// Cost: that of Open.
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
		tap, err := build("probe")
		if err != nil {
			return err
		}
		defer tap.Close() // the link goes with the namespace, which nothing holds
		return filters(tap)
	})
	if err != nil {
		return explain("probe wires", "", err)
	}
	return nil
}

// filters sends a datagram that the filter drops and one that it lets through. The
// first that comes out at the other end must be the second.
func filters(tap *os.File) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(s)
	for _, port := range []int{DNSPort + 1, DNSPort} {
		// What is dropped may be an error, and what is not an error may be dropped:
		// what arrives says it.
		_ = unix.Sendto(s, nil, 0, &unix.SockaddrInet4{Port: port, Addr: Gateway.As4()})
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
		if len(frame) < atToPort+2 || frame[atProtocol] != unix.IPPROTO_UDP {
			continue // the kernel's own
		}
		if port := binary.BigEndian.Uint16(frame[atToPort:]); port != DNSPort {
			return fmt.Errorf("%w: a datagram to port %d passes", errNoFilter, port)
		}
		return nil
	}
}

// headerSize is the size of the virtio-net header in front of each frame.
const headerSize = 10

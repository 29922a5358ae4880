package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// batch is a transaction of nftables, encoded. Package nftables would encode it
// again for every wire and wait for each answer in the runtime's poller, which
// wakes another thread for each while this one may not leave its namespace: on a
// busy machine that takes longer than all the rest of a wire.
type batch struct {
	bytes []byte
	acks  int // answers there have to be
}

var errTaken = errors.New("taken")

// take is what a connection of package nftables sends by.
func (b *batch) take(messages []netlink.Message) ([]netlink.Message, error) {
	for _, m := range messages {
		m.Header.Flags &^= netlink.Echo
		m.Header.PID = 0 // the kernel puts the socket's
		if m.Header.Flags&netlink.Acknowledge != 0 {
			b.acks++
		}
		wire, err := m.MarshalBinary()
		if err != nil {
			return nil, err
		}
		b.bytes = append(b.bytes, wire...)
	}
	return nil, errTaken
}

// send carries out the transaction in the namespace this thread is in. The kernel
// does so, and answers, before the call returns.
func (b *batch) send() error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.Sendto(s, b.bytes, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for acks := 0; ; {
		n, _, err := unix.Recvfrom(s, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			if acks != b.acks {
				return fmt.Errorf("%d of %d steps were answered", acks, b.acks)
			}
			return nil
		}
		if err != nil {
			return err
		}
		for m := buf[:n]; len(m) >= unix.SizeofNlMsghdr+4; acks++ {
			size, kind := int(binary.NativeEndian.Uint32(m)), binary.NativeEndian.Uint16(m[4:])
			if kind != unix.NLMSG_ERROR || size < unix.SizeofNlMsghdr+4 {
				return fmt.Errorf("an answer of type %d and size %d", kind, size)
			}
			if code := int32(binary.NativeEndian.Uint32(m[unix.SizeofNlMsghdr:])); code != 0 {
				return unix.Errno(-code)
			}
			m = m[min((size+3)&^3, len(m)):]
		}
	}
}

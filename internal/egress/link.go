//go:build linux

package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	vnetHeader = 10                                // struct virtio_net_hdr
	ethernet   = header.EthernetMinimumSize        // without a VLAN
	maxFrame   = vnetHeader + ethernet + 1<<16 - 1 // the kernel hands over what it has not segmented
	maxSegment = 1<<16 - 1                         // that we hand over unsegmented: the largest IPv4 packet
)

// link is the far end of a TAP: frames of one sandbox and of nobody else. What
// of them has no business here is dropped before the stack sees it (admit), and
// nothing that a sandbox sends ends the loop that reads them.
type link struct {
	tap     *os.File
	raw     syscall.RawConn
	refused func(refusal) // called by the loop for what was dropped and is to be told
	failed  func(error)   // called when the device is gone

	mtu        atomic.Uint32
	closing    atomic.Bool
	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher // guarded by mu
	loop       sync.WaitGroup
}

// refusal is an IPv4 packet that was dropped.
type refusal struct {
	protocol string
	to       netip.AddrPort
}

// checkTap reports why a file is not a TAP as Attach wants it.
func checkTap(tap *os.File) error {
	if err := tap.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("the TAP blocks: %w", err)
	}
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		var r *unix.Ifreq
		if r, err = unix.NewIfreq(""); err != nil {
			return
		}
		if err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, r); err != nil {
			err = fmt.Errorf("no TAP: %w", err)
			return
		}
		const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
		size, serr := unix.IoctlGetInt(int(fd), unix.TUNGETVNETHDRSZ)
		if r.Uint16()&want != want || serr != nil || size != vnetHeader {
			err = fmt.Errorf("the TAP has flags %#x and a header of %d bytes: %w", r.Uint16(), size, errors.Join(errors.ErrUnsupported, serr))
		}
	})
	return errors.Join(err, cerr)
}

func newLink(tap *os.File, refused func(refusal), failed func(error)) (*link, error) {
	raw, err := tap.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &link{tap: tap, raw: raw, refused: refused, failed: failed}
	l.mtu.Store(mtu)
	return l, nil
}

// Attach implements stack.LinkEndpoint. Of nil it only takes note: the stack calls
// it with locks held for which the loop may be waiting.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	was := l.dispatcher
	l.dispatcher = d
	l.mu.Unlock()
	if d != nil && was == nil {
		l.loop.Go(l.read)
	}
}

// shut closes the device and waits for the loop. Call it before the stack lets go
// of the link, and from no goroutine of the stack's. Again: nothing.
func (l *link) shut() {
	l.mu.Lock()
	l.closing.Store(true) // no later begins after it
	l.mu.Unlock()
	l.tap.Close()
	l.loop.Wait()
}

// frames are buffers for one frame each. They are held while there is one, so
// that an idle wire has none.
var frames = sync.Pool{New: func() any { return new([maxFrame]byte) }}

// read delivers frames until the device is closed or gone.
func (l *link) read() {
	for {
		var failure error
		err := l.raw.Read(func(fd uintptr) bool {
			for !l.closing.Load() {
				buf := frames.Get().(*[maxFrame]byte)
				n, err := unix.Read(int(fd), buf[:])
				if err == nil {
					l.deliver(buf[:n])
				}
				frames.Put(buf)
				switch err {
				case nil, unix.EINTR:
				case unix.EAGAIN:
					return false
				default:
					failure = err
					return true
				}
			}
			return true
		})
		switch {
		case l.closing.Load():
			return
		case err != nil, failure == unix.EBADFD, failure == unix.EBADF:
			l.failed(errors.Join(err, failure))
			return
		}
		time.Sleep(10 * time.Millisecond) // the interface is down: it may come up again
	}
}

// deliver gives a frame to the stack if it is one for it.
func (l *link) deliver(b []byte) {
	if len(b) < vnetHeader {
		return
	}
	flags, frame := b[0], b[vnetHeader:]
	switch admit(frame) {
	case admitARP:
		l.answerARP()
	case admitTell:
		if l.refused != nil {
			l.refused(refusalOf(frame))
		}
	case admitIPv4:
		l.mu.RLock()
		d := l.dispatcher
		l.mu.RUnlock()
		if d == nil {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
		pkt.RXChecksumValidated = flags&(unix.VIRTIO_NET_HDR_F_NEEDS_CSUM|unix.VIRTIO_NET_HDR_F_DATA_VALID) != 0
		if _, ok := pkt.LinkHeader().Consume(ethernet); ok {
			d.DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
		}
		pkt.DecRef()
	}
}

// answerARP tells the sandbox where its gateway is, which is all it may ask.
func (l *link) answerARP() {
	var b [vnetHeader + ethernet + header.ARPSize]byte
	eth := header.Ethernet(b[vnetHeader:])
	eth.Encode(&header.EthernetFields{SrcAddr: gatewayMAC, DstAddr: guestMAC, Type: header.ARPProtocolNumber})
	arp := header.ARP(b[vnetHeader+ethernet:])
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPReply)
	copy(arp.HardwareAddressSender(), gatewayMAC)
	copy(arp.ProtocolAddressSender(), gatewayAddr.AsSlice())
	copy(arp.HardwareAddressTarget(), guestMAC)
	copy(arp.ProtocolAddressTarget(), guestAddr.AsSlice())
	_ = l.raw.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), b[:]) }) // lost like any frame
}

// WritePackets implements stack.LinkEndpoint. What the device does not take is
// lost like on any wire.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if acceptsSYN(pkt) {
			l.later(pkt)
		} else if err := l.write(pkt); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// acceptsSYN reports whether a packet is the first of a connection that the
// sandbox makes.
func acceptsSYN(pkt *stack.PacketBuffer) bool {
	const both = header.TCPFlagSyn | header.TCPFlagAck
	b := pkt.TransportHeader().Slice()
	return pkt.TransportProtocolNumber == header.TCPProtocolNumber && len(b) >= header.TCPMinimumSize && header.TCP(b).Flags()&both == both
}

// later writes a packet when the caller has let go of its connection, which the
// stack holds meanwhile. The sandbox answers at once, and who takes the answer
// would spin on a processor until this one is done, which may be the time that
// the sandbox runs on it.
func (l *link) later(pkt *stack.PacketBuffer) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closing.Load() {
		return
	}
	pkt.IncRef()
	l.loop.Go(func() {
		defer pkt.DecRef()
		_ = l.write(pkt) // lost like any frame
	})
}

func (l *link) write(pkt *stack.PacketBuffer) tcpip.Error {
	var h [vnetHeader]byte
	if o := pkt.GSOOptions; o.Type != stack.GSONone {
		binary.LittleEndian.PutUint16(h[2:], uint16(pkt.HeaderSize()))
		if o.NeedsCsum {
			h[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
			binary.LittleEndian.PutUint16(h[6:], ethernet+o.L3HdrLen)
			binary.LittleEndian.PutUint16(h[8:], o.CsumOffset)
		}
		if pkt.Data().Size() > int(o.MSS) {
			h[1] = unix.VIRTIO_NET_HDR_GSO_TCPV4
			binary.LittleEndian.PutUint16(h[4:], o.MSS)
		}
	}
	var room [8][]byte
	parts := append(append(room[:0], h[:]), pkt.AsSlices()...)
	err := os.ErrClosed
	if cerr := l.raw.Control(func(fd uintptr) { _, err = unix.Writev(int(fd), parts) }); cerr != nil || err == os.ErrClosed {
		return &tcpip.ErrClosedForSend{}
	}
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return &tcpip.ErrNoBufferSpace{}
	}
	return &tcpip.ErrHostDown{} // the interface is down, or gone
}

// AddHeader implements stack.LinkEndpoint.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(ethernet)).Encode(&header.EthernetFields{SrcAddr: gatewayMAC, DstAddr: guestMAC, Type: pkt.NetworkProtocolNumber})
}

// ParseHeader implements stack.LinkEndpoint.
func (l *link) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(ethernet)
	return ok
}

// Capabilities implements stack.LinkEndpoint. There is one neighbour, so nothing
// has to be resolved.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return maxSegment }

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// The rest of stack.LinkEndpoint.
func (l *link) MTU() uint32                             { return l.mtu.Load() }
func (l *link) SetMTU(m uint32)                         { l.mtu.Store(m) }
func (l *link) MaxHeaderLength() uint16                 { return ethernet }
func (l *link) LinkAddress() tcpip.LinkAddress          { return gatewayMAC }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   { l.loop.Wait() }
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

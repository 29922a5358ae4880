//go:build linux

package egress

import (
	"errors"
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID = tcpip.NICID(1)

// Buffers of one connection: what it has to begin with, and what it grows to
// while its bytes are taken away as fast as they come. The first is what hostile
// code can make us keep for each of its connections.
const (
	firstBuffer = 32 << 10
	lastBuffer  = 2 << 20
)

// newStack makes the TCP/IP stack of one wire: IPv4, TCP for every address,
// UDP for the gateway's.
func newStack(l *link, halfOpen int, handler func(*tcp.ForwarderRequest)) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := setUp(s, l); err != nil {
		l.shut()
		s.Destroy()
		return nil, err
	}
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, firstBuffer, halfOpen, handler).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, func(stack.TransportEndpointID, *stack.PacketBuffer) bool { return true })
	return s, nil
}

func setUp(s *stack.Stack, l *link) error {
	sack, moderate, wait, linger := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true), tcpip.TCPTimeWaitTimeoutOption(time.Second), tcpip.TCPLingerTimeoutOption(15*time.Second)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: firstBuffer, Max: lastBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: firstBuffer, Max: lastBuffer}
	var errs []error
	check := func(what string, err tcpip.Error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s", what, err))
		}
	}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &wait, &linger, &receive, &send} {
		check(fmt.Sprintf("%T", o), s.SetTransportProtocolOption(tcp.ProtocolNumber, o))
	}
	gateway := tcpip.AddrFrom4(gatewayAddr.As4())
	check("interface", s.CreateNIC(nicID, l))
	check("address", s.AddProtocolAddress(nicID, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: gateway.WithPrefix()}, stack.AddressProperties{}))
	check("answering for every address", s.SetSpoofing(nicID, true))
	check("taking every address", s.SetPromiscuousMode(nicID, true))
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	return errors.Join(errs...)
}

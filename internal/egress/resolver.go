//go:build linux

package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/firebreak-dev/firebreak/internal/egress/dns"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

const (
	maxStreamQueries = 64               // on one connection
	streamTime       = 10 * time.Second // for all of them
)

// resolver answers the DNS queries of one wire, at the gateway's address.
type resolver struct {
	wire     *wire
	answerer dns.Answerer
	socket   *gonet.UDPConn

	mu   sync.Mutex
	told map[netaddr.Host]uint64 // guarded by mu; in which generation a name was told of; names have addresses, which bounds them
}

// listen answers datagrams until close, one after the other: an answer takes
// microseconds, and a sandbox that asks faster loses queries.
func (r *resolver) listen(ctx context.Context) error {
	local := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(gatewayAddr.As4()), Port: portDNS}
	var err error
	if r.socket, err = gonet.DialUDP(r.wire.stack, &local, nil, ipv4.ProtocolNumber); err != nil {
		return err
	}
	r.wire.work.Go(func() {
		buf := make([]byte, dns.MaxQuery+1)
		for ctx.Err() == nil {
			n, from, err := r.socket.ReadFrom(buf)
			if err != nil {
				if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || ctx.Err() != nil {
					return
				}
				continue
			}
			if reply := r.answer(buf[:n]); reply != nil {
				_, _ = r.socket.WriteTo(reply, from) // lost like any datagram
			}
		}
	})
	return nil
}

func (r *resolver) close() { r.socket.Close() }

// stream answers the queries on a connection, for resolvers that ask that way.
func (r *resolver) stream(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(streamTime))
	for range maxStreamQueries {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > dns.MaxQuery {
			return
		}
		query := make([]byte, n)
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply := r.answer(query)
		if reply == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// answer is the reply to one query, after what has to be told was.
func (r *resolver) answer(query []byte) []byte {
	reply, o := r.answerer.Answer(query)
	if reply == nil {
		return nil
	}
	w := r.wire
	e := w.event(KindDNS, o.Host, 0)
	e.Generation, e.Reason = o.Decision.Generation, o.Decision.Reason.String()
	if o.Decision.Rule != nil {
		e.Rule = o.Decision.Rule.ID
	}
	name, bound := bindingOf(o.Host)
	if bound {
		e.Reason = ReasonUnbound
		if o.Decision.Allow {
			e.Binding, e.Reason = name, ReasonBinding
		}
	}
	if !o.Decision.Allow || o.Code != dnsmessage.RCodeSuccess {
		if o.Decision.Allow {
			e.Reason = ReasonLimit
		}
		if bound {
			e.Hint = "the sandbox has no such binding"
		} else if o.Host.IsValid() {
			e.Hint = w.live.Table().Hint(policy.Flow{Host: o.Host}, o.Decision)
		}
		if o.Err != nil {
			e.Hint = o.Err.Error()
		}
		w.deny(e)
		return reply
	}
	if !o.Address.IsValid() || !r.news(o.Host, o.Decision.Generation) {
		return reply
	}
	e.Address, e.Decision = o.Address.String(), verdict(o.Decision)
	if err := w.router.config.Record(e); err != nil {
		r.forget(o.Host)
		e.Reason, e.Hint = ReasonUnrecorded, "what cannot be recorded does not happen"
		w.deny(e)
		return dns.Failure(query) // silence would be waited for
	}
	return reply
}

// news reports whether a name was not told of in this generation, and notes it.
func (r *resolver) news(h netaddr.Host, generation uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told[h] == generation {
		return false
	}
	r.told[h] = generation
	return true
}

func (r *resolver) forget(h netaddr.Host) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, h)
}

// verdict is how an allowing decision is called.
func verdict(d policy.Decision) string {
	if d.Observed() {
		return Observe
	}
	return Allow
}

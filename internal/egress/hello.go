//go:build linux

package egress

import (
	"encoding/binary"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

const (
	recordHandshake = 0x16
	messageHello    = 1
	maxRecord       = 1 << 14

	extensionServerName = 0
	extensionECH        = 0xfe0d // a second hello inside, which only the server reads
	extensionESNI       = 0xffce // the same, as it was meant first
)

// lookTLS reads a ClientHello, which may be spread over records. What is none is
// TCP; what hides whom it is for claims nothing.
func lookTLS(b []byte) (policy.Protocol, netaddr.Host, bool) {
	message, enough, ok := handshake(b)
	switch {
	case !ok, !enough && len(b) >= maxSniff:
		return policy.ProtocolTCP, netaddr.Host{}, true
	case !enough:
		return policy.ProtocolUnknown, netaddr.Host{}, false
	}
	name, ok := serverName(message)
	if !ok {
		return policy.ProtocolTCP, netaddr.Host{}, true
	}
	h, err := netaddr.ParseHost(name)
	if err != nil || h.Name() == "" { // an address is no server name
		h = netaddr.Host{}
	}
	return policy.ProtocolTLS, h, true
}

// handshake takes the first message out of the records in b, which has to end
// where a record ends.
func handshake(b []byte) (message []byte, enough, ok bool) {
	const head = 5
	for {
		if len(b) < head {
			return nil, false, record(b)
		}
		size := int(binary.BigEndian.Uint16(b[3:]))
		if !record(b) || size == 0 || size > maxRecord {
			return nil, false, false
		}
		part := b[head:min(head+size, len(b))]
		if message == nil {
			message = part[:len(part):len(part)] // so that append copies
		} else {
			message = append(message, part...)
		}
		if len(message) > 0 && message[0] != messageHello {
			return nil, false, false
		}
		if len(message) >= 4 {
			want := 4 + (int(message[1])<<16 | int(message[2])<<8 | int(message[3]))
			if want > maxSniff || len(message) > want {
				return nil, false, false
			}
			if len(message) == want {
				return message, true, len(part) == size
			}
		}
		if len(part) < size {
			return nil, false, true
		}
		b = b[head+size:]
	}
}

// record reports whether b can be the beginning of a handshake record.
func record(b []byte) bool {
	return (len(b) < 1 || b[0] == recordHandshake) && (len(b) < 2 || b[1] == 3) && (len(b) < 3 || b[2] <= 4)
}

// reader takes fields off the front of a message.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint(bytes int) (n int) {
	for _, c := range r.take(bytes) {
		n = n<<8 | int(c)
	}
	return n
}

// vector takes one with a length of so many bytes in front.
func (r *reader) vector(bytes int) []byte { return r.take(r.uint(bytes)) }

// serverName returns the one server name of a ClientHello; empty where there is
// none, or more than one way to read it. Not ok: this is no ClientHello.
func serverName(message []byte) (name string, ok bool) {
	r := reader{b: message[4:]}
	r.take(2 + 32) // version, random
	session, suites, compression := r.vector(1), r.vector(2), r.vector(1)
	if r.failed || len(session) > 32 || len(suites) == 0 || len(suites)%2 != 0 || len(compression) == 0 {
		return "", false
	}
	if len(r.b) == 0 {
		return "", true // without extensions
	}
	extensions := reader{b: r.vector(2)}
	if r.failed || len(r.b) != 0 {
		return "", false
	}
	hidden, seen := false, map[int]bool{}
	for len(extensions.b) > 0 {
		kind, data := extensions.uint(2), extensions.vector(2)
		if extensions.failed || seen[kind] {
			return "", false
		}
		seen[kind] = true
		switch kind {
		case extensionServerName:
			if name, ok = oneName(data); !ok {
				return "", false
			}
		case extensionECH, extensionESNI:
			hidden = true
		}
	}
	if hidden {
		name = ""
	}
	return name, true
}

// oneName reads the server_name extension, which lists one name of a host.
func oneName(data []byte) (string, bool) {
	r := reader{b: data}
	list := reader{b: r.vector(2)}
	kind, name := list.uint(1), list.vector(2)
	if r.failed || list.failed || len(r.b) != 0 || len(list.b) != 0 || kind != 0 || len(name) == 0 {
		return "", false
	}
	return string(name), true
}

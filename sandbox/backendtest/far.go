package backendtest

import (
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// What is at the far end of the suite's wires.
const (
	farName = "far.example."
	farPort = 80 // echoes; every other port refuses
)

var farHost = netip.MustParseAddr("198.18.0.1")

// headerSize is the size of the virtio-net header in front of each frame.
const headerSize = 10

// Offsets in an Ethernet frame with an IPv4 packet without options.
const (
	atType     = 12
	atIP       = 14
	atLength   = 16
	atProtocol = 23
	atFrom     = 26
	atTo       = 30
	atBody     = 34
)

// far serves the far end of a wire: DNS for one name, an echo on one address and
// port, refusals for all others. It is no stack: what it needs not it has not. As
// the real one does, it hands over partial checksums and large segments, which the
// guest has to understand.
type far struct {
	tap    io.ReadWriteCloser
	serves sync.WaitGroup

	mu     sync.Mutex
	names  []string           // guarded by mu: asked for, in order
	kinds  map[string]int     // guarded by mu: frames by what they carry
	large  int                // guarded by mu: the largest frame
	dials  []netip.AddrPort   // guarded by mu: opened, in order
	opened map[[12]byte]*echo // guarded by mu: by addresses and ports
}

// echo is a connection.
type echo struct{ next, sent uint32 }

// serve answers until tap is closed, which is the caller's, at the latest when the
// test ends.
func serve(t *testing.T, tap io.ReadWriteCloser) *far {
	f := &far{tap: tap, kinds: map[string]int{}, opened: map[[12]byte]*echo{}}
	f.serves.Go(func() {
		buf := make([]byte, 1<<17)
		for {
			n, err := tap.Read(buf)
			if err != nil {
				return
			}
			f.answer(slices.Clone(buf[headerSize:n]))
		}
	})
	t.Cleanup(f.stop)
	return f
}

func (f *far) stop() {
	f.tap.Close()
	f.serves.Wait()
}

// seen is what has come so far.
func (f *far) seen() (names []string, kinds map[string]int, dials []netip.AddrPort, large int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kinds = map[string]int{}
	for k, n := range f.kinds {
		kinds[k] = n
	}
	return slices.Clone(f.names), kinds, slices.Clone(f.dials), f.large
}

func (f *far) answer(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.large = max(f.large, len(b))
	switch {
	case len(b) < atBody+8 || binary.BigEndian.Uint16(b[atType:]) != 0x0800 || b[atIP] != 0x45:
		f.kinds["other"]++
	case b[atProtocol] == 17 && binary.BigEndian.Uint16(b[atBody+2:]) == 53:
		f.kinds["dns"]++
		f.resolveLocked(b)
	case b[atProtocol] == 6 && len(b) >= atBody+20:
		f.kinds["tcp"]++
		f.tcpLocked(b)
	default:
		f.kinds["other"]++
	}
}

// reply sends a packet back to where b came from.
func (f *far) reply(b, body []byte, checksum int, segment uint16) {
	out := make([]byte, headerSize+atBody, headerSize+atBody+len(body))
	h, ip := out[:headerSize], out[headerSize+atIP:]
	copy(out[headerSize:], b[6:12])
	copy(out[headerSize+6:], b[:6])
	copy(out[headerSize+atType:], b[atType:atFrom]) // with the packet's numbers, as good as any
	copy(ip[atFrom-atIP:], b[atTo:atTo+4])
	copy(ip[atTo-atIP:], b[atFrom:atFrom+4])
	binary.BigEndian.PutUint16(ip[atLength-atIP:], uint16(20+len(body)))
	copy(ip[6:], []byte{0x40, 0, 64}) // whole, and for a while
	copy(ip[10:], []byte{0, 0})
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:20], 0))
	// The guest is told where its checksum belongs, of which the pseudo header is
	// there already, and that nobody could have damaged the rest.
	h[0] = 1 // needs a checksum
	binary.NativeEndian.PutUint16(h[6:], atBody)
	binary.NativeEndian.PutUint16(h[8:], uint16(checksum))
	if segment > 0 {
		h[1] = 1 // segments of TCP over IPv4
		binary.NativeEndian.PutUint16(h[2:], uint16(atBody)+uint16(body[12]>>4)*4)
		binary.NativeEndian.PutUint16(h[4:], segment)
	}
	binary.BigEndian.PutUint16(body[checksum:], sum(ip[12:20], uint32(b[atProtocol])+uint32(len(body))))
	_, _ = f.tap.Write(append(out, body...)) // what is lost the guest asks for again
}

// sum is the Internet checksum's, not inverted.
func sum(b []byte, start uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// resolveLocked knows one name, which has an address and nothing else. f.mu is
// held.
func (f *far) resolveLocked(b []byte) {
	var m dnsmessage.Message
	if m.Unpack(b[atBody+8:]) != nil || len(m.Questions) != 1 {
		f.kinds["other"]++
		return
	}
	q := m.Questions[0]
	f.names = append(f.names, q.Name.String())
	m.Response, m.Additionals = true, nil
	switch {
	case q.Name.String() != farName:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
			Body: &dnsmessage.AResource{A: farHost.As4()}}}
	}
	answer, err := m.Pack()
	if err != nil {
		return
	}
	body := make([]byte, 8, 8+len(answer))
	copy(body, b[atBody+2:atBody+4])
	copy(body[2:], b[atBody:atBody+2])
	binary.BigEndian.PutUint16(body[4:], uint16(8+len(answer)))
	f.reply(b, append(body, answer...), 6, 0)
}

// tcpLocked is a peer that never loses anything. f.mu is held.
func (f *far) tcpLocked(b []byte) {
	const fin, syn, rst, psh, ack = 1, 2, 4, 8, 16
	h := b[atBody:]
	end := atIP + int(binary.BigEndian.Uint16(b[atLength:]))
	at := atBody + int(h[12]>>4)*4
	if end > len(b) || at > end {
		f.kinds["other"]++
		return
	}
	seq, flags, data := binary.BigEndian.Uint32(h[4:]), h[13], b[at:end]
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[atTo:])), binary.BigEndian.Uint16(h[2:]))
	key := [12]byte(b[atFrom : atBody+4])
	c := f.opened[key]
	answer := func(flags byte, data []byte) {
		body := make([]byte, 20, 20+len(data))
		copy(body, h[2:4])
		copy(body[2:], h[:2])
		binary.BigEndian.PutUint32(body[4:], c.sent)
		binary.BigEndian.PutUint32(body[8:], c.next)
		body[12], body[13], body[14], body[15] = 5<<4, flags, 0xff, 0xff
		c.sent += uint32(len(data))
		const mss = 536 // what one has that names none
		segment := uint16(0)
		if len(data) > mss {
			segment = mss
		}
		f.reply(b, append(body, data...), 16, segment)
	}
	switch {
	case flags&rst != 0:
		delete(f.opened, key)
	case to.Addr() != farHost || to.Port() != farPort || c == nil && flags&syn == 0:
		c = &echo{next: seq + uint32(len(data)) + uint32(flags&syn)/syn}
		answer(rst|ack, nil)
	case flags&syn != 0:
		if c == nil {
			f.dials = append(f.dials, to)
		}
		c = &echo{next: seq + 1, sent: 1000}
		f.opened[key] = c
		answer(syn|ack, nil)
		c.sent++
	case seq != c.next: // again
		answer(ack, nil)
	case len(data) > 0 || flags&fin != 0:
		c.next += uint32(len(data)) + uint32(flags&fin)
		answer(ack|psh|flags&fin, data)
		c.sent += uint32(flags & fin)
	}
}

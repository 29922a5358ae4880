package server

import "time"

// frames watches the HTTP/2 frames a client sends, by their headers only, and
// ends connections that are nothing but work: streams opened and reset at once
// (CVE-2023-44487), headers in endless pieces, floods of PING, SETTINGS,
// PRIORITY or empty DATA. Each is cheap to send and makes the server do much
// more. net/http bounds the memory these take; this bounds the time.
//
// HTTP/1 connections pass unread. The zero value is ready.
type frames struct {
	state int // bytes of the preface seen; then inFrames or notHTTP2
	scan  scanner
	left  allowance
}

// resets watches the frames that the server sends for streams it has to reset,
// which a client can bring about as well (CVE-2025-8671). The zero value is
// ready for the first byte after the preface.
type resets struct {
	scan scanner
	left allowance
}

const (
	preface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	inFrames = len(preface)
	notHTTP2 = -1

	// An honest client resets a stream when its caller gives up, pings now and
	// then, and sends its settings once.
	controlPerSecond = 100
	controlBurst     = 1000
)

// The frame types that are told apart.
const (
	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	frameWindowUpdate = 8
)

// pass looks at what was read and reports whether to go on.
func (f *frames) pass(p []byte) bool {
	for f.state >= 0 && f.state < inFrames && len(p) > 0 {
		if p[0] != preface[f.state] {
			f.state = notHTTP2
			break
		}
		f.state++
		p = p[1:]
	}
	if f.state == notHTTP2 {
		return true
	}
	return f.left.pay(f.scan.count(p, func(kind, flags byte, length uint32) bool {
		switch kind {
		case frameHeaders, frameWindowUpdate: // a request; what a download needs
			return false
		case frameData:
			return length == 0 && flags&1 == 0
		}
		return true
	}))
}

// pass looks at what is about to be written and reports whether to go on.
func (r *resets) pass(p []byte) bool {
	return r.left.pay(r.scan.count(p, func(kind, _ byte, _ uint32) bool { return kind == frameReset }))
}

// scanner finds the frames in a stream of bytes, however it is cut.
type scanner struct {
	header [9]byte
	have   int    // bytes of header
	skip   uint32 // bytes of payload still to come
}

// count counts the frames that begin in p and cost something.
func (s *scanner) count(p []byte, costs func(kind, flags byte, length uint32) bool) (n int) {
	for len(p) > 0 {
		if s.skip > 0 {
			k := min(s.skip, uint32(len(p)))
			s.skip -= k
			p = p[k:]
			continue
		}
		k := copy(s.header[s.have:], p)
		s.have += k
		p = p[k:]
		if s.have < len(s.header) {
			break
		}
		s.have = 0
		s.skip = uint32(s.header[0])<<16 | uint32(s.header[1])<<8 | uint32(s.header[2])
		if costs(s.header[3], s.header[4], s.skip) {
			n++
		}
	}
	return n
}

// allowance is how many costly frames a connection may still bring.
type allowance struct {
	tokens float64
	at     time.Time
}

// pay takes n out of it; false when it is spent.
func (a *allowance) pay(n int) bool {
	if n == 0 {
		return true
	}
	now := time.Now()
	if a.at.IsZero() {
		a.tokens = controlBurst
	} else {
		a.tokens = min(controlBurst, a.tokens+now.Sub(a.at).Seconds()*controlPerSecond)
	}
	a.at = now
	a.tokens -= float64(n)
	return a.tokens >= 0
}

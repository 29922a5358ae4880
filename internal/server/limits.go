package server

import "time"

// What a caller may take of the server's time and memory. Authentication comes
// before the body is read, so only the first two are open to strangers.
const (
	headerTimeout = 10 * time.Second // to send the request's header
	maxHeader     = 32 << 10         // its bytes
	idleTimeout   = 2 * time.Minute  // between requests on a connection
	bodyTimeout   = 30 * time.Second // for a body to fall behind minBodyRate
	minBodyRate   = 1 << 10          // bytes per second
	writeTimeout  = 30 * time.Second // for an answer of known size
	stallTimeout  = 5 * time.Minute  // for the reader of a stream to take one write
	maxConns      = 4096             // on one listener, and never more than a third of the descriptors
	sourceConns   = maxConns / 2     // of one address, or IPv6 network
	maxStreams    = 128              // HTTP/2 streams of one connection
	maxOutput     = 256 << 20        // held by all unary execs together
	heartbeat     = 15 * time.Second // between signs of life on an event stream
	drainTimeout  = 5 * time.Second  // to read, after an error, what a caller is still sending
	drainBytes    = 32 << 20         // and how much of it
)

//go:build linux

package egress

import "sync/atomic"

// counters are what a router counts over all wires.
type counters struct {
	connections, allowed, denied, upload, download atomic.Int64
}

func (c *counters) stats() Stats {
	return Stats{Connections: int(c.connections.Load()), Allowed: c.allowed.Load(), Denied: c.denied.Load(), Upload: c.upload.Load(), Download: c.download.Load()}
}

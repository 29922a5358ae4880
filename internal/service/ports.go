package service

import (
	"context"
	"net"
)

// DialPort connects to a server on the sandbox's own loopback. The caller closes
// the connection, which has no deadlines. Errors: KindNotFound, also when nothing
// listens there; KindGone, KindInvalid, KindTimeout, KindCapacity.
func (s *Service) DialPort(ctx context.Context, id string, port int) (net.Conn, error) {
	who, _, err := s.allow(ctx, "SandboxService.DialPort")
	if err != nil {
		return nil, err
	}
	if err := needs("port", "id", id); err != nil {
		return nil, err
	}
	return s.Orchestrator.DialPort(ctx, who, id, port)
}

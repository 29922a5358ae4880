package orchestrator

import (
	"context"
	"net"
	"strconv"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// DialPort connects to a TCP port of the sandbox's own loopback. The sandbox is
// in use until the connection is closed; the sandbox's end breaks it, and so does
// a restart of this server. It has no deadlines.
//
// Errors: KindNotFound (also when nothing listens there), KindGone, KindInvalid,
// KindTimeout, KindCapacity beyond guest.MaxConns in one sandbox.
//
// Cost: one disk flush (the evidence) and a round trip.
func (o *Orchestrator) DialPort(ctx context.Context, who Caller, ref string, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, sandbox.Errorf("port", sandbox.KindInvalid, "%d is not a port", port).WithHint("1 to 65535")
	}
	a, err := o.access(ctx, who, ref, "", sandbox.Record{Action: "port.open", Object: strconv.Itoa(port)}, nil)
	if err != nil {
		return nil, err
	}
	c, err := a.s.DialPort(ctx, port)
	if err = a.settled(ctx, "/", err); err != nil {
		a.done()
		if sandbox.KindOf(err) == sandbox.KindNotFound {
			err = sandbox.Errorf("port", sandbox.KindNotFound, "nothing listens on port %d in the sandbox", port).WithID(ref).
				WithHint("a server inside must listen on 127.0.0.1, ::1 or every address")
		}
		return nil, err
	}
	p := &portConn{Conn: c, over: make(chan struct{})}
	p.end = sync.OnceFunc(func() { close(p.over); c.Close(); a.done() })
	go func() { // ends with the connection or the session
		select {
		case <-a.s.Done():
			p.end()
		case <-p.over:
		}
	}()
	return p, nil
}

// portConn holds its sandbox until it is closed.
type portConn struct {
	*guest.Conn
	over chan struct{} // closed by end
	end  func()
}

// Close implements net.Conn.
func (c *portConn) Close() error {
	c.end()
	return nil
}

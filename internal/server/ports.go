package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	portsTemplate = "/v1/sandboxes/{id}/ports/{port}"
	// tunnelIdle is how long a connection may be silent both ways.
	tunnelIdle = time.Hour
)

// registerPorts registers what becomes a connection: an upgrade, which only
// HTTP/1.1 has.
func (g *registry) registerPorts(api Ports) {
	unary(g, rpc.SandboxServiceDialPortProcedure, func(context.Context, *v1.DialPortRequest) (*v1.DialPortResponse, error) {
		return nil, upgradeNeeded()
	})
	g.rawRoute(g.procedures[rpc.SandboxServiceDialPortProcedure], http.MethodGet, portsTemplate, func(x *exchange) error { return g.dialPort(x, api) })
}

func upgradeNeeded() error {
	return sandbox.Errorf("port", sandbox.KindUnsupported, "a port is reached by upgrading a connection").
		WithHint("GET " + portsTemplate + " over HTTP/1.1 with Connection: Upgrade and Upgrade: tcp; or `firebreak port-forward`")
}

// dialPort turns the caller's connection into one to a server in a sandbox.
func (g *registry) dialPort(x *exchange, api Ports) error {
	req := &v1.DialPortRequest{}
	if err := x.read(req); err != nil {
		return err
	}
	return g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
		if x.r.ProtoMajor != 1 || !strings.EqualFold(x.r.Header.Get("Upgrade"), "tcp") {
			return upgradeNeeded()
		}
		server, err := api.DialPort(ctx, req.Id, int(req.Port))
		if err != nil {
			return err
		}
		defer server.Close()
		caller, buffered, err := http.NewResponseController(x.ResponseWriter).Hijack()
		if err != nil {
			return err
		}
		x.status = http.StatusSwitchingProtocols
		defer caller.Close()
		stop := context.AfterFunc(x.s.draining, func() { caller.Close() })
		defer stop()
		if err := caller.SetDeadline(time.Now().Add(writeTimeout)); err != nil {
			return nil
		}
		_, err = io.WriteString(caller, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		if err == nil {
			splice(caller, buffered.Reader, server)
		}
		return nil // there is nobody left to tell
	})
}

// splice copies both ways until both have ended, one has broken, or nothing has
// come for tunnelIdle.
func splice(caller net.Conn, from *bufio.Reader, server net.Conn) {
	var both sync.WaitGroup
	defer both.Wait()
	broken := func(err error) bool { return err != nil && !errors.Is(err, io.EOF) }
	end := sync.OnceFunc(func() { caller.Close(); server.Close() })
	both.Go(func() {
		if _, err := io.Copy(server, &patient{caller, from}); broken(err) {
			end()
		} else if half, ok := server.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
	_, err := io.Copy(&patient{Conn: caller}, server)
	half, ok := caller.(interface{ CloseWrite() error })
	if broken(err) || !ok || half.CloseWrite() != nil {
		end()
		return
	}
	// The server has said all. What its caller still says has a while.
	_ = caller.SetReadDeadline(time.Now().Add(time.Minute))
}

// patient is a connection whose deadline moves as it is used.
type patient struct {
	net.Conn
	from *bufio.Reader
}

// Read implements io.Reader.
func (p *patient) Read(b []byte) (int, error) {
	if err := p.Conn.SetDeadline(time.Now().Add(tunnelIdle)); err != nil {
		return 0, err
	}
	return p.from.Read(b)
}

// Write implements io.Writer.
func (p *patient) Write(b []byte) (int, error) {
	if err := p.Conn.SetDeadline(time.Now().Add(tunnelIdle)); err != nil {
		return 0, err
	}
	return p.Conn.Write(b)
}

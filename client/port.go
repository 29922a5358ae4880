package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Conn is a connection to a server in a sandbox.
type Conn interface {
	io.ReadWriteCloser
	// CloseWrite tells the server that nothing follows; what it says still comes.
	CloseWrite() error
}

// DialPort connects to a TCP port of the sandbox's own loopback: the sandbox
// needs no network. Close the connection; the sandbox is not idle before.
//
// Errors: KindNotFound, also when nothing listens there; KindGone, KindTimeout,
// KindCapacity beyond 256 connections.
func (s *Sandbox) DialPort(ctx context.Context, port int) (Conn, error) {
	target := s.c.base + "/v1/sandboxes/" + url.PathEscape(s.id) + "/ports/" + strconv.Itoa(port)
	// The connection outlives ctx, which is for its making only.
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, target, nil)
	if err != nil {
		return nil, sandbox.Errorf("port", sandbox.KindInvalid, "%w", err)
	}
	(&headers{key: s.c.key, userAgent: s.c.userAgent}).set(req.Header)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	type answer struct {
		res *http.Response
		err error
	}
	came := make(chan answer, 1)
	go func() {
		res, err := s.c.http.Do(req)
		came <- answer{res, err}
	}()
	var a answer
	select {
	case a = <-came:
	case <-ctx.Done():
		go func() { // whoever waited has gone
			if a := <-came; a.err == nil {
				a.res.Body.Close()
			}
		}()
		return nil, sandbox.Wrap("port", s.id, context.Cause(ctx))
	}
	if a.err != nil {
		return nil, unreachable(a.err)
	}
	if a.res.StatusCode >= 400 {
		defer a.res.Body.Close()
		return nil, fromREST(a.res)
	}
	conn, ok := a.res.Body.(Conn)
	if !ok || a.res.StatusCode != http.StatusSwitchingProtocols {
		a.res.Body.Close()
		return nil, sandbox.Errorf("port", sandbox.KindProtocol, "the connection was not upgraded: %s", a.res.Status).WithID(s.id).
			WithHint("a proxy in between must pass upgrades on")
	}
	return conn, nil
}

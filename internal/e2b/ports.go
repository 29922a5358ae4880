package e2b

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/portproxy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// servePort forwards a request to a server inside, for who has the token.
func (s *Server) servePort(w http.ResponseWriter, r *http.Request, to target) {
	port, err := strconv.ParseUint(to.port, 10, 16)
	if err != nil || port == 0 {
		s.fail(w, r, s.door.Unknown(r.Context(), invalid("%.20q is not a port", to.port)))
		return
	}
	p, err := s.api.Holder(r.Context(), auth.UseTraffic, to.id, r.Header.Get(headerTraffic))
	if err != nil {
		said := s.door.Unknown(r.Context(), err)
		switch sandbox.KindOf(said) {
		case sandbox.KindNotFound:
			gone(w, to.id)
		case sandbox.KindUnauthenticated:
			problem := "Token header 'e2b-traffic-access-token' is missing"
			if r.Header.Get(headerTraffic) != "" {
				problem = "Token header 'e2b-traffic-access-token' is wrong"
			}
			answer(w, http.StatusForbidden, apiError{Code: http.StatusForbidden, SandboxID: to.id, Message: "Sandbox is secured with traffic access token. " + problem})
		default:
			s.fail(w, r, said)
		}
		return
	}
	if err := s.door.Known(r.Context(), p); err != nil {
		s.fail(w, r, err)
		return
	}
	if s.sleeps(w, to.id, "") {
		return
	}
	portproxy.Serve(w, r, portproxy.Target{
		Port: int(port),
		Dial: func(ctx context.Context) (net.Conn, error) {
			return s.api.DialPort(auth.WithPrincipal(ctx, p), to.id, int(port))
		},
		Secrets: []string{headerSandbox, headerPort, headerToken, headerTraffic},
		Secret:  ours,
		Failed:  func(w http.ResponseWriter, err error) { s.portFailed(w, r, to, err) },
	})
}

// ours reports whether a header's value holds a key of ours. Other credentials
// are the business of the server inside.
func ours(value string) bool {
	_, _, err := auth.Parse(strings.TrimPrefix(value, "Bearer "))
	return err == nil
}

// portFailed answers for a server inside that did not.
func (s *Server) portFailed(w http.ResponseWriter, r *http.Request, to target, err error) {
	var e *sandbox.Error
	kind := sandbox.KindProtocol // what came was no HTTP
	if errors.As(err, &e) {
		kind = e.Kind
	}
	switch kind {
	case sandbox.KindGone:
		gone(w, to.id)
	case sandbox.KindNotFound, sandbox.KindProtocol, sandbox.KindUnavailable, sandbox.KindInternal:
		said := "The sandbox is running but port " + to.port + " is not open"
		if kind != sandbox.KindNotFound {
			said = "The server on port " + to.port + " of the sandbox did not answer as HTTP servers do"
		}
		answer(w, http.StatusBadGateway, apiError{Code: http.StatusBadGateway, SandboxID: to.id, Message: said})
	default:
		s.fail(w, r, err)
	}
}

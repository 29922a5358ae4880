//go:build linux

package egress

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// TestBelieved: who does not believe the certificate of a host is told apart, as he
// says it or goes away; who asks, or comes back, believes it. For a name that no rule
// has there is none.
func TestBelieved(t *testing.T) {
	h := newHost(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	for name, c := range map[string]struct {
		to, name     string
		version      uint16
		believes     bool
		reason, hint string
	}{
		"no trust, TLS 1.2": {"good.example", "good.example", tls.VersionTLS12, false, inspect.ReasonUntrusted, "does not trust the sandbox's CA"},
		"no trust, TLS 1.3": {"good.example", "good.example", tls.VersionTLS13, false, inspect.ReasonUntrusted, "does not trust the sandbox's CA"},
		"a pin, TLS 1.2":    {"good.example", "good.example", tls.VersionTLS12, true, inspect.ReasonUntrusted, "went away"},
		"a pin, TLS 1.3":    {"good.example", "good.example", tls.VersionTLS13, true, inspect.ReasonUntrusted, "went away"},
		"another name":      {"1.2.3.4", "elsewhere.example", tls.VersionTLS13, true, policy.ReasonClaim.String(), "inspect: none"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			_, j, roots := read(t, p, h, h.rules()+fmt.Sprintf("\n  - {id: far, cidr: 1.2.3.4, ports: %d}", h.port), nil)
			if !c.believes {
				roots = x509.NewCertPool()
			}
			to := c.to
			if to == "good.example" {
				to = p.addr(to)
			}
			conn := tls.Client(p.mustDial(fmt.Sprintf("%s:%d", to, h.port)), &tls.Config{ServerName: c.name, RootCAs: roots, MaxVersion: c.version})
			if err := conn.Handshake(); (err == nil) != (c.hint == "went away") {
				t.Errorf("the handshake: %v", err)
			}
			conn.Close()
			e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny })
			if e.Kind != KindConnect || e.Reason != c.reason || !strings.Contains(e.Hint, c.hint) || e.Protocol != "tls" {
				t.Errorf("%+v", e)
			}
		})
	}
	p := newPlace(t)
	_, j, roots := read(t, p, h, h.rules(), nil)
	client := p.client(roots, false)
	client.Transport.(*http.Transport).TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 2 {
		resp, err := client.Get(fmt.Sprintf("https://good.example:%d/", h.port))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		client.CloseIdleConnections()
	}
	j.wait(t, "an end", func(e Event) bool { return e.Kind == KindClose })
	for _, e := range j.all() {
		if e.Decision == Deny {
			t.Errorf("of who asked something: %+v", e)
		}
	}
}

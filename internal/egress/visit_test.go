//go:build linux

package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

var testSeed = bytes.Repeat([]byte{7}, authority.MinSeed)

// trusted is the authority of the place's wire under a policy, and who trusts it.
func trusted(t testing.TB, text string) (*authority.Authority, *x509.CertPool) {
	t.Helper()
	a, err := authority.Derive(testSeed, "one", table(t, text).Scope(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("the authority has no certificate")
	}
	return a, pool
}

// read serves the place's wire with an authority that its clients trust.
func read(t testing.TB, p *place, h *host, text string, change func(*Config), bindings ...Binding) (*Router, *journal, *x509.CertPool) {
	t.Helper()
	j := new(journal)
	c := Config{Logger: slog.New(slog.NewTextHandler(testLog{t}, nil)), Dialer: netaddr.Dialer{Lookup: lookup}, Record: j.record}
	if h != nil {
		c.Roots = h.roots
	}
	if change != nil {
		change(&c)
	}
	r := New(c)
	t.Cleanup(func() { _ = r.Close() })
	a, pool := trusted(t, text)
	if err := r.Attach(Wire{ID: "one", Table: table(t, text), Bindings: bindings, Authority: a}, p.tap); err != nil {
		t.Fatal(err)
	}
	return r, j, pool
}

// client is an HTTPS client in the place that trusts roots.
func (p *place) client(roots *x509.CertPool, h2 bool) *http.Client {
	tr := &http.Transport{
		ForceAttemptHTTP2: h2, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true,
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			name, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return p.dial(net.JoinHostPort(p.addr(name), port))
		}}
	p.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (h *host) rules() string { return rules(fmt.Sprint(h.port)) }

// TestVisit: a request of an ordinary client goes through TLS that ends here, is
// decided about and recorded, and goes on by TLS of ours; its answer comes back.
func TestVisit(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		p := newPlace(t)
		var j *journal
		h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
			recorded := 0
			for _, e := range j.all() {
				if e.Kind == KindRequest && e.Decision == Allow {
					recorded++
				}
			}
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("Alt-Svc", `h3=":443"`)
			w.Header().Set("Set-Cookie", "a=b")
			fmt.Fprint(w, r.Method, " ", r.Host, " ", r.RequestURI, " ", r.Header.Get("Cookie"), " ", string(b), " ", recorded)
		})
		_, j0, roots := read(t, p, h, h.rules(), nil)
		j = j0
		c := p.client(roots, h2)
		req, err := http.NewRequest("POST", fmt.Sprintf("https://good.example:%d/a%%2Fb//c?x=%%2F", h.port), strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Cookie", "c=d")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		want := fmt.Sprintf("POST good.example:%d /a%%2Fb//c?x=%%2F c=d hello 1", h.port)
		if err != nil || string(body) != want {
			t.Errorf("h2 %v: %q %v, want %q", h2, body, err, want)
		}
		if resp.ProtoMajor != map[bool]int{false: 1, true: 2}[h2] || resp.Header.Get("Alt-Svc") != "" || resp.Header.Get("Set-Cookie") != "a=b" {
			t.Errorf("h2 %v: %s %v", h2, resp.Proto, resp.Header)
		}
		e := j.wait(t, "a request", func(e Event) bool { return e.Kind == KindRequest })
		if e.Decision != Allow || e.Rule != "good" || e.Method != "POST" || e.Host != "good.example" || e.Port != h.port || e.Protocol != "tls" || e.Binding != "" || e.Reason != "rule" {
			t.Errorf("%+v", e)
		}
		e = j.wait(t, "a connection", func(e Event) bool { return e.Kind == KindConnect })
		if e.Decision != Allow || e.Address != "127.0.0.1" || e.Rule != "good" {
			t.Errorf("%+v", e)
		}
	}
}

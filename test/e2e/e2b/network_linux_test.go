package e2b

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// TestNetwork drives the network options of the published SDKs: what they name is
// reached, nothing else gets a packet or has its name asked for, and an update
// holds for what is there already.
func TestNetwork(t *testing.T) {
	for name, client := range map[string]func(*server, *testing.T) []string{
		"js":     func(s *server, t *testing.T) []string { return s.node(t, "network.mjs") },
		"python": func(s *server, t *testing.T) []string { return s.python(t, "network.py") },
	} {
		t.Run(name, func(t *testing.T) {
			n := internet.New(t)
			slow := internet.Trickle(20 * time.Millisecond)
			site := http.NewServeMux()
			site.Handle("/", internet.Reached)
			site.Handle("/slow", slow)
			api, second, denied := n.Site("api.example", site), n.Site("second.example", site), n.Site("denied.example", internet.Reached)
			within := netip.MustParseAddr("93.184.216.34") // of what denyOut names
			n.Names.Set("within.example", within.String())
			n.Names.Set("*.tunnel.example", "198.51.100.7")
			tr := n.Transport()
			defer tr.CloseIdleConnections()
			s := serveIn(t, place{begin: n.Start, transport: tr, env: []string{"SSL_CERT_FILE=" + n.Authority.File}})
			s.networked()
			s.steps(t, client(s, t)...)
			if slow.Ended() != 1 {
				t.Errorf("%d answers without an end have ended, not one", slow.Ended())
			}
			sent := n.Sink.Counts(t)
			if got := sent.To(denied, within, netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("198.51.100.7")).Total(); got.Packets != 0 {
				t.Errorf("what is denied got %+v: %v", got, sent)
			}
			for f := range sent {
				if asks := f.To.Port() == 53 && slices.Contains(internet.NameServers(), f.To.Addr()); !asks && f.To.Addr() != api && f.To.Addr() != second {
					t.Errorf("packets went to %v", f)
				}
			}
			for _, q := range n.Names.Queries() {
				// within.example is allowed by its name; only its address is denied.
				if !slices.Contains([]string{"api.example", "second.example", "within.example"}, strings.ToLower(q.Name)) {
					t.Errorf("a name server was asked %+v", q)
				}
			}
			// Each request has its time as its path: nothing got out before it was allowed
			// or after.
			var got []string
			for _, r := range n.Requests() {
				got = append(got, r.Host+r.Path)
			}
			slices.Sort(got)
			if want := []string{"api.example/first", "api.example/slow", "second.example/second"}; !slices.Equal(got, want) {
				t.Errorf("the requests were %q, want %q", got, want)
			}
		})
	}
}

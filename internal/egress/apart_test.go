//go:build linux

package egress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// TestBindingApart: two sandboxes with bindings to one host share no connection and
// see nothing of each other's, under many requests and changing policies.
func TestBindingApart(t *testing.T) {
	var mu sync.Mutex
	by := map[string]string{} // the secret that came on a connection
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		a := r.Header.Get("Authorization")
		if was, ok := by[r.RemoteAddr]; ok && was != a {
			t.Errorf("two secrets on one connection: %s", r.RemoteAddr)
		}
		by[r.RemoteAddr] = a
		fmt.Fprint(w, r.URL.Path, a)
	})
	one, two := newPlace(t), newPlace(t)
	first, second := h.binding("api"), h.binding("other")
	first.Secret, second.Secret = Hidden("the-first-secret"), Hidden("the-second-secret")
	r, _ := bind(t, one, h, nothing, nil, first)
	if err := r.Attach(Wire{ID: "two", Table: table(t, nothing), Bindings: []Binding{second}}, two.tap); err != nil {
		t.Fatal(err)
	}
	if code, _ := two.ask("udp4", "api.binding.internal", dnsmessage.TypeA); code != dnsmessage.RCodeNameError {
		t.Error("another sandbox's binding has an address: ", code)
	}
	var all sync.WaitGroup
	for i := range 8 {
		p, name := one, "api"
		if i%2 == 1 {
			p, name = two, "other"
		}
		c := p.mustDial(net.JoinHostPort(p.addr(name+".binding.internal"), "80"))
		all.Go(func() {
			in := bufio.NewReader(c)
			for n := range 50 {
				path := fmt.Sprintf("/v1/%d/%d", i, n)
				fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s.binding.internal\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", path, name)
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					return // an update came between
				}
				b, err := io.ReadAll(resp.Body)
				if resp.StatusCode == 200 && err == nil && !strings.HasPrefix(string(b), path+"Bearer ****") || strings.Contains(string(b), "secret") {
					t.Errorf("%s: %q", path, b)
				}
			}
		})
	}
	for range 5 {
		for _, id := range []string{"one", "two"} {
			if _, _, err := r.Update(id, table(t, nothing), nil); err != nil {
				t.Error(err)
			}
		}
	}
	all.Wait()
	mu.Lock()
	defer mu.Unlock()
	secrets := map[string]bool{}
	for _, a := range by {
		secrets[a] = true
	}
	if len(secrets) != 2 {
		t.Errorf("%v", by)
	}
}

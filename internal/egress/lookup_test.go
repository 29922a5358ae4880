//go:build linux

package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

// TestRecent: connections to one port of a name that follow each other ask for it
// once; another port, another sandbox, and whoever finds nobody there, ask again.
func TestRecent(t *testing.T) {
	p, q := newPlace(t), newPlace(t)
	s, other := serve(t, echo), serve(t, echo)
	r, _ := attached(t, p, raw, nil)
	if err := r.Attach(Wire{ID: "two", Table: table(t, raw)}, q.tap); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	asked := func(n int64, what string, f func()) {
		t.Helper()
		before := lookups.Load()
		f()
		if got := lookups.Load() - before; got != n && time.Since(begun) < remembered {
			t.Errorf("%s: asked %d times, want %d", what, got, n)
		}
	}
	at, next := p.addr("good.example"), q.addr("good.example")
	asked(1, "the first", func() { p.works(at + ":" + s.port) })
	asked(0, "more", func() { p.works(at + ":" + s.port); p.works(at + ":" + s.port) })
	asked(1, "another port", func() { p.works(at + ":" + other.port) })
	asked(1, "another sandbox", func() { q.works(next + ":" + s.port) })
	other.Close()
	nobody := func() {
		if c, err := p.dial(at + ":" + other.port); err == nil {
			c.Close()
			t.Error("connected to nobody")
		}
	}
	asked(0, "nobody is there", nobody)
	asked(1, "nobody was there", nobody)
}

// TestRecentIsBounded: what is remembered is bounded, forgotten after a moment, and
// the caller's to change; an error is not remembered.
func TestRecentIsBounded(t *testing.T) {
	var r recent
	calls := 0
	ask := func(_ context.Context, name string) ([]netip.Addr, error) {
		if calls++; name == "none.example" {
			return nil, &net.DNSError{IsNotFound: true}
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
	}
	get := r.through(ask, 443)
	for range 3 {
		addrs, err := get(t.Context(), "a.example")
		if err != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddr("192.0.2.1") {
			t.Fatal(addrs, err)
		}
		addrs[0] = netip.Addr{}
	}
	if calls != 1 {
		t.Errorf("asked %d times", calls)
	}
	r.known[asked{"a.example", 443}] = answered{time.Now().Add(-remembered), nil}
	if addrs, err := get(t.Context(), "a.example"); err != nil || len(addrs) != 1 || calls != 2 {
		t.Errorf("later: %v, %v, asked %d times", addrs, err, calls)
	}
	for range 2 {
		var e *net.DNSError
		if _, err := get(t.Context(), "none.example"); !errors.As(err, &e) {
			t.Error(err)
		}
	}
	if calls != 4 {
		t.Errorf("asked %d times", calls)
	}
	for i := range 3 * maxRemembered {
		if _, err := get(t.Context(), strconv.Itoa(i)+".example"); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.known) > maxRemembered {
		t.Errorf("%d are remembered", len(r.known))
	}
}

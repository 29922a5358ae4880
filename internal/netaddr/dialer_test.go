package netaddr

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// listen counts the connections that arrive.
func listen(t *testing.T, addr string) (port uint16, accepted *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	accepted = new(atomic.Int64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return uint16(l.Addr().(*net.TCPAddr).Port), accepted
}

// arrive waits until all connections that were made have arrived, and no more.
func arrive(t *testing.T, accepted *atomic.Int64, want int64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); accepted.Load() < want && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := accepted.Load(); n != want {
		t.Errorf("%d connections arrived, want %d", n, want)
	}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func loopbackOnly(_ Host, _ uint16, _ netip.Addr, c Class) bool { return c == Loopback }

func TestDialer(t *testing.T) {
	port, accepted := listen(t, "127.0.0.1:0")
	answers := map[string][]netip.Addr{
		"inside.example": addrs("127.0.0.1"), "mapped.example": addrs("::ffff:127.0.0.1"), "wrapped.example": addrs("64:ff9b::7f00:1"), "mixed.example": addrs("1.1.1.1", "127.0.0.1"),
		"metadata.example": addrs("169.254.169.254"), "lan.example": addrs("10.0.0.1"), "zone.example": addrs("fe80::1%lo"), "none.example": nil,
	}
	lookup := func(_ context.Context, name string) ([]netip.Addr, error) { return answers[name], nil }
	open := &Dialer{Lookup: lookup, Allow: loopbackOnly}
	shut := &Dialer{Lookup: lookup}
	at := func(s string) string { return s + HostOf(netip.IPv4Unspecified()).WithPort(port)[len("0.0.0.0"):] }
	refused := func(d *Dialer, addr string, want Class) {
		t.Helper()
		conn, err := d.DialContext(t.Context(), "tcp", addr)
		var no *RefusedError
		if err == nil || conn != nil || !errors.As(err, &no) || no.Class != want {
			t.Errorf("%s: %v, want %s", addr, err, want)
		}
	}
	for _, s := range []string{"127.0.0.1", "[::ffff:127.0.0.1]", "inside.example", "INSIDE.example.", "mapped.example"} {
		refused(shut, at(s), Loopback)
		conn, err := open.DialContext(t.Context(), "tcp", at(s))
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		conn.Close()
	}
	if shut, err := shut.DialContext(t.Context(), "tcp", at("mixed.example")); err == nil {
		shut.Close()
		t.Error("an answer with an address of this machine among others")
	}
	refused(shut, at("mixed.example"), Loopback)
	for _, d := range []*Dialer{open, shut, {Lookup: lookup, Allow: func(Host, uint16, netip.Addr, Class) bool { return true }}} {
		refused(d, at("wrapped.example"), NAT64)
		refused(d, at("metadata.example"), Metadata)
		refused(d, at("169.254.169.254"), Metadata)
		refused(d, at("[64:ff9b::a9fe:a9fe]"), Metadata)
		refused(d, at("[::127.0.0.1]"), Compatible)
		refused(d, at("0.0.0.0"), Unspecified)
		refused(d, at("zone.example"), LinkLocal)
		for _, s := range []string{"127.1", "0x7f.1", "2130706433", "0177.0.0.1", "a_b", "127.0.0.1%00", "user@127.0.0.1", ""} {
			var odd *HostError
			if _, err := d.DialContext(t.Context(), "tcp", at(s)); !errors.As(err, &odd) {
				t.Errorf("%q: %v", s, err)
			}
		}
	}
	refused(open, at("lan.example"), Private)
	if _, err := open.DialContext(t.Context(), "tcp", at("none.example")); err == nil {
		t.Error("no address was dialled")
	}
	if _, err := open.DialContext(t.Context(), "udp", at("127.0.0.1")); err == nil {
		t.Error("UDP was dialled")
	}
	if _, err := open.DialContext(t.Context(), "tcp", "127.0.0.1"); err == nil {
		t.Error("no port was dialled")
	}
	arrive(t, accepted, 5)
}

// TestDialerPins: a name is resolved once, and only what was looked at is
// dialled, whatever the name means by then.
func TestDialerPins(t *testing.T) {
	good, goodCount := listen(t, "127.0.0.1:0")
	var asked atomic.Int64
	d := &Dialer{
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			if asked.Add(1) == 1 {
				return addrs("127.0.0.1"), nil
			}
			return addrs("127.0.0.2"), nil
		},
		Allow: func(_ Host, _ uint16, a netip.Addr, _ Class) bool { return a == netip.MustParseAddr("127.0.0.1") },
	}
	conn, err := d.DialContext(t.Context(), "tcp", HostOf(netip.MustParseAddr("127.0.0.1")).WithPort(good))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	h, _ := ParseHost("rebind.example")
	pinned, err := d.Resolve(t.Context(), h, good)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err = d.DialPinned(t.Context(), "tcp", h, good, pinned); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
	var no *RefusedError
	if _, err = d.Resolve(t.Context(), h, good); !errors.As(err, &no) {
		t.Errorf("the second answer: %v", err)
	}
	// What is handed in is checked at the connect itself.
	if _, err = d.DialPinned(t.Context(), "tcp", h, good, addrs("127.0.0.2")); !errors.As(err, &no) {
		t.Errorf("an address nobody looked at: %v", err)
	}
	if _, err = d.DialPinned(t.Context(), "tcp", h, good, addrs("169.254.169.254")); !errors.As(err, &no) {
		t.Errorf("an address nobody looked at: %v", err)
	}
	arrive(t, goodCount, 2)
}

// TestDialerTriesAll: one that does not answer does not hide the next.
func TestDialerTriesAll(t *testing.T) {
	port, _ := listen(t, "127.0.0.2:0") // nobody listens at 127.0.0.1
	d := &Dialer{Allow: loopbackOnly}
	h, _ := ParseHost("two.example")
	conn, err := d.DialPinned(t.Context(), "tcp", h, port, addrs("127.0.0.1", "127.0.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.DialPinned(ctx, "tcp", h, port, addrs("127.0.0.2")); err == nil {
		t.Error("dialled for nobody")
	}
	if _, err := d.DialPinned(t.Context(), "tcp6", h, port, addrs("127.0.0.2")); err == nil {
		t.Error("IPv4 as tcp6")
	}
}

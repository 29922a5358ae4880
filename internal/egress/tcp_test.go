//go:build linux

package egress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// denied dials from the place, says something if it is accepted, and fails unless
// it is broken off.
func (p *place) denied(to, say string) {
	p.Helper()
	c, err := p.dial(to)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, say)
		var n int
		if n, err = c.Read(make([]byte, 100)); n > 0 {
			p.Errorf("%s answered", to)
		}
	}
	if !reset(err) {
		p.Errorf("%s: %v, want a reset", to, err)
	}
}

// hello is what a TLS client says first to name.
func hello(t testing.TB, config *tls.Config) string {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go func() { _ = tls.Client(theirs, config).Handshake() }()
	buf := make([]byte, 32<<10)
	n, err := ours.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func request(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }

// TestDenied: what no rule allows gets a reset and reaches nobody, and what was
// wanted is told with why.
func TestDenied(t *testing.T) {
	p := newPlace(t)
	sink := serve(t, echo)
	closed, err := net.Listen("tcp4", "127.0.0.1:0") // a port that rules are not about
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	_, otherPort, _ := net.SplitHostPort(closed.Addr().String())
	_, j := attached(t, p, `
allow:
  - {id: good, host: [good.example, '*.good.example'], ports: `+sink.port+`}
  - {id: many, host: [metadata.example, mixed.example, private.example, nowhere.example], ports: `+sink.port+`}
  - {id: world, cidr: 0.0.0.0/0, ports: [80, `+sink.port+`], protocol: [tls, http, tcp]}
  - {id: net, cidr: 127.0.0.1, ports: 1024-65535}
deny:
  - {id: not, cidr: 9.9.9.0/24}`, nil)
	good := p.addr("good.example")
	dark := &tls.Config{InsecureSkipVerify: true}
	for _, c := range []struct{ to, say, reason string }{
		{"169.254.169.254:80", request("169.254.169.254"), "address"},
		{"100.100.100.200:80", request("a"), "address"},
		{"168.63.129.16:80", request("a"), "address"},
		{"10.0.0.1:80", request("a"), "private"},
		{"192.168.1.1:80", request("a"), "private"},
		{"9.9.9.9:80", request("a"), "denied"},
		{"8.8.8.8:22", "SSH-2.0-x\r\n", "port"},
		{"240.0.0.1:80", "", ""}, // to nobody: the stack never sees it
		{gatewayAddr.String() + ":80", "", "address"},
		{"10.200.0.3:80", "", ""},
		{"198.18.77.7:" + sink.port, request("good.example"), "address"}, // an address of another epoch's
		{good + ":" + otherPort, request("good.example"), "port"},
		{p.addr("c1.good.example") + ":" + sink.port, request("other.example"), "claim"},
		{p.addr("c2.good.example") + ":" + sink.port, request("c2.good.example:1"), "claim"},
		{p.addr("c3.good.example") + ":" + sink.port, "GET / HTTP/1.1\r\n\r\n", "claim"},
		{p.addr("c4.good.example") + ":" + sink.port, "GET / HTTP/1.1\r\nHost: c4.good.example\r\nHost: c4.good.example\r\n\r\n", "claim"},
		{p.addr("c5.good.example") + ":" + sink.port, "GET http://other.example/ HTTP/1.1\r\nHost: c5.good.example\r\n\r\n", "claim"},
		{p.addr("c6.good.example") + ":" + sink.port, "CONNECT c6.good.example:443 HTTP/1.1\r\nHost: c6.good.example\r\n\r\n", "claim"},
		{p.addr("c7.good.example") + ":" + sink.port, "SSH-2.0-x\r\n", "protocol"},
		{p.addr("c8.good.example") + ":" + sink.port, hello(t, &tls.Config{ServerName: "other.example"}), "claim"},
		{p.addr("c9.good.example") + ":" + sink.port, hello(t, dark), "claim"},
		{p.addr("metadata.example") + ":" + sink.port, request("metadata.example"), "address"},
		{p.addr("mixed.example") + ":" + sink.port, request("mixed.example"), "address"},
		{p.addr("private.example") + ":" + sink.port, request("private.example"), "private"},
		{p.addr("nowhere.example") + ":" + sink.port, request("nowhere.example"), ReasonUnresolved},
	} {
		before := len(j.all())
		if c.reason == "" {
			p.in(func() {
				d := net.Dialer{Timeout: 300 * time.Millisecond}
				if conn, err := d.Dial("tcp4", c.to); err == nil {
					conn.Close()
					t.Errorf("%s answered", c.to)
				}
			})
			continue
		}
		p.denied(c.to, c.say)
		eventually(t, c.to+" is told of", func() bool { return len(j.all()) > before })
		if e := j.all()[before]; e.Reason != c.reason || e.Decision != Deny || e.Kind != KindConnect || e.Hint == "" || e.Count != 1 {
			t.Errorf("%s %.40q: %+v", c.to, c.say, e)
		}
	}
	if sink.conns.Load() != 0 || sink.bytes.Load() != 0 {
		t.Errorf("%d connections, %d bytes", sink.conns.Load(), sink.bytes.Load())
	}
}

// TestNames: names are answered from the policy, at the gateway and nowhere else,
// and nobody is asked about them.
func TestNames(t *testing.T) {
	p := newPlace(t)
	_, j := attached(t, p, "allow: [good.example, '*.wild.example']", nil)
	asked := lookups.Load()
	for _, network := range []string{"udp4", "tcp4"} {
		if code, addrs := p.ask(network, "GOOD.example", dnsmessage.TypeA); code != dnsmessage.RCodeSuccess || len(addrs) != 1 {
			t.Error(network, code, addrs)
		}
		if code, addrs := p.ask(network, "good.example", dnsmessage.TypeAAAA); code != dnsmessage.RCodeSuccess || len(addrs) != 0 {
			t.Error(network, code, addrs)
		}
		if code, addrs := p.ask(network, "secret.bad.example", dnsmessage.TypeA); code != dnsmessage.RCodeNameError || len(addrs) != 0 {
			t.Error(network, code, addrs)
		}
	}
	if lookups.Load() != asked {
		t.Error("somebody was asked")
	}
	var told []Event
	for _, e := range j.all() {
		if e.Kind == KindDNS {
			told = append(told, e)
		}
	}
	if len(told) != 2 || told[0].Host != "good.example" || told[0].Decision != Allow || told[1].Host != "secret.bad.example" || told[1].Decision != Deny {
		t.Errorf("%+v", told)
	}
	p.in(func() { // anybody else's DNS says nothing
		conn, err := net.Dial("udp4", "8.8.8.8:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = conn.Write([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x07example\x00\x00\x01\x00\x01"))
		if n, err := conn.Read(make([]byte, 100)); err == nil {
			t.Errorf("%d bytes", n)
		}
	})
	e := j.wait(t, "the datagram is told of", func(e Event) bool { return e.Protocol == "udp" })
	if e.Host != "8.8.8.8" || e.Port != 53 || e.Decision != Deny || e.Hint == "" {
		t.Errorf("%+v", e)
	}
}

// TestOpaque: where a rule says so, a handshake with the right name passes
// untouched, whatever is spoken after it; not where a binding leads to the same
// host.
func TestOpaque(t *testing.T) {
	p := newPlace(t)
	cert := selfSigned(t, "good.example")
	s := serve(t, func(c net.Conn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		_, _ = io.Copy(tc, tc)
		_ = tc.Close()
	})
	unread := "allow:\n  - {id: good, host: good.example, ports: " + s.port + ", inspect: none}" + loopback
	_, j := attached(t, p, unread, nil)
	c := tls.Client(p.mustDial(p.addr("good.example")+":"+s.port), &tls.Config{ServerName: "good.example", InsecureSkipVerify: true})
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Fatal(string(buf), err)
	}
	e := j.wait(t, "it is told of", func(e Event) bool { return e.Kind == KindConnect })
	if e.Protocol != "tls" || e.Decision != Allow || e.Rule != "good" || e.Address != "127.0.0.1" || e.Generation != 1 {
		t.Errorf("%+v", e)
	}
	port, err := strconv.Atoi(s.port)
	if err != nil {
		t.Fatal(err)
	}
	q := newPlace(t)
	_, j, _ = read(t, q, nil, unread, nil, Binding{Name: "api", Host: "good.example", Port: uint16(port), Path: "/", As: "bearer", Secret: Hidden(theSecret)})
	before := s.conns.Load()
	q.denied(q.addr("good.example")+":"+s.port, hello(t, &tls.Config{ServerName: "good.example"}))
	if e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny }); e.Reason != "inspect" || e.Hint == "" || s.conns.Load() != before {
		t.Errorf("%+v", e)
	}
}

// TestNoAuthority: TLS that has to be read, and cannot be, does not pass.
func TestNoAuthority(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	_, j := attached(t, p, rules(s.port), nil)
	p.denied(p.addr("good.example")+":"+s.port, hello(t, &tls.Config{ServerName: "good.example"}))
	if e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny }); e.Reason != "inspect" || e.Hint == "" || s.conns.Load() != 0 {
		t.Errorf("%+v", e)
	}
}

// TestServerFirst: where a rule has raw TCP alone nobody waits for the sandbox to
// speak; where it has others as well not for long; and a server that refuses is
// seen as one.
func TestServerFirst(t *testing.T) {
	p := newPlace(t)
	s := serve(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 ready\r\n")
		echo(c)
	})
	gone, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, goneAt, _ := net.SplitHostPort(gone.Addr().String())
	gone.Close()
	_, j := attached(t, p, `
allow:
  - {id: raw, host: good.example, ports: [`+s.port+`, `+goneAt+`], protocol: tcp}
  - {id: any, host: other.example, ports: `+s.port+`, protocol: [tls, http, tcp]}`+loopback, nil)
	for _, name := range []string{"good.example", "other.example"} {
		c := p.mustDial(p.addr(name) + ":" + s.port)
		buf := make([]byte, 11)
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "220 ready\r\n" {
			t.Fatal(name, string(buf), err)
		}
	}
	if _, err := p.dial(p.addr("good.example") + ":" + goneAt); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	e := j.wait(t, "nobody answered", func(e Event) bool { return e.Kind == KindClose })
	if e.Reason != ReasonUnreachable || !strings.Contains(e.Hint, "refused") || e.Decision != Allow {
		t.Errorf("%+v", e)
	}
}

// TestUpdate: a new policy ends what the old one allowed, before Update returns,
// and is asked about what comes then.
func TestUpdate(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	r, j := attached(t, p, raw, nil)
	to := p.addr("good.example") + ":" + s.port
	c := p.mustDial(to)
	_, _ = io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	generation, closed, err := r.Update("one", table(t, "allow: [elsewhere.example]"), nil)
	if generation != 2 || closed != 1 || err != nil {
		t.Error(generation, closed, err)
	}
	if _, err := c.Read(make([]byte, 1)); !reset(err) {
		t.Error(err)
	}
	if e := j.wait(t, "the end", func(e Event) bool { return e.Kind == KindClose }); e.Reason != ReasonUpdated || e.Generation != 1 || e.Upload != 1 {
		t.Errorf("%+v", e)
	}
	p.denied(to, "")
	if e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny }); e.Generation != 2 || e.Reason != policy.ReasonNoRule.String() {
		t.Errorf("%+v", e)
	}
	if s.conns.Load() != 1 {
		t.Error(s.conns.Load())
	}
	if _, _, err := r.Update("two", nil, nil); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Error(err)
	}
}

// TestUnrecorded: what cannot be recorded does not happen.
func TestUnrecorded(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	_, j := attached(t, p, raw, nil)
	j.fail.Store(true)
	for _, network := range []string{"udp4", "tcp4"} { // and is said at once
		if code, addrs := p.ask(network, "good.example", dnsmessage.TypeA); code != dnsmessage.RCodeServerFailure || len(addrs) != 0 {
			t.Error(network, code, addrs)
		}
	}
	j.fail.Store(false)
	to := p.addr("good.example") + ":" + s.port
	j.fail.Store(true)
	p.denied(to, "x")
	j.fail.Store(false)
	if s.conns.Load() != 0 {
		t.Error("it was dialled")
	}
	c := p.mustDial(to)
	_, _ = io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// TestObserve: a policy that only observes lets pass, and says what no rule is
// about.
func TestObserve(t *testing.T) {
	p := newPlace(t)
	j := new(journal)
	attached(t, p, "mode: observe\ndeny: [bad.example]", func(c *Config) {
		c.Record = func(e Event) error {
			return errors.Join(j.record(e), map[bool]error{true: errors.New("go no further")}[e.Kind == KindConnect])
		}
	})
	to := p.addr("public.good.example")
	p.denied(to+":80", request("public.good.example"))
	if e := j.wait(t, "it", func(e Event) bool { return e.Kind == KindConnect }); e.Decision != Observe || e.Reason != "observed" || e.Rule != "" {
		t.Errorf("%+v", e)
	}
	if code, _ := p.ask("udp4", "bad.example", dnsmessage.TypeA); code != dnsmessage.RCodeNameError {
		t.Error(code)
	}
}

// TestOwn: an address of this machine is dialled only if the operator names it,
// also where the policy does not know that it is one.
func TestOwn(t *testing.T) {
	var own netip.Addr
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if a, _ := netip.AddrFromSlice(x.(*net.IPNet).IP); a.Unmap().Is4() && netaddr.Classify(a).Openable() && !a.IsLoopback() {
			own = a.Unmap()
		}
	}
	if !own.IsValid() {
		t.Skip("not run: the machine has no private address")
	}
	l, err := net.Listen("tcp4", own.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{}, 10)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			reached <- struct{}{}
			_, _ = c.Write([]byte("x"))
			c.Close()
		}
	})
	defer done.Wait()
	defer l.Close()
	wide, err := own.Prefix(24)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	r, j := attached(t, p, "allow: [a.example]", nil)
	update := func(private, rule netip.Prefix, known func(netip.Addr) bool) {
		d, err := policy.Parse("p.yaml", []byte("allow: [{cidr: "+rule.String()+", ports: 1024-65535, protocol: tcp}]"))
		if err != nil {
			t.Fatal(err)
		}
		next, err := policy.Compile(policy.Options{Private: []netip.Prefix{private}, Own: known}, d)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Update("one", next, nil); err != nil {
			t.Fatal(err)
		}
	}
	machine := new(netaddr.Machine)
	single := netip.PrefixFrom(own, 32)
	update(wide, wide, nil)
	p.denied(l.Addr().String(), "x")
	if e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny }); e.Reason != "private" || e.Hint == "" {
		t.Errorf("%+v", e)
	}
	update(wide, single, machine.Own)
	p.denied(l.Addr().String(), "x")
	if len(reached) != 0 {
		t.Error("it was dialled")
	}
	update(single, single, machine.Own)
	c := p.mustDial(l.Addr().String())
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// TestBudgets: bytes are charged before they pass, over connections, updates and
// a restart.
func TestBudgets(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	text := "allow:\n  - {id: net, cidr: 127.0.0.1, ports: 1024-65535, protocol: tcp}\n" +
		"  - {id: good, host: good.example, ports: " + s.port + ", protocol: tcp, budget: {upload: 100KB, connections: 5}}\n" +
		"  - {id: other, host: other.example, ports: " + s.port + ", protocol: tcp, budget: {download: 10KB}}"
	r, j := attached(t, p, text, nil)
	to := p.addr("good.example") + ":" + s.port
	c := p.mustDial(to)
	say := bytes.Repeat([]byte("x"), 60_000)
	_, _ = c.Write(say)
	if _, err := io.ReadFull(c, say); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write(say) // beyond
	if _, err := io.Copy(io.Discard, c); !reset(err) {
		t.Error(err)
	}
	e := j.wait(t, "the end", func(e Event) bool { return e.Kind == KindClose })
	if e.Reason != "budget" || !strings.Contains(e.Hint, "upload") || s.bytes.Load() > 100_000 {
		t.Errorf("%+v, %d bytes", e, s.bytes.Load())
	}
	used, err := r.Used("one")
	if u := used["good"]; err != nil || u.Upload != e.Upload || u.Upload < 60_000 || u.Upload > 100_000 || u.Connections != 1 {
		t.Errorf("%+v %v", used, err)
	}
	c = p.mustDial(p.addr("other.example") + ":" + s.port)
	_, _ = c.Write(say)
	if n, err := io.Copy(io.Discard, c); !reset(err) || n > 10<<10 {
		t.Error(n, err)
	}
	e = j.wait(t, "the end", func(e Event) bool { return e.Kind == KindClose && e.Host == "other.example" })
	if e.Reason != "budget" || !strings.Contains(e.Hint, "download") {
		t.Errorf("%+v", e)
	}
	for range 4 {
		_ = p.mustDial(to).Close()
	}
	p.denied(to, "x")
	if e := j.wait(t, "the denial", func(e Event) bool { return e.Decision == Deny }); e.Reason != "budget" || !strings.Contains(e.Hint, "connections") {
		t.Errorf("%+v", e)
	}
	used, err = r.Detach("one")
	if u := used["good"]; err != nil || u.Connections != 5 || u.Concurrent != 0 {
		t.Errorf("%+v %v", used, err)
	}
	q := newPlace(t)
	if err := r.Attach(Wire{ID: "one", Epoch: 1, Table: table(t, text), Used: used}, q.tap); err != nil {
		t.Fatal(err)
	}
	at := q.addr("good.example")
	if !netip.MustParsePrefix("198.18.16.0/20").Contains(netip.MustParseAddr(at)) {
		t.Error(at)
	}
	q.denied(at+":"+s.port, "x")
	if s.conns.Load() != 6 {
		t.Error(s.conns.Load())
	}
}

// TestFallback: of a name's addresses the next is dialled where one does not
// answer, each on record before.
func TestFallback(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	_, j := attached(t, p, "allow:\n  - {id: net, cidr: 127.0.0.0/8, ports: 1024-65535, protocol: tcp}\n  - {id: two, host: two.example, ports: 1024-65535, protocol: tcp}", nil)
	p.works(p.addr("two.example") + ":" + s.port)
	e := j.wait(t, "the end", func(e Event) bool { return e.Kind == KindClose })
	var dialled []string
	for _, e := range j.all() {
		if e.Kind == KindConnect {
			dialled = append(dialled, e.Address)
		}
	}
	if fmt.Sprint(dialled) != "[127.0.0.9 127.0.0.1]" || e.Address != "127.0.0.1" {
		t.Error(dialled, e)
	}
}

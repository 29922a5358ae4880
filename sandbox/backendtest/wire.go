package backendtest

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Wire is a prepared network and its far end, for the suite to serve: Ethernet
// frames, each with a virtio-net header of 10 bytes in front, checksums and
// segments left to the other side. Closing Tap leaves the wire as it is.
type Wire struct {
	sandbox.Wire
	Tap io.ReadWriteCloser
	// Reopen returns a new far end, once the last one is closed.
	Reopen func(t *testing.T) io.ReadWriteCloser
}

// testWire: a sandbox with a wire has that and nothing else.
func testWire(t *testing.T, s *suite) {
	switch {
	case !s.info.Capabilities.Wire && s.Wire == nil:
		return // it never does, which Create/Unsupported/Wire holds it to
	case !s.info.Capabilities.Wire:
		t.Skipf("not run: backend %s attaches no network here: %s", s.info.Name, strings.Join(s.info.Notes, "; "))
	case s.Wire == nil:
		t.Fatal("the backend claims to attach wires, but Config.Wire is missing")
	}
	s.par(t, "Exchange", s.testExchange)
	s.par(t, "Device", s.testDevice)
	s.par(t, "ReadonlyRoot", s.testWireReadonly)
	s.par(t, "Outlives", s.testWireOutlives)
	s.sub(t, "Invalid", s.testWireInvalid)
}

// wired boots an instance on a wire of its own, whose far end is served.
func (s *suite) wired(t *testing.T, change ...func(*sandbox.Spec)) (*box, *far, Wire) {
	t.Helper()
	w := s.Wire(t) // removed behind the instance
	f := serve(t, w.Tap)
	return s.open(t, append(change, func(sp *sandbox.Spec) { sp.Wire = &w.Wire })...), f, w
}

// testExchange: frames come out, and what is sent back goes in.
func (s *suite) testExchange(t *testing.T) {
	x, f, _ := s.wired(t)
	if o := x.probe("resolve", farName); strings.TrimSpace(o.out) != farHost.String() {
		t.Errorf("the name resolves to %+v", o)
	}
	if o := x.probe("resolve", "other.example."); o.Code != 1 || !strings.Contains(o.errs, "no such host") {
		t.Errorf("a name that does not exist: %+v", o)
	}
	// Enough for large segments in both directions.
	text := strings.Repeat("over the wire. ", 1500)
	if o := x.probe("connect", farName+":80", text); o.out != text {
		t.Errorf("an echo of %d bytes: code %d, %d bytes, %q", len(text), o.Code, len(o.out), o.errs)
	}
	for _, where := range []string{farHost.String() + ":81", "169.254.169.254:80", x.spec.Wire.Gateway.String() + ":22", "8.8.8.8:443"} {
		if o := x.probe("connect", where, "x"); o.Code != 1 || !strings.Contains(o.errs, "refused") {
			t.Errorf("%s, which the far end refuses: %+v", where, o)
		}
	}
	names, kinds, dials, large := f.seen()
	if !slices.Contains(names, farName) || !slices.Contains(names, "other.example.") {
		t.Errorf("the far end was asked for %q", names)
	}
	if len(dials) != 1 || kinds["other"] != 0 || kinds["tcp"] == 0 {
		t.Errorf("the far end saw %v and the connections %v", kinds, dials)
	}
	if large <= 14+1500 { // how much more is the guest's to decide, by how fast it finds the wire
		t.Errorf("the largest frame has %d bytes: the guest cuts its segments itself", large)
	}
	// The guest's own addresses stay inside.
	before := kinds["tcp"]
	if o := x.probe("connect", "127.0.0.1:1", "x"); o.Code != 1 || !strings.Contains(o.errs, "refused") {
		t.Errorf("a port nobody listens at: %+v", o)
	}
	if _, kinds, _, _ := f.seen(); kinds["tcp"] != before {
		t.Error("what is for the loopback came out")
	}
}

// testDevice: one device, one address, and files that say where DNS is.
func (s *suite) testDevice(t *testing.T) {
	x, _, _ := s.wired(t, func(sp *sandbox.Spec) { sp.Hostname = "fire" })
	var links []struct {
		Name      string
		Up        bool
		Addresses []string
	}
	x.decode(&links, "links")
	w := x.spec.Wire
	for _, l := range links {
		want := []string{w.Address.String()}
		switch {
		case l.Name == "lo":
			want = []string{"127.0.0.1/8", "::1/128"}
		case l.Name != w.Link:
			t.Errorf("there is a link %+v", l)
			continue
		}
		for _, a := range l.Addresses {
			if !slices.Contains(want, a) {
				t.Errorf("%s has the address %s", l.Name, a)
			}
		}
		if !l.Up || !slices.Contains(l.Addresses, want[0]) {
			t.Errorf("link %+v, want up and with %s", l, want[0])
		}
	}
	if len(links) != 2 {
		t.Errorf("links %+v, want the loopback and %s", links, w.Link)
	}
	if o := x.probe("read", "/etc/resolv.conf"); strings.TrimSpace(o.out) != "nameserver "+w.Gateway.String() {
		t.Errorf("resolv.conf: %+v", o)
	}
	if o := x.probe("read", "/etc/hosts"); !strings.Contains(o.out, "127.0.0.1 localhost\n") || !strings.Contains(o.out, w.Address.Addr().String()+" fire\n") {
		t.Errorf("hosts: %+v", o)
	}
	if o := x.probe("connect", "[2001:db8::1]:80", "x"); o.Code != 1 || !strings.Contains(o.errs, "unreachable") {
		t.Errorf("IPv6: %+v", o)
	}
	for _, file := range []string{"/etc/resolv.conf", "/etc/hosts"} { // the host's, bound over the root's
		if _, err := x.WriteFile(deadline(t), file, strings.NewReader("x"), guest.WriteOptions{User: "root"}); err == nil {
			t.Errorf("root inside wrote to %s", file)
		}
	}
	// Without a wire they are the root's, and there is no device: testNetwork.
	y := s.open(t)
	if o := y.probe("read", "/etc/resolv.conf"); strings.Contains(o.out, w.Gateway.String()) {
		t.Errorf("resolv.conf of a sandbox without a wire: %+v", o)
	}
}

func (s *suite) testWireReadonly(t *testing.T) {
	if !s.info.Capabilities.ReadonlyRoot {
		t.Skipf("not run: backend %s has no read-only root", s.info.Name)
	}
	x, _, _ := s.wired(t, func(sp *sandbox.Spec) { sp.ReadonlyRoot = true })
	if o := x.probe("resolve", farName); strings.TrimSpace(o.out) != farHost.String() {
		t.Errorf("the name resolves to %+v", o)
	}
}

// testWireOutlives: a wire that nobody serves is a network that is silent, until
// somebody does again, and it is not the instance's to remove.
func (s *suite) testWireOutlives(t *testing.T) {
	x, f, w := s.wired(t)
	if o := x.probe("resolve", farName); strings.TrimSpace(o.out) != farHost.String() {
		t.Fatalf("the name resolves to %+v", o)
	}
	f.stop()
	p := x.start("connect", farHost.String()+":80", "x")
	x.alive()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if e, err := p.Wait(ctx); err == nil && e.Code == 0 {
		t.Error("a connection over a wire that nobody serves")
	}
	x.kill(p)
	serve(t, w.Reopen(t))
	text := "after the far end came back"
	if o := x.probe("connect", farName+":80", text); o.out != text {
		t.Errorf("an echo over the wire served again: %+v", o)
	}
	r := checkDestroy(t, s, x.inst)
	if _, err := os.Stat(w.NetNS); err != nil {
		t.Errorf("the wire went with the instance: %v", err)
	}
	for _, o := range r.Objects {
		if o.Name == w.NetNS {
			t.Errorf("the receipt lists the wire's %+v", o)
		}
	}
}

// testWireInvalid: what is no wire is refused, and nothing is left.
func (s *suite) testWireInvalid(t *testing.T) {
	good := s.Wire(t)
	defer good.Tap.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*sandbox.Wire){
		"no path":           func(w *sandbox.Wire) { w.NetNS = "" },
		"a relative path":   func(w *sandbox.Wire) { w.NetNS = "netns" },
		"nothing there":     func(w *sandbox.Wire) { w.NetNS = "/nonexistent" },
		"a file":            func(w *sandbox.Wire) { w.NetNS = file },
		"another namespace": func(w *sandbox.Wire) { w.NetNS = "/proc/self/ns/uts" },
		"the host's own":    func(w *sandbox.Wire) { w.NetNS = "/proc/self/ns/net" },
		"no link":           func(w *sandbox.Wire) { w.Link = "" },
		"no address":        func(w *sandbox.Wire) { *w = sandbox.Wire{NetNS: w.NetNS, Link: w.Link} },
	} {
		t.Run(name, func(t *testing.T) {
			w := good.Wire
			change(&w)
			spec := s.spec(t)
			spec.Wire = &w
			s.refused(t, spec, sandbox.KindInvalid)
		})
	}
}

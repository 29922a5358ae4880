//go:build linux

package egress

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// counts are what a wire might leave behind.
func counts(t testing.TB) (goroutines, files int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return runtime.NumGoroutine(), len(list)
}

// TestDetach: whatever state its connections are in, a wire ends soon, and leaves
// nothing.
func TestDetach(t *testing.T) {
	s := serve(t, echo)
	stuck := serve(t, func(c net.Conn) { // sends until nobody takes it, and never reads
		_, _ = c.Write(make([]byte, 64<<20))
	})
	warm := newPlace(t) // sockets of the test's own machinery
	r, j := attached(t, warm, raw, nil)
	if used, err := r.Detach("one"); err != nil || len(used) > 1 {
		t.Fatal(used, err)
	}
	goroutines, files := counts(t)
	for round := range 5 {
		p := newPlace(t)
		id := fmt.Sprint("round", round)
		if err := r.Attach(Wire{ID: id, Table: table(t, raw+`
  - {id: http, host: other.example, ports: `+s.port+`}`)}, p.tap); err != nil {
			t.Fatal(err)
		}
		if err := r.Attach(Wire{ID: id, Table: table(t, raw)}, os.NewFile(^uintptr(0), "none")); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Error(err)
		}
		good, other := p.addr("good.example"), p.addr("other.example")
		var conns []net.Conn
		for i := range 40 {
			to := good + ":" + s.port
			switch i % 5 {
			case 1:
				to = good + ":" + stuck.port
			case 2:
				to = other + ":" + s.port // waits to be told what for
			}
			c, err := p.dial(to)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			switch i % 5 {
			case 3:
				_ = c.(*net.TCPConn).CloseWrite()
			case 4:
				_, _ = io.WriteString(c, strings.Repeat("x", 100_000))
				c.Close()
			}
		}
		begin := time.Now()
		if _, err := r.Detach(id); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("it took %s", d)
		}
		if used, err := r.Detach(id); used != nil || err != nil {
			t.Error(used, err)
		}
		if st := r.Stats(); st.Connections != 0 || st.Wires != 0 {
			t.Errorf("%+v", st)
		}
		for _, c := range conns {
			c.Close()
		}
	}
	allowed, closed := 0, 0
	for _, e := range j.all() {
		switch {
		case e.Kind == KindClose:
			closed++
		case e.Kind == KindConnect && e.Decision == Allow:
			allowed++
		}
	}
	if allowed != closed || allowed < 150 {
		t.Errorf("%d connections began and %d ended", allowed, closed)
	}
	eventually(t, "goroutines and files are as many as before", func() bool {
		runtime.GC()
		g, f := counts(t)
		return g <= goroutines+10 && f <= files+5 // a place each round, which ends with the test
	})
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Attach(Wire{ID: "late", Table: table(t, raw)}, os.NewFile(^uintptr(0), "none")); err == nil {
		t.Error("a closed router serves")
	}
}

// TestUpdates: however often the policy changes under a stream of connections,
// none of an old one's is left, and each that began has an end.
func TestUpdates(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	r, j := attached(t, p, raw, nil)
	to := p.addr("good.example") + ":" + s.port
	stop := make(chan struct{})
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := p.dial(to)
				if err == nil {
					_, _ = io.WriteString(c, "x")
					_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
					_, _ = c.Read(make([]byte, 1))
					c.Close()
				}
			}
		})
	}
	same, last := table(t, raw), uint64(0)
	for range 100 {
		var err error
		if last, _, err = r.Update("one", same, nil); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Millisecond)
	}
	if _, _, err := r.Update("one", table(t, "allow: [elsewhere.example]"), nil); err != nil {
		t.Error(err)
	}
	close(stop)
	work.Wait()
	eventually(t, "all have ended", func() bool { return r.Stats().Connections == 0 })
	open := map[uint64]int{}
	for _, e := range j.all() {
		switch {
		case e.Kind == KindClose:
			open[e.Generation]--
		case e.Kind == KindConnect && e.Decision == Allow:
			open[e.Generation]++
		}
	}
	for g, n := range open {
		if n != 0 || g > last {
			t.Errorf("generation %d: %d are open", g, n)
		}
	}
	if len(open) < 10 || last != 101 {
		t.Errorf("%d generations, the last %d", len(open), last)
	}
}

// TestGone: a wire whose device is gone ends like any other, and others go on.
func TestGone(t *testing.T) {
	p, q := newPlace(t), newPlace(t)
	s := serve(t, echo)
	r, _ := attached(t, p, raw, nil)
	if err := r.Attach(Wire{ID: "two", Table: table(t, raw)}, q.tap); err != nil {
		t.Fatal(err)
	}
	to, at := p.addr("good.example")+":"+s.port, q.addr("good.example")+":"+s.port
	p.works(to)
	link := func(do func(*netlink.Handle, netlink.Link) error) {
		p.in(func() {
			h, err := netlink.NewHandle()
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Close()
			eth, err := h.LinkByName("eth0")
			if err == nil {
				err = do(h, eth)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	link((*netlink.Handle).LinkSetDown)
	link((*netlink.Handle).LinkSetUp)
	link(func(h *netlink.Handle, eth netlink.Link) error {
		return h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.IP(gatewayAddr.AsSlice())})
	})
	p.works(to)
	link((*netlink.Handle).LinkDel)
	q.works(at)
	if _, err := r.Detach("one"); err != nil {
		t.Error(err)
	}
	q.works(at)
}

package egress

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

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
		t.Log(time.Since(begin))
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

//go:build linux

package egress

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

func rules(port string) string {
	return "allow:\n  - {id: good, host: good.example, ports: " + port + "}" + loopback
}

// TestHTTP: plain HTTP is read, and what goes on is written anew.
func TestHTTP(t *testing.T) {
	p := newPlace(t)
	s := serve(t, func(c net.Conn) {
		buf := make([]byte, 1000)
		n, _ := c.Read(buf)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", n, buf[:n])
	})
	r, j := attached(t, p, rules(s.port), nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port)
	request := "GET / HTTP/1.1\r\nhost: GOOD.example:" + s.port + "\r\nConnection: close, X-Hop\r\nX-Hop: a\r\nX-end: b \r\n\r\n"
	_, _ = io.WriteString(c, request)
	b, err := io.ReadAll(c)
	want := "GET / HTTP/1.1\r\nHost: good.example:" + s.port + "\r\nX-End: b\r\n\r\n"
	if err != nil || !strings.HasSuffix(string(b), "\r\n\r\n"+want) {
		t.Fatalf("%q %v, want %q", b, err, want)
	}
	c.Close()
	end := j.wait(t, "the end is recorded", func(e Event) bool { return e.Kind == KindClose })
	if end.Upload != int64(len(request)) || end.Download != int64(len(b)) || end.Reason != ReasonDone {
		t.Errorf("%+v", end)
	}
	t.Log(j.all())
	if st := r.Stats(); st.Wires != 1 || st.Allowed != 1 {
		t.Errorf("%+v", st)
	}
}

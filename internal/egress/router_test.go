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

func TestHTTP(t *testing.T) {
	p := newPlace(t)
	s := serve(t, func(c net.Conn) {
		buf := make([]byte, 1000)
		n, _ := c.Read(buf)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", n, buf[:n])
	})
	r, j := attached(t, p, rules(s.port), nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port)
	request := "GET / HTTP/1.1\r\nHost: good.example:" + s.port + "\r\n\r\n"
	_, _ = io.WriteString(c, request)
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), request) {
		t.Fatalf("%q %v", b, err)
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

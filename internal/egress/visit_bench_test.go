//go:build linux

package egress

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// BenchmarkVisit is a connection by TLS with one request, of which the other side is
// there already; BenchmarkDirect is the same without anybody between.
func BenchmarkVisit(b *testing.B) {
	p := newPlace(b)
	h := newHost(b, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	_, _, roots := read(b, p, h, h.rules(), func(c *Config) { c.Limits.Rate = 1 << 20 })
	to := fmt.Sprint(p.addr("good.example"), ":", h.port)
	b.ReportAllocs()
	for b.Loop() {
		conn, err := p.dial(to)
		if err != nil {
			b.Fatal(err)
		}
		once(b, tls.Client(conn, &tls.Config{ServerName: "good.example", RootCAs: roots}))
	}
}

// BenchmarkDirect is beside BenchmarkVisit.
func BenchmarkDirect(b *testing.B) {
	h := newHost(b, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	to := fmt.Sprint("127.0.0.1:", h.port)
	for b.Loop() {
		conn, err := tls.Dial("tcp", to, &tls.Config{ServerName: "good.example", RootCAs: h.roots()})
		if err != nil {
			b.Fatal(err)
		}
		once(b, conn)
	}
}

func once(b *testing.B, conn *tls.Conn) {
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 200 {
		b.Fatal(resp, err)
	}
}

package egress

import (
	"io"
	"net"
	"strings"
	"testing"
)

// raw is a policy that lets the loopback pass without a look at what is said.
const raw = "allow:\n  - {id: net, cidr: 127.0.0.1, ports: 1024-65535, protocol: tcp}\n  - {id: good, host: good.example, ports: 1024-65535, protocol: tcp}"

// BenchmarkUpload and BenchmarkDownload carry bytes over one connection.
func BenchmarkUpload(b *testing.B)   { bulk(b, false) }
func BenchmarkDownload(b *testing.B) { bulk(b, true) }

func bulk(b *testing.B, down bool) {
	p := newPlace(b)
	s := serve(b, func(c net.Conn) {
		if !down {
			_, _ = io.Copy(io.Discard, c)
			_, _ = c.Write([]byte("k"))
			return
		}
		chunk := make([]byte, 256<<10)
		for {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})
	attached(b, p, raw, nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port).(*net.TCPConn)
	chunk := make([]byte, 256<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		var err error
		if down {
			_, err = io.ReadFull(c, chunk)
		} else {
			_, err = c.Write(chunk)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if !down {
		_ = c.CloseWrite()
		_, _ = c.Read(chunk[:1])
	}
}

// BenchmarkConnect connects and has one byte echoed.
func BenchmarkConnect(b *testing.B) {
	p := newPlace(b)
	s := serve(b, echo)
	attached(b, p, raw, func(c *Config) { c.Limits.Rate = 1e6 })
	to := p.addr("good.example") + ":" + s.port
	one := []byte("x")
	for b.Loop() {
		c, err := p.dial(to)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkConnectHTTP does the same where the first bytes are looked at.
func BenchmarkConnectHTTP(b *testing.B) {
	p := newPlace(b)
	s := serve(b, echo)
	attached(b, p, rules(s.port), func(c *Config) { c.Limits.Rate = 1e6 })
	to := p.addr("good.example") + ":" + s.port
	request := "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"
	buf := make([]byte, len(request))
	for b.Loop() {
		c, err := p.dial(to)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkRequest has requests echoed on one connection.
func BenchmarkRequest(b *testing.B) {
	p := newPlace(b)
	s := serve(b, echo)
	attached(b, p, raw, nil)
	c := p.mustDial(p.addr("good.example") + ":" + s.port)
	request := []byte(strings.Repeat("x", 500))
	buf := make([]byte, len(request))
	for b.Loop() {
		_, _ = c.Write(request)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

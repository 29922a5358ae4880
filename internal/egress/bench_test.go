//go:build linux

package egress

import (
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
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

// BenchmarkNeighbour is what a connection costs beside a sandbox that makes
// connections as fast as it can; compare p99-ms with and without it.
func BenchmarkNeighbour(b *testing.B) {
	for _, flood := range []bool{false, true} {
		b.Run(map[bool]string{false: "quiet", true: "flood"}[flood], func(b *testing.B) {
			p, q := newPlace(b), newPlace(b)
			s := serve(b, echo)
			r, _ := attached(b, p, raw, nil)
			if err := r.Attach(Wire{ID: "two", Table: table(b, raw)}, q.tap); err != nil {
				b.Fatal(err)
			}
			to, at := p.addr("good.example")+":"+s.port, q.addr("good.example")+":"+s.port
			var stop atomic.Bool
			var work sync.WaitGroup
			if flood {
				work.Go(func() {
					q.in(func() {
						for !stop.Load() {
							if c, err := net.Dial("tcp4", at); err == nil {
								c.Close()
							}
						}
					})
				})
			}
			var took []time.Duration
			one := []byte("x")
			for b.Loop() {
				begin := time.Now()
				c, err := p.dial(to)
				if err == nil {
					_, _ = c.Write(one)
					_, err = io.ReadFull(c, one)
					c.Close()
				}
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
				time.Sleep(time.Millisecond)
			}
			stop.Store(true)
			work.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1e3, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1e3, "p99-ms")
		})
	}
}

//go:build linux

package egress

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestPace: a sandbox that makes connections as fast as it can gets as many as it
// may make at once and the rest at the rate of its wire, every one of them.
func TestPace(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	const rate, n = 40, 120
	_, j := attached(t, p, raw, func(c *Config) { c.Limits.Rate = rate })
	to := p.addr("good.example") + ":" + s.port
	begin := time.Now()
	var burst time.Duration
	p.in(func() {
		for i := range n {
			c, err := net.DialTimeout("tcp4", to, 20*time.Second)
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			one := []byte("x")
			_, _ = c.Write(one)
			if _, err := io.ReadFull(c, one); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
			c.Close()
			if i == rate-1 {
				burst = time.Since(begin)
			}
		}
	})
	took := time.Since(begin)
	if least := (n - rate - 1) * time.Second / rate; took < least || burst > least {
		t.Errorf("%d took %v, the first %d of them %v; at least %v for all was wanted", n, took, rate, burst, least)
	}
	for _, e := range j.all() {
		if e.Decision == Deny {
			t.Errorf("%+v", e)
		}
	}
}

// TestPaceEnds: the end of a wire does not wait for connections that wait.
func TestPaceEnds(t *testing.T) {
	p := newPlace(t)
	s := serve(t, echo)
	r, _ := attached(t, p, raw, func(c *Config) { c.Limits.Rate = 1 })
	to := p.addr("good.example") + ":" + s.port
	p.mustDial(to).Close()
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		p.in(func() {
			for range 8 { // together eight seconds' worth
				if c, err := net.DialTimeout("tcp4", to, 20*time.Millisecond); err == nil {
					c.Close()
				}
			}
		})
	}()
	<-waits
	begin := time.Now()
	if _, err := r.Detach("one"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

package server

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Rates is how fast a tenant may call. A negative value bounds nothing.
type Rates struct {
	Tenant, Key int64 // requests per second of all its keys, and of each
	Burst       int64 // at once, before these bind
}

// Attempts with a wrong key or none that one source address may make: more than
// a mistake needs, less than is worth anybody's time.
const (
	failuresPerSecond = 5
	failuresBurst     = 50
)

// maxBuckets bounds how many callers are remembered. Whoever is forgotten begins
// again with a full bucket.
const maxBuckets = 4096

// buckets are token buckets by name. They cost no goroutine and a bounded amount
// of memory, and are safe for concurrent use.
type buckets struct {
	mu    sync.Mutex
	named map[string]*list.Element // guarded by mu
	used  list.List                // of *bucket, lately used ones first; guarded by mu
}

type bucket struct {
	name   string
	tokens float64
	at     time.Time // when tokens was right
}

func newBuckets() *buckets { return &buckets{named: map[string]*list.Element{}} }

// take takes a token from the bucket called name, which holds burst and fills at
// rate per second. Where there is none it says when there will be one.
func (b *buckets) take(name string, rate, burst float64) (wait time.Duration, ok bool) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.named[name]
	if e == nil {
		for b.used.Len() >= maxBuckets {
			delete(b.named, b.used.Remove(b.used.Back()).(*bucket).name)
		}
		e = b.used.PushFront(&bucket{name: name, tokens: burst, at: now})
		b.named[name] = e
	} else {
		b.used.MoveToFront(e)
	}
	k := e.Value.(*bucket)
	k.tokens = min(burst, k.tokens+rate*now.Sub(k.at).Seconds())
	k.at = now
	if k.tokens >= 1 {
		k.tokens--
		return 0, true
	}
	return time.Duration((1 - k.tokens) / rate * float64(time.Second)), false
}

// throttle counts a request of p's. The operator on the local socket is never
// refused. Errors: KindCapacity, with RetryAfter.
func (s *Server) throttle(x *exchange, p auth.Principal) error {
	if s.cfg.Rates == nil || peerFrom(x.r.Context()) != nil && len(x.r.Header["Authorization"]) == 0 {
		return nil
	}
	r := s.cfg.Rates(p.Tenant)
	for _, limit := range []struct {
		name, who, key string
		rate           int64
	}{
		{"key " + p.ID, "one key", "tenant_key_requests", r.Key},
		{"tenant " + string(p.Tenant), "the tenant", "tenant_requests", r.Tenant},
	} {
		if limit.rate < 0 || r.Burst < 0 {
			continue
		}
		wait, ok := s.callers.take(limit.name, float64(max(1, limit.rate)), float64(max(1, r.Burst)))
		if !ok {
			x.shed = true
			e := sandbox.Errorf(x.op.name, sandbox.KindCapacity, "too many requests: %s may send %d per second", limit.who, limit.rate).
				WithHint("send fewer, or retry later; %s in firebreak.yaml sets the rate", limit.key)
			e.RetryAfter = wait
			return e
		}
	}
	return nil
}

// failedAttempt counts an attempt that was not authenticated, over TCP. It returns the
// error to answer with: err, or, from a source that has made too many, one that
// says so and closes the connection. Callers whose key is right never notice.
func (s *Server) failedAttempt(x *exchange, err error) error {
	if peerFrom(x.r.Context()) != nil || sandbox.KindOf(err) != sandbox.KindUnauthenticated {
		return err
	}
	wait, ok := s.strangers.take(source(x.r.RemoteAddr), failuresPerSecond, failuresBurst)
	if ok {
		return err
	}
	x.shed = true
	x.Header().Set("Connection", "close")
	e := sandbox.Errorf("authenticate", sandbox.KindCapacity, "too many attempts without a valid key from this address").WithHint(keyHint)
	e.RetryAfter = wait
	return e
}

// source is whom an address stands for: itself, or in IPv6, where everybody has
// as many as they like, its network.
func source(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

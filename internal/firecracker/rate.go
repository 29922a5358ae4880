package firecracker

import "time"

// TokenBucket holds what may be used at once, and is full again after Refill. Bytes
// take as many tokens as there are, a request one.
type TokenBucket struct {
	Size   int64 `json:"size"`
	Burst  int64 `json:"one_time_burst,omitempty"` // beside Size, once
	Refill int64 `json:"refill_time"`              // milliseconds
}

// refill is how long PerSecond's buckets take: what a device may do at once is a
// tenth of what it may in a second.
const refill = 100 * time.Millisecond

// PerSecond is a bucket for n tokens per second; nil, which is no bound, for none.
func PerSecond(n int64) *TokenBucket {
	if n <= 0 {
		return nil
	}
	per := int64(time.Second / refill)
	return &TokenBucket{Size: max(n/per, 1), Refill: refill.Milliseconds()}
}

// RateLimiter bounds a device: what it moves, and in how many requests. It has effect
// for a disk in both directions together, for a network in one.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// some is nil for a limiter that bounds nothing.
func (r RateLimiter) some() *RateLimiter {
	if r.Bandwidth == nil && r.Ops == nil {
		return nil
	}
	return &r
}

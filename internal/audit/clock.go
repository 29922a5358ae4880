package audit

import "time"

// clock gives the time since the machine was booted at the cost of an ordinary
// clock: asking for it is a system call, which is made every now and then only.
type clock struct {
	asked time.Time     // when it was asked for
	told  time.Duration // and what the answer was
	last  time.Duration
}

// clockDrift is how long a suspended machine may go unnoticed.
const clockDrift = 10 * time.Millisecond

// now never goes back. It is 0 where the time is unknown.
func (c *clock) now() time.Duration {
	since := time.Since(c.asked)
	if c.asked.IsZero() || since > clockDrift {
		c.asked, c.told, since = time.Now(), sinceBoot(), 0
	}
	if c.told > 0 {
		c.last = max(c.last, c.told+since)
	}
	return c.last
}

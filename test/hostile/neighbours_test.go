package hostile

import (
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// neighbours are two sandboxes of well-behaved tenants.
type neighbours struct {
	w   *world
	ids []string
}

func (w *world) neighbours(t *testing.T) *neighbours {
	t.Helper()
	n := &neighbours{w: w}
	for range 2 {
		n.ids = append(n.ids, w.create(t, `"limits":{"memory_bytes":67108864}`))
	}
	return n
}

// work runs `true` in both, one after the other and without a pause, until the
// function it returns is called. That gives the 99th percentile of how long it
// took and what did not work.
func (n *neighbours) work() func() (p99 time.Duration, failures []string, count int) {
	var mu sync.Mutex
	var took []time.Duration
	var failures []string
	var group sync.WaitGroup
	quit := make(chan struct{})
	for _, id := range n.ids {
		group.Go(func() {
			for {
				start := time.Now()
				status, r := n.w.exec(id, 30*time.Second, "true")
				mu.Lock()
				took = append(took, time.Since(start))
				if status != http.StatusOK || r.ExitCode != 0 || r.Reason != "done" {
					failures = append(failures, r.body+r.Error.Message)
				}
				mu.Unlock()
				select {
				case <-quit:
					return
				case <-time.After(10 * time.Millisecond): // two cores: measure, do not load
				}
			}
		})
	}
	return func() (time.Duration, []string, int) {
		close(quit)
		group.Wait()
		slices.Sort(took)
		return took[len(took)*99/100], failures, len(took)
	}
}

// alone is how the neighbours do when nobody else is there.
func (n *neighbours) alone(d time.Duration) time.Duration {
	stop := n.work()
	time.Sleep(d)
	p99, _, _ := stop()
	return p99
}

// grace is what a machine that others overload takes besides: it delays anybody for
// as long as its scheduler likes, also in the one percent that counts.
func grace() time.Duration {
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		one, _, _ := strings.Cut(string(b), " ")
		if load, _ := strconv.ParseFloat(one, 64); load > 2*float64(runtime.NumCPU()) {
			return 2 * time.Second
		}
	}
	return 250 * time.Millisecond
}

// unharmed compares: attack runs while the neighbours work. What else the
// machine does is in both measurements, before the attack and after it.
func (n *neighbours) unharmed(t *testing.T, attack func()) {
	t.Helper()
	grace := grace()
	before := n.alone(2 * time.Second)
	stop := n.work()
	attack()
	p99, failures, count := stop()
	after := n.alone(time.Second)
	if len(failures) > 0 {
		t.Errorf("%d of the neighbours' %d programs failed: %v", len(failures), count, failures[0])
	}
	limit := 5*max(before, after) + grace
	t.Logf("neighbours: %d programs, 99%% within %v; before the attack %v, after it %v; grace %v", count, p99, before, after, grace)
	if p99 > limit {
		t.Errorf("99%% of the neighbours' programs took up to %v, at most %v is fine", p99, limit)
	}
}

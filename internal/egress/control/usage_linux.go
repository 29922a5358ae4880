package control

import (
	"context"
	"time"

	"github.com/firebreak-dev/firebreak/internal/policy"
)

// usageEvery is how often what is used is reported of wires that use something. A
// router that is killed takes at most that much of their use with it.
const usageEvery = 100 * time.Millisecond

// report tells the keeper what wires have used: at once when something happens
// after a while, and every usageEvery as long as they have connections. It costs
// nothing while they have none. It ends with ctx.
func (s *server) report(ctx context.Context) {
	busy := map[string]bool{}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		var tick <-chan time.Time
		if len(busy) > 0 {
			again.Reset(usageEvery)
			tick = again.C
		}
		select {
		case <-ctx.Done():
			return
		case id := <-s.touched:
			busy[id] = true
		case <-tick:
		}
		for more := true; more; {
			select {
			case id := <-s.touched:
				busy[id] = true
			default:
				more = false
			}
		}
		if !s.reportOnce(busy) {
			return
		}
		select { // and no more often
		case <-ctx.Done():
			return
		case <-time.After(usageEvery):
		}
	}
}

// reportOnce reports what the wires of busy have used, and leaves there those that
// have connections. It reports whether the keeper still listens.
func (s *server) reportOnce(busy map[string]bool) bool {
	for id := range busy {
		used, err := s.router.Used(id)
		if err != nil { // detached, which its answer says all about
			delete(busy, id)
			continue
		}
		open := int64(0)
		for _, u := range used {
			open += u.Concurrent
		}
		if open == 0 {
			delete(busy, id)
		}
		if len(used) == 0 {
			continue
		}
		if err := s.link.send(up{Usage: map[string]map[string]policy.Used{id: used}}, -1, recordWait); err != nil {
			return false
		}
	}
	return true
}

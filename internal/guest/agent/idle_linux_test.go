package agent_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// TestAgentMemory: the agent idles in every sandbox. What it needs for work it
// gives back.
func TestAgentMemory(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{PIDs: 100})
	run(t, s, guest.Command{}, "echo", "x")
	check := func(when string, limit int) {
		t.Helper()
		var rss int
		for end := time.Now().Add(15 * time.Second); ; { // it gives back once a second at most, and when its turn comes
			time.Sleep(2500 * time.Millisecond)
			if rss = rssOf(t, b.cmd.Process.Pid); rss <= limit || time.Now().After(end) {
				break
			}
		}
		t.Logf("%s: %d KiB", when, rss)
		if rss > limit {
			t.Errorf("%s: %d KiB resident, at most %d", when, rss, limit)
		}
	}
	check("idle", 6<<10)
	if _, err := s.WriteFile(ctx(t), "f", pattern(t, 16<<20), guest.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	run(t, s, guest.Command{}, "out", "10000000")
	check("after work", 6<<10+256)
}

func rssOf(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	must(t, err)
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			kib, err = strconv.Atoi(strings.Fields(v)[0])
			must(t, err)
			return kib
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

package agent_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// hostPID finds the host's number of a process in the box.
func hostPID(b *box, pid int) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		status, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err != nil {
			continue
		}
		n, _ := strconv.Atoi(e.Name())
		root, err := os.Readlink("/proc/" + e.Name() + "/root")
		if err != nil || root != b.root || !strings.Contains(string(status), fmt.Sprintf("NSpid:\t%d\t%d\n", n, pid)) {
			continue
		}
		return n, nil
	}
	return 0, fmt.Errorf("no process %d in the box", pid)
}

func TestPIDsLimit(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{PIDs: 40})
	_, _, e := run(t, s, guest.Command{}, "fork", "60")
	if e.Reason != sandbox.ReasonPIDs || e.Code != 137 || e.Detail != "limit 40" {
		t.Errorf("over the limit: %+v", e)
	}
	onlyAgent(t, s)
	// Within it: nothing happens. The parent has a few threads itself.
	p := probe(t, s, guest.Command{}, "fork", "25")
	line(t, p.Stdout())
	time.Sleep(200 * time.Millisecond)
	select {
	case <-s.Done():
		t.Fatal(s.Err())
	default:
	}
	must(t, p.Signal(ctx(t), 9))
	if _, _, e := finish(t, p); e.Reason != sandbox.ReasonDone {
		t.Errorf("within the limit: %+v", e)
	}
}

func TestForkBomb(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{PIDs: 64})
	other := probe(t, s, guest.Command{}, "sleep", "1h")
	_, _, e := run(t, s, guest.Command{}, "bomb")
	if e.Reason != sandbox.ReasonPIDs {
		t.Errorf("%+v", e)
	}
	if _, _, e := finish(t, other); e.Reason != sandbox.ReasonPIDs {
		t.Errorf("the other exec: %+v", e)
	}
	onlyAgent(t, s)
}

func TestMemoryLimit(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{Memory: 64 << 20})
	small := probe(t, s, guest.Command{}, "alloc", strconv.Itoa(16<<20))
	if l := line(t, small.Stdout()); l != "ready" {
		t.Fatal(l)
	}
	_, _, e := run(t, s, guest.Command{}, "alloc", strconv.Itoa(256<<20))
	if e.Reason != sandbox.ReasonMemory || e.Code != 137 || e.Detail != "limit 64 MiB" {
		t.Errorf("%+v", e)
	}
	time.Sleep(150 * time.Millisecond)
	must(t, small.Signal(ctx(t), 9))
	if _, _, e := finish(t, small); e.Reason != sandbox.ReasonDone {
		t.Errorf("the small one was killed too: %+v", e)
	}
}

//go:build linux

package gvisor

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestIdleMemory counts what an idle sandbox costs the host, all its processes
// together: shared pages divided by those who share them.
func TestIdleMemory(t *testing.T) {
	const n = 20 // enough that what they share hardly counts
	root := minimalRoot(t)
	b := open(t, t.TempDir())
	boxes := make([]box, n)
	for k := range boxes {
		boxes[k] = create(t, b, sandbox.Spec{Root: root})
		boxes[k].Session.Close()
	}
	time.Sleep(2 * time.Second) // what starting needed is given back by then
	kib := map[string]int{}
	for _, x := range boxes {
		procs, err := members(x.group, x.running.Processes)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range procs {
			kib[p.Role] += pss(t, p.PID)
		}
	}
	total := 0
	for role, k := range kib {
		total += k
		t.Logf("%s: %.2f MiB", role, float64(k)/float64(n)/1024)
	}
	each := float64(total) / float64(n) / 1024
	t.Logf("%.2f MiB each, with %d alive", each, n)
	if each > 16 {
		t.Errorf("an idle sandbox costs %.2f MiB, want at most 16", each)
	}
}

// pss is a process's proportional set size in KiB.
func pss(t *testing.T, pid int) int {
	t.Helper()
	for line := range strings.Lines(get(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid))) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no Pss of %d", pid)
	return 0
}

// TestThroughput moves bytes both ways at once through the stream.
func TestThroughput(t *testing.T) {
	b := open(t, t.TempDir())
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	p, err := x.Exec(within(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	const n = 64 << 20
	began := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.CopyN(p.Stdin(), zeros{}, n); err != nil {
			t.Error(err)
		}
		p.Stdin().Close()
	})
	wg.Go(func() { io.Copy(io.Discard, p.Stderr()) })
	got, err := io.Copy(io.Discard, p.Stdout())
	wg.Wait()
	if err != nil || got != n {
		t.Errorf("%d of %d bytes came back, %v", got, n, err)
	}
	t.Logf("%.0f MiB/s in each direction", float64(n)/(1<<20)/time.Since(began).Seconds())
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

//go:build linux

package gvisor

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
		procs, err := members(x.group, nil)
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

// measureEnv turns TestLatency on: its numbers mean little on a busy machine.
const measureEnv = "FIREBREAK_MEASURE"

// TestLatency compares creating a sandbox and running `true` in it with what
// runsc itself needs for `run true` on the same root, one after the other.
func TestLatency(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(measureEnv))
	if err != nil {
		t.Skipf("not run: set %s to the number of rounds", measureEnv)
	}
	root, dir := minimalRoot(t), t.TempDir()
	b := open(t, dir)
	plain := plainRun(t, root)
	var floor, created, ran, ended []time.Duration
	for range n {
		began := time.Now()
		plain()
		floor = append(floor, time.Since(began))

		began = time.Now()
		inst, err := b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root})
		if err != nil {
			t.Fatal(err)
		}
		created = append(created, time.Since(began))
		conn, err := inst.Dial(within(t))
		if err != nil {
			t.Fatal(err)
		}
		s, err := guest.Open(within(t), conn, guest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Exec(within(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "exit", "0"}})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(within(t)); err != nil || e.Code != 0 {
			t.Fatalf("%+v, %v", e, err)
		}
		ran = append(ran, time.Since(began))
		s.Close()

		began = time.Now()
		if _, err := inst.Destroy(within(t)); err != nil {
			t.Fatal(err)
		}
		ended = append(ended, time.Since(began))
	}
	median := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2]
	}
	base := median(floor)
	for _, m := range []struct {
		name string
		d    []time.Duration
	}{{"runsc run true", floor}, {"create", created}, {"create and exec true", ran}, {"destroy", ended}} {
		d := median(m.d)
		t.Logf("%-22s %8.1f ms  %.2f  (fastest %.1f ms)", m.name, float64(d)/1e6, float64(d)/float64(base), float64(m.d[0])/1e6)
	}
	if r := float64(median(ran)) / float64(base); r > 1.4 {
		t.Errorf("create and exec takes %.2f times a plain run, want at most 1.4", r)
	}
}

// plainRun returns what runs `true` with runsc alone.
func plainRun(t *testing.T, root sandbox.Root) func() {
	t.Helper()
	dir := t.TempDir()
	b := &Backend{cfg: Config{Runtime: programs.Runtime}, agent: []string{guest.AgentPath, "probe", "exit", "0"}}
	spec, err := admit(sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root}, sandbox.Info{Available: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.writeBundle(dir, spec); err != nil {
		t.Fatal(err)
	}
	k := 0
	return func() {
		k++
		cmd := exec.Command(programs.Runsc, "--root="+filepath.Join(dir, "state"), "--network=none", "--ignore-cgroups",
			"--gofer-network-namespace=new", "--overlay2=root:dir="+dir, "run", "--bundle="+dir, "plain"+strconv.Itoa(k))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("runsc run: %v: %s", err, out)
		}
	}
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

package backendtest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func testLimits(t *testing.T, s *suite) {
	s.par(t, "Memory", s.testMemory)
	s.par(t, "MemoryAtLimit", s.testMemoryAtLimit)
	s.par(t, "PIDs", s.testPIDs)
	s.par(t, "PIDsAtLimit", s.testPIDsAtLimit)
	s.par(t, "Disk", s.testDisk)
	s.par(t, "DiskIsNotMemory", s.testDiskIsNotMemory)
	s.par(t, "CPU", s.testCPU)
	s.par(t, "Usage", s.testUsage)
}

// killedBy asserts that the program, or the whole instance, ended for reason,
// and reports whether the instance lives.
func (x *box) killedBy(what string, o outcome, err error, reason sandbox.Reason) (alive bool) {
	x.Helper()
	if err == nil {
		if o.Reason != reason {
			x.Errorf("%s: ended with %+v, want reason %s", what, o.Exit, reason)
		}
		return true
	}
	// The boundary itself may be the victim: then it says why.
	if k := sandbox.KindOf(err); k != sandbox.KindUnavailable && k != sandbox.KindGone && k != sandbox.KindTimeout {
		x.Fatalf("%s: %v", what, err)
	}
	exit, err := x.inst.Wait(deadline(x.T))
	if err != nil || exit.Reason != reason {
		x.Errorf("%s ended the instance with %+v, %v; want reason %s", what, exit, err, reason)
	}
	return false
}

func (s *suite) testMemory(t *testing.T) {
	s.enforces(t, sandbox.LimitMemory)
	neighbour := s.open(t)
	x := s.open(t, func(sp *sandbox.Spec) {
		sp.Limits.Memory, sp.Explicit = 64<<20, sandbox.LimitMemory
	})
	o, err := x.try(guest.Command{Argv: x.argv("alloc", fmt.Sprint(1<<30)), Timeout: patience / 2}, "")
	alive := x.killedBy("alloc of 16 times the limit", o, err, sandbox.ReasonMemory)
	if err == nil && o.Code != 137 {
		t.Errorf("code %d, want 137", o.Code)
	}
	if alive {
		x.alive()
	}
	neighbour.alive()
}

func (s *suite) testMemoryAtLimit(t *testing.T) {
	s.enforces(t, sandbox.LimitMemory)
	x := s.open(t, func(sp *sandbox.Spec) { sp.Limits.Memory = 128 << 20 })
	for range 3 { // what a program leaves is free again
		p := x.start("alloc", fmt.Sprint(96<<20))
		until(t, p, "ready")
		x.alive()
		x.kill(p)
	}
	if st := x.status(); st.Usage.OOMKills != 0 {
		t.Errorf("%d kills for memory below the limit", st.Usage.OOMKills)
	}
}

func (s *suite) testPIDs(t *testing.T) {
	s.enforces(t, sandbox.LimitPIDs)
	neighbour := s.open(t)
	x := s.open(t, func(sp *sandbox.Spec) {
		sp.Limits.PIDs, sp.Explicit = 24, sandbox.LimitPIDs
	})
	o, err := x.try(guest.Command{Argv: x.argv("bomb"), Timeout: patience / 2}, "")
	alive := x.killedBy("a fork bomb", o, err, sandbox.ReasonPIDs)
	neighbour.alive()
	if !alive {
		return
	}
	x.alive()
	if n := x.settled(6); n > 6 {
		t.Errorf("%d processes are left of a fork bomb", n)
	}
}

func (s *suite) testPIDsAtLimit(t *testing.T) {
	s.enforces(t, sandbox.LimitPIDs)
	x := s.open(t, func(sp *sandbox.Spec) { sp.Limits.PIDs = 32 })
	for range 3 {
		p := x.start("fork", "12") // and the threads of two Go programs
		until(t, p, `"forked":12`)
		x.alive()
		x.kill(p)
		if n := x.settled(3); n > 3 {
			t.Errorf("%d processes are left of a killed program's group", n)
		}
	}
}

func (s *suite) testDisk(t *testing.T) {
	s.enforces(t, sandbox.LimitDisk)
	const quota = 16 << 20
	x := s.open(t, func(sp *sandbox.Spec) {
		sp.Limits.Disk, sp.Explicit = quota, sandbox.LimitDisk
	})
	if o := x.probe("fill", "fits", fmt.Sprint(quota/2)); o.Code != 0 {
		t.Fatalf("filling half of the quota: %+v", o)
	}
	free := hostFree(t, s.dir)
	o := x.probe("fill", "toobig", fmt.Sprint(8*quota))
	if o.Code == 0 || o.Reason != sandbox.ReasonDisk {
		t.Errorf("filling eight times the quota: %+v, want reason disk", o)
	}
	if !strings.Contains(strings.ToLower(o.errs), "no space left") {
		t.Errorf("the program saw %q, want ENOSPC", o.errs)
	}
	if used := free - hostFree(t, s.dir); used > 4*quota {
		t.Errorf("the host lost %s to a quota of %s", sandbox.FormatSize(used), sandbox.FormatSize(quota))
	}
	if st := x.status(); st.Usage.Disk > quota+quota/4 {
		t.Errorf("Usage.Disk = %s of a quota of %s", sandbox.FormatSize(st.Usage.Disk), sandbox.FormatSize(quota))
	}
	// The same through the file API, and nothing of it stays.
	_, err := x.WriteFile(deadline(t), "/home/user/upload", zeros(8*quota), guest.WriteOptions{})
	wantKind(t, "an upload over the quota", err, sandbox.KindNoSpace)
	if _, err := x.Stat(deadline(t), "/home/user/upload", ""); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("half an upload stayed: %v", err)
	}
	// Space that is given back can be used again.
	if err := x.Remove(deadline(t), "toobig", guest.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if o := x.probe("fill", "again", fmt.Sprint(quota/4)); o.Code != 0 {
		t.Errorf("filling a quarter after removing: %+v", o)
	}
	x.alive()
}

// testDiskIsNotMemory: files do not count against memory.
func (s *suite) testDiskIsNotMemory(t *testing.T) {
	s.enforces(t, sandbox.LimitMemory|sandbox.LimitDisk)
	x := s.open(t, func(sp *sandbox.Spec) {
		sp.Limits.Memory, sp.Limits.Disk = 64<<20, 256<<20
	})
	if o := x.probe("fill", "big", fmt.Sprint(160<<20)); o.Code != 0 {
		t.Errorf("160 MiB of files with 64 MiB of memory: %+v", o)
	}
	x.alive()
}

// testCPU compares CPU time with wall time, which a loaded machine can only
// make smaller.
func (s *suite) testCPU(t *testing.T) {
	s.enforces(t, sandbox.LimitCPU)
	x := s.open(t, func(sp *sandbox.Spec) {
		sp.Limits.CPUs, sp.Explicit = 0.5, sandbox.LimitCPU
	})
	before, began := x.status().Usage.CPU, time.Now()
	const span = 2 * time.Second
	for range 2 { // two spinners, so that one CPU would not be the bound
		p := x.start("spin")
		t.Cleanup(func() { p.Close() })
	}
	if o := x.exec(guest.Command{Argv: x.argv("spin"), Timeout: span}, ""); o.Reason != sandbox.ReasonTimeout {
		t.Fatalf("spin: %+v", o)
	}
	used, wall := x.status().Usage.CPU-before, time.Since(began)
	share := float64(used) / float64(wall)
	t.Logf("%s of CPU in %s: %.2f", used.Round(time.Millisecond), wall.Round(time.Millisecond), share)
	if share > 0.65 {
		t.Errorf("three spinning programs used %.2f CPUs, the limit is 0.5", share)
	}
	if share < 0.1 {
		t.Errorf("three spinning programs used %.2f CPUs: measured wrongly, or starved", share)
	}
}

func (s *suite) testUsage(t *testing.T) {
	x := s.open(t)
	if o := x.probe("fill", "f", fmt.Sprint(4<<20)); o.Code != 0 {
		t.Fatalf("fill: %+v", o)
	}
	x.exec(guest.Command{Argv: x.argv("spin"), Timeout: 300 * time.Millisecond}, "")
	u := x.status().Usage
	c := s.info.Capabilities.Limits
	if c&sandbox.LimitCPU != 0 && u.CPU < 20*time.Millisecond {
		t.Errorf("Usage.CPU = %s after spinning for 300ms", u.CPU)
	}
	if c&sandbox.LimitDisk != 0 && u.Disk < 4<<20 {
		t.Errorf("Usage.Disk = %s after writing 4 MiB", sandbox.FormatSize(u.Disk))
	}
	if c&sandbox.LimitMemory != 0 && (u.MemoryPeak <= 0 || u.MemoryPeak < u.Memory) {
		t.Errorf("Usage.Memory = %d, peak %d", u.Memory, u.MemoryPeak)
	}
}

package main

import (
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/syscalls/linux"
	sentrytime "gvisor.dev/gvisor/pkg/sentry/time"
	"gvisor.dev/gvisor/pkg/sync"
)

// A guest reads its clocks without a system call once the sentry knows how fast the
// processor's counter runs. gVisor compares the counter with the host's clock once a
// second, and for the comparison it needs two: for the first second of a sandbox, which
// is all there is of many, every look at the clock is a system call, a third of all those
// by which the agent and a Python interpreter start.
//
// So the second comparison is made as soon as the first is old enough for it to mean
// something. What error it leaves gVisor corrects a second later, as it does anyway.
const (
	clocksSoon = 5 * time.Millisecond   // a comparison is right within 0.4 µs, mostly 0.1: 0.002 %
	clocksLate = 500 * time.Millisecond // gVisor's own is near
)

// clockGettime is the number of the system call, on amd64.
const clockGettime = 228

// updateClocks makes a comparison and tells the guest. Preconditions: updateMu is held.
//
//go:linkname updateClocks gvisor.dev/gvisor/pkg/sentry/kernel.(*Timekeeper).update
func updateClocks(t *kernel.Timekeeper, parked bool)

// clocks watches a guest's looks at the clock until they need no watching.
type clocks struct {
	table   *kernel.SyscallTable
	began   time.Time    // of this process
	mu      uintptr      // where a Timekeeper has the lock of its comparisons
	first   atomic.Int64 // after began, when the guest first looked; 0: not yet
	settled atomic.Bool
}

// settleClocks has the guest read its clocks by itself soon. It does nothing where gVisor
// is not as it was when this was written.
func settleClocks() {
	f, ok := reflect.TypeFor[kernel.Timekeeper]().FieldByName("updateMu")
	if !ok || f.Type != reflect.TypeFor[sync.Mutex]() || linux.AMD64.ExternalFilterBefore != nil || linux.AMD64.LookupName(clockGettime) != "clock_gettime" {
		return
	}
	c := &clocks{table: linux.AMD64, began: time.Now(), mu: f.Offset}
	c.table.ExternalFilterBefore = c.look
	c.watch(true)
}

func (c *clocks) watch(on bool) {
	c.table.FeatureEnable.Enable(kernel.ExternalBeforeEnable, map[uintptr]bool{clockGettime: on}, false)
}

// look is called before the guest's look at a clock is served, which goes on whatever
// this does.
func (c *clocks) look(t *kernel.Task, _ uintptr, _ arch.SyscallArguments) bool {
	tk := t.Kernel().Timekeeper()
	if _, err := tk.GetTime(sentrytime.Monotonic); err != nil { // makes the first comparison, if there is none
		return false
	}
	// The guest's own clock does not tell how old that is: the guest may have gone on
	// from an image.
	now := int64(time.Since(c.began))
	c.first.CompareAndSwap(0, now)
	age := time.Duration(now - c.first.Load())
	if age < clocksSoon || c.settled.Swap(true) {
		return false
	}
	c.watch(false)
	if age < clocksLate {
		mu := (*sync.Mutex)(unsafe.Add(unsafe.Pointer(tk), c.mu))
		mu.Lock()
		defer mu.Unlock()
		updateClocks(tk, false)
	}
	return false
}

package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapFloor is how large a heap grows before its first garbage collection. Go's own
// floor is 4 MiB: starting, saving and restoring a sandbox would each go through
// several collections of a heap that is nearly all alive.
const heapFloor = 16 << 20

// goFloor is Go's, at 100 percent.
const goFloor = 4 << 20

// keepFloor has the collector leave a heap alone that is smaller than heapFloor. A
// larger one is collected as usual: when it has doubled.
func keepFloor() {
	debug.SetGCPercent(100 * heapFloor / goFloor)
	afterCollection(func() {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		n := max(int64(live[0].Value.Uint64()), 1<<20)
		debug.SetGCPercent(int(max(100, 100*(heapFloor-n)/n)))
	})
}

// afterCollection calls f after each collection, from the goroutine of finalizers.
func afterCollection(f func()) {
	type canary struct{ self *canary } // has a pointer: it gets a place of its own
	var arm func()
	arm = func() {
		runtime.SetFinalizer(&canary{}, func(*canary) {
			f()
			arm()
		})
	}
	arm()
}

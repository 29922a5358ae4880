package main

import (
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/gomaxprocs"
)

// TestProcs: once the loader has said how many CPUs there are, readers of an image
// make no more of them.
func TestProcs(t *testing.T) {
	was := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(was)
	gomaxprocs.SetBase(was)
	gomaxprocs.Add(3)
	if n := runtime.GOMAXPROCS(0); n != was+3 {
		t.Fatalf("gVisor makes %d of %d by itself: keepProcs is not needed", n, was)
	}
	gomaxprocs.Add(-3)
	keepProcs()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		gomaxprocs.Add(3)
		n := runtime.GOMAXPROCS(0)
		gomaxprocs.Add(-3)
		if n == was {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d, not %d", n, was)
		}
	}
}

package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestFloor: a small heap is let grow to the floor, a large one to twice its size.
func TestFloor(t *testing.T) {
	defer debug.SetGCPercent(100)
	keepFloor()
	percent := func() int {
		n := debug.SetGCPercent(-1)
		debug.SetGCPercent(n)
		return n
	}
	settle := func(ok func(int) bool) int {
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			runtime.GC()
			if n := percent(); ok(n) || time.Now().After(end) {
				return n
			}
		}
	}
	if n := settle(func(n int) bool { return n > 100 }); n <= 100 {
		t.Errorf("a small heap is collected at %d percent", n)
	}
	large := make([]byte, 4*heapFloor)
	if n := settle(func(n int) bool { return n == 100 }); n != 100 {
		t.Errorf("a large heap is collected at %d percent", n)
	}
	runtime.KeepAlive(large)
}

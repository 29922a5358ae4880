package main

import (
	"sync"
	"time"
	_ "unsafe" // for go:linkname
)

// While it reads or writes the pages of an image, gVisor has 128 goroutines wait for
// the disk, and raises GOMAXPROCS by as many for that. Pages that are in the host's
// cache keep nobody waiting: then a machine with few CPUs only has a hundred threads
// more to choose from, at the moment when a sandbox is wanted. Go itself gives the
// place of a thread that waits to another.
//
// gVisor leaves GOMAXPROCS alone where it does not know what it was, which is what 0
// in base means.

//go:linkname procsMu gvisor.dev/gvisor/pkg/gomaxprocs.mu
var procsMu sync.Mutex // which gVisor's is, within others of one field

//go:linkname procsBase gvisor.dev/gvisor/pkg/gomaxprocs.base
var procsBase int // guarded by procsMu

//go:linkname procsTemp gvisor.dev/gvisor/pkg/gomaxprocs.temp
var procsTemp int // guarded by procsMu; while it is not 0, what was raised has to be lowered

// keepProcs has GOMAXPROCS stay what the loader sets it to, which it does once. If it
// comes late an image is read as gVisor would.
func keepProcs() {
	go func() {
		for range 2000 {
			procsMu.Lock()
			known := procsBase != 0 && procsTemp == 0
			if known {
				procsBase = 0
			}
			procsMu.Unlock()
			if known {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
}

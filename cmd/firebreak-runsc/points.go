package main

import (
	"sync"
	_ "unsafe" // for go:linkname
)

// gVisor can tell of a guest's system calls to a program beside it, and begins with a
// description of each: a thousand, each with its fields. Nothing here ever asks for
// that, for which there are flags and commands that this program is not given, and it is
// asked for by those descriptions only: without them it can be had by nobody.

//go:linkname pointsOnce gvisor.dev/gvisor/pkg/sentry/seccheck.initOnce
var pointsOnce sync.Once

// describeNoPoints has gVisor find that it is done already.
func describeNoPoints() { pointsOnce.Do(func() {}) }

// Package first is initialised before the packages of gVisor, and does what has to be
// done by then. Importing it is enough.
package first

import (
	"runtime"
	"slices"
	"time"
)

// A process uses one CPU until it has started. What it does until then is one thing
// after the other; but with more CPUs Go wakes threads for whatever could run beside it,
// and each of the forty calls by which gVisor gives up privileges is made by all threads,
// one waiting for the other.
var procs int // what GOMAXPROCS was; set by init

// Started has a process use all CPUs when it has been there for a moment. A sentry is
// left alone, since its loader decides what it is to have; a runtime ends before that.
func Started(args []string) {
	if !slices.Contains(args, "boot") {
		time.AfterFunc(time.Second, func() { runtime.GOMAXPROCS(procs) })
	}
}

// Package failpoint names the places where a crash must be survivable, so that
// tests can put the crash exactly there:
//
//	failpoint.Hit("create/after-intent")
//
// Nothing happens unless the environment variable FIREBREAK_FAILPOINT was set
// when the process started:
//
//	FIREBREAK_FAILPOINT=create/after-intent    SIGKILL at the first hit
//	FIREBREAK_FAILPOINT=create/after-boot:3    SIGKILL at the third
//	FIREBREAK_FAILPOINT=count                  print every hit to stderr
//
// A killed process runs no deferred call and no signal handler: what it leaves
// is what a power switch would leave. Counting mode is how a test learns which
// points a scenario passes, and how often, before it visits each of them.
//
// Off, a Hit is one atomic load and a branch.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Env is the environment variable that arms a point.
const Env = "FIREBREAK_FAILPOINT"

// hook is called at every hit; nil when off.
var hook atomic.Pointer[func(name string)]

func init() {
	if v := os.Getenv(Env); v != "" {
		f := parse(v)
		hook.Store(&f)
	}
}

// Hit marks a crash point. Names are "operation/step" and part of no API.
func Hit(name string) {
	if f := hook.Load(); f != nil {
		(*f)(name)
	}
}

// Intercept calls f at every hit, in the goroutine that hits, until restore is
// called. It is for tests within one process; hits may be concurrent.
func Intercept(f func(name string)) (restore func()) {
	old := hook.Swap(&f)
	return func() { hook.Store(old) }
}

// parse makes the hook that v asks for. A point that does not exist is never
// hit, which the test that asked notices; a count that does not parse is 1.
func parse(v string) func(string) {
	var mu sync.Mutex
	hits := map[string]int{}
	count := func(name string) int {
		mu.Lock()
		defer mu.Unlock()
		hits[name]++
		return hits[name]
	}
	if v == "count" {
		return func(name string) { fmt.Fprintf(os.Stderr, "failpoint: %s:%d\n", name, count(name)) }
	}
	point, at := v, 1
	if i := strings.LastIndexByte(v, ':'); i >= 0 {
		if n, err := strconv.Atoi(v[i+1:]); err == nil && n > 0 {
			point, at = v[:i], n
		}
	}
	return func(name string) {
		if name == point && count(name) == at {
			die()
		}
	}
}

// die ends the process at once and does not return: other goroutines must not
// go on past the point while the signal is on its way.
func die() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Kill()
	}
	select {}
}

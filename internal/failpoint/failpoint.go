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
//	FIREBREAK_FAILPOINT=@/tmp/x/arm            do what that file says, now
//
// The file holds one of the first three, or nothing, and is read at every hit:
// a test arms a point in a process that is running, when what leads up to it is
// done, and learns of the hits of one operation alone. Counting begins anew when
// the content changes, of which only the first word means something. What
// "count" counts is appended to the file's name with
// ".hits" at its end, so that hits of a process that dies are seen, too.
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
	if path, ok := strings.CutPrefix(v, "@"); ok {
		return follow(path)
	}
	a := arm(v)
	return func(name string) {
		if n := a.hit(name); n > 0 {
			fmt.Fprintf(os.Stderr, "failpoint: %s:%d\n", name, n)
		}
	}
}

// follow makes the hook that does what the file at path says. Hits wait for
// each other, so that they are written in the order they are counted in.
func follow(path string) func(string) {
	var mu sync.Mutex
	var said string
	var a *armed
	return func(name string) {
		mu.Lock()
		defer mu.Unlock()
		b, err := os.ReadFile(path)
		v := strings.Fields(string(b))
		if err != nil || len(v) == 0 {
			said, a = "", nil
			return
		}
		if a == nil || string(b) != said {
			said, a = string(b), arm(v[0])
		}
		if n := a.hit(name); n > 0 {
			note(path+".hits", fmt.Sprintf("%s:%d\n", name, n))
		}
	}
}

// note appends a line. A test that misses it says so.
func note(path, line string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(line)
}

// armed is a point at whose at-th hit this process dies; or, without a point,
// the count of all hits.
type armed struct {
	point string
	at    int

	mu   sync.Mutex
	hits map[string]int // guarded by mu
}

// arm decodes "count", "point" or "point:n".
func arm(v string) *armed {
	a := &armed{point: v, at: 1, hits: map[string]int{}}
	if v == "count" {
		a.point = ""
		return a
	}
	if i := strings.LastIndexByte(v, ':'); i >= 0 {
		if n, err := strconv.Atoi(v[i+1:]); err == nil && n > 0 {
			a.point, a.at = v[:i], n
		}
	}
	return a
}

// hit counts. It returns how often the point was hit where that is asked for,
// else 0; where the process is to die it does not return.
func (a *armed) hit(name string) int {
	if a.point != "" && a.point != name {
		return 0
	}
	a.mu.Lock()
	a.hits[name]++
	n := a.hits[name]
	a.mu.Unlock()
	switch {
	case a.point == "":
		return n
	case n == a.at:
		die()
	}
	return 0
}

// die ends the process at once and does not return: other goroutines must not
// go on past the point while the signal is on its way.
func die() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Kill()
	}
	select {}
}

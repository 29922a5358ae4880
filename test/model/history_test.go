package model

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// never is the time of an answer that did not come.
const never = time.Duration(math.MaxInt64 / 2)

// view is what an answer says about one sandbox.
type view struct {
	id, label, name, state, reason, receipt string
	created, expires                        int64 // Unix nanoseconds; 0 is never
}

// defaultLife is how long a sandbox lives whose create says nothing about it.
const defaultLife = time.Hour

// verb is what a call asks for.
type verb string

const (
	create  verb = "create"
	get     verb = "get"
	lookup  verb = "lookup" // get, by name
	list    verb = "list"
	destroy verb = "destroy"
	timeout verb = "timeout"
	write   verb = "write"
	read    verb = "read"
	cat     verb = "cat" // an exec that reads a file
)

// call is one call as its client saw it.
type call struct {
	n        int // unique
	client   int
	tenant   string
	verb     verb
	from, to time.Duration // since the history began
	wall     int64         // from, in Unix nanoseconds

	id        string // the sandbox
	name      string
	label     string // of a create: in the sandbox's metadata, the same for a repeated one
	key       string
	life      time.Duration // of a create or timeout; 0 is the default
	extend    bool
	all       bool // list also those that have ended
	path      string
	value     string // written, or read; missing if there is no such file
	lost      bool   // no answer, or one that leaves open what happened
	kind      sandbox.Kind
	message   string // of an error
	made      string // the id an error names
	one       view
	many      []view
	cut       bool // the program was killed by the sandbox's end
	unreached bool // the call never left
}

func (c *call) String() string {
	return fmt.Sprintf("#%d client %d %s/%s %s%s %s", c.n, c.client, c.tenant, c.verb, c.id, c.name, c.kind)
}

// history is what all clients saw.
type history struct {
	start   time.Time
	calls   []*call
	limit   int           // the quota of each tenant; 0: not checked
	patient time.Duration // how late a sandbox may end by itself
}

// lost counts the calls without an answer.
func (h *history) lost() (n int) {
	for _, c := range h.calls {
		if c.lost {
			n++
		}
	}
	return n
}

// words counts the calls by verb and outcome, for people.
func (h *history) words() string {
	n := map[string]int{}
	for _, c := range h.calls {
		switch {
		case c.lost:
			n[string(c.verb)+" lost"]++
		case c.unreached:
			n["unreached"]++
		case c.kind != "":
			n[string(c.verb)+" "+string(c.kind)]++
		default:
			n[string(c.verb)]++
		}
	}
	var out []string
	for _, k := range sorted(n) {
		out = append(out, fmt.Sprintf("%s %d", k, n[k]))
	}
	return strings.Join(out, ", ")
}

package model

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"
)

// phase is a sandbox's state as the store has it.
type phase int

const (
	absent phase = iota
	creating
	running
	stopping
	ended
)

var phases = map[string]phase{"creating": creating, "running": running, "stopping": stopping, "ended": ended}

// state is the state of any one object; what an object does not have stays
// zero. It is compared with ==.
type state struct {
	phase   phase
	ending  bool   // no new work is taken
	expires int64  // Unix nanoseconds; 0 is never
	cause   string // what decided the end
	reason  string // as first told
	receipt string // as first told

	holder string // of a name: the sandbox; of a key: the sandbox made under it
	value  string // of a register; of a key: the body
	owner  string // of a key: the call that may hold it
}

// input is one step on one object.
type input struct {
	object string // what the history is partitioned by
	verb   string
	by     string // the call it belongs to, for people, and to tell maybes apart

	id, value string
	cause     string // of a step of an end
	at        int64  // an expiry
	own       bool   // of set: at is what was asked for
	extend    bool
	seen      view
}

// The causes of an end.
const (
	byOperator = "operator"
	byTimeout  = "timeout"
	byUndo     = "undo" // of a create that nobody was told of
)

// missing is the value of a register that nobody wrote.
const missing = "\x00"

// step is the model: whether in may happen in s, and what is then.
func step(s state, in input) (bool, state) {
	kind, _, _ := strings.Cut(in.object, " ")
	switch kind {
	case "sandbox":
		if in.cause != "" {
			return stepEnd(s, in)
		}
		return stepSandbox(s, in)
	case "name":
		return stepName(s, in)
	case "key":
		return stepKey(s, in)
	case "file":
		return stepFile(s, in)
	}
	return false, s // a stranger who was told something
}

func stepSandbox(s state, in input) (bool, state) {
	switch in.verb {
	case "intend":
		ok := s.phase == absent
		s.phase, s.expires = creating, in.at
		return ok, s
	case "ready":
		ok := s.phase == creating
		s.phase = running
		return ok, s
	case "maybe ready":
		if s.phase == creating {
			s.phase = running
		}
		return true, s
	case "see":
		return see(s, in.seen)
	case "unseen": // in a list of the living
		return s.phase == absent || s.phase == ended, s
	case "unseen in all":
		return s.phase == absent, s
	case "missing":
		return s.phase == absent, s
	case "use":
		return s.phase == running && !s.ending, s
	case "gone":
		return s.ending || s.phase >= stopping, s
	case "set":
		switch {
		case !in.own: // refused to move it closer, and said where it is
			return in.extend && s.expires == in.at, s
		case in.extend && (s.expires == 0 || s.expires > in.at):
			return false, s
		}
		s.expires = in.at
		return s.phase >= running, s
	case "maybe set":
		if s.phase == running {
			s.expires = in.at
		}
		return true, s
	}
	return false, s
}

// stepEnd is a step of an end: decided, journalled, over. A timeout is one only
// if the sandbox still expires then; and then it must.
func stepEnd(s state, in input) (bool, state) {
	due := in.cause != byTimeout || s.expires == in.at
	undecided := !s.ending && s.phase < stopping
	if undecided && in.cause == byTimeout && s.phase < running {
		return true, s
	}
	switch in.verb {
	case "decide":
		if undecided && due {
			s.ending, s.cause = true, in.cause
		}
		return s.phase != absent, s
	case "journal":
		if undecided {
			return !due, s
		}
		s.phase = max(s.phase, stopping)
		return true, s
	case "end":
		if undecided {
			return !due, s
		}
		ok := s.phase >= stopping
		s.phase = ended
		return ok, s
	}
	return false, s
}

// see is an answer that describes the sandbox.
func see(s state, v view) (bool, state) {
	if s.phase == absent || phases[v.state] != s.phase {
		return false, s
	}
	if s.phase == running && s.expires != v.expires {
		return false, s
	}
	if s.phase >= stopping {
		if s.reason == "" {
			s.reason = v.reason
		}
		if v.reason == "" || v.reason != s.reason || s.cause != byUndo && v.reason != s.cause {
			return false, s
		}
	}
	if s.phase == ended {
		if s.receipt == "" {
			s.receipt = v.receipt
		}
		return v.receipt != "" && v.receipt == s.receipt, s
	}
	return v.receipt == "", s
}

func stepName(s state, in input) (bool, state) {
	switch in.verb {
	case "claim":
		ok := s.holder == ""
		s.holder = in.id
		return ok, s
	case "free":
		ok := s.holder == in.id
		s.holder = ""
		return ok, s
	case "maybe claim":
		if s.holder == "" {
			s.holder = in.by
		}
		return true, s
	case "maybe free":
		if s.holder == in.by {
			s.holder = ""
		}
		return true, s
	case "taken":
		return s.holder != "", s
	case "is":
		return s.holder == in.id, s
	case "is nobody's":
		return s.holder == "", s
	}
	return false, s
}

func stepKey(s state, in input) (bool, state) {
	switch in.verb {
	case "bind": // in.value is the body, in.id what it made
		ok := s.value == "" || s.value == in.value && (s.holder == "" || s.holder == in.id)
		s.value, s.holder = in.value, in.id
		return ok, s
	case "hold": // by a call that failed or was never answered
		if s.value == "" {
			s.value, s.owner = in.value, in.by
		}
		return true, s
	case "release":
		if s.owner == in.by && s.holder == "" {
			s.value, s.owner = "", ""
		}
		return true, s
	case "conflict":
		return s.value != "" && s.value != in.value, s
	}
	return false, s
}

func stepFile(s state, in input) (bool, state) {
	switch in.verb {
	case "write", "maybe write":
		s.value = in.value
		return true, s
	case "read":
		return s.value == in.value || s.value == "" && in.value == missing, s
	}
	return false, s
}

// lifecycle is the model as porcupine takes it.
var lifecycle = porcupine.Model{
	Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
		index := map[string]int{}
		var parts [][]porcupine.Operation
		for _, op := range h {
			object := op.Input.(input).object
			i, ok := index[object]
			if !ok {
				i = len(parts)
				index[object] = i
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() any { return state{} },
	Step: func(s, in, _ any) (bool, any) {
		ok, next := step(s.(state), in.(input))
		return ok, next
	},
	DescribeOperation: func(in, _ any) string { return in.(input).String() },
	DescribeState:     func(s any) string { return fmt.Sprintf("%+v", s) },
}

func (in input) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", in.object, in.verb)
	if in.cause != "" {
		b.WriteString(" by " + in.cause)
	}
	if in.id != "" {
		b.WriteString(" " + in.id)
	}
	if in.value != "" {
		fmt.Fprintf(&b, " %.40q", in.value)
	}
	if in.verb == "see" {
		fmt.Fprintf(&b, " %s %s expires %d receipt %.8s", in.seen.state, in.seen.reason, in.seen.expires, in.seen.receipt)
	}
	if in.at != 0 {
		fmt.Fprintf(&b, " expires %d", in.at)
	}
	return b.String() + " (" + in.by + ")"
}

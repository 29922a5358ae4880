package server

import (
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// defaultOutput is how much of each output a unary exec keeps.
const defaultOutput = 8 << 20

// budget bounds the output that all unary execs of a Server hold together. A
// tenant's programs can print as fast as they like, a hundred at a time: the
// daemon's memory is not theirs.
type budget struct{ left atomic.Int64 }

func (b *budget) take(n int) bool {
	if b.left.Add(-int64(n)) >= 0 {
		return true
	}
	b.left.Add(int64(n))
	return false
}

func (b *budget) give(n int) { b.left.Add(int64(n)) }

// execAggregator folds an exec's events into an ExecResponse. It holds at most
// max bytes of each output: a program that prints without end costs no memory.
type execAggregator struct {
	stdout, stderr capture
	exit           *v1.ProcessExit
}

func newExecAggregator(b *budget, req proto.Message) aggregator {
	limit := int(req.(*v1.ExecRequest).GetMaxOutputBytes())
	if limit == 0 {
		limit = defaultOutput
	}
	return &execAggregator{stdout: capture{max: limit, budget: b}, stderr: capture{max: limit, budget: b}}
}

// release gives back what the outputs took of the budget.
func (a *execAggregator) release() {
	a.stdout.release()
	a.stderr.release()
}

func (a *execAggregator) add(m proto.Message) {
	switch ev := m.(*v1.ExecEvent).GetEvent().(type) {
	case *v1.ExecEvent_Stdout:
		a.stdout.add(ev.Stdout)
	case *v1.ExecEvent_Pty:
		a.stdout.add(ev.Pty)
	case *v1.ExecEvent_Stderr:
		a.stderr.add(ev.Stderr)
	case *v1.ExecEvent_Exit:
		a.exit = ev.Exit
	}
}

func (a *execAggregator) result() (proto.Message, error) {
	if a.exit == nil {
		return nil, sandbox.Errorf("exec", sandbox.KindInternal, "the process ended without an exit event")
	}
	r := &v1.ExecResponse{
		ExitCode: a.exit.ExitCode, DurationMs: a.exit.DurationMs, Reason: a.exit.Reason, Detail: a.exit.Detail,
		ResultJson: a.exit.ResultJson, StdoutTruncated: a.stdout.truncated, StderrTruncated: a.stderr.truncated,
	}
	r.Stdout, r.StdoutData = a.stdout.text()
	r.Stderr, r.StderrData = a.stderr.text()
	return r, nil
}

// capture keeps the beginning of an output.
type capture struct {
	buf       []byte
	max       int
	budget    *budget
	taken     int // of the budget
	truncated bool
}

const (
	freeOutput = 64 << 10 // of each output needs no budget: small answers are always whole
	stepOutput = 64 << 10 // what is taken of it at a time
)

func (c *capture) release() {
	c.budget.give(c.taken)
	c.taken = 0
}

func (c *capture) add(o *v1.Output) {
	text := o.GetText()
	c.buf = append(c.buf, text[:c.room(len(text))]...)
	data := o.GetData()
	c.buf = append(c.buf, data[:c.room(len(data))]...)
}

// room returns how many of n further bytes may be kept. Nothing follows a gap.
func (c *capture) room(n int) int {
	if c.truncated {
		return 0
	}
	may := min(n, c.max-len(c.buf))
	for len(c.buf)+may > freeOutput+c.taken && c.budget.take(stepOutput) {
		c.taken += stepOutput
	}
	may = min(may, freeOutput+c.taken-len(c.buf))
	c.truncated = may < n
	return may
}

// text returns the output as text and, only where that lost something, as
// bytes. A character cut in half by the limit is dropped, not mangled.
func (c *capture) text() (string, []byte) {
	b := c.buf
	if c.truncated {
		for i := 1; i <= min(utf8.UTFMax, len(b)); i++ {
			if tail := b[len(b)-i:]; utf8.RuneStart(tail[0]) {
				if !utf8.FullRune(tail) {
					b = b[:len(b)-i]
				}
				break
			}
		}
	}
	if utf8.Valid(b) {
		return string(b), nil
	}
	return strings.ToValidUTF8(string(b), "\ufffd"), b
}

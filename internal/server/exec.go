package server

import (
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// defaultOutput is how much of each output a unary exec keeps.
const defaultOutput = 8 << 20

// execAggregator folds an exec's events into an ExecResponse. It holds at most
// max bytes of each output: a program that prints without end costs no memory.
type execAggregator struct {
	stdout, stderr capture
	exit           *v1.ProcessExit
}

func newExecAggregator(req proto.Message) aggregator {
	limit := int(req.(*v1.ExecRequest).GetMaxOutputBytes())
	if limit == 0 {
		limit = defaultOutput
	}
	return &execAggregator{stdout: capture{max: limit}, stderr: capture{max: limit}}
}

func (a *execAggregator) add(m proto.Message) {
	switch ev := m.(*v1.ExecEvent).GetEvent().(type) {
	case *v1.ExecEvent_Stdout:
		a.stdout.add(ev.Stdout)
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
	truncated bool
}

func (c *capture) add(o *v1.Output) {
	room := c.max - len(c.buf)
	if n := len(o.GetText()) + len(o.GetData()); n > room {
		c.truncated = true
	}
	text := o.GetText()
	c.buf = append(c.buf, text[:min(room, len(text))]...)
	room = c.max - len(c.buf)
	c.buf = append(c.buf, o.GetData()[:min(room, len(o.GetData()))]...)
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

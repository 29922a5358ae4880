package server

import (
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What a unary answer to an eval holds of results.
const (
	maxResults  = 1000
	resultBytes = 16 << 20
)

// evalAggregator folds a turn's events into an EvalResponse.
type evalAggregator struct {
	stdout, stderr capture
	res            *v1.EvalResponse
	size, taken    int // of the results; of the budget
	end            *v1.TurnEnd
}

func newEvalAggregator(b *budget, req proto.Message) aggregator {
	limit := int(req.(*v1.EvalRequest).GetMaxOutputBytes())
	if limit == 0 {
		limit = defaultOutput
	}
	return &evalAggregator{stdout: capture{max: limit, budget: b}, stderr: capture{max: limit, budget: b}, res: &v1.EvalResponse{}}
}

func (a *evalAggregator) release() {
	a.stdout.release()
	a.stderr.release()
	a.stdout.budget.give(a.taken)
	a.taken = 0
}

func (a *evalAggregator) add(m proto.Message) {
	switch ev := m.(*v1.EvalEvent).GetEvent().(type) {
	case *v1.EvalEvent_Stdout:
		a.stdout.add(ev.Stdout)
	case *v1.EvalEvent_Stderr:
		a.stderr.add(ev.Stderr)
	case *v1.EvalEvent_Result:
		a.keep(ev.Result)
	case *v1.EvalEvent_Exception:
		a.res.Error = ev.Exception
	case *v1.EvalEvent_End:
		a.end = ev.End
	}
}

// keep takes a result, while there is room. Nothing follows a gap.
func (a *evalAggregator) keep(r *v1.EvalResult) {
	n := proto.Size(r)
	if a.res.ResultsTruncated || len(a.res.Results) == maxResults || a.size+n > resultBytes {
		a.res.ResultsTruncated = true
		return
	}
	for a.size+n > freeOutput+a.taken {
		if !a.stdout.budget.take(stepOutput) {
			a.res.ResultsTruncated = true
			return
		}
		a.taken += stepOutput
	}
	a.size += n
	a.res.Results = append(a.res.Results, r)
}

func (a *evalAggregator) result() (proto.Message, error) {
	if a.end == nil {
		return nil, sandbox.Errorf("eval", sandbox.KindInternal, "the turn ended without an end event")
	}
	r := a.res
	r.ExecutionCount, r.DurationMs, r.Reason, r.Detail = a.end.ExecutionCount, a.end.DurationMs, a.end.Reason, a.end.Detail
	r.Context, r.ContextState = a.end.Context, a.end.ContextState
	r.StdoutTruncated, r.StderrTruncated = a.stdout.truncated, a.stderr.truncated
	r.Stdout, r.StdoutData = a.stdout.text()
	r.Stderr, r.StderrData = a.stderr.text()
	return r, nil
}

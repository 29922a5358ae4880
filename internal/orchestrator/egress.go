package orchestrator

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// EgressEvent is one decision about what a sandbox wanted, or the end of what was
// allowed. Names in it come from hostile code.
type EgressEvent struct {
	Time     time.Time
	Kind     string // "dns": a name was asked for; "connect": a connection; "close": its end; "request": one that was read, or through a binding
	Host     string // empty: Count different ones, no longer told one by one
	Port     uint16 // 0 of a name that was asked for
	Address  string // what will be dialled, or was
	Protocol string
	Decision string // "allow", "deny", "observe"
	Rule     string // that decided; empty for none
	Reason   string
	Hint     string // what would permit it
	Binding  string // of a request: what it was made through
	Method   string // of a request
	// Generation is that of the policy that decided.
	Generation uint64
	Upload     int64 // bytes, with "close"
	Download   int64
	Count      int // how many alike this stands for; 0 is one
}

// FlowEvent is the body of an "egress" event, and what a report keeps of a
// sandbox's flows: several alike are one.
type FlowEvent struct {
	policy.Observation
	Hint       string `json:"hint,omitempty"`
	Binding    string `json:"binding,omitempty"`
	Method     string `json:"method,omitempty"`
	Generation uint64 `json:"generation,omitempty"`
	Upload     int64  `json:"upload_bytes,omitempty"`
	Download   int64  `json:"download_bytes,omitempty"`
	Count      int64  `json:"count,omitempty"`
}

// flowWait bounds how long evidence of one decision may take: meanwhile the flow
// waits.
const flowWait = 5 * time.Second

// Bounds of what an event may say.
const (
	maxFlowHost = 256
	maxFlowText = 512
	// maxFlowsKept is how many differing flows a report names that passed, and how
	// many that did not: neither kind hides the other.
	maxFlowsKept = 50
)

// EgressStats counts what all sandboxes wanted since the start of this process.
type EgressStats struct {
	// Flows is by kind ("dns", "connect", "request") and decision.
	Flows            map[[2]string]int64
	Upload, Download int64
}

// flowCounts is EgressStats as it is counted.
type flowCounts struct {
	flows            [len(flowKinds)][len(flowDecisions)]atomic.Int64
	upload, download atomic.Int64
}

var (
	flowKinds     = [...]string{"dns", "connect", flowRequest}
	flowDecisions = [...]string{"allow", "deny", "observe"}
)

const (
	flowClose   = "close"
	flowRequest = "request"
)

// Egress reports what sandboxes wanted, for metrics.
func (o *Orchestrator) Egress() EgressStats {
	s := EgressStats{Flows: map[[2]string]int64{}, Upload: o.flows.upload.Load(), Download: o.flows.download.Load()}
	for i, k := range flowKinds {
		for j, d := range flowDecisions {
			s.Flows[[2]string{k, d}] = o.flows.flows[i][j].Load()
		}
	}
	return s
}

// RecordEgress records a decision of a wire's as evidence, tells whoever watches
// the sandbox, and counts it. The decision takes effect after it: an error denies.
// Errors: KindNotFound for a wire of no living sandbox, KindInvalid for what is no
// decision, or through a binding that the sandbox has not, KindUnavailable at shutdown, those of the Recorder.
//
// Cost: some microseconds; longer while evidence lags.
func (o *Orchestrator) RecordEgress(id sandbox.InstanceID, e EgressEvent) error {
	l, done, err := o.wired(id)
	if err != nil {
		return err
	}
	defer done()
	kind, decision := indexOf(flowKinds[:], e.Kind), indexOf(flowDecisions[:], e.Decision)
	if kind < 0 && e.Kind != flowClose || decision < 0 {
		return sandbox.Errorf("egress", sandbox.KindInvalid, "%.20q of %.20q is no decision", e.Decision, e.Kind).WithID(string(l.id))
	}
	e.bound()
	invokes := e.Kind == flowRequest && e.Decision != "deny" && e.Binding != ""
	if invokes && !slices.Contains(l.bindings, e.Binding) { // a router that says so lies
		return sandbox.Errorf("egress", sandbox.KindInvalid, "the sandbox has no binding %.64q", e.Binding).WithID(string(l.id))
	}
	ctx, cancel := context.WithTimeout(o.ctx, flowWait)
	defer cancel()
	r := e.evidence()
	first := invokes && !l.invokedBefore(e.Binding)
	if first {
		r.Class = sandbox.Gate
	}
	if err := l.record(ctx, system(l.tenant), r); err != nil {
		return err
	}
	if first {
		l.noteInvoked(e.Binding)
	}
	if e.Kind == flowClose {
		o.flows.upload.Add(e.Upload)
		o.flows.download.Add(e.Download)
	} else {
		o.flows.flows[kind][decision].Add(int64(e.Count))
	}
	o.publishJSON(l.id, event.Egress, "", e.flow(), false)
	l.noteFlow(&e)
	return nil
}

// wired finds the living sandbox of a wire, and keeps this process from ending
// until done is called.
func (o *Orchestrator) wired(id sandbox.InstanceID) (l *live, done func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.silent {
		return nil, nil, stopping("egress")
	}
	if l = o.instances[id]; l == nil {
		return nil, nil, sandbox.Errorf("egress", sandbox.KindNotFound, "no living sandbox has this wire").WithID(string(id))
	}
	o.work.Add(1) // not from zero: the reaper works until after silent is set
	return l, o.work.Done, nil
}

func indexOf(list []string, s string) int {
	for i, v := range list {
		if v == s {
			return i
		}
	}
	return -1
}

// bound cuts what is said to what is kept.
func (e *EgressEvent) bound() {
	cut := func(s *string, n int) {
		if len(*s) > n {
			*s = (*s)[:n]
		}
		*s = strings.ToValidUTF8(*s, "\uFFFD")
	}
	for s, n := range map[*string]int{&e.Host: maxFlowHost, &e.Address: 64, &e.Protocol: 16, &e.Rule: maxFlowText, &e.Reason: 64, &e.Hint: maxFlowText,
		&e.Binding: 64, &e.Method: 32} {
		cut(s, n)
	}
	e.Count, e.Upload, e.Download = max(e.Count, 1), max(e.Upload, 0), max(e.Download, 0)
}

// evidence is the record of a decision.
func (e *EgressEvent) evidence() sandbox.Record {
	if e.Kind == flowRequest && e.Binding != "" {
		return e.invocation()
	}
	r := sandbox.Record{Class: sandbox.Flow, Action: "egress.decide", Outcome: sandbox.OutcomeAllowed, Policy: e.Generation,
		Object: e.Host, Detail: map[string]string{"kind": e.Kind, "decision": e.Decision}}
	if e.Port != 0 {
		r.Object = net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
	}
	if e.Kind == flowRequest { // without its path, its query and its body, which are nobody's business
		r.Action, r.Detail = "egress.request", map[string]string{"decision": e.Decision, "method": e.Method}
	}
	switch {
	case e.Kind == flowClose:
		r.Outcome = sandbox.OutcomeDone
		r.Detail["upload"], r.Detail["download"] = strconv.FormatInt(e.Upload, 10), strconv.FormatInt(e.Download, 10)
	case e.Decision == "deny":
		r.Outcome = sandbox.OutcomeDenied
	}
	for k, v := range map[string]string{"rule": e.Rule, "reason": e.Reason, "address": e.Address, "protocol": e.Protocol} {
		if v != "" {
			r.Detail[k] = v
		}
	}
	if e.Count > 1 {
		r.Detail["count"] = strconv.Itoa(e.Count)
	}
	return r
}

// flow is the event as it is published.
func (e *EgressEvent) flow() FlowEvent {
	return FlowEvent{Observation: policy.Observation{Host: e.Host, Port: e.Port, Address: e.Address, Protocol: e.Protocol,
		Decision: e.Decision, Rule: e.Rule, Reason: e.Reason, Kind: e.Kind},
		Hint: e.Hint, Binding: e.Binding, Method: e.Method, Generation: e.Generation, Upload: e.Upload, Download: e.Download, Count: int64(e.Count)}
}

// FlowReport is what is told of a sandbox's flows: the first differing ones, and
// how many there were besides.
type FlowReport struct {
	Flows []FlowEvent `json:"flows,omitempty"`
	More  int64       `json:"more,omitempty"`
}

// flowsKept collects a FlowReport.
type flowsKept struct {
	list    []FlowEvent
	index   map[flowKey]int
	passed  int // of list
	more    int64
	changed bool // since it was written down
}

// flowKey tells flows apart.
type flowKey struct {
	host            string
	port            uint16
	decision, rule  string
	binding, method string
	reason          string // of a request
}

func (f *FlowEvent) key() flowKey {
	k := flowKey{host: f.Host, port: f.Port, decision: f.Decision, rule: f.Rule, binding: f.Binding, method: f.Method}
	if f.Kind == flowRequest {
		k.reason = f.Reason
	}
	return k
}

// report is a copy of what was collected.
func (k *flowsKept) report() FlowReport {
	return FlowReport{Flows: append([]FlowEvent(nil), k.list...), More: k.more}
}

// restore begins with what an earlier process collected.
func (k *flowsKept) restore(r FlowReport) {
	for _, f := range r.Flows {
		k.enter(f)
	}
	k.more += r.More
}

func (k *flowsKept) enter(f FlowEvent) {
	key := f.key()
	if i, known := k.index[key]; known {
		k.list[i].Count += f.Count
		return
	}
	denied := f.Decision == "deny"
	if room := maxFlowsKept; denied && len(k.list)-k.passed >= room || !denied && k.passed >= room {
		k.more += f.Count
		return
	}
	if !denied {
		k.passed++
	}
	if k.index == nil {
		k.index = map[flowKey]int{}
	}
	k.index[key] = len(k.list)
	k.list = append(k.list, f)
}

// noteFlow adds an event to the sandbox's report. A name that may be asked for is
// not in it, nor is a request that a rule allows: the connection says as much.
func (l *live) noteFlow(e *EgressEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept.changed = true
	switch {
	case e.Kind == flowClose:
		f := e.flow()
		if i, known := l.kept.index[f.key()]; known {
			l.kept.list[i].Upload += e.Upload
			l.kept.list[i].Download += e.Download
		}
	case e.Kind == "dns" && e.Decision != "deny", e.Kind == flowRequest && e.Decision == "allow" && e.Binding == "":
	default:
		l.kept.enter(e.flow())
	}
}

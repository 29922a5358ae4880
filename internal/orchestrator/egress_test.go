package orchestrator

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestRecordEgress: evidence first, then whoever watches, the report and the
// counts; and nothing of what cannot be recorded.
func TestRecordEgress(t *testing.T) {
	w, _ := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: [a.example.com]")})
	record := func(e EgressEvent) {
		t.Helper()
		if err := o.RecordEgress(sb.Instance, e); err != nil {
			t.Fatal(err)
		}
	}
	record(EgressEvent{Kind: "dns", Host: "a.example.com", Decision: "allow", Reason: "rule", Rule: "allow a.example.com:443", Generation: 1})
	record(EgressEvent{Kind: "connect", Host: "a.example.com", Port: 443, Address: "93.184.216.34", Protocol: "tls", Decision: "allow", Reason: "rule", Rule: "allow a.example.com:443", Generation: 1})
	record(EgressEvent{Kind: "request", Host: "a.example.com", Port: 443, Protocol: "tls", Decision: "allow", Reason: "rule", Rule: "allow a.example.com:443", Method: "GET", Generation: 1, Count: 3})
	record(EgressEvent{Kind: "request", Host: "a.example.com", Port: 443, Protocol: "tls", Decision: "deny", Reason: "method", Method: "PUT", Generation: 1})
	record(EgressEvent{Kind: "close", Host: "a.example.com", Port: 443, Decision: "allow", Rule: "allow a.example.com:443", Upload: 10, Download: 20, Generation: 1})
	record(EgressEvent{Kind: "connect", Host: "10.0.0.1", Port: 22, Decision: "deny", Reason: "private", Hint: "to permit it: …", Generation: 1, Count: 5})
	record(EgressEvent{Kind: "dns", Host: "evil\xff\x1b[2J." + strings.Repeat("x", 1000), Decision: "deny", Reason: "no_rule", Generation: 1})
	for what, e := range map[string]EgressEvent{"decision": {Kind: "connect", Decision: "maybe"}, "kind": {Kind: "wish", Decision: "allow"}} {
		if err := o.RecordEgress(sb.Instance, e); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := o.RecordEgress(sandbox.NewInstanceID(), EgressEvent{Kind: "connect", Decision: "allow"}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("nobody's: %v", err)
	}
	var got []string
	for _, r := range w.audit.records {
		if r.Action == "egress.request" {
			got = append(got, fmt.Sprint(r.Outcome, " ", r.Object, " ", r.Detail["method"], r.Detail["count"], r.Detail["rule"], r.Detail["reason"]))
			if len(r.Detail) < 4 || r.Class != sandbox.Flow || r.Policy != 1 {
				t.Errorf("%+v", r)
			}
		}
		if r.Action == "egress.decide" {
			if r.Class != sandbox.Flow || r.Sandbox != sb.ID || r.Instance != sb.Instance || r.Tenant != alice.Tenant || r.Policy != 1 || r.Principal == "" {
				t.Errorf("%+v", r)
			}
			got = append(got, fmt.Sprint(r.Outcome, " ", r.Object[:min(len(r.Object), 20)], " ", r.Detail["kind"], r.Detail["count"], r.Detail["upload"]))
		}
	}
	want := []string{"allowed a.example.com dns", "allowed a.example.com:443 connect", "allowed a.example.com:443 GET3allow a.example.com:443rule", "denied a.example.com:443 PUTmethod", "done a.example.com:443 close10", "denied 10.0.0.1:22 connect5", "denied evil\uFFFD\x1b[2J.xxxxxxxx dns"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	events := 0
	for _, e := range w.told.of(sb.ID) {
		var f FlowEvent
		if e.Type != event.Egress {
			continue
		}
		if events++; json.Unmarshal(e.Data, &f) != nil || f.Host == "" || len(f.Host) > maxFlowHost+3 || f.Decision == "" {
			t.Errorf("%s", e.Data)
		}
	}
	now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	flows := now.Details.Flows.Flows
	if err != nil || events != 7 || len(flows) != 4 || flows[0].Upload != 10 || flows[0].Download != 20 || flows[0].Address != "93.184.216.34" || flows[1].Method != "PUT" || flows[2].Count != 5 || flows[2].Hint == "" {
		t.Errorf("%d events, %+v, %v", events, flows, err)
	}
	s := o.Egress()
	if s.Flows[[2]string{"connect", "deny"}] != 5 || s.Flows[[2]string{"dns", "allow"}] != 1 || s.Upload != 10 || s.Download != 20 {
		t.Errorf("%+v", s)
	}
	w.audit.set(errors.New("full"))
	if err := o.RecordEgress(sb.Instance, EgressEvent{Kind: "connect", Host: "b.example.com", Port: 443, Decision: "allow"}); err == nil {
		t.Error("it passes without evidence")
	}
	w.audit.set(nil)
	if s := o.Egress(); s.Flows[[2]string{"connect", "allow"}] != 1 {
		t.Errorf("it was counted: %+v", s)
	}
	dead, err := o.Destroy(t.Context(), alice, string(sb.ID))
	if err != nil || len(dead.Details.Flows.Flows) != 4 {
		t.Errorf("%+v, %v", dead.Details.Flows, err)
	}
	if err := o.RecordEgress(sb.Instance, EgressEvent{Kind: "connect", Decision: "allow"}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("after the end: %v", err)
	}
}

// TestFlowReportIsBounded: neither what passed nor what was refused hides the
// other, and what is left out is counted.
func TestFlowReportIsBounded(t *testing.T) {
	w, _ := newWiredWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Network: policyOf("allow: []")})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			for _, d := range []string{"deny", "allow"} {
				if err := o.RecordEgress(sb.Instance, EgressEvent{Kind: "connect", Host: fmt.Sprintf("h%d.example.com", i), Port: 443, Decision: d}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	now, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	denied := 0
	for _, f := range now.Details.Flows.Flows {
		if f.Decision == "deny" {
			denied++
		}
	}
	if err != nil || len(now.Details.Flows.Flows) != 2*maxFlowsKept || denied != maxFlowsKept || now.Details.Flows.More != 400-2*maxFlowsKept {
		t.Errorf("%d flows, %d denied, %d more, %v", len(now.Details.Flows.Flows), denied, now.Details.Flows.More, err)
	}
}

// TestRunReportsEgress: what a run wanted is in its record.
func TestRunReportsEgress(t *testing.T) {
	w, n := newWiredWorld(t)
	o := w.start()
	r, err := o.CreateRun(t.Context(), alice, RunRequest{Sandbox: CreateRequest{Network: policyOf("allow: []")}, Exec: sh("true"), Await: true})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it awaits its inputs", func() bool {
		got, err := o.GetRun(t.Context(), alice.Tenant, string(r.ID), 0)
		return err == nil && got.Report.Phase == PhaseAwaiting
	})
	ids, _ := n.List(t.Context())
	if err := o.RecordEgress(ids[0], EgressEvent{Kind: "connect", Host: "a.example.com", Port: 443, Decision: "deny", Reason: "no_rule", Hint: "to permit it: --allow a.example.com:443"}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.StartRun(t.Context(), alice, string(r.ID)); err != nil {
		t.Fatal(err)
	}
	got, err := o.GetRun(t.Context(), alice.Tenant, string(r.ID), time.Minute)
	if err != nil || len(got.Report.Egress.Flows) != 1 || got.Report.Egress.Flows[0].Host != "a.example.com" || !got.Report.Receipt.Clean {
		t.Errorf("%+v, %v", got.Report, err)
	}
}

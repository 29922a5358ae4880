//go:build linux

package control

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func downs() []*down {
	some := &authority.Authority{Certificate: []byte("c"), Key: []byte("k")}
	p := Policies{Documents: [][]byte{[]byte("allow: []\n")}, Included: map[string][]byte{"x": []byte("allow: []")}}
	return []*down{
		{Op: opStart, Ref: 1, Start: &start{Private: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Names: names{Resolv: []byte("nameserver 1.1.1.1"), Hosts: []byte("::1 a")}, Roots: []byte("-----")}},
		{Op: opNames, Names: &names{}},
		{Op: opAttach, Ref: 2, ID: "in1", Wire: &wire{Policies: p, Epoch: 3, Used: map[string]policy.Used{"good": {Upload: 1}},
			Bindings: []egress.Binding{{Name: "api", Host: "good.example", Port: 443, Methods: []string{"GET"}, Path: "/", As: "header", Field: "X-Key", Secret: egress.Hidden("s")}}, Authority: some}},
		{Op: opUpdate, Ref: 3, ID: "in1", Wire: &wire{Policies: p, Authority: some}},
		{Op: opGrant, Ref: 8, ID: "in1", Wire: &wire{Bindings: []egress.Binding{{Name: "api", Host: "good.example", Port: 443, Path: "/", As: "bearer", Secret: egress.Hidden("s"), Placeholder: egress.Hidden("p")}},
			Transforms: []egress.Transform{{Host: "*.good.example", Port: 443, Headers: []egress.TransformHeader{{Name: "X-A", Value: egress.Hidden("v")}}, Secrets: []egress.Hidden{egress.Hidden("v")}}}}},
		{Op: opDetach, Ref: 4, ID: "in1"},
		{Op: opStats, Ref: 5},
		{Op: opStop, Ref: 6},
		{Op: opAck, Ack: &ack{Seq: 7, Failed: []uint64{6}}},
	}
}

func ups() []*up {
	e := &egress.Event{Wire: "in1", Time: time.Unix(1, 2).UTC(), Kind: egress.KindConnect, Host: "a.example", Port: 443, Decision: egress.Allow, Rule: "good", Reason: "rule", Count: 1}
	return []*up{
		{Ref: 1, Notes: []string{"x"}}, {Ref: 2, Error: &failure{Kind: sandbox.KindInvalid, Message: "m", Hint: "h"}}, {Ref: 3, Generation: 2, Closed: 1},
		{Ref: 4, Used: map[string]policy.Used{"good": {Names: 4}}}, {Ref: 5, Stats: &egress.Stats{Wires: 1}}, {Seq: 1, Event: e},
		{Seq: 2, Event: &egress.Event{Wire: "in1", Kind: egress.KindRequest, Host: "a.example", Decision: egress.Deny, Reason: "leak", Binding: "api", Method: "GET", Count: 2}},
		{Usage: map[string]map[string]policy.Used{"in1": {"good": {Download: 1}}}},
	}
}

// TestMessages: what is sent is what is read.
func TestMessages(t *testing.T) {
	for _, m := range downs() {
		b, err := json.Marshal(m)
		must(t, err)
		got, err := decodeDown(b, m.Op == opAttach)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: %+v, %v", b, got, err)
		}
		if _, err := decodeDown(b, m.Op != opAttach); err == nil {
			t.Errorf("%s: taken with a descriptor where none belongs, or the reverse", b)
		}
	}
	for _, m := range ups() {
		b, err := json.Marshal(m)
		must(t, err)
		got, err := decodeUp(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: %+v, %v", b, got, err)
		}
	}
	for _, text := range []string{``, `{}`, `null`, `[]`, `{"op":"exec","ref":1}`, `{"op":"stats"}`, `{"op":"stats","ref":1,"id":"in1"}`, `{"op":"detach","ref":1,"id":"../x"}`,
		`{"op":"update","ref":1,"id":"in1"}`, `{"op":"update","ref":1,"id":"in1","wire":{"documents":null,"epoch":-1}}`, `{"op":"ack"}`,
		`{"op":"update","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"bindings":[{"name":"a"}]}}`, `{"op":"ack","ack":{"seq":-1}}`,
		`{"op":"update","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"authority":null}}`, `{"op":"update","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"authority":{"certificate":"Yw==","key":""}}}`,
		`{"op":"update","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"authority":{"certificate":"Yw==","key":"` + strings.Repeat("a", 400) + `"}}}`,
		`{"op":"update","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"authority":{"certificate":"` + strings.Repeat("a", 400<<10) + `","key":"Yw=="}}}`,
		`{"op":"grant","ref":1,"id":"in1"}`, `{"op":"grant","ref":1,"id":"in1","wire":{"documents":["YQ=="],"epoch":0}}`, `{"op":"grant","ref":1,"id":"in1","wire":{"documents":null,"epoch":1}}`,
		`{"op":"grant","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"authority":{"certificate":"Yw==","key":"Yw=="}}}`,
		`{"op":"grant","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"bindings":[{"name":"a","placeholder":"` + strings.Repeat("a", 400) + `"}]}}`,
		`{"op":"grant","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"transforms":[{"host":"` + strings.Repeat("a", 5<<10) + `"}]}}`,
		`{"op":"grant","ref":1,"id":"in1","wire":{"documents":null,"epoch":0,"transforms":[` + strings.Repeat(`{"host":"a"},`, maxTransforms) + `{"host":"a"}]}}`,
		`{"op":"stats","ref":1} {}`, `{"op":"stats","ref":1,"more":1}`} {
		if m, err := decodeDown([]byte(text), false); err == nil {
			t.Errorf("%.300s was taken: %+v", text, m)
		}
	}
}

func FuzzDown(f *testing.F) {
	for _, m := range downs() {
		b, _ := json.Marshal(m)
		f.Add(b, m.Op == opAttach)
	}
	f.Fuzz(func(t *testing.T, b []byte, descriptor bool) {
		m, err := decodeDown(b, descriptor)
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		must(t, err)
		if _, err := decodeDown(again, descriptor); err != nil {
			t.Errorf("%q is a message and %q is none: %v", b, again, err)
		}
	})
}

func FuzzUp(f *testing.F) {
	for _, m := range ups() {
		b, _ := json.Marshal(m)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeUp(b)
		if err != nil {
			return
		}
		if n := btoi(m.Ref != 0) + btoi(m.Event != nil) + btoi(m.Usage != nil); n != 1 {
			t.Errorf("%q is %d things", b, n)
		}
		if e := m.Event; e != nil {
			before := *e
			if tidy(e); *e != before {
				t.Errorf("%q is not tidy", b)
			}
		}
		k := &Keeper{wires: map[string]*kept{"in1": {rules: map[string]bool{"good": true}, used: map[string]policy.Used{}, generation: 1}}}
		k.hear(nil, m)
		for id := range k.wires["in1"].used {
			if id != "good" {
				t.Errorf("%q was believed about %q", b, id)
			}
		}
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

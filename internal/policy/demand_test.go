package policy

import (
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestDemand: the strongest boundary that any document demands is demanded, whoever
// includes it, also after it was written down; and a document that demands one alone is
// no reason for a network.
func TestDemand(t *testing.T) {
	named := library(t, map[string]string{
		"strong": "name: strong\nmin_isolation: hypervisor",
		"weak":   "min_isolation: shared-kernel\nallow: [a.example.com]",
		"circle": "include: [circle, strong]\nmin_isolation: user-kernel",
	})
	for name, c := range map[string]struct {
		docs        []string
		want        sandbox.Isolation
		by          string
		unconnected bool
	}{
		"nothing":             {docs: []string{"allow: [x.example.com]"}},
		"one":                 {docs: []string{"min_isolation: user-kernel\nallow: []"}, want: sandbox.IsolationUserKernel, by: "0"},
		"the strongest":       {docs: []string{"min_isolation: hypervisor\nallow: []", "min_isolation: confidential\nallow: []", "min_isolation: user-kernel\ndeny: []"}, want: sandbox.IsolationConfidential, by: "1"},
		"of two the first":    {docs: []string{"min_isolation: hypervisor", "min_isolation: hypervisor"}, want: sandbox.IsolationHypervisor, by: "0", unconnected: true},
		"included":            {docs: []string{"include: [weak, strong]\nallow: []"}, want: sandbox.IsolationHypervisor, by: "strong"},
		"in a circle":         {docs: []string{"include: [circle]"}, want: sandbox.IsolationHypervisor, by: "strong"},
		"alone":               {docs: []string{"{version: 1, min_isolation: hypervisor}"}, want: sandbox.IsolationHypervisor, by: "0", unconnected: true},
		"and others alone":    {docs: []string{"min_isolation: user-kernel\ninclude: [circle]"}, want: sandbox.IsolationHypervisor, by: "strong", unconnected: true},
		"with a built-in":     {docs: []string{"min_isolation: user-kernel\ninclude: [pypi]"}, want: sandbox.IsolationUserKernel, by: "0"},
		"an empty list":       {docs: []string{"min_isolation: user-kernel\nallow: []"}, want: sandbox.IsolationUserKernel, by: "0"},
		"it observes":         {docs: []string{"min_isolation: user-kernel\nmode: observe"}, want: sandbox.IsolationUserKernel, by: "0"},
		"nothing but Rego":    {docs: []string{"min_isolation: user-kernel\nrego: 'package firebreak'"}, want: sandbox.IsolationUserKernel, by: "0"},
		"a denial in another": {docs: []string{"min_isolation: user-kernel", "deny: [x.example.com]"}, want: sandbox.IsolationUserKernel, by: "0"},
	} {
		var docs, again []*Document
		for i, text := range c.docs {
			docs = append(docs, mustParse(t, string(rune('0'+i)), text))
		}
		judge := func([]Module) (Judge, error) { return nil, nil }
		table, err := Compile(Options{Named: named, Judge: judge}, docs...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := table.Demand(); got != (Demand{c.want, c.by}) {
			t.Errorf("%s: %+v is demanded, want %s by %q", name, got, c.want, c.by)
		}
		flat, err := Flatten(named, docs...)
		if err != nil {
			t.Fatal(err)
		}
		unconnected := true
		for _, d := range flat {
			unconnected = unconnected && d.Unconnected()
			again = append(again, mustParse(t, d.File, string(d.YAML())))
			if again[len(again)-1].Unconnected() != d.Unconnected() {
				t.Errorf("%s: written down it reads %s", name, d.YAML())
			}
		}
		if unconnected != c.unconnected {
			t.Errorf("%s: unconnected is %t", name, unconnected)
		}
		if table, err = Compile(Options{Judge: judge}, again...); err != nil || table.Demand().Isolation != c.want {
			t.Errorf("%s: written down it demands %+v, %v", name, table.Demand(), err)
		}
	}
	for _, bad := range []string{"none", "strong", "''", "[hypervisor]", "3", "Hypervisor"} {
		if _, err := Parse("bad.yaml", []byte("allow: []\nmin_isolation: "+bad)); sandbox.KindOf(err) != sandbox.KindInvalid || !strings.HasPrefix(err.Error(), "policy: bad.yaml:2: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

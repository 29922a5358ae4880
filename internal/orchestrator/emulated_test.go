package orchestrator

import (
	"context"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// claims is a backend that says something of itself.
type claims struct {
	sandbox.Backend
	info sandbox.Info
}

func (b claims) Info(context.Context) (sandbox.Info, error) { return b.info, nil }

// TestEmulated: auto takes an emulated backend only where nothing else isolates as
// well as is demanded.
func TestEmulated(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	fast := claims{w.sim, sandbox.Info{Name: "fast", Isolation: sandbox.IsolationUserKernel, Available: true}}
	slow := claims{w.sim, sandbox.Info{Name: "slow", Isolation: sandbox.IsolationHypervisor, Available: true, Emulated: true}}
	absent := slow
	absent.info.Available = false
	for _, c := range []struct {
		name     string
		backends []sandbox.Backend
		ask      string
		need     sandbox.Isolation
		want     string
	}{
		{"auto", []sandbox.Backend{fast, slow}, Auto, sandbox.IsolationNone, "fast"},
		{"whatever the order", []sandbox.Backend{slow, fast}, Auto, sandbox.IsolationUserKernel, "fast"},
		{"a class only it has", []sandbox.Backend{fast, slow}, Auto, sandbox.IsolationHypervisor, "slow"},
		{"a class nobody has", []sandbox.Backend{fast, slow}, Auto, sandbox.IsolationConfidential, "fast"}, // which enough refuses
		{"by name", []sandbox.Backend{fast, slow}, "slow", sandbox.IsolationNone, "slow"},
		{"nothing else", []sandbox.Backend{slow}, Auto, sandbox.IsolationNone, ""},
		{"it does not work", []sandbox.Backend{fast, absent}, Auto, sandbox.IsolationHypervisor, "fast"},
	} {
		o.Backends = c.backends
		_, info, notes, err := o.choose(t.Context(), c.ask, policy.Demand{Isolation: c.need, By: "policy strong"})
		if c.want == "" {
			if sandbox.KindOf(err) != sandbox.KindUnavailable || !strings.Contains(err.Error(), "emulated") {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || info.Name != c.want || c.ask == Auto && !strings.Contains(strings.Join(notes, " "), c.want) {
			t.Errorf("%s: %s, %q, %v; want %s", c.name, info.Name, notes, err, c.want)
		}
		if c.name == "auto" && !strings.Contains(notes[0], "slow, which isolates by hypervisor, is emulated") {
			t.Errorf("it does not say what it left out, and why: %q", notes)
		}
	}
	// What the server demands of all is demanded of who demands nothing.
	o.Backends, o.Defaults.MinIsolation = []sandbox.Backend{fast, slow}, sandbox.IsolationHypervisor
	if _, auto, err := o.Infos(t.Context()); err != nil || auto != "slow" {
		t.Errorf("auto is %s, %v", auto, err)
	}
	o.Backends = []sandbox.Backend{fast}
	for _, req := range []CreateRequest{{Backend: Auto}, {Backend: "fast"}, {Backend: "fast", MinIsolation: sandbox.IsolationSharedKernel}} {
		if _, err := o.Create(t.Context(), alice, req); sandbox.KindOf(err) != sandbox.KindUnsupported {
			t.Errorf("weaker than the server demands: %v", err)
		}
	}
	o.Backends = []sandbox.Backend{w.sim}
}

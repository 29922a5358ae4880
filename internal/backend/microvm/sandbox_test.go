//go:build linux

package microvm

import (
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestProbe(t *testing.T) {
	b := machines(t)
	began := time.Now()
	info, err := b.Probe(patient(t))
	if err != nil || !info.Available {
		t.Fatalf("%+v, %v", info, err)
	}
	t.Logf("%s: said hello and was removed after %s", info.Version, time.Since(began).Round(time.Millisecond))
}

func TestBoot(t *testing.T) {
	b := machines(t)
	began := time.Now()
	inst, err := b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("live after %s", time.Since(began).Round(time.Millisecond))
	r, err := inst.Destroy(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range r.Objects {
		t.Logf("%+v", o)
	}
}

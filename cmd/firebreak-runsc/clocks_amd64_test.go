package main

import (
	"testing"

	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/syscalls/linux"
)

// TestClocks: this version of gVisor is one that settleClocks knows, and what is watched
// is the one system call, for as long as it has to be.
func TestClocks(t *testing.T) {
	watched := func() (all []uintptr) {
		for nr := range linux.AMD64.Table {
			if linux.AMD64.FeatureEnable.Word(nr)&kernel.ExternalBeforeEnable != 0 {
				all = append(all, nr)
			}
		}
		return all
	}
	t.Cleanup(func() { linux.AMD64.ExternalFilterBefore = nil })
	settleClocks()
	if got := watched(); len(got) != 1 || got[0] != clockGettime || linux.AMD64.ExternalFilterBefore == nil {
		t.Fatalf("the system calls %v are watched", got)
	}
	(&clocks{table: linux.AMD64}).watch(false)
	if got := watched(); len(got) != 0 {
		t.Errorf("the system calls %v still are", got)
	}
}

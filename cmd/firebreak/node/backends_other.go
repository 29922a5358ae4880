//go:build !linux

package node

import (
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// backends makes those of this system.
func backends(options) ([]sandbox.Backend, func() error, error) {
	return []sandbox.Backend{
		absent{sandbox.Info{
			Name: "gvisor", Isolation: sandbox.IsolationUserKernel,
			Reason: "gVisor needs Linux", Hint: "run a server on Linux and name it in FIREBREAK_URL",
		}},
		sim.New(sim.Config{}),
	}, func() error { return nil }, nil
}

// prunePrograms has nothing to remove.
func prunePrograms(string) error { return nil }

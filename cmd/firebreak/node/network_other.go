//go:build !linux

package node

import (
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// newNetwork makes none: no backend of this system has a wire.
func newNetwork(options, *broker.Broker, *bindings, func(sandbox.InstanceID, orchestrator.EgressEvent) error) (orchestrator.Network, func() error) {
	return nil, func() error { return nil }
}

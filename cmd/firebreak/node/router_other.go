//go:build !linux

package node

import (
	"context"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Router is `firebreak router`, which needs Linux.
func (Wiring) Router(context.Context) error {
	return sandbox.Errorf("router", sandbox.KindUnsupported, "sandboxes with a policy need Linux")
}

package node

import (
	"context"

	"github.com/firebreak-dev/firebreak/internal/egress/control"
)

// Router is `firebreak router`.
func (Wiring) Router(ctx context.Context) error { return control.Run(ctx) }

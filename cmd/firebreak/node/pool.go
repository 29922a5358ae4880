package node

import (
	"context"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// pooled is b with sandboxes kept ready, where that is wanted: by a server, which is
// there before they are asked for.
func (o *options) pooled(b sandbox.Backend) sandbox.Backend {
	c := o.config
	if !o.serves {
		return b
	}
	b = pool.NewPlaces(b, pool.PlacesOptions{Stock: o.stock, Max: c.Places, Log: o.log})
	if c.PoolSize == 0 {
		return b
	}
	most := c.PoolMax
	if most == 0 {
		most = 4 * c.PoolSize
	}
	return pool.New(b, pool.Options{Stock: o.stock, Look: o.look, Size: c.PoolSize, Max: max(most, c.PoolSize),
		Limit: c.PoolMemory, Share: float64(c.PoolShare) / 100, Log: o.log})
}

// prewarm has what everybody gets who asks for nothing in particular kept ready from
// now on.
func (n *node) prewarm(ctx context.Context) error {
	for _, b := range n.backends {
		p, ok := b.(*pool.Pool)
		if !ok {
			continue
		}
		info, err := b.Info(ctx)
		if err != nil || !info.Available {
			continue // nothing can be kept, which doctor explains
		}
		shape, err := n.orch.Shape(ctx, sandbox.DefaultTenant, orchestrator.CreateRequest{})
		if err != nil {
			return err
		}
		p.Pin(shape, true)
	}
	return nil
}

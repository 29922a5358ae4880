package node

import (
	"context"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// pooled is b with size sandboxes of a kind kept ready, where that is wanted: by a
// server, which is there before they are asked for.
func (o *options) pooled(b sandbox.Backend, size int) sandbox.Backend {
	c := o.config
	if !o.serves {
		return b
	}
	b = pool.NewPlaces(b, pool.PlacesOptions{Stock: o.stock, Max: c.Places, Log: o.log})
	if size == 0 {
		return b
	}
	most := c.PoolMax
	if most == 0 {
		most = 4 * size
	}
	return pool.New(b, pool.Options{Stock: o.stock, Look: o.look, Size: size, Max: max(most, size),
		Limit: c.PoolMemory, Share: float64(c.PoolShare) / 100, Log: o.log})
}

// prewarm has what everybody gets who asks for nothing in particular kept ready from
// now on, by the backend that it is of.
func (n *node) prewarm(ctx context.Context) error {
	common := n.orch.Defaults.Backend
	for _, b := range n.backends {
		p, ok := b.(*pool.Pool)
		if !ok {
			continue
		}
		if common == orchestrator.Auto {
			var err error
			if _, common, err = n.orch.Infos(ctx); err != nil {
				return err
			}
		}
		info, err := b.Info(ctx)
		if err != nil || !info.Available || info.Name != common {
			continue // nothing can be kept, which doctor explains, or nobody would get it
		}
		shape, err := n.orch.Shape(ctx, sandbox.DefaultTenant, orchestrator.CreateRequest{})
		if err != nil {
			return err
		}
		p.Pin(shape, true)
	}
	return nil
}

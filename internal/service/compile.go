package service

import (
	"context"
	"runtime"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/policy/rego"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// compile is policy.Compile with Rego.
func (s *Service) compile(ctx context.Context, tenant sandbox.TenantID, o policy.Options, docs ...*policy.Document) (*policy.Table, error) {
	o.Private, o.Judge = s.Private, func(modules []policy.Module) (policy.Judge, error) {
		done, err := s.compilers.enter(ctx, tenant)
		if err != nil {
			return nil, err
		}
		defer done()
		return rego.Options{}.Judge(modules)
	}
	return policy.Compile(o, docs...)
}

// compilers bounds how many compile Rego at once: what hostile tenants write takes
// time, though bounded. One of each tenant does, so that none keeps the others
// from it.
type compilers struct {
	places chan struct{}

	mu  sync.Mutex
	own map[sandbox.TenantID]*turns // guarded by mu; of tenants that compile or wait
}

type turns struct {
	place chan struct{}
	users int // guarded by compilers.mu
}

func newCompilers() *compilers {
	return &compilers{places: make(chan struct{}, max(2, runtime.NumCPU())), own: map[sandbox.TenantID]*turns{}}
}

func (c *compilers) enter(ctx context.Context, tenant sandbox.TenantID) (done func(), err error) {
	c.mu.Lock()
	t := c.own[tenant]
	if t == nil {
		t = &turns{place: make(chan struct{}, 1)}
		c.own[tenant] = t
	}
	t.users++
	c.mu.Unlock()
	held := 0
	done = func() {
		if held > 1 {
			<-c.places
		}
		if held > 0 {
			<-t.place
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(c.own, tenant)
		}
	}
	for _, place := range []chan struct{}{t.place, c.places} {
		select {
		case place <- struct{}{}:
			held++
		case <-ctx.Done():
			done()
			return nil, sandbox.Wrap("policy", "", ctx.Err())
		}
	}
	return done, nil
}

package orchestrator

import (
	"context"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// unreliable is the model backend whose creates, or destroys, can be made to
// fail, each as often as said.
type unreliable struct {
	*sim.Backend
	mu               sync.Mutex
	creates, removes int // that will fail; guarded by mu
}

func (u *unreliable) fails(n *int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if *n == 0 {
		return false
	}
	*n--
	return true
}

func (u *unreliable) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	if u.fails(&u.creates) {
		return nil, sandbox.Errorf("create", sandbox.KindInternal, "the boundary broke")
	}
	inst, err := u.Backend.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	return stubborn{inst, u}, nil
}

func (u *unreliable) Attach(ctx context.Context, id sandbox.InstanceID) (sandbox.Instance, error) {
	inst, err := u.Backend.Attach(ctx, id)
	if err != nil {
		return nil, err
	}
	return stubborn{inst, u}, nil
}

type stubborn struct {
	sandbox.Instance
	u *unreliable
}

func (s stubborn) Destroy(ctx context.Context) (sandbox.Receipt, error) {
	if s.u.fails(&s.u.removes) {
		r := sandbox.Receipt{Instance: s.ID(), Objects: []sandbox.Object{{Kind: "mount", Name: "/x", Detail: "busy"}}}.Seal()
		return r, sandbox.Errorf("destroy", sandbox.KindInternal, "a mount is busy")
	}
	return s.Instance.Destroy(ctx)
}

package node

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/backend/gvisor"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// backends makes those of this system, the preferred first. One that cannot
// work here is there and says why.
func backends(o options) ([]sandbox.Backend, error) {
	g, err := newGVisor(o)
	if err != nil {
		return nil, err
	}
	return []sandbox.Backend{g, sim.New(sim.Config{})}, nil
}

func newGVisor(o options) (sandbox.Backend, error) {
	if _, err := os.Stat(filepath.Join(o.config.Data, "libexec")); o.progress != nil && errors.Is(err, os.ErrNotExist) {
		o.progress("unpacking gVisor, this once")
	}
	programs, err := bundle.Open(o.config.Data)
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnavailable {
		return absent{sandbox.Info{Name: "gvisor", Isolation: sandbox.IsolationUserKernel, Reason: se.Message(), Hint: se.Hint}}, nil
	}
	if err != nil {
		return nil, err
	}
	return gvisor.New(gvisor.Config{
		Dir: filepath.Join(o.dir, "instances"), Runsc: programs.Runsc, Runtime: programs.Runtime, Log: o.log,
	})
}

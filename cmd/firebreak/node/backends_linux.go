package node

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/backend/gvisor"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// backends makes those of this system, the preferred first. One that cannot
// work here is there and says why.
// release lets go of the programs they start, once they are closed.
func backends(o options) (bs []sandbox.Backend, release func() error, err error) {
	g, release, err := newGVisor(o)
	if err != nil {
		return nil, nil, err
	}
	return []sandbox.Backend{o.pooled(g), sim.New(sim.Config{})}, release, nil
}

func newGVisor(o options) (_ sandbox.Backend, release func() error, err error) {
	if _, err := os.Stat(filepath.Join(o.config.Data, "libexec")); o.progress != nil && errors.Is(err, os.ErrNotExist) {
		o.progress("unpacking gVisor, this once")
	}
	programs, err := bundle.Open(o.config.Data)
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnavailable {
		return absent{sandbox.Info{Name: "gvisor", Isolation: sandbox.IsolationUserKernel, Reason: se.Message(), Hint: se.Hint}}, func() error { return nil }, nil
	}
	if err != nil {
		return nil, nil, err
	}
	g, err := gvisor.New(gvisor.Config{
		Dir: filepath.Join(o.dir, "instances"), Runsc: programs.Runsc, Runtime: programs.Runtime, Wires: wire.Probe, Log: o.log,
	})
	if err != nil {
		return nil, nil, errors.Join(err, programs.Close())
	}
	return g, programs.Close, nil
}

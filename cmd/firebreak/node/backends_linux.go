package node

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/backend/gvisor"
	"github.com/firebreak-dev/firebreak/internal/backend/microvm"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// backends makes those of this system, the preferred first. One that cannot
// work here is there and says why.
// release lets go of the programs they start, once they are closed.
func backends(o options) (bs []sandbox.Backend, release func() error, err error) {
	programs, err := open(o)
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnavailable {
		lacks := func(name string, i sandbox.Isolation) sandbox.Backend {
			return absent{sandbox.Info{Name: name, Isolation: i, Reason: se.Message(), Hint: se.Hint}}
		}
		return []sandbox.Backend{lacks("gvisor", sandbox.IsolationUserKernel), lacks("microvm", sandbox.IsolationHypervisor), sim.New(sim.Config{})},
			func() error { return nil }, nil
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
	m, err := microvm.New(microvm.Config{
		Dir: filepath.Join(o.dir, "machines"), Cache: filepath.Join(o.config.Data, "machine-images"), Runtime: programs.Runtime,
		VMM: o.config.Machine.Monitor, Accel: o.config.Machine.Accel, Kernel: o.config.Machine.Kernel, Wires: wire.Machines{Rate: o.config.Machine.NetworkRate},
		Rate: microvm.Rate{Bytes: o.config.Machine.DiskRate, Ops: o.config.Machine.DiskOps}, Log: o.log,
	})
	if err != nil {
		return nil, nil, errors.Join(err, g.Close(), programs.Close())
	}
	return []sandbox.Backend{o.pooled(g, o.config.PoolSize), o.pooled(m, o.config.PoolMachines), sim.New(sim.Config{})}, programs.Close, nil
}

// open unpacks the embedded programs.
func open(o options) (*bundle.Bundle, error) {
	if _, err := os.Stat(filepath.Join(o.config.Data, "libexec")); o.progress != nil && errors.Is(err, os.ErrNotExist) {
		o.progress("unpacking gVisor, this once")
	}
	return bundle.Open(o.config.Data)
}

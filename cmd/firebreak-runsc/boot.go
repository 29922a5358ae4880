package main

import (
	"context"
	"encoding/json"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/google/subcommands"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/flag"
)

// Annotations of the bundle that boot reads, written by
// internal/backend/gvisor. runsc takes these from the cgroup it manages;
// Firebreak manages the cgroup itself, so that its teardown does not depend on
// runsc, and because the limit there has the boundary's overhead on top.
const (
	annotationMemory = "dev.firebreak.memory" // bytes, shown as MemTotal
	annotationCPUs   = "dev.firebreak.cpus"   // whole CPUs, shown by nproc
)

// boot is the sentry, told how big a machine it is.
type boot struct{ sentrycmd.Boot }

// Execute implements subcommands.Command.
func (b *boot) Execute(ctx context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	keepFloor()
	keepProcs()
	settleClocks()
	a := annotations(f)
	for flagName, annotation := range map[string]string{"total-memory": annotationMemory, "cpu-num": annotationCPUs} {
		if v, err := strconv.ParseUint(a[annotation], 10, 63); err == nil && v > 0 {
			_ = f.Set(flagName, strconv.FormatUint(v, 10)) // the value parses: it was just printed
		}
	}
	// Give back what only starting needed, when that is over: an idle sentry
	// never reaches its next garbage collection and would keep it.
	time.AfterFunc(time.Second, debug.FreeOSMemory)
	return b.Boot.Execute(ctx, f, args...)
}

// annotations reads the bundle's, without moving the descriptor's offset. A
// bundle that does not parse has none; boot will say what is wrong with it.
func annotations(f *flag.FlagSet) map[string]string {
	fd, err := strconv.Atoi(f.Lookup("spec-fd").Value.String())
	if err != nil || fd < 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil
	}
	b := make([]byte, st.Size)
	if n, err := unix.Pread(fd, b, 0); err != nil || int64(n) != st.Size {
		return nil
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(b, &spec) != nil {
		return nil
	}
	return spec.Annotations
}

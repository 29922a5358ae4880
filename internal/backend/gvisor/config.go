package gvisor

import (
	"log/slog"
	"time"
)

// Config says where a Backend keeps its instances and what it starts.
type Config struct {
	// Dir holds one directory per instance. Created if missing. Required.
	Dir string
	// Runsc is the path of firebreak-runsc. Required.
	Runsc string
	// Runtime is a directory with firebreak-guest and the language modules,
	// bound read-only at /.firebreak in every sandbox. Required.
	Runtime string
	// Cgroup is the parent of every instance's cgroup, below the controller's
	// mount point. It defaults to "firebreak". Backends with different Dirs
	// may share it: instance ids do not collide.
	Cgroup string
	// Wires says why no wires can be made on this host; nil when they can be. It
	// is called once, by the first Info. Without it the backend takes none.
	Wires func() error `json:"-"`
	// BootTimeout bounds Create when its context has no deadline. It defaults
	// to 30 s.
	BootTimeout time.Duration
	// Log is for operators. It defaults to no logging.
	Log *slog.Logger
}

// What a Spec that leaves a limit at zero gets.
const (
	DefaultMemory = 512 << 20
	DefaultCPUs   = 1
	DefaultPIDs   = 256
	DefaultDisk   = 1 << 30
)

// RuntimeTarget is where Config.Runtime appears inside a sandbox.
const RuntimeTarget = "/.firebreak"

// Overhead is what the boundary itself is allowed on top of a memory limit: the
// heaps of sentry and gofer, the stubs' page tables and the kernel memory of
// all of them. An idle sandbox needs about 13 MiB; the sentry's part grows with
// the guest's threads, files and mappings.
//
// It is also the distance between two enforcers. The agent looks at what the
// guest uses every 25 ms and ends the largest program of one that uses too
// much, cleanly and with the reason; the kernel ends whatever it finds in a
// cgroup that is full. The agent must have the time to be first.
func Overhead(memory int64) int64 { return 64<<20 + memory/8 }

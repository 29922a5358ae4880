package microvm

import (
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Config says where a Backend keeps its instances and what it starts.
type Config struct {
	// Dir holds one directory per instance. Created when it is needed. Required.
	Dir string
	// Cache holds images, made once per template and kernel, and what a probe
	// found. Backends may share it. Created when it is needed. Required.
	Cache string
	// Runtime is a directory with firebreak-guest and the language modules,
	// read-only at /.firebreak in every sandbox. Required.
	Runtime string
	// VMM is "qemu" or "firecracker". It defaults to Firecracker where that and KVM
	// are there and Kernel is one for it, and to QEMU otherwise.
	VMM string
	// Accel is "kvm" or "tcg". It defaults to KVM where the processor has what it
	// takes and a test machine boots with it, and to emulation otherwise.
	Accel string
	// Programs. Empty ones are looked for on the PATH.
	QEMU, Firecracker, Jailer string
	// Kernel is the guest's kernel: for QEMU as distributions ship it, for
	// Firecracker an uncompressed one. It defaults to the newest cloud kernel of
	// Debian in /boot.
	Kernel string
	// Modules is the directory with the kernel's modules. It defaults to
	// /lib/modules/RELEASE; a kernel without one must have everything built in.
	Modules string
	// Rate bounds what each machine reads from and writes to its disks. The zero value
	// is no bound.
	Rate Rate
	// Cgroup is the parent of every instance's cgroup. It defaults to "firebreak".
	Cgroup string
	// Wires plugs machines into networks. Without it they have none.
	Wires Wires `json:"-"`
	// BootTimeout bounds Create when its context has no deadline. It defaults to
	// 30 s, and to 2 minutes for an emulated machine.
	BootTimeout time.Duration
	// Log is for operators. It defaults to no logging.
	Log *slog.Logger
}

// Wires plugs machines into networks that were prepared: package wire has one.
type Wires interface {
	// Probe says why that cannot be done on this host; nil when it can be. It is
	// called once.
	Probe() error
	// Device is the link that a monitor gets, and the hardware addresses of the guest
	// and of the gateway.
	Device() (link string, guest, gateway net.HardwareAddr)
	// Plug makes the link in a wire's namespace, for one machine, and joins it to the
	// wire's own. It returns a descriptor, which the link goes with; or, with the user id
	// of an owner, a link that the owner may attach to.
	Plug(w sandbox.Wire, id string, owner int) (*os.File, error)
	// Connect lets frames pass the link, which none does before.
	Connect(w sandbox.Wire) error
	// Unplug removes what Plug made in the namespace at netns, if it is there, and looks
	// for it again. It is idempotent.
	Unplug(netns string) ([]sandbox.Object, error)
}

// What a Spec that leaves a limit at zero gets.
const (
	DefaultMemory = 512 << 20
	DefaultCPUs   = 1
	DefaultPIDs   = 256
	DefaultDisk   = 1 << 30
)

// Rate is how much a machine may move per second. A zero is no bound.
type Rate struct {
	Bytes int64 // read and written
	Ops   int64 // requests, whatever their size
}

// The least a machine boots with, which reads some megabytes, within its time.
const (
	minBytes = 1 << 20
	minOps   = 100
)

// valid refuses what no machine would boot with.
func (r Rate) valid() bool {
	return (r.Bytes == 0 || r.Bytes >= minBytes && r.Bytes <= 1<<40) && (r.Ops == 0 || r.Ops >= minOps && r.Ops <= 1<<30)
}

// maxImage bounds the files of a root file system: the image takes as much disk.
const maxImage = 32 << 30

// guestOverhead is what a machine has in addition to what the guest's programs
// may use: its kernel, its agent, and what the kernel keeps of files it could
// also read again.
func guestOverhead(memory int64) int64 { return 112<<20 + memory/16 }

// vmmOverhead is the virtual machine monitor's own.
func vmmOverhead(emulated bool) int64 {
	if emulated {
		return 256 << 20 // translated code, most of it
	}
	return 96 << 20
}

// maxVCPUs is the most a machine gets; shares of them are the cgroup's.
const maxVCPUs = 16

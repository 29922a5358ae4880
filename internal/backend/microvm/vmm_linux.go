package microvm

import (
	"context"
	"net"
	"os"

	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// vm is what a monitor is asked for.
type vm struct {
	id       sandbox.InstanceID
	dir      string // the instance's
	cpus     int
	memory   int64 // bytes of RAM
	kernel   string
	initial  string
	root     string // image
	runtime  string // image
	disk     string // in dir
	argument string // for the guest's first process
	uid      int    // of the monitor; 0: this process's
	accel    string
	probe    bool   // no disks
	rate     Rate   // of the disks
	pid      int    // of the monitor, once it was started
	started  uint64 // when, for a monitor that is looked up again

	nic   *nic             // its network device; nil: none
	ram   *os.File         // the machine's memory, for a monitor that can save
	saved *snapimage.Image // what to go on from; nil: it boots
}

// monitor is the seam between this package and a virtual machine monitor. A
// monitor's state is in the instance's directory: every method works in another
// process than the one that started it.
type monitor interface {
	// prepare makes what the monitor's process needs, in m.dir, and returns its
	// program and arguments, to be started there.
	prepare(m vm) (program string, args []string, err error)
	// begin makes the started process run the machine, from its kernel or from
	// m.saved. It may be called before the process is ready.
	begin(ctx context.Context, m vm) error
	// dial returns a stream to the agent's end of the channel, which may have yet
	// to listen. One that nobody holds any more is errNoChannel.
	dial(ctx context.Context, dir string) (net.Conn, error)
	// ended returns once the machine has stopped although the monitor runs, with
	// why; or an error when it cannot tell any more.
	ended(ctx context.Context, dir string) (ending, error)
	// objects are the host objects in dir a receipt should name.
	objects(dir string) []sandbox.Object
}

// keeper is a monitor that can save a machine, and begin one from that.
type keeper interface {
	// builds is what of the monitor and its host a saved machine fits one of only, the
	// monitor first.
	builds(c *images) ([]snapimage.Build, error)
	// orders returns a stream to the machine's first process, which does as it is told
	// there.
	orders(ctx context.Context, dir string) (net.Conn, error)
	// save has the machine stand still, writes what it is into the directory to, and
	// lets it go on, whatever comes. Of the files there it names those that are
	// snapimage's Sparse. Connections to the machine may end.
	save(ctx context.Context, m vm, to string) (sparse []string, err error)
	// wake lets a machine go on whose saver has died meanwhile. It waits for one that
	// lives.
	wake(ctx context.Context, dir string) error
}

// talker is a monitor that keeps what a machine's console says.
type talker interface {
	// console is the last of it, of a machine that may run; "" when it cannot be had.
	console(ctx context.Context, dir string) string
}

// ending is how a machine stopped.
type ending struct {
	why     string // "panic", …
	console string // the last of it
}

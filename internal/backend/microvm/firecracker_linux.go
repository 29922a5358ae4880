package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/firecracker"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// dirJail is where the jailer makes its directories.
const dirJail = "jail"

// What is in a jail, besides the sockets and Firecracker itself. A machine that goes on
// from an image has the last two in place of a kernel, and what it was saved with where
// that had it.
const (
	jailKernel  = "/kernel"
	jailInitial = "/initial"
	jailRoot    = "/root.img"
	jailRuntime = "/runtime.img"
	jailDisk    = "/disk"
	jailState   = "/state"
	jailMemory  = "/memory"
)

// The ports of the guest's vsock that the agent and the machine's first process are
// reached at, and the guest's address, which is its own: no two guests share a network.
const (
	agentPort  = 1024
	ordersPort = 1025
	guestCID   = 3
)

// fireVMM runs machines with Firecracker, in a jail each.
type fireVMM struct {
	Program, Jailer string
	Version         string
}

// findFirecracker looks for the programs, which must be of one version, and for
// what they need.
func (b *Backend) findFirecracker(ctx context.Context, p *probed) error {
	if os.Geteuid() != 0 {
		return errors.New("the jailer needs root")
	}
	f := &fireVMM{}
	versions := map[string]string{}
	for _, x := range []struct {
		path       *string
		configured string
		name       string
	}{{&f.Program, b.cfg.Firecracker, "firecracker"}, {&f.Jailer, b.cfg.Jailer, "jailer"}} {
		path, err := exec.LookPath(orDefault(x.configured, x.name))
		if err != nil {
			return err
		}
		if *x.path, err = filepath.EvalSymlinks(path); err != nil { // as the jailer names its directory
			return err
		}
		out, err := exec.CommandContext(ctx, *x.path, "--version").Output()
		if err != nil {
			return fmt.Errorf("%s --version: %w", x.name, err)
		}
		if versions[x.name], err = versionOf(string(out)); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
	}
	if versions["firecracker"] != versions["jailer"] {
		return fmt.Errorf("firecracker is version %s and jailer %s", versions["firecracker"], versions["jailer"])
	}
	if err := firecracker.Supported(versions["firecracker"]); err != nil {
		return err
	}
	f.Version = versions["firecracker"]
	p.monitor, p.program, p.vmm, p.vsock = f, f.Program, vmmFirecracker, agentPort
	p.info.Version = "Firecracker " + f.Version
	p.info.Capabilities.Snapshot = firecracker.Saves(f.Version)
	return nil
}

// versionOf finds the version in what a program says of itself, "Firecracker
// v1.13.1" and more lines.
func versionOf(out string) (string, error) {
	line, _, _ := strings.Cut(out, "\n")
	if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[1], "v") {
		return strings.TrimPrefix(f[1], "v"), nil
	}
	return "", fmt.Errorf("it says %.60q of its version", line)
}

// checkUncompressed refuses a kernel that Firecracker cannot load.
func checkUncompressed(kernel string) error {
	f, err := os.Open(kernel)
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(f, magic); err != nil || string(magic) != "\x7fELF" {
		return fmt.Errorf("%s is no uncompressed kernel (vmlinux)", kernel)
	}
	return nil
}

// jail is m's. No file in it becomes larger than the machine's memory or disk.
func (f *fireVMM) jail(m vm) firecracker.Jail {
	j := firecracker.Jail{Base: filepath.Join(m.dir, dirJail), Firecracker: f.Program, ID: string(m.id), User: m.uid, FileSize: m.ramSize()}
	if fi, err := os.Stat(m.disk); err == nil {
		j.FileSize = max(j.FileSize, fi.Size())
	}
	if m.nic != nil { // where its TAP is, and nothing else
		j.NetNS = m.nic.netns
	}
	return j
}

func (f *fireVMM) prepare(m vm) (string, []string, error) {
	j := f.jail(m)
	if err := j.Validate(); err != nil {
		return "", nil, err
	}
	return f.Jailer, j.Args(), f.furnish(j, m)
}

// furnish makes the jail's root directory. Images are linked into it where that is
// possible: they are read-only and of root's, inside too.
func (*fireVMM) furnish(j firecracker.Jail, m vm) error {
	root := j.Root()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	files := map[string]string{}
	if m.saved == nil {
		files[jailKernel], files[jailInitial] = m.kernel, m.initial
	}
	if !m.probe {
		files[jailRoot], files[jailRuntime] = m.root, m.runtime
	}
	for name, from := range files {
		if err := linkOrCopy(from, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	if !m.probe {
		disk := filepath.Join(root, jailDisk)
		if err := errors.Join(os.Link(m.disk, disk), os.Chown(disk, m.uid, m.uid)); err != nil {
			return err
		}
	}
	return os.Chown(root, m.uid, m.uid)
}

// linkOrCopy makes to the same as from, which is never written.
func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if err == nil || !errors.Is(err, unix.EXDEV) {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// client calls the process of the instance in dir.
func client(dir string) *firecracker.Client {
	return firecracker.New(func(context.Context) (net.Conn, error) { return dialJail(dir, firecracker.APISocket) })
}

// dialJail connects to a socket in the instance's jail. The path the guest's
// monitor can influence is its last part alone.
func dialJail(dir, socket string) (net.Conn, error) {
	root := jailRootOf(dir)
	if root == "" {
		return nil, errNoChannel
	}
	return dialIn(root, strings.TrimPrefix(socket, "/"))
}

// jailRootOf is the root directory of the jail of the instance in dir; "" when
// there is none. Its path has the program's name in it, which another version of
// this process may have had otherwise.
func jailRootOf(dir string) string {
	list, err := os.ReadDir(filepath.Join(dir, dirJail))
	if err != nil || len(list) != 1 {
		return ""
	}
	return firecracker.Roots(filepath.Join(dir, dirJail), filepath.Base(dir), list[0].Name())
}

// begin waits for the API and makes the machine run.
func (f *fireVMM) begin(ctx context.Context, m vm) error {
	if m.saved != nil { // while the process starts
		if err := f.place(ctx, m); err != nil {
			return err
		}
	}
	c := client(m.dir)
	version := ""
	for {
		var err error
		if version, err = c.Version(ctx); err == nil {
			break
		}
		p, ok := identify(m.pid)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !ok || p.gone():
			return errMonitor
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond): // it has yet to listen
		}
	}
	failpoint.Hit("microvm.firecracker/after-api")
	if err := firecracker.Supported(version); err != nil {
		return err
	}
	if m.saved != nil {
		return f.load(ctx, c)
	}
	return f.boot(ctx, c, m)
}

// boot configures a machine and starts it.
func (f *fireVMM) boot(ctx context.Context, c *firecracker.Client, m vm) error {
	fm := firecracker.Machine{
		CPUs: evenly(m.cpus), MemoryMiB: (m.memory + 1<<20 - 1) >> 20, Kernel: jailKernel, Initial: jailInitial,
		// Without a serial port: what a guest writes to one would go nowhere.
		Arguments: "8250.nr_uarts=0 quiet panic=-1 reboot=k rdinit=/init " + m.argument,
		CID:       guestCID, VSock: firecracker.VSockSocket,
	}
	if !m.probe {
		rate := limiter(m.rate)
		fm.Drives = []firecracker.Drive{{ID: "root", Path: jailRoot, Readonly: true, Rate: rate},
			{ID: "runtime", Path: jailRuntime, Readonly: true, Rate: rate}, {ID: "disk", Path: jailDisk, Rate: rate}}
	}
	if m.nic != nil {
		fm.NICs = []firecracker.NIC{{ID: "wire", Device: m.nic.link, MAC: m.nic.mac.String()}}
	}
	if err := c.Configure(ctx, fm); err != nil {
		return err
	}
	failpoint.Hit("microvm.firecracker/after-configure")
	if err := c.Start(ctx); err != nil {
		return err
	}
	failpoint.Hit("microvm.firecracker/after-start")
	return nil
}

// limiter is a rate as Firecracker wants it, of each disk.
func limiter(r Rate) firecracker.RateLimiter {
	return firecracker.RateLimiter{Bandwidth: firecracker.PerSecond(r.Bytes), Ops: firecracker.PerSecond(r.Ops)}
}

// evenly is a number of processors Firecracker takes: one, or an even one.
func evenly(n int) int {
	if n > 1 && n%2 == 1 {
		return n + 1
	}
	return n
}

func (f *fireVMM) dial(ctx context.Context, dir string) (net.Conn, error) {
	l, err := newLine(ctx, func(ctx context.Context) (net.Conn, error) { return f.connect(ctx, dir, agentPort) })
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (f *fireVMM) orders(ctx context.Context, dir string) (net.Conn, error) {
	return f.connect(ctx, dir, ordersPort)
}

// connect connects to a port of the guest.
func (f *fireVMM) connect(ctx context.Context, dir string, port uint32) (net.Conn, error) {
	conn, err := dialJail(dir, firecracker.VSockSocket)
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return nil, errNoChannel
	case err != nil:
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	if err := firecracker.Connect(ctx, conn, port); err != nil {
		return nil, err
	}
	return conn, nil
}

// connectPatience is how long a guest may take to accept a connection. One that was
// saved meanwhile never does.
const connectPatience = 4 * time.Second

// ended never returns before ctx does: Firecracker's process ends with its machine.
func (f *fireVMM) ended(ctx context.Context, _ string) (ending, error) {
	<-ctx.Done()
	return ending{}, ctx.Err()
}

func (f *fireVMM) objects(dir string) []sandbox.Object {
	root := jailRootOf(dir)
	return []sandbox.Object{
		{Kind: "directory", Name: filepath.Join(dir, dirJail)}, {Kind: "file", Name: filepath.Join(dir, fileDisk)},
		{Kind: "socket", Name: filepath.Join(root, firecracker.APISocket)}, {Kind: "socket", Name: filepath.Join(root, firecracker.VSockSocket)},
	}
}

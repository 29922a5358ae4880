package microvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// The monitors and accelerators, as Config and notes call them.
const (
	vmmQEMU        = "qemu"
	vmmFirecracker = "firecracker"
	accelKVM       = "kvm"
	accelTCG       = "tcg"
)

// probed is what this host turned out to offer.
type probed struct {
	info    sandbox.Info
	cgroups cgroupHost // without parents when they cannot be used
	monitor monitor
	program string // the monitor's
	vmm     string
	accel   string
	kernel  string
	modules []string // files of the kernel's modules a guest needs, in order
	vsock   uint32

	noWires error // why no machine can have a network

	moduleDir string        // of all of its modules; "" when there are none
	patience  time.Duration // of Create
}

// Info implements sandbox.Backend. Where KVM could work, the first call boots a
// machine that only says hello, or reads from the cache how that went since the
// host was started: less than a second where it works, ten where it hangs. An
// emulated machine works or does not for reasons that can be looked at, so none is
// booted for it; see Probe.
func (b *Backend) Info(ctx context.Context) (sandbox.Info, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Info{}, sandbox.Wrap("info", "", err)
	}
	return b.look().info, nil
}

// Probe is Info after booting a machine that says hello, whatever runs it. A
// failed boot makes the answer unavailable and says why.
//
// Cost: a boot without a root file system, and a teardown.
func (b *Backend) Probe(ctx context.Context) (sandbox.Info, error) {
	p := b.look()
	if !p.info.Available {
		return p.info, nil
	}
	if err := b.testBoot(ctx, p); err != nil {
		if ctx.Err() != nil {
			return p.info, sandbox.Wrap("probe", "", ctx.Err())
		}
		p.info.Available, p.info.Reason = false, "a test machine did not start: "+err.Error()
	}
	return p.info, nil
}

// lookAround finds out what works.
func (b *Backend) lookAround() probed {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p := probed{vmm: vmmQEMU, accel: accelTCG, patience: 2 * time.Minute}
	p.info = sandbox.Info{Name: "microvm", Isolation: sandbox.IsolationHypervisor, Available: true}
	p.info.Capabilities.ReadonlyRoot, p.info.Capabilities.Boot = true, true
	// RAM and disk have the size of the limit, and the tasks of the guest are its
	// kernel's, none of the host's.
	p.info.Capabilities.Limits = sandbox.LimitMemory | sandbox.LimitDisk | sandbox.LimitPIDs
	if err := b.find(ctx, &p); err != nil {
		p.info.Available, p.info.Reason = false, err.Error()
		var e *sandbox.Error
		if errors.As(err, &e) {
			p.info.Reason, p.info.Hint = e.Message(), e.Hint
		}
		return p
	}
	if err := b.probeCgroups(&p); err != nil {
		p.info.Notes = append(p.info.Notes, "not enforced by the host: cpu ("+err.Error()+")")
		p.info.Hint = "run it as root with cgroups mounted"
	} else {
		p.info.Capabilities.Limits = sandbox.AllLimits
	}
	if err := b.chooseAccel(ctx, &p); err != nil {
		p.info.Available, p.info.Reason = false, err.Error()
		return p
	}
	p.info.Version += ", accel " + p.accel + ", kernel " + filepath.Base(p.kernel)
	p.info.Emulated = p.accel == accelTCG
	if p.info.Emulated {
		p.info.Notes = append(p.info.Notes, "accel: tcg: the processor is emulated in software, which is many times slower than the host")
	}
	if p.info.Capabilities.Wire = p.noWires == nil; p.noWires != nil {
		why := p.noWires.Error()
		var e *sandbox.Error
		if errors.As(p.noWires, &e) {
			why = e.Message()
		}
		p.info.Notes = append(p.info.Notes, "no network for sandboxes: "+why)
	}
	if b.cfg.BootTimeout > 0 {
		p.patience = b.cfg.BootTimeout
	}
	return p
}

// fire decides for Firecracker, when nobody else has: it has no emulation and takes
// no compressed kernel.
func (b *Backend) fire() bool {
	switch {
	case b.cfg.VMM != "":
		return b.cfg.VMM == vmmFirecracker
	case b.cfg.Accel == accelTCG, b.cfg.Kernel == "", checkUncompressed(b.cfg.Kernel) != nil, kvmMissing("/dev/kvm", "/proc/cpuinfo") != nil:
		return false
	}
	_, err := exec.LookPath(orDefault(b.cfg.Firecracker, "firecracker"))
	return err == nil
}

// find looks for a monitor, a kernel and the agent.
func (b *Backend) find(ctx context.Context, p *probed) error {
	lack := func(hint, format string, args ...any) error {
		return sandbox.Errorf("", sandbox.KindUnavailable, format, args...).WithHint("%s", hint)
	}
	if runtime.GOARCH != "amd64" {
		return lack("", "machines of %s are not supported", runtime.GOARCH)
	}
	if b.fire() {
		if err := b.findFirecracker(ctx, p); err != nil {
			return lack("install firecracker and jailer of the same release, and name an uncompressed kernel", "%w", err)
		}
	} else {
		q, err := findQEMU(b.cfg.QEMU)
		if err != nil {
			return lack("apt-get install qemu-system-x86", "%w", err)
		}
		p.monitor, p.program = q, q.program
		p.info.Capabilities.Snapshot, p.info.Capabilities.Pause = true, true
		p.info.Version = "QEMU"
	}
	kernel, modules, err := findKernel("/", b.cfg.Kernel, b.cfg.Modules)
	if err != nil {
		return lack("apt-get install linux-image-cloud-amd64", "%w", err)
	}
	if p.vmm == vmmFirecracker {
		if err := checkUncompressed(kernel); err != nil {
			return lack("name an uncompressed kernel, as Firecracker's documentation says how to get one", "%w", err)
		}
	}
	p.kernel = kernel
	if _, err := os.Stat(filepath.Join(b.cfg.Runtime, filepath.Base(guest.AgentPath))); err != nil {
		return lack("run `make` to build the embedded programs", "guest agent: %w", bare(err))
	}
	p.moduleDir = modules
	if err := p.modulesFor("", false); err != nil {
		return lack("install the kernel's modules, or name another kernel", "%w", err)
	}
	p.noWires = b.wireless(*p)
	return nil
}

// findKernel returns the kernel and the directory of its modules, "" for none.
// Without a choice it is the newest of Debian's cloud kernels.
func findKernel(root, kernel, modules string) (string, string, error) {
	if kernel == "" {
		found, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*-cloud-amd64"))
		if len(found) == 0 {
			return "", "", fmt.Errorf("there is no %s", filepath.Join(root, "boot/vmlinuz-*-cloud-amd64"))
		}
		kernel = slices.MaxFunc(found, compareReleases)
	}
	if _, err := os.Stat(kernel); err != nil {
		return "", "", err
	}
	if modules == "" {
		_, release, ok := strings.Cut(filepath.Base(kernel), "-")
		dir := filepath.Join(root, "lib/modules", release)
		if _, err := os.Stat(filepath.Join(dir, "modules.dep")); ok && err == nil {
			modules = dir
		}
	}
	return kernel, modules, nil
}

var reNumbers = regexp.MustCompile(`\d+`)

// compareReleases orders names by the numbers in them.
func compareReleases(a, b string) int {
	x, y := reNumbers.FindAllString(a, -1), reNumbers.FindAllString(b, -1)
	for k := range min(len(x), len(y)) {
		if c := len(x[k]) - len(y[k]); c != 0 {
			return c
		}
		if c := strings.Compare(x[k], y[k]); c != 0 {
			return c
		}
	}
	return len(x) - len(y)
}

func (b *Backend) probeCgroups(p *probed) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	host, err := findCgroups(f, b.cfg.Cgroup)
	if err != nil {
		return err
	}
	if err := host.prepare(); err != nil {
		return bare(err)
	}
	if host.parent["cpu"] == "" {
		return errors.New("there is no cpu controller")
	}
	p.cgroups = host
	b.mu.Lock()
	b.cgroups = host
	b.mu.Unlock()
	return nil
}

// kvmPatience bounds the boot that decides whether KVM works.
const kvmPatience = 10 * time.Second

// chooseAccel decides what runs machines. KVM is used when a machine has booted
// with it, never because its device can be opened.
func (b *Backend) chooseAccel(ctx context.Context, p *probed) error {
	if b.cfg.Accel == accelTCG {
		if p.vmm == vmmFirecracker {
			return errors.New("firecracker has no emulation")
		}
		return nil
	}
	why := kvmMissing("/dev/kvm", "/proc/cpuinfo")
	if why == nil {
		kvm := *p
		kvm.accel, kvm.patience = accelKVM, 30*time.Second
		if why = b.kvmBoots(ctx, kvm); why == nil {
			*p = kvm
			return nil
		}
	}
	if b.cfg.Accel == accelKVM || p.vmm == vmmFirecracker {
		return fmt.Errorf("KVM cannot be used: %w", why)
	}
	p.info.Notes = append(p.info.Notes, "KVM cannot be used: "+why.Error())
	return nil
}

// kvmMissing says why KVM need not be tried.
func kvmMissing(device, cpuinfo string) error {
	if err := unix.Access(device, unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	b, err := os.ReadFile(cpuinfo)
	if err != nil {
		return err
	}
	for _, f := range bytes.Fields(b) {
		if string(f) == "vmx" || string(f) == "svm" {
			return nil
		}
	}
	return errors.New("the processor shows neither vmx nor svm, so it runs no guest by itself")
}

// verdict is how the test of a monitor with KVM went.
type verdict struct {
	What string `json:"what"` // was tested
	Why  string `json:"why"`  // it failed; "" when it did not
}

// kvmBoots tests KVM, once per boot of the host and set of programs.
func (b *Backend) kvmBoots(ctx context.Context, p probed) error {
	what := []string{bootID(), p.info.Version}
	for _, f := range []string{p.program, p.kernel, filepath.Join(b.cfg.Runtime, filepath.Base(guest.AgentPath)), "/dev/kvm"} {
		s, err := stampOf(f)
		if err != nil {
			return err
		}
		what = append(what, fmt.Sprintf("%s %d %d", f, s.size, s.mtime.Nano()))
	}
	v, file := verdict{}, filepath.Join(b.cfg.Cache, "kvm.json")
	if j, err := os.ReadFile(file); err == nil && json.Unmarshal(j, &v) == nil && v.What == strings.Join(what, "\n") {
		if v.Why != "" {
			return errors.New(v.Why)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, kvmPatience)
	defer cancel()
	err := b.testBoot(ctx, p)
	v = verdict{What: strings.Join(what, "\n")}
	if err != nil {
		v.Why = "a test machine did not start: " + err.Error()
		err = errors.New(v.Why)
	}
	if j, e := json.Marshal(v); e == nil {
		_ = os.WriteFile(file, j, 0o600) // without it the next process tests again
	}
	return err
}

// testBoot starts a machine that says hello, and removes it.
func (b *Backend) testBoot(ctx context.Context, p probed) error {
	if err := os.MkdirAll(b.cfg.Dir, 0o711); err != nil {
		return err
	}
	s := sandbox.Spec{Instance: sandbox.NewInstanceID(), Limits: sandbox.Limits{Memory: 64 << 20, CPUs: 1, Disk: sandbox.MinDisk}}
	i := newInstance(b, b.intentOf(s, p), p.monitor)
	lock, err := writeIntent(i.dir, i.intent)
	if err != nil {
		return err
	}
	defer lock.Close()
	err = i.hello(ctx, s, p)
	if _, left := i.Destroy(context.WithoutCancel(ctx)); left != nil {
		return errors.Join(err, left)
	}
	if err != nil {
		return i.explain(ctx, err)
	}
	return nil
}

func (i *Instance) hello(ctx context.Context, s sandbox.Spec, p probed) error {
	m, err := i.machine(ctx, s, p, machine.Settings{Probe: true, VSock: p.vsock})
	if err != nil {
		return err
	}
	if err := i.group.create(p.cgroups, s.Limits.Memory+i.intent.Overhead, hostTasks(m.cpus)); err != nil {
		return err
	}
	if err := i.start(ctx, m); err != nil {
		return err
	}
	return i.await(ctx, func(c net.Conn) error { _, err := seek(c, []byte(machine.Hello)); return err })
}

// monitorOf is the monitor an instance was made with: looking after it takes none
// of what starting another would.
func (b *Backend) monitorOf(vmm string) monitor {
	if vmm == vmmFirecracker {
		return &fireVMM{}
	}
	return &qemu{}
}

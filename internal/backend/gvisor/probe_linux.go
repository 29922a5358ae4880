package gvisor

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// probed is what this host turned out to offer.
type probed struct {
	info    sandbox.Info
	cgroups cgroupHost // without trees when they cannot be used
	root    bool
	noWires error // why no sandbox can have a network, with a hint; nil when it can
}

// Info implements sandbox.Backend. It looks (programs present, namespaces,
// seccomp, cgroups writable) but starts nothing; see Probe.
func (b *Backend) Info(ctx context.Context) (sandbox.Info, error) {
	p, err := b.probe()
	return p.info, err
}

// probeHost finds out what works, without starting a sandbox.
func (b *Backend) probeHost() (probed, error) {
	p := probed{root: os.Geteuid() == 0}
	p.info = sandbox.Info{
		Name: "gvisor", Isolation: sandbox.IsolationUserKernel, Available: true,
		Version: runscVersion(b.cfg.Runsc),
		Capabilities: sandbox.Capabilities{
			Limits:       sandbox.LimitDisk,
			ReadonlyRoot: true,
			Snapshot:     p.root, // runsc restores for root only
			Pause:        p.root,
		},
	}
	deny := func(hint, format string, args ...any) {
		if p.info.Available {
			p.info.Available, p.info.Reason, p.info.Hint = false, fmt.Sprintf(format, args...), hint
		}
	}
	if err := unix.Access(b.cfg.Runsc, unix.X_OK); err != nil {
		deny("run `make` to build the embedded programs", "%s: %v", filepath.Base(b.cfg.Runsc), err)
	}
	if _, err := os.Stat(filepath.Join(b.cfg.Runtime, filepath.Base(guest.AgentPath))); err != nil {
		deny("run `make` to build the embedded programs", "guest agent: %v", err)
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		deny("", "gVisor does not support %s", runtime.GOARCH)
	}
	if err := checkKernel(p.root); err != nil {
		deny("use a kernel with user namespaces and seccomp, or another backend", "%v", err)
	}
	if err := b.probeCgroups(&p); err != nil {
		miss := sandbox.AllLimits &^ p.info.Capabilities.Limits
		p.info.Notes = append(p.info.Notes, "not enforced by the host: "+strings.Join(miss.Names(), ", ")+" ("+err.Error()+")")
		if p.info.Available {
			p.info.Hint = remedy(p.root, cgroupsAreUnified())
		}
	}
	p.noWires = b.probeWires(p.root)
	p.info.Capabilities.Wire = p.noWires == nil
	if p.noWires != nil && b.cfg.Wires != nil {
		p.info.Notes = append(p.info.Notes, "no network for sandboxes: "+p.noWires.Error())
	}
	return p, nil
}

// probeCgroups fills in p.cgroups and what they enforce.
func (b *Backend) probeCgroups(p *probed) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	host, err := findCgroups(f, string(self), b.cfg.Cgroup, p.root)
	if err != nil {
		return err
	}
	if len(host.trees) == 0 && !p.root {
		return errors.New("no cgroup controllers are there for users")
	}
	if len(host.trees) == 0 {
		return errors.New("no cgroup controllers are mounted")
	}
	if err := host.claim(); err != nil {
		return err
	}
	p.cgroups = host
	set := host.limits()
	p.info.Capabilities.Limits |= set
	if miss := sandbox.AllLimits &^ sandbox.LimitDisk &^ set; miss != 0 {
		return fmt.Errorf("no controller for it in %s", host.trees[0].top)
	}
	return nil
}

// cgroupsAreUnified reports whether version 2 has the controllers.
func cgroupsAreUnified() bool {
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	return err == nil && strings.Contains(string(b), "memory")
}

// remedy is what makes a host enforce the limits it does not.
func remedy(asRoot, unified bool) string {
	switch {
	case asRoot && unified:
		return "run firebreak outside of a container, or in one of its own with a writable cgroup namespace; as a service, with Delegate=yes"
	case asRoot:
		return "mount cgroup2 on /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"
	case unified:
		return "start it in a cgroup of its own with `systemd-run --user --scope -p Delegate=yes firebreak …`, as a service with Delegate=yes, or as root"
	}
	return "run it as root: this machine has cgroups of version 1, which cannot be delegated to users"
}

// checkKernel looks for what the sentry cannot do without.
func checkKernel(root bool) error {
	if err := unix.Prctl(unix.PR_GET_SECCOMP, 0, 0, 0, 0); errors.Is(err, unix.EINVAL) {
		return errors.New("the kernel has no seccomp")
	}
	for _, ns := range []string{"user", "pid", "net", "mnt", "ipc", "uts"} {
		if _, err := os.Lstat("/proc/self/ns/" + ns); err != nil {
			return fmt.Errorf("the kernel has no %s namespaces", ns)
		}
		if n, ok := readLimit("/proc/sys/user/max_" + ns + "_namespaces"); ok && n == 0 {
			return fmt.Errorf("%s namespaces are switched off (user.max_%s_namespaces is 0)", ns, ns)
		}
	}
	if n, ok := readLimit("/proc/sys/kernel/unprivileged_userns_clone"); ok && n == 0 && !root {
		return errors.New("user namespaces are switched off for users (kernel.unprivileged_userns_clone is 0)")
	}
	// systrap's stubs are traced once, when they are made.
	if n, ok := readLimit("/proc/sys/kernel/yama/ptrace_scope"); ok && n >= 3 {
		return errors.New("ptrace is switched off (kernel.yama.ptrace_scope is 3)")
	}
	return nil
}

func readLimit(name string) (int, bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}

// runscVersion names the gVisor release in a firebreak-runsc binary.
func runscVersion(path string) string {
	bi, err := buildinfo.ReadFile(path)
	if err != nil {
		return ""
	}
	for _, m := range bi.Deps {
		if m.Path == "gvisor.dev/gvisor" {
			return m.Version
		}
	}
	return bi.Main.Version
}

// Probe is Info after booting a sandbox: what looked fine may still not work.
// A failed boot makes the answer unavailable and says why; an error means that
// the probe itself could not be made.
//
// Cost: one boot and one teardown.
func (b *Backend) Probe(ctx context.Context) (sandbox.Info, error) {
	info, err := b.Info(ctx)
	if err != nil || !info.Available {
		return info, err
	}
	dir, err := os.MkdirTemp(b.cfg.Dir, ".probe-")
	if err != nil {
		return info, sandbox.Wrap("probe", "", err)
	}
	defer os.RemoveAll(dir)
	for _, p := range append([]string{guest.DefaultHome}, mountPoints...) {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
			return info, sandbox.Wrap("probe", "", err)
		}
	}
	inst, err := b.Create(ctx, sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: sandbox.Root{Dir: dir}})
	if err == nil {
		_, err = inst.Destroy(ctx)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return info, sandbox.Wrap("probe", "", ctx.Err())
	default:
		info.Available, info.Reason = false, "a test sandbox did not start: "+err.Error()
		info.Hint = "the kernel may forbid what gVisor needs; `dmesg` may say what"
	}
	return info, nil
}

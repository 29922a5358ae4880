package microvm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/internal/vmimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Create implements sandbox.Backend. The first sandbox of a template makes its
// image, which takes as long as reading the template.
func (b *Backend) Create(ctx context.Context, s sandbox.Spec) (sandbox.Instance, error) {
	return b.make(ctx, s, nil)
}

// make boots a machine, or has one go on from a snapshot.
func (b *Backend) make(ctx context.Context, s sandbox.Spec, from *sandbox.Snapshot) (sandbox.Instance, error) {
	p := b.look()
	s, err := admit(s, p)
	if err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.patience)
		defer cancel()
	}
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap("create", string(s.Instance), err)
	}
	b.mu.Lock()
	err = b.openLocked("create", s.Instance)
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var img *snapimage.Image
	if from != nil {
		if img, err = b.admitImage(s, p, *from); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(b.cfg.Dir, 0o711); err != nil {
		return nil, sandbox.Wrap("create", string(s.Instance), err)
	}
	i := newInstance(b, b.intentOf(s, p), p.monitor)
	lock, err := writeIntent(i.dir, i.intent)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, sandbox.Errorf("create", sandbox.KindExists, "the instance exists").WithID(string(s.Instance))
		}
		return nil, i.explain(ctx, err)
	}
	defer lock.Close()
	failpoint.Hit("microvm.create/after-intent")
	if err := i.boot(ctx, s, p, img); err != nil {
		i.listen(context.WithoutCancel(ctx))
		receipt, left := i.Destroy(context.WithoutCancel(ctx))
		if left != nil {
			b.log.Error("create left objects behind", "instance", s.Instance, "objects", receipt.Objects)
		}
		return nil, i.explain(ctx, err)
	}
	failpoint.Hit("microvm.create/after-ready")
	return i, b.adopt(i)
}

// adopt puts a booted instance under the Backend's watch, or removes it when the
// Backend was closed meanwhile.
func (b *Backend) adopt(i *Instance) error {
	b.mu.Lock()
	err := b.openLocked("create", i.id)
	if err == nil {
		b.instances[i.id] = i
		i.watch()
	}
	b.mu.Unlock()
	if err != nil {
		_, left := i.Destroy(context.Background())
		return errors.Join(err, left)
	}
	return nil
}

// admit validates a spec and fills in what it leaves open.
func admit(s sandbox.Spec, p probed) (sandbox.Spec, error) {
	if !s.Instance.Valid() {
		return s, sandbox.Errorf("create", sandbox.KindInvalid, "instance id %q is not valid", s.Instance)
	}
	if err := s.Limits.Validate(); err != nil {
		return s, err
	}
	if s.Wire != nil && p.noWires != nil && p.info.Available {
		return s, p.refuseWire(s)
	}
	if err := p.info.Check(s); err != nil {
		return s, err
	}
	if err := checkRoot(s); err != nil {
		return s, err
	}
	if err := checkWire(s); err != nil {
		return s, err
	}
	l := &s.Limits
	if l.Memory == 0 {
		l.Memory = DefaultMemory
	}
	if l.CPUs == 0 {
		l.CPUs = DefaultCPUs
	}
	if l.PIDs == 0 {
		l.PIDs = DefaultPIDs
	}
	if l.Disk == 0 {
		l.Disk = DefaultDisk
	}
	if s.Hostname == "" {
		s.Hostname = string(s.Sandbox)
	}
	if s.Hostname == "" {
		s.Hostname = string(s.Instance)
	}
	if len(s.Hostname) > 64 {
		return s, sandbox.Errorf("create", sandbox.KindInvalid, "a hostname of %d bytes", len(s.Hostname)).WithHint("64 at most")
	}
	return s, nil
}

func (b *Backend) intentOf(s sandbox.Spec, p probed) intent {
	in := intent{
		Instance: s.Instance, Sandbox: s.Sandbox, Tenant: s.Tenant,
		Created: time.Now().UTC(), Boot: bootID(), Cgroups: p.cgroups.dirs(s.Instance),
		Limits: s.Limits, Enforced: p.info.Capabilities.Limits, VMM: p.vmm, Accel: p.accel,
	}
	if s.Wire != nil {
		in.NetNS = s.Wire.NetNS
	}
	in.Overhead = guestOverhead(s.Limits.Memory) + vmmOverhead(p.accel == accelTCG)
	return in
}

// vcpus is how many processors a guest sees: whole ones, of those there are.
func vcpus(share float64) int {
	return max(1, min(int(math.Ceil(share)), runtime.NumCPU(), maxVCPUs))
}

// boot makes everything and returns when the agent has answered. What it made
// when it fails is Destroy's to remove.
func (i *Instance) boot(ctx context.Context, s sandbox.Spec, p probed, img *snapimage.Image) error {
	settings := machine.Settings{Hostname: s.Hostname, Readonly: s.ReadonlyRoot, PIDs: s.Limits.PIDs, VSock: p.vsock, Network: i.b.networkOf(s), Test: i.b.test}
	if p.vsock != 0 {
		settings.Orders = ordersPort
	}
	m, err := i.machine(ctx, s, p, settings)
	if err != nil {
		return err
	}
	i.given = s.Root.Boot != nil
	if err := i.trace(s, &m, img); err != nil {
		return err
	}
	if err := i.group.create(p.cgroups, s.Limits.Memory+i.intent.Overhead, hostTasks(m.cpus)); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	failpoint.Hit("microvm.create/after-cgroup")
	if err := makeDisk(ctx, m, s.Limits.Disk); err != nil {
		return err
	}
	if err := i.plug(s, &m); err != nil {
		return err
	}
	if err := i.start(ctx, m); err != nil {
		return err
	}
	if err := i.set(ctx, s, img); err != nil {
		return err
	}
	if err := i.await(ctx, handshake); err != nil {
		return err
	}
	failpoint.Hit("microvm.create/after-answer")
	// Booting at the guest's share of a processor would only make it slow.
	if err := i.group.limitCPU(s.Limits.CPUs); err != nil {
		return fmt.Errorf("set cpu limit: %w", err)
	}
	i.launched.log.Close()
	i.ready = true
	return os.WriteFile(filepath.Join(i.dir, fileReady), nil, 0o600)
}

// set connects a machine that has been started; one that was saved is another first,
// and goes on then.
func (i *Instance) set(ctx context.Context, s sandbox.Spec, img *snapimage.Image) error {
	if img != nil {
		if err := i.renew(ctx, s.Hostname); err != nil {
			return err
		}
		failpoint.Hit("microvm.restore/after-renewal")
	}
	if err := i.connect(s); err != nil || img == nil {
		return err
	}
	return i.thaw(ctx)
}

// hostTasks bounds the monitor's threads: a processor's each, and its workers.
func hostTasks(cpus int) int { return cpus + 128 }

// machine is what to ask the monitor for. It makes the images that are missing.
func (i *Instance) machine(ctx context.Context, s sandbox.Spec, p probed, settings machine.Settings) (vm, error) {
	m := vm{
		id: i.id, dir: i.dir, cpus: vcpus(s.Limits.CPUs), memory: s.Limits.Memory + guestOverhead(s.Limits.Memory),
		kernel: p.kernel, disk: filepath.Join(i.dir, fileDisk), uid: userOf(i.id), accel: p.accel, probe: settings.Probe, rate: i.b.cfg.Rate,
	}
	var err error
	switch {
	case s.Root.Boot != nil && !m.probe:
		err = i.boots(ctx, s.Root.Boot, &p, &settings, &m)
	case s.Wire != nil:
		err = p.modulesFor("", true)
	}
	if err != nil {
		return m, err
	}
	if m.argument, err = settings.Argument(); err != nil {
		return m, sandbox.Errorf("create", sandbox.KindInvalid, "%w", err)
	}
	if m.initial, err = i.b.images.initialImage(ctx, i.b.cfg.Runtime, p.modules); err != nil {
		return m, fmt.Errorf("initial file system: %w", err)
	}
	if m.probe {
		return m, nil
	}
	if m.runtime, err = i.b.images.runtimeImage(ctx, i.b.cfg.Runtime); err != nil {
		return m, fmt.Errorf("runtime image: %w", err)
	}
	if m.root != "" {
		return m, nil
	}
	if m.root, err = i.b.images.rootImage(ctx, s.Root); err != nil {
		return m, fmt.Errorf("image of the template: %w", err)
	}
	return m, nil
}

// makeDisk makes the writable layer: empty, or what was saved of one.
func makeDisk(ctx context.Context, m vm, size int64) error {
	f, err := os.OpenFile(m.disk, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if m.saved == nil {
		return vmimage.WriteDisk(f, size, vmimage.UUID(string(m.id)))
	}
	size = vmimage.DiskSize(size)
	return errors.Join(f.Truncate(size), m.saved.Unpack(ctx, imageDisk, f, size))
}

// launched is the monitor, started by this process.
type launched struct {
	cmd  *exec.Cmd
	once sync.Once
	log  *os.File // what it says, until the agent has answered
}

// reap collects the monitor, which has ended.
func (l *launched) reap() { l.once.Do(func() { _ = l.cmd.Wait() }) } // how it ended is the watchers' to find out

// said is what the monitor has written so far, at most a line of it.
func (l *launched) said() string {
	_ = l.log.SetReadDeadline(time.Now().Add(time.Millisecond))
	b, _ := io.ReadAll(io.LimitReader(l.log, 64<<10)) // what there is
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return clip(printable(lines[len(lines)-1]))
}

// start starts the monitor in the instance's cgroup and makes it run m.
func (i *Instance) start(ctx context.Context, m vm) error {
	if m.nic != nil && m.nic.tap != nil {
		defer m.nic.tap.Close()
	}
	program, args, err := i.monitor.prepare(m)
	if err != nil {
		return err
	}
	if _, ok := i.monitor.(*qemu); ok {
		if m.ram, err = newRAM(m.ramSize()); err != nil {
			return err
		}
		defer m.ram.Close()
	}
	failpoint.Hit("microvm.create/after-files")
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = i.dir, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	cmd.Stderr = w
	if m.ram != nil {
		cmd.ExtraFiles = []*os.File{m.ram} // ramDescriptor
		if m.nic != nil {
			cmd.ExtraFiles = append(cmd.ExtraFiles, m.nic.tap) // tapDescriptor
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	if err := i.spawn(cmd); err != nil {
		r.Close()
		return fmt.Errorf("start %s: %w", i.intent.VMM, err)
	}
	i.launched = &launched{cmd: cmd, log: r}
	failpoint.Hit("microvm.create/after-start")
	// A monitor whose words nobody reads any more drops them: it never waits.
	if err := unix.SetNonblock(int(w.Fd()), true); err != nil {
		return err
	}
	m.pid = cmd.Process.Pid
	// On a host out of memory machines go before the host, whatever this process is.
	_ = writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", m.pid), "1000")
	if p, ok := identify(m.pid); ok {
		i.processes = []process{p}
	}
	if err := writeProcesses(i.dir, i.processes); err != nil {
		return err
	}
	failpoint.Hit("microvm.create/after-processes")
	return i.monitor.begin(ctx, m)
}

// spawn starts cmd as a member of the instance's cgroup.
func (i *Instance) spawn(cmd *exec.Cmd) error {
	if len(i.group) == 0 {
		return cmd.Start()
	}
	if i.group.has("cgroup.controllers") != "" {
		d, err := os.Open(i.group[0])
		if err != nil {
			return err
		}
		defer d.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
		return cmd.Start()
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		leave, err := i.group.join()
		if err == nil {
			err = cmd.Start()
		}
		if leave() == nil { // a thread that could not leave is not used again
			runtime.UnlockOSThread()
		}
		started <- err
	}()
	return <-started
}

// await dials until answer is satisfied with what is at the other end. It ends
// early when the machine or its monitor has.
func (i *Instance) await(ctx context.Context, answer func(net.Conn) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if e, err := i.monitor.ended(ctx, i.dir); err == nil {
			i.stop = e // nobody else knows the instance yet
			cancel(errStopped)
		}
	}()
	defer func() { cancel(nil); <-stopped }()
	if len(i.processes) == 0 {
		return errMonitor
	}
	fd, err := i.processes[0].pidfd()
	if err != nil {
		return errMonitor
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if waitExit(f) {
			cancel(errMonitor)
		}
	}()
	defer func() { f.Close(); <-watched }()
	for {
		conn, err := i.monitor.dial(ctx, i.dir)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			err = answer(conn)
			stop()
			conn.Close()
			if err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond): // it has yet to listen
		}
	}
}

var (
	errStopped = errors.New("the machine stopped before its agent answered")
	errMonitor = errors.New("the monitor ended before the agent answered")
)

// handshake asks the agent to reset and returns when it has. The answer is
// recognised by the nonce alone, which nobody but the agent has seen: bytes from
// a guest are compared here, never parsed.
func handshake(conn net.Conn) error {
	nonce := make([]byte, guest.NonceSize)
	rand.Read(nonce)
	payload := append(bytes.Clone(nonce), make([]byte, 8)...) // epoch 0: a session's will be later
	if _, err := conn.Write(guest.AppendFrame(nil, guest.TypeReset, 0, payload)); err != nil {
		return err
	}
	_, err := seek(conn, nonce)
	return err
}

// seek reads until one of what is wanted has come by, all of one length, and
// returns which.
func seek(conn io.Reader, want ...[]byte) (int, error) {
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		seen = append(seen, buf[:n]...)
		for k, w := range want {
			if bytes.Contains(seen, w) {
				return k, nil
			}
		}
		if err != nil {
			return -1, err
		}
		if keep := len(want[0]) - 1; len(seen) > keep {
			seen = append(seen[:0], seen[len(seen)-keep:]...)
		}
	}
}

package gvisor

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Create implements sandbox.Backend.
func (b *Backend) Create(ctx context.Context, s sandbox.Spec) (sandbox.Instance, error) {
	return b.make(ctx, s, nil)
}

// make makes an instance that starts or, with a snapshot, goes on where that was
// taken.
func (b *Backend) make(ctx context.Context, s sandbox.Spec, from *sandbox.Snapshot) (sandbox.Instance, error) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	s, p, err := b.admitNow(ctx, s)
	if err != nil {
		return nil, err
	}
	var img *image
	if from != nil {
		if img, err = b.admitImage(ctx, s, p, *from); err != nil {
			return nil, err
		}
	}
	i, lock, err := b.intend(ctx, s, p, false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := i.boot(ctx, s, p, img); err != nil {
		return nil, i.undo(ctx, err)
	}
	failpoint.Hit("gvisor.create/after-running")
	return i, b.adopt(i)
}

// within bounds ctx by the time a boot may take, unless the caller has.
func (b *Backend) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, b.cfg.BootTimeout)
}

// admitNow decides whether an instance of s can be made here and now, and returns
// s with what it left open.
func (b *Backend) admitNow(ctx context.Context, s sandbox.Spec) (sandbox.Spec, probed, error) {
	p, err := b.probe()
	if err != nil {
		return s, p, sandbox.Wrap("create", string(s.Instance), err)
	}
	if s, err = admit(s, p); err != nil {
		return s, p, err
	}
	if err := ctx.Err(); err != nil {
		return s, p, sandbox.Wrap("create", string(s.Instance), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return s, p, b.openLocked("create", s.Instance)
}

// intend journals an instance that is about to be made. The lock is held for as long
// as it is.
func (b *Backend) intend(ctx context.Context, s sandbox.Spec, p probed, ahead bool) (i *Instance, lock *os.File, err error) {
	in := b.intentOf(s, p)
	in.Ahead = ahead
	i = newInstance(b, in, p.cgroups.group(s.Instance))
	lock, err = writeIntent(i.dir, i.intent)
	if errors.Is(err, fs.ErrExist) {
		return nil, nil, sandbox.Errorf("create", sandbox.KindExists, "the instance exists").WithID(string(s.Instance))
	}
	if err != nil {
		return nil, nil, i.explain(ctx, err)
	}
	failpoint.Hit("gvisor.create/after-intent")
	return i, lock, nil
}

// undo removes what was made of an instance that is not to be, and returns why.
func (i *Instance) undo(ctx context.Context, err error) error {
	receipt, left := i.Destroy(context.WithoutCancel(ctx))
	if left != nil {
		i.b.log.Error("create left objects behind", "instance", i.id, "objects", receipt.Objects)
	}
	return i.explain(ctx, err)
}

// adopt puts a booted instance under the Backend's watch, or removes it when
// the Backend was closed meanwhile.
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
	return s, nil
}

func (b *Backend) intentOf(s sandbox.Spec, p probed) intent {
	in := intent{
		Instance: s.Instance, Sandbox: s.Sandbox, Tenant: s.Tenant,
		Created: time.Now().UTC(), Boot: bootID(),
		Cgroups: p.cgroups.group(s.Instance).dirs,
		Limits:  s.Limits, Enforced: p.info.Capabilities.Limits,
		Runsc: b.cfg.Runsc, Runtime: b.cfg.Runtime,
		Template: s.Root.Digest, ReadonlyRoot: s.ReadonlyRoot, Wired: s.Wire != nil,
	}
	if in.Enforced&sandbox.LimitMemory != 0 {
		in.Overhead = Overhead(s.Limits.Memory)
	}
	return in
}

// boot makes everything and returns when the agent has answered. What it made
// when it fails is Destroy's to remove.
func (i *Instance) boot(ctx context.Context, s sandbox.Spec, p probed, img *image) error {
	let, err := i.begin(s, p, i.runCommand(img)...)
	if err != nil {
		return err
	}
	defer let()
	conn, err := dialFIFOs(i.dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	let() // from here on only the sandbox keeps the stream alive
	if err := i.awaitAgent(ctx, conn); err != nil {
		return err
	}
	failpoint.Hit("gvisor.create/after-answer")
	return i.settle(s)
}

// begin makes all that an instance consists of and starts a command of runsc, the
// instance's processes with it. The stream's far ends are open until let is called.
func (i *Instance) begin(s sandbox.Spec, p probed, command ...string) (let func(), err error) {
	if err := i.group.create(s.Limits, i.intent.Overhead); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	failpoint.Hit("gvisor.create/after-cgroup")
	if err := i.b.writeBundle(i.dir, s); err != nil {
		return nil, err
	}
	failpoint.Hit("gvisor.create/after-bundle")
	in, out, err := makeFIFOs(i.dir)
	if err != nil {
		return nil, err
	}
	let = sync.OnceFunc(func() { in.Close(); out.Close() })
	failpoint.Hit("gvisor.create/after-files")
	if i.launch, err = i.b.launch(i, runtimeArgs(i, s, p, command...), in, out); err != nil {
		let()
		return nil, err
	}
	failpoint.Hit("gvisor.create/after-start")
	return let, nil
}

// settle records and adjusts what runs, once the agent has answered.
func (i *Instance) settle(s sandbox.Spec) error {
	procs, err := members(i.group, nil)
	if err != nil {
		return err
	}
	if len(i.group.dirs) == 0 {
		procs = withChildren(named(i.id))
	}
	for _, p := range procs {
		switch p.Role {
		case "sentry":
			i.running.Sentry = p
		case "runtime", rolePassing: // ends by itself any moment
			continue
		}
		i.running.Processes = append(i.running.Processes, p)
	}
	if i.running.Sentry.PID == 0 {
		return errNoAgent
	}
	i.running.Namespaces = namespacesOf(slices.DeleteFunc(slices.Clone(i.running.Processes), func(p process) bool { return p.Role == "stub" }))
	if s.Wire != nil { // its namespace is not ours, and stays
		theirs, err := wireNamespace(*s.Wire)
		if err != nil {
			return err
		}
		i.running.Namespaces = slices.DeleteFunc(i.running.Namespaces, func(ns string) bool { return ns == theirs })
	}
	for _, pid := range precious(i.running.Processes) {
		setOOMScore(pid, oomScoreSandbox)
	}
	if err := i.group.limitCPU(s.Limits.CPUs); err != nil {
		return fmt.Errorf("set cpu limit: %w", err)
	}
	return writeRunning(i.dir, i.running)
}

// precious lists the processes without which the sandbox ends: sentry, gofer
// and what executes the agent. The first stub is the model of all later ones,
// which inherit its score, so it stays as it is; the others there are while only
// the agent runs are the agent's.
func precious(procs []process) (pids []int) {
	for _, p := range procs {
		if p.Role == "sentry" || p.Role == "gofer" {
			pids = append(pids, p.PID)
		}
	}
	for k, p := range stubs(procs) {
		if k > 0 {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// stubs lists the stubs, the oldest first: that one the sentry forks all others
// from, and never runs guest code on.
func stubs(procs []process) (list []process) {
	// Within one tick of the clock the pid decides, and pids begin anew some
	// time: those below their sentry's are younger than those above.
	after := func(p process) int {
		if sentry := slices.IndexFunc(procs, func(p process) bool { return p.Role == "sentry" }); sentry >= 0 && p.PID < procs[sentry].PID {
			return p.PID + 1<<22 // the largest pid_max
		}
		return p.PID
	}
	for _, p := range procs {
		if p.Role == "stub" {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b process) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(after(a), after(b)))
	})
	return list
}

// Scores of the kernel's out-of-memory killer. Within an instance's cgroup they
// decide that a guest process goes before the sentry, whatever memory either
// has mapped; on a host out of memory, that guests go before the host.
const (
	oomScoreGuest   = 1000 // the runtime starts with it and the stubs keep it
	oomScoreSandbox = -998 // what is precious, once it runs: last, not immune
)

// setOOMScore sets the score, or one as low as a process without CAP_SYS_RESOURCE
// may choose: what it was born with.
func setOOMScore(pid, score int) {
	name := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	if err := writeFile(name, strconv.Itoa(score)); errors.Is(err, fs.ErrPermission) {
		_ = writeFile(name, strconv.Itoa(max(score, int(readInt("/proc/self/oom_score_adj")))))
	}
}

// launch is a running `firebreak-runsc run -detach`.
type launch struct {
	pid  int
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// launch starts the runtime inside the instance's cgroup. It dies with this
// process: a sandbox nobody has been told of must not come up later.
func (b *Backend) launch(i *Instance, args []string, in, out *os.File) (*launch, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd := exec.Command(b.cfg.Runsc, args...)
	cmd.Args[0] = "runsc"
	cmd.Dir = i.dir
	cmd.Env = []string{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if i.group.v2 && len(i.group.dirs) > 0 {
		d, err := os.Open(i.group.dirs[0])
		if err != nil {
			return nil, err
		}
		defer d.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
	}
	l := &launch{done: make(chan struct{})}
	started := make(chan error, 1)
	b.monitors.Go(func() {
		defer close(l.done)
		// The thread is the parent the death signal is about, and it visits
		// the cgroup: it stays ours until the runtime has ended. If it could
		// not leave the cgroup it is not given back, and ends with us.
		runtime.LockOSThread()
		left, err := startIn(i.group, cmd)
		started <- err
		if err == nil {
			l.err = cmd.Wait()
		}
		if left == nil {
			runtime.UnlockOSThread()
		}
	})
	if err := <-started; err != nil {
		<-l.done
		return nil, fmt.Errorf("start runsc: %w", err)
	}
	l.pid = cmd.Process.Pid
	setOOMScore(l.pid, oomScoreGuest)
	return l, nil
}

// startIn starts cmd as a member of the group.
func startIn(g cgroup, cmd *exec.Cmd) (left, err error) {
	if g.v2 || len(g.dirs) == 0 {
		return nil, cmd.Start()
	}
	leave, err := g.join()
	if err == nil {
		err = cmd.Start()
	}
	return leave(), err
}

// runtimeArgs is runsc's command line. Paths are relative to the instance's
// directory where runsc allows it: that keeps the control socket's path within
// the 108 bytes of a socket address, beyond which runsc would put it elsewhere.
func runtimeArgs(i *Instance, s sandbox.Spec, p probed, command ...string) []string {
	args := slices.Concat(commonArgs(), []string{"--panic-log=" + filePanicLog}, networkArgs(s), []string{
		"--overlay2=" + overlay(i.dir, s),
		"--ignore-cgroups", // we do them, see cgroup.join
		"--host-settings=ignore",
		"--gofer-network-namespace=new",
	})
	// The sentry may remember what it has seen of the base: nothing changes a
	// template, and of the host's own files a sandbox may keep what it began
	// with. Otherwise every path of every start is looked up on the host again.
	args = append(args, "--file-access-mounts=exclusive")
	if !p.root {
		args = append(args, "--rootless")
	}
	return append(args, command...)
}

// runCommand starts a guest, or one that goes on from an image.
func (i *Instance) runCommand(img *image) []string {
	if img != nil {
		return []string{"restore", "-detach", "-bundle=.", "-image-path=" + img.Dir(), string(i.id)}
	}
	return []string{"run", "-detach", "-bundle=.", string(i.id)}
}

// createCommand makes everything but a guest.
func (i *Instance) createCommand() []string { return []string{"create", "-bundle=.", string(i.id)} }

// commonArgs are what every call of runsc for an instance begins with.
func commonArgs() []string {
	return []string{"--root=" + dirState, "--log=" + fileRunscLog, "--platform=systrap"}
}

// awaitAgent returns nil once the agent has answered. It ends early when the
// runtime failed or ctx ended.
func (i *Instance) awaitAgent(ctx context.Context, conn net.Conn) error {
	answered := make(chan error, 1)
	go func() { answered <- handshake(conn) }()
	finish := func(err error) error {
		conn.Close() // ends the handshake
		<-answered
		return err
	}
	runtimeDone := i.launch.done
	for {
		select {
		case err := <-answered:
			return err
		case <-ctx.Done():
			return finish(ctx.Err())
		case <-runtimeDone:
			if i.launch.err != nil {
				return finish(fmt.Errorf("runsc failed: %w", i.launch.err))
			}
			runtimeDone = nil // it has started the sandbox; now it is the agent's turn
		}
	}
}

// handshake asks the agent to reset and returns when it has. The answer is
// recognised by the nonce alone, which nobody but the agent has seen: bytes
// from a guest are compared here, never parsed.
func handshake(conn net.Conn) error {
	nonce := make([]byte, guest.NonceSize)
	rand.Read(nonce)
	payload := append(bytes.Clone(nonce), make([]byte, 8)...) // epoch 0: a session's will be later
	if _, err := conn.Write(guest.AppendFrame(nil, guest.TypeReset, 0, payload)); err != nil {
		return fmt.Errorf("%w: %w", errNoAgent, err)
	}
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		seen = append(seen, buf[:n]...)
		if bytes.Contains(seen, nonce) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errNoAgent, err)
		}
		if len(seen) > len(nonce) {
			seen = append(seen[:0], seen[len(seen)-len(nonce)+1:]...)
		}
	}
}

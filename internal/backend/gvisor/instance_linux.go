package gvisor

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Instance is one gVisor sandbox. It is safe for concurrent use.
type Instance struct {
	b      *Backend
	id     sandbox.InstanceID
	dir    string
	intent intent
	group  cgroup

	// Set before the instance is handed out, constant then.
	running running
	launch  *launch // nil when attached

	ended    chan struct{} // closed when the boundary has ended
	released chan struct{} // closed when the Backend was

	mu       sync.Mutex
	exit     sandbox.Exit // guarded by mu; final once ended is closed
	killer   sandbox.Reason
	monitors []*os.File     // guarded by mu: pidfds of what is watched
	conn     *stream        // guarded by mu: the live stream
	disk     []string       // guarded by mu: /proc paths of the writable layer
	last     *sandbox.Usage // guarded by mu: as of Destroy
	overDone sync.Once

	saving sync.Mutex // held while an image of it is written

	destroying sync.Mutex
	receipt    sandbox.Receipt // guarded by destroying
	said       string          // guarded by destroying: lastWords, read before the directory went
}

var _ sandbox.Instance = (*Instance)(nil)

func newInstance(b *Backend, in intent, g cgroup) *Instance {
	return &Instance{
		b: b, id: in.Instance, dir: b.dir(in.Instance), intent: in, group: g,
		ended: make(chan struct{}), released: make(chan struct{}),
	}
}

// ID implements sandbox.Instance.
func (i *Instance) ID() sandbox.InstanceID { return i.id }

// watch notices the sentry's death from now on. If it is dead already, nobody
// knows how it came.
//
// It notices the first stub's, too: the kernel's OOM killer may pick it when it
// needs a second victim. The sentry lives on then but can start nothing any
// more, and a sandbox that looks alive and is not is worse than one that ended
// and says why.
func (i *Instance) watch() {
	if !i.monitor(i.running.Sentry, func() { i.over(sandbox.ReasonCrashed) }) {
		i.over(sandbox.ReasonLost)
		return
	}
	if all := stubs(i.running.Processes); len(all) > 0 {
		i.monitor(all[0], func() {
			i.b.log.Warn("the model of a sandbox's processes has ended: nothing can start in it any more", "instance", i.id)
			if err := i.running.Sentry.kill(); err != nil {
				i.b.log.Error("a sandbox that can start nothing could not be ended", "instance", i.id, "error", err)
			}
		})
	}
}

// monitor calls f once the process has ended, unless the instance is released
// first. It returns false when the process is gone already.
func (i *Instance) monitor(p process, f func()) bool {
	fd, err := pidfdFile(p)
	if err != nil {
		return false
	}
	i.mu.Lock()
	i.monitors = append(i.monitors, fd)
	i.mu.Unlock()
	i.b.monitors.Go(func() {
		if waitExit(fd) {
			f()
		}
		fd.Close()
	})
	return true
}

// pidfdFile opens a process's pidfd for the runtime's poller.
func pidfdFile(p process) (*os.File, error) {
	if p.PID == 0 {
		return nil, unix.ESRCH
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if p.gone() {
		unix.Close(fd)
		return nil, unix.ESRCH
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitExit blocks until the process of a pidfd has ended (true) or the file was
// closed (false).
func waitExit(f *os.File) bool {
	c, err := f.SyscallConn()
	if err != nil {
		return false
	}
	return c.Read(readable) == nil
}

// readable reports whether a descriptor is, which a pidfd is once its process has
// ended.
func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, _ := unix.Poll(fds, 0)
	return n > 0
}

// over records the end, once. otherwise is the reason of one that nothing else
// explains.
func (i *Instance) over(otherwise sandbox.Reason) {
	i.overDone.Do(func() {
		i.mu.Lock()
		i.exit = i.whyLocked(otherwise)
		conn := i.conn
		i.conn = nil
		i.mu.Unlock()
		if conn != nil {
			conn.Close()
		}
		close(i.ended)
	})
}

// whyLocked decides the reason of an end. i.mu is held.
func (i *Instance) whyLocked(otherwise sandbox.Reason) sandbox.Exit {
	e := sandbox.Exit{Reason: otherwise, Time: time.Now().UTC()}
	switch {
	case i.killer != "":
		e.Reason = i.killer
	case i.group.oomKills() > 0:
		e.Reason = sandbox.ReasonMemory
		e.Detail = "limit " + sandbox.FormatSize(i.intent.Limits.Memory)
	default:
		if e.Detail = lastWords(i.dir); e.Detail == "" && otherwise == sandbox.ReasonCrashed {
			e.Detail = "its first process, the agent, has ended"
		}
	}
	return e
}

// Dial implements sandbox.Instance.
func (i *Instance) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap("dial", string(i.id), err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.ended:
		return nil, i.goneLocked("dial")
	case <-i.released:
		return nil, sandbox.Errorf("dial", sandbox.KindUnavailable, "the backend is closed").WithID(string(i.id))
	default:
	}
	if i.conn != nil {
		i.conn.Close()
		i.conn = nil
	}
	s, err := dialFIFOs(i.dir)
	if err != nil {
		if isGone(err) {
			return nil, i.goneLocked("dial")
		}
		return nil, sandbox.Wrap("dial", string(i.id), err)
	}
	i.conn = s
	return s, nil
}

// goneLocked says that the instance has ended. i.mu is held.
func (i *Instance) goneLocked(op string) error {
	why := string(i.exit.Reason)
	if why == "" {
		why = "its stream is closed"
	}
	return sandbox.Errorf(op, sandbox.KindGone, "the instance has ended: %s", why).WithID(string(i.id))
}

// Status implements sandbox.Instance.
func (i *Instance) Status(ctx context.Context) (sandbox.Status, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Status{}, sandbox.Wrap("status", string(i.id), err)
	}
	return i.status(), nil
}

func (i *Instance) status() sandbox.Status {
	st := sandbox.Status{
		Instance: i.id, Enforced: i.intent.Enforced, Created: i.intent.Created,
		Usage: sandbox.Usage{Overhead: i.intent.Overhead},
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.ended:
		st.Exit = i.exit
	default:
		st.Alive = i.running.Sentry.PID != 0 && !i.running.Sentry.gone()
		if !st.Alive {
			why := sandbox.ReasonLost
			if len(i.monitors) > 0 { // it lived under our eyes; who watches it has yet to say so
				why = sandbox.ReasonCrashed
			}
			st.Exit = i.whyLocked(why)
		}
	}
	if i.last != nil {
		st.Usage = *i.last
		return st
	}
	i.group.usage(&st.Usage)
	if st.Alive {
		st.Usage.Disk = i.diskLocked()
	}
	return st
}

// Alive reports whether the boundary has not ended. It reads no file: the sentry's
// pidfd says so, before whoever watches that has noticed.
func (i *Instance) Alive() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.ended:
		return false
	default:
	}
	if len(i.monitors) == 0 {
		return i.running.Sentry.PID != 0 && !i.running.Sentry.gone()
	}
	c, err := i.monitors[0].SyscallConn()
	alive := false
	if err == nil {
		err = c.Control(func(fd uintptr) { alive = !readable(fd) })
	}
	return alive && err == nil // it is closed once the sentry has ended
}

// OOMKills is Status' count of them.
func (i *Instance) OOMKills() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last != nil {
		return i.last.OOMKills
	}
	return i.group.oomKills()
}

// diskLocked measures the writable layer: unlinked files that only the
// sentry holds. i.mu is held.
func (i *Instance) diskLocked() (bytes int64) {
	if i.disk == nil {
		stores := 1
		if i.intent.ReadonlyRoot {
			stores = len(writable)
		}
		i.disk = filestores(i.running.Sentry.PID, stores)
	}
	for _, p := range i.disk {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			bytes += st.Blocks * 512
		}
	}
	return bytes
}

// filestores are where /proc has the files of a sentry's writable layers, of which
// there are at most so many. The sentry was given them when it was started, so they
// are among the descriptors with low numbers, of which it soon has hundreds.
func filestores(pid, most int) []string {
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(fds)
	slices.SortFunc(entries, func(a, b os.DirEntry) int {
		return cmp.Or(cmp.Compare(len(a.Name()), len(b.Name())), cmp.Compare(a.Name(), b.Name()))
	})
	found := []string{}
	for _, e := range entries {
		p := filepath.Join(fds, e.Name())
		if to, err := os.Readlink(p); err == nil && strings.Contains(to, "/runsc-filestore-") {
			if found = append(found, p); len(found) == most {
				break
			}
		}
	}
	return found
}

// Wait implements sandbox.Instance.
func (i *Instance) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-i.ended: // also when ctx has ended
		return i.exitNow(), nil
	default:
	}
	select {
	case <-i.ended:
		return i.exitNow(), nil
	case <-i.released:
		return sandbox.Exit{}, sandbox.Errorf("wait", sandbox.KindUnavailable, "the backend is closed").WithID(string(i.id))
	case <-ctx.Done():
		return sandbox.Exit{}, sandbox.Wrap("wait", string(i.id), ctx.Err())
	}
}

func (i *Instance) exitNow() sandbox.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// release lets go of the instance without ending it.
func (i *Instance) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.released:
		return
	default:
		close(i.released)
	}
	if i.conn != nil {
		i.conn.Close()
		i.conn = nil
	}
	for _, f := range i.monitors {
		f.Close()
	}
}

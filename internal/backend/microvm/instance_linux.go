package microvm

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Instance is one virtual machine. It is safe for concurrent use.
type Instance struct {
	b       *Backend
	id      sandbox.InstanceID
	dir     string
	intent  intent
	group   group
	monitor monitor

	// Set before the instance is handed out, constant then.
	processes []process // the monitor's, it first
	ready     bool      // its agent has answered
	launched  *launched // nil when attached
	given     bool      // it boots what its template brought

	life  context.Context // of what watches it; ends with the instance or the Backend
	leave context.CancelFunc

	ended    chan struct{} // closed when the boundary has ended
	released chan struct{} // closed when the Backend was

	mu       sync.Mutex
	exit     sandbox.Exit   // guarded by mu; final once ended is closed
	killer   sandbox.Reason // guarded by mu
	watched  *os.File       // guarded by mu: pidfd of the monitor
	conn     net.Conn       // guarded by mu: the live stream
	last     *sandbox.Usage // guarded by mu: as of Destroy
	stop     ending         // guarded by mu: of a machine whose monitor lived to tell
	overDone sync.Once

	saving     sync.Mutex     // held by who saves it, or gives its first process orders
	recovering sync.WaitGroup // who lets a machine go on that was taken over

	destroying sync.Mutex
	receipt    sandbox.Receipt // guarded by destroying
	said       string          // guarded by destroying: the monitor's last words of a boot that failed
}

var _ sandbox.Instance = (*Instance)(nil)

func newInstance(b *Backend, in intent, m monitor) *Instance {
	i := &Instance{
		b: b, id: in.Instance, dir: b.dir(in.Instance), intent: in, group: in.Cgroups, monitor: m,
		ended: make(chan struct{}), released: make(chan struct{}),
	}
	i.life, i.leave = context.WithCancel(context.Background())
	return i
}

// ID implements sandbox.Instance.
func (i *Instance) ID() sandbox.InstanceID { return i.id }

// watch notices the machine's end from now on. If its monitor is gone already,
// nobody knows how it came. A machine that stopped while its monitor lives is
// over all the same: the monitor is ended.
func (i *Instance) watch() {
	if !i.ready || len(i.processes) == 0 {
		i.over(sandbox.ReasonLost)
		return
	}
	p := i.processes[0]
	fd, err := p.pidfd()
	if err != nil {
		i.over(sandbox.ReasonLost)
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	i.mu.Lock()
	i.watched = f
	i.mu.Unlock()
	i.b.watchers.Go(func() {
		defer f.Close()
		if waitExit(f) {
			if i.launched != nil {
				i.launched.reap()
			}
			i.over(sandbox.ReasonCrashed)
		}
	})
	i.b.watchers.Go(func() {
		e, err := i.monitor.ended(i.life, i.dir)
		if err != nil {
			return // the monitor has ended, or we leave: the other watcher tells
		}
		i.mu.Lock()
		i.stop = e
		i.mu.Unlock()
		i.over(sandbox.ReasonCrashed)
		if err := p.kill(); err != nil {
			i.b.log.Error("the monitor of a stopped machine could not be ended", "instance", i.id, "error", err)
		}
	})
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
		i.leave()
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
		e.Reason, e.Detail = sandbox.ReasonMemory, "the machine and its monitor use more than the host gives them"
	case i.stop.why != "":
		e.Detail = i.stop.why
		if said := lastWords(i.stop.console); said != "" {
			e.Detail += ": " + said
		}
	case otherwise == sandbox.ReasonCrashed:
		e.Detail = "its monitor, " + i.intent.VMM + ", has ended"
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
	c, err := i.monitor.dial(ctx, i.dir)
	if errors.Is(err, errNoChannel) {
		return nil, i.goneLocked("dial")
	}
	if err != nil {
		return nil, sandbox.Wrap("dial", string(i.id), err)
	}
	i.conn = c
	return c, nil
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
		st.Alive = i.ready && len(i.processes) > 0 && !i.processes[0].gone()
		if !st.Alive {
			why := sandbox.ReasonLost
			if i.watched != nil { // it lived under our eyes; who watches it has yet to say so
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
	var f unix.Stat_t
	if unix.Stat(filepath.Join(i.dir, fileDisk), &f) == nil {
		st.Usage.Disk = f.Blocks * 512
	}
	return st
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
	i.leave()
	if i.conn != nil {
		i.conn.Close()
		i.conn = nil
	}
	if i.watched != nil {
		i.watched.Close()
	}
}

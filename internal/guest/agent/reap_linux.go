package agent

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// reaper collects every process that ends: programs, and the orphans that
// become children of PID 1. A pid is only signalled or reaped under its lock,
// so no signal ever reaches a process that has inherited a dead one's number.
type reaper struct {
	gate  sync.Mutex // before mu: held to start a program, and to kill all there are
	mu    sync.Mutex
	progs map[int]*program // guarded by mu; running, by pid
	// Those that wait to become one, by pid: they are none to anybody.
	waiting map[int]*program // guarded by mu
	born    chan struct{}    // capacity 1: there may be a child again
}

func (r *reaper) start() {
	r.progs, r.waiting = map[int]*program{}, map[int]*program{}
	r.born = make(chan struct{}, 1)
	go r.run() // for the life of PID 1
}

// fork starts p. It is called on a launcher's thread.
func (r *reaper) fork(p *program, exe string, argv []string, attr *syscall.ProcAttr) error {
	r.gate.Lock()
	defer r.gate.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	first := len(r.progs) == 0 && p.s.noTasks()
	pid, err := syscall.ForkExec(exe, argv, attr)
	if err != nil {
		return err
	}
	p.pid = pid
	if p.waits {
		r.waiting[pid] = p
	} else {
		p.alone, p.first = len(r.progs) == 0, first
		for _, other := range r.progs {
			other.alone = false
		}
		r.progs[pid] = p
	}
	select {
	case r.born <- struct{}{}:
	default:
	}
	return nil
}

func (r *reaper) run() {
	runtime.LockOSThread() // it blocks most of its life; keep a thread for it
	for {
		pid, err := waitAny()
		if errors.Is(err, unix.ECHILD) {
			<-r.born
			continue
		}
		if err != nil {
			continue
		}
		r.reap(pid)
	}
}

// reap collects the ended child pid. If it was a program, what is left of its
// process group and session goes with it.
func (r *reaper) reap(pid int) {
	r.mu.Lock()
	if w := r.waiting[pid]; w != nil {
		w.dead = true
		delete(r.waiting, pid)
	}
	p := r.progs[pid]
	if p != nil {
		// Before the leader is reaped its number, the group's, is not reused.
		_ = unix.Kill(-pid, unix.SIGKILL) // ESRCH: nobody is left
	}
	var ws unix.WaitStatus
	var ru unix.Rusage
	got, err := unix.Wait4(pid, &ws, unix.WNOHANG, &ru)
	if p != nil && got == pid && err == nil {
		p.dead = true
		delete(r.progs, pid)
	}
	r.mu.Unlock()
	if p == nil || got != pid || err != nil {
		return
	}
	st := Status{Code: ws.ExitStatus(), CPU: toDuration(ru.Utime) + toDuration(ru.Stime), MaxRSS: ru.Maxrss << 10}
	if ws.Signaled() {
		st.Signal = int(ws.Signal())
		st.Code = 128 + st.Signal
	}
	p.out.ended()
	if p.tty != nil {
		p.tty.ended()
	} else {
		p.errs.ended()
	}
	go p.bury(st)
}

// bury kills what is left of the session, then reports the end.
func (p *program) bury(st Status) {
	if p.control != nil {
		p.control.Close()
	}
	if !p.s.noTasks() {
		_ = killWhile(func(q process, _ map[int]process) bool { return q.session == p.pid }) // the boundary ends what resists
	}
	st.DiskFull = st.Code != 0 && p.s.full()
	_, err := os.Lstat(guest.ResultPath(p.id))
	st.Result = err == nil
	p.status <- st
}

func toDuration(t unix.Timeval) time.Duration { return time.Duration(t.Nano()) }

// Signal implements Process.
func (p *program) Signal(sig int) error {
	r := &p.s.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.dead {
		return notFound("the process has ended")
	}
	return rawKill(-p.pid, syscall.Signal(sig))
}

// Kill implements Process.
func (p *program) Kill() error {
	r := &p.s.reaper
	r.gate.Lock()
	r.mu.Lock()
	all := p.alone && p.first // then everything there is belongs to it
	r.mu.Unlock()
	if all {
		defer r.gate.Unlock()
		return p.s.killAll()
	}
	r.gate.Unlock()

	start := p.started() // while it surely lives
	r.mu.Lock()
	alone := p.alone
	if !p.dead {
		_ = unix.Kill(-p.pid, unix.SIGKILL)
	}
	r.mu.Unlock()
	return killWhile(func(q process, all map[int]process) bool {
		return p.owns(q, all) || alone && q.born >= start
	})
}

// started is the program's start time in ticks, read while it was surely
// alive; 0 before that.
func (p *program) started() uint64 {
	r := &p.s.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.born == 0 {
		if p.dead {
			return 1<<64 - 1
		}
		q, ok := readProcess(p.pid)
		if !ok {
			return 1<<64 - 1
		}
		p.born = q.born
	}
	return p.born
}

// owns says whether q belongs to p: by session, process group, ancestry, or
// the mark in its environment that a daemon keeps unless it cleans up.
func (p *program) owns(q process, all map[int]process) bool {
	for hops := 0; hops < 1024; hops++ {
		if q.pid == p.pid || q.session == p.pid || q.group == p.pid {
			return true
		}
		parent, ok := all[q.parent]
		if !ok {
			break
		}
		q = parent
	}
	return q.parent == 1 && !p.isProgram(q.pid) && (q.marked(p.id) || p.mark != 0 && q.marked(p.mark))
}

// isProgram says whether pid is itself started by an exec.
func (p *program) isProgram(pid int) bool {
	r := &p.s.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.progs[pid] != nil
}

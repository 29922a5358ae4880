package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// waiter is a Standby: a program of whose exec nothing is known but who will run it
// and how it is started.
type waiter struct {
	p       *program
	user    string
	account account
	env     []string
	control *os.File // the waiting program has the other end as descriptor 3
	ready   chan struct{}
	used    atomic.Bool
}

// marks tells waiting programs apart by the mark in their environment. Ids of execs
// are lower.
var marks atomic.Uint32

const firstMark = 1 << 31

// Stand implements Stander.
func (s *Linux) Stand(g Program) (Standby, error) {
	if !s.noTasks() {
		return nil, sandbox.Errorf(string(guest.OpStandby), sandbox.KindConflict, "something runs")
	}
	g.ID = firstMark | marks.Add(1)
	g.Stdin = true
	two, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(two[1]), "control")
	defer theirs.Close()
	_ = unix.SetNonblock(two[0], true) // cannot fail; puts it under the poller
	w := &waiter{user: g.User, control: os.NewFile(uintptr(two[0]), "control"), ready: make(chan struct{})}
	w.p = &program{s: s, id: g.ID, mark: g.ID, waits: true, status: make(chan Status, 1)}
	if w.account, w.env, err = s.launch(w.p, g, theirs); err != nil {
		w.control.Close()
		return nil, err
	}
	go func() {
		defer close(w.ready)
		var b [1]byte
		_ = w.control.SetReadDeadline(time.Now().Add(standWait))
		_, _ = w.control.Read(b[:]) // an end is noticed by Become
	}()
	return w, nil
}

// Ready implements Standby.
func (w *waiter) Ready() <-chan struct{} { return w.ready }

var errOther = errors.New("it would start in another way")

// Become implements Standby.
func (w *waiter) Become(g Program, code string, args []string) (Process, error) {
	s := w.p.s
	a, err := w.account, error(nil)
	if !g.Untouched || g.User != w.user {
		a, err = s.users.lookup(g.User)
	}
	if err != nil {
		return nil, err
	}
	env := environment(a, g)
	if a.uid != w.account.uid || a.gid != w.account.gid || a.home != w.account.home || !slices.Equal(a.groups, w.account.groups) ||
		g.Dir != "" && absolute(a, g.Dir) != a.home || !sameStart(env, w.env) {
		return nil, errOther
	}
	select {
	case <-w.ready:
	default:
		return nil, errOther
	}
	clearResult(guest.ResultPath(g.ID))
	if !w.enlist(g.ID) {
		return nil, errOther
	}
	p := w.p
	if !g.Stdin {
		p.in.Close()
		p.in = nil
	}
	if err = w.tell(order(env, code, args)); err != nil {
		w.control.Close()
		_ = p.Kill()
		<-p.status
		p.closeParent()
		return nil, err
	}
	return p, nil // it knows where its order ends: the socket is closed when it has ended
}

// tell gives the waiting program its order. What the socket takes at once, which is
// nearly everything, needs no deadline: each timer wakes a thread of the agent.
func (w *waiter) tell(order []byte) error {
	c, err := w.control.SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	werr := c.Control(func(fd uintptr) { n, err = rawWrite(fd, order) })
	if err = cmp.Or(werr, err); err != nil && !errors.Is(err, unix.EAGAIN) {
		return err
	}
	if n = max(0, n); n == len(order) {
		return nil
	}
	_ = w.control.SetWriteDeadline(time.Now().Add(standWait))
	_, err = w.control.Write(order[n:])
	return err
}

// enlist makes the waiting program one of those that run. Not ok: it has ended.
func (w *waiter) enlist(id uint32) (ok bool) {
	r := &w.p.s.reaper
	r.gate.Lock()
	defer r.gate.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := w.p
	if p.dead || w.used.Swap(true) {
		return false
	}
	delete(r.waiting, p.pid)
	// Nothing else has run since it was started, when there was nothing.
	p.id, p.waits, p.first, p.alone = id, false, true, len(r.progs) == 0
	p.control = w.control
	for _, other := range r.progs {
		other.alone = false
	}
	r.progs[p.pid] = p
	return true
}

// Kill implements Standby.
func (w *waiter) Kill() {
	if w.used.Swap(true) {
		return
	}
	r := &w.p.s.reaper
	r.mu.Lock()
	if !w.p.dead {
		_ = unix.Kill(-w.p.pid, unix.SIGKILL)
	}
	delete(r.waiting, w.p.pid)
	r.mu.Unlock()
	w.control.Close()
	w.p.closeParent()
}

// decisive are the variables, and the beginnings of their names, that an interpreter
// or the C library reads when it starts, and not again.
var decisive = []string{"PYTHON", "NODE_", "LD_", "LC_", "MALLOC_", "GLIBC_", "GCONV_PATH", "LANG", "TZ", "HOME", "PATH", "OPENSSL_", "SSL_"}

// sameStart reports whether what starts with one environment cannot be told from
// what starts with another and gets that one later.
func sameStart(a, b []string) bool {
	of := func(env []string) (out []string) {
		for _, e := range env {
			if slices.ContainsFunc(decisive, func(d string) bool { return strings.HasPrefix(e, d) }) {
				out = append(out, e)
			}
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(of(a), of(b))
}

// order is what a waiting program is told: how long what follows is, in eight digits;
// how many arguments there are, those, the environment, and the source text, each of
// these behind a NUL but the first. None of them has one inside, or the kernel would
// not take it either.
func order(env []string, code string, args []string) []byte {
	parts := append([]string{strconv.Itoa(len(args))}, args...)
	parts = append(append(parts, strconv.Itoa(len(env))), env...)
	text := strings.Join(append(parts, code), "\x00")
	return fmt.Appendf(make([]byte, 0, 8+len(text)), "%08d%s", len(text), text)
}

// launch starts p as g says, with extra descriptors from 3 on.
func (s *Linux) launch(p *program, g Program, extra ...*os.File) (account, []string, error) {
	a, err := s.users.lookup(g.User)
	if err != nil {
		return a, nil, err
	}
	s.limitTasks(g.PIDs)
	s.memory.Store(g.Memory)
	s.measureBase()
	env := environment(a, g)
	dir := a.home
	if g.Dir != "" {
		dir = absolute(a, g.Dir)
	}
	fs, err := s.files.as(g.User)
	if err != nil {
		return a, nil, err
	}
	exe, err := fs.(*userFiles).lookPath(g.Argv[0], dir, lookupEnv(env, "PATH"))
	if err != nil {
		return a, nil, err
	}
	clearResult(guest.ResultPath(g.ID))
	child, err := p.streams(a, g)
	if err != nil {
		return a, nil, err
	}
	files := slices.Clone(child)
	for _, f := range extra {
		files = append(files, f.Fd())
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Files: files, Sys: &syscall.SysProcAttr{
		Setsid:     true,
		Setctty:    p.tty != nil, // descriptor 0
		Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: a.groups},
	}}
	l := &s.user
	if a.uid == 0 {
		l = &s.root
	}
	if lerr := l.do(func() { err = s.reaper.fork(p, exe, g.Argv, attr) }); lerr != nil {
		err = lerr
	}
	p.closeChild(child)
	if err != nil {
		p.closeParent()
		return a, nil, startError(exe, dir, err)
	}
	return a, env, nil
}

package agent

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func notFound(format string, args ...any) error {
	return sandbox.Errorf("guest", sandbox.KindNotFound, format, args...)
}

// rootCapabilities is what root inside the guest may have: what containers
// usually give it. Nothing that could reach the agent or lift a limit.
const rootCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT

// launcher starts programs from a thread of its own whose capability bounding
// set is reduced for good and which has no_new_privs: both are inherited by
// fork and exec, and syscall.SysProcAttr can express neither.
type launcher struct {
	keep uint64 // capabilities that stay in the bounding set
	once sync.Once
	work chan func()
	err  error // set before work is served
}

// do runs f on the launcher's thread.
func (l *launcher) do(f func()) error {
	l.once.Do(func() {
		l.work = make(chan func())
		ready := make(chan struct{})
		go func() {
			runtime.LockOSThread()                        // and never unlock
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0) // see preferAgent; lowering is always allowed
			l.err = confine(l.keep)
			close(ready)
			for f := range l.work {
				f()
			}
		}()
		<-ready
	})
	if l.err != nil {
		return l.err
	}
	done := make(chan struct{})
	l.work <- func() { defer close(done); f() }
	<-done
	return nil
}

// confine reduces what this thread can pass on.
func confine(keep uint64) error {
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_WAKE_ALARM {
			break // beyond the last capability of this kernel
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) // absent on old kernels
	h, d, err := capabilities()
	if err != nil {
		return err
	}
	d[0].Inheritable, d[1].Inheritable = 0, 0
	return unix.Capset(h, &d[0])
}

func capabilities() (*unix.CapUserHeader, *[2]unix.CapUserData, error) {
	h := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	d := &[2]unix.CapUserData{}
	return h, d, unix.Capget(h, &d[0])
}

func hasCapability(c uint) bool {
	_, d, err := capabilities()
	return err == nil && d[c/32].Effective&(1<<(c%32)) != 0
}

// program is a Process.
type program struct {
	s      *Linux
	id     uint32
	mark   uint32 // of its environment, where that is not id
	pid    int
	born   uint64 // start time, in the kernel's ticks
	in     *inputPipe
	out    *outputPipe
	errs   *outputPipe
	tty    *terminal   // instead of in and errs; nil without one
	status chan Status // capacity 1
	// control is what a waiting program gets its order by, set before that; it is closed
	// when the program has ended.
	control *os.File

	alone bool // guarded by reaper.mu; no other program ran in its life so far
	first bool // set by fork; no user process existed when it started
	dead  bool // guarded by reaper.mu; reaped: the pid is somebody else's
	waits bool // guarded by reaper.mu; see waiter
}

// Start implements System.
func (s *Linux) Start(g Program) (Process, error) {
	p := &program{s: s, id: g.ID, status: make(chan Status, 1)}
	if _, _, err := s.launch(p, g); err != nil {
		return nil, err
	}
	return p, nil
}

// clearResult makes room for a program's result. Whatever an earlier program
// left there would pass for this one's, or a directory would keep it from
// reporting any; that may be large, so it is moved away and not emptied.
func clearResult(path string) {
	if unix.Unlink(path) == unix.ENOENT {
		return
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, unix.ENOENT) {
		_ = os.Rename(path, path+".stale-"+rand.Text()) // else the result is reported as unreadable
	}
}

// startError says what failed in the words of the caller.
func startError(exe, dir string, err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return sandbox.Errorf("exec", sandbox.KindCapacity, "the sandbox can start no more tasks")
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
		if st, serr := os.Stat(dir); serr != nil || !st.IsDir() {
			return notFound("no working directory %s", dir)
		}
	}
	kind := sandbox.KindOf(err)
	if errors.Is(err, unix.ENOEXEC) || errors.Is(err, unix.E2BIG) {
		kind = sandbox.KindInvalid
	}
	return sandbox.Errorf("exec", kind, "%s: %w", exe, err)
}

// streams makes the program's stdio and returns the child's descriptors.
func (p *program) streams(a account, g Program) ([]uintptr, error) {
	if g.PTY == nil {
		return p.pipes(g.Stdin)
	}
	t, err := openTerminal(a, *g.PTY)
	if err != nil {
		return nil, err
	}
	p.tty, p.out = t, newOutputPipe(t.master)
	fd := t.replica.Fd()
	return []uintptr{fd, fd, fd}, nil
}

// pipes is streams without a terminal.
func (p *program) pipes(stdin bool) ([]uintptr, error) {
	var opened []int
	var fds [3]int
	fds[0] = int(p.s.null.Fd())
	for i := range 3 {
		if i == 0 && !stdin {
			continue
		}
		var two [2]int
		if err := unix.Pipe2(two[:], unix.O_CLOEXEC); err != nil {
			for _, fd := range opened {
				_ = unix.Close(fd)
			}
			p.closeParent()
			return nil, err
		}
		ours, theirs := two[0], two[1]
		if i == 0 {
			ours, theirs = two[1], two[0]
		}
		_ = unix.SetNonblock(ours, true) // cannot fail; puts it under the poller
		opened = append(opened, theirs)
		fds[i] = theirs
		switch i {
		case 0:
			p.in = &inputPipe{fd: ours}
		case 1:
			p.out = newOutputPipe(os.NewFile(uintptr(ours), "pipe"))
		case 2:
			p.errs = newOutputPipe(os.NewFile(uintptr(ours), "pipe"))
		}
	}
	return []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2])}, nil
}

func (p *program) closeChild(fds []uintptr) {
	if p.tty != nil {
		return
	}
	for i, fd := range fds {
		if i > 0 || p.in != nil {
			_ = unix.Close(int(fd))
		}
	}
}

func (p *program) closeParent() {
	if p.tty != nil {
		p.tty.close()
		return
	}
	if p.in != nil {
		p.in.Close()
	}
	if p.out != nil {
		p.out.f.Close()
	}
	if p.errs != nil {
		p.errs.f.Close()
	}
}

// PID implements Process.
func (p *program) PID() int { return p.pid }

// Stdio implements Process.
func (p *program) Stdio() (in io.WriteCloser, out, errs io.ReadCloser) {
	if p.tty != nil {
		return keyboard{p}, p.out, io.NopCloser(strings.NewReader(""))
	}
	if p.in != nil {
		in = p.in
	}
	return in, p.out, p.errs
}

// Wait implements Process.
func (p *program) Wait() Status { return <-p.status }

// drainGrace is how long output is waited for after the program has ended,
// when another process still holds the pipe.
const drainGrace = 200 * time.Millisecond

// outputPipe is an output pipe that ends with its program.
type outputPipe struct {
	f    *os.File
	r    prompt
	late int         // bytes read after the grace
	over atomic.Bool // its end was read
}

func newOutputPipe(f *os.File) *outputPipe {
	c, err := f.SyscallConn()
	if err != nil {
		panic(err) // it is not closed
	}
	return &outputPipe{f: f, r: prompt{c}}
}

// Read implements io.Reader.
func (o *outputPipe) Read(b []byte) (int, error) {
	n, err := o.r.Read(b)
	if err == io.EOF {
		o.over.Store(true)
	}
	if errors.Is(err, unix.EIO) { // a terminal that nobody has any more
		return n, io.EOF
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	// The grace is over. What the program wrote is in the pipe, and no more
	// than a pipe holds; it is taken without waiting.
	const pipeMax = 1 << 20
	if o.late > pipeMax {
		return 0, io.EOF
	}
	n, rerr := 0, error(nil)
	// Control, not Read: past its deadline a Read does not call back.
	err = o.r.c.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), b) })
	if err != nil || rerr != nil || n <= 0 {
		return 0, io.EOF
	}
	o.late += n
	return n, nil
}

// Close implements io.Closer.
func (o *outputPipe) Close() error { return o.f.Close() }

func (o *outputPipe) ended() {
	if !o.over.Load() {
		_ = o.f.SetReadDeadline(time.Now().Add(drainGrace))
	}
}

// environment is the base environment and what the caller adds. Later entries
// win, and two of ours are extended rather than replaced.
func environment(a account, g Program) []string {
	env := []string{
		"PATH=" + guest.DefaultPath, "HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name,
		"LANG=C.UTF-8", guest.ResultEnv + "=" + guest.ResultPath(g.ID),
	}
	if g.PTY != nil {
		env = append(env, "TERM="+defaultTerm)
	}
	for _, e := range g.Env {
		env = setEnv(env, e)
	}
	if hasRuntime(guest.PythonDir) {
		env = extendEnv(env, "PYTHONPATH", ":", guest.PythonDir)
	}
	if hasRuntime(guest.NodeModule) {
		env = extendEnv(env, "NODE_OPTIONS", " ", "--require="+guest.NodeModule)
	}
	return env
}

var (
	runtimeMu   sync.Mutex
	runtimeSeen = map[string]bool{}
)

// hasRuntime says whether the backend laid out a part of the runtime, which is
// read-only and does not change.
func hasRuntime(path string) bool {
	runtimeMu.Lock()
	defer runtimeMu.Unlock()
	seen, ok := runtimeSeen[path]
	if !ok {
		_, err := os.Stat(path)
		seen = err == nil
		runtimeSeen[path] = seen
	}
	return seen
}

func lookupEnv(env []string, key string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, key+"="); ok {
			return v
		}
	}
	return ""
}

// setEnv adds or replaces the entry e.
func setEnv(env []string, e string) []string {
	key, _, _ := strings.Cut(e, "=")
	for i := range env {
		if strings.HasPrefix(env[i], key+"=") {
			env[i] = e
			return env
		}
	}
	return append(env, e)
}

func extendEnv(env []string, key, sep, v string) []string {
	if old := lookupEnv(env, key); old != "" {
		v = old + sep + v
	}
	return setEnv(env, key+"="+v)
}

// absolute resolves a path of the protocol.
func absolute(a account, p string) string {
	if !strings.HasPrefix(p, "/") {
		p = a.home + "/" + p
	}
	return path.Clean(p)
}

// rawKill is kill(2) without the libc detour of os.Process.
func rawKill(pid int, sig syscall.Signal) error { return unix.Kill(pid, sig) }

// waitAny waits for any child to end, without reaping it.
func waitAny() (pid int, err error) {
	var info struct { // siginfo_t of a 64-bit kernel, as far as SIGCHLD fills it
		signo, errno, code, _ int32
		pid                   int32
		_                     [128 - 20]byte
	}
	for {
		_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(info.pid), nil
	}
}

package control

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// process is a router from outside.
type process struct {
	os   *os.Process
	conn *net.UnixConn
	said *said         // on stderr
	done chan struct{} // closed when it is no more
	end  string        // how it ended; before done is closed
}

// kill ends it, if it has not ended. done tells when.
func (p *process) kill() { p.os.Kill() }

// begin starts a router that can do nothing but what its keeper says. Errors:
// KindUnavailable, the kernel's.
func begin(argv []string, log *slog.Logger) (_ *process, err error) {
	fail := func(err error) (*process, error) {
		return nil, sandbox.Errorf("router", sandbox.KindUnavailable, "it cannot be started: %w", err)
	}
	program, err := unix.Open(argv[0], unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(&os.PathError{Op: "open", Path: argv[0], Err: err})
	}
	exe := os.NewFile(uintptr(program), argv[0])
	defer exe.Close()
	rules, err := landlock(program)
	if err != nil {
		return fail(err)
	}
	if rules >= 0 {
		defer unix.Close(rules)
	}
	ours, theirs, err := pair()
	if err != nil {
		return fail(err)
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		return fail(err)
	}
	defer null.Close()
	stderr, write, err := os.Pipe()
	if err != nil {
		ours.Close()
		return fail(err)
	}
	defer write.Close()
	if argv[0] == self {
		argv = append([]string{"firebreak"}, argv[1:]...) // for who lists processes
	}
	p := &process{conn: ours, said: listen(stderr, log), done: make(chan struct{})}
	if err := p.fork(argv, rules, []*os.File{null, null, write, theirs, exe}); err != nil {
		ours.Close()
		write.Close()
		p.said.wait()
		return fail(err)
	}
	return p, nil
}

// fork starts the program on a thread that is confined first and does nothing
// else any more: it waits for the process, which the kernel kills when that thread
// ends.
func (p *process) fork(argv []string, rules int, files []*os.File) error {
	if err := closeOnExec(); err != nil {
		return err
	}
	started := make(chan error)
	go onOwnThread(func() {
		attr := &os.ProcAttr{Dir: "/", Env: []string{}, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}}
		err := giveUp(rules, attr.Sys)
		if err == nil {
			// By its descriptor: no directory above it has to be open to the uid.
			p.os, err = os.StartProcess("/proc/self/fd/"+strconv.Itoa(len(files)-1), argv, attr)
		}
		started <- err
		if err != nil {
			return
		}
		state, err := p.os.Wait()
		p.said.wait()
		if p.end = fmt.Sprint(state); err != nil {
			p.end = err.Error()
		}
		close(p.done)
	})
	err := <-started
	if errors.Is(err, syscall.EINVAL) && os.Geteuid() == 0 {
		return fmt.Errorf("%w (is the uid %d part of this user namespace?)", err, routerID)
	}
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w (is it built without cgo, and executable for everybody?)", err)
	}
	return err
}

// onOwnThread runs f on a thread that nothing else runs on, before or after. The
// first thread of a process never ends and stands for it in /proc, so it is not
// taken.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // locked: the thread ends with the goroutine
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// giveUp takes from the calling thread what a router is not to have, apart from
// its uid, which sys says.
func giveUp(rules int, sys *syscall.SysProcAttr) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	var keep [2]unix.CapUserData
	if os.Geteuid() == 0 {
		sys.Credential = &syscall.Credential{Uid: routerID, Gid: routerID}
		const setID = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID // gone with the uid
		keep[0] = unix.CapUserData{Effective: setID, Permitted: setID}
		for c := range capabilities {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
				return fmt.Errorf("the bounding set cannot be emptied: %w", err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&hdr, &keep[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if rules < 0 {
		return nil
	}
	return restrict(rules)
}

// capabilities are those that the kernel has, and whether they are in the bounding
// set of the calling thread.
func capabilities(yield func(c int, bounding bool) bool) {
	for c := 0; ; c++ {
		if on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err != nil || !yield(c, on != 0) {
			return
		}
	}
}

// closeOnExec makes sure that descriptors which somebody left open for this
// process are not left to a router. Its own have the flag.
func closeOnExec() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// pair is a unixpacket connection to a router, and its other end.
func pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds { // as much as can be on its way at once; a wish
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	theirs := os.NewFile(uintptr(fds[1]), "router")
	ours := os.NewFile(uintptr(fds[0]), "router")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

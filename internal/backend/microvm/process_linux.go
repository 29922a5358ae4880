package microvm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// process identifies a process beyond the reuse of its pid.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// name is how a receipt names p.
func (p process) name() string { return fmt.Sprintf("%d@%d", p.PID, p.Start) }

// statOf returns a process's state letter and start time. Errors: fs.ErrNotExist
// when there is none; any other means that it could not be looked at.
func statOf(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, unix.ESRCH) { // it ended between open and read
		err = fs.ErrNotExist
	}
	if err != nil {
		return 0, 0, err
	}
	i := bytes.LastIndexByte(b, ')') // the name may contain anything
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: unknown format", pid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], start, err
}

// identify returns the process as it is now.
func identify(pid int) (process, bool) {
	_, start, err := statOf(pid)
	return process{PID: pid, Start: start}, err == nil
}

// gone reports whether p has ended. A zombie has; what cannot be looked at has
// not.
func (p process) gone() bool {
	state, start, err := statOf(p.PID)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return start != p.Start || state == 'Z' || state == 'X'
}

// pidfd returns a descriptor that keeps meaning p. ESRCH when p has ended.
func (p process) pidfd() (int, error) {
	if p.PID == 0 {
		return -1, unix.ESRCH
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return -1, err
	}
	if p.gone() { // the pid is somebody else's by now
		unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// kill sends SIGKILL to exactly p.
func (p process) kill() error {
	fd, err := p.pidfd()
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// waitGone waits until p has ended, or the deadline.
func (p process) waitGone(deadline time.Time) {
	fd, err := p.pidfd()
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for left := time.Until(deadline); left > 0; left = time.Until(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// waitExit blocks until the process of a pidfd has ended (true) or the file was
// closed (false).
func waitExit(f *os.File) bool {
	c, err := f.SyscallConn()
	if err != nil {
		return false
	}
	return c.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	}) == nil
}

// named finds the monitors that have the instance's id as an argument of their
// own, or as a part of one up to a comma: the source that works without cgroups
// and without a record. Editors and shells that look for it are not monitors.
func named(id sandbox.InstanceID) (found []process) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil {
			continue
		}
		argv := strings.Split(string(b), "\x00")
		base := filepath.Base(argv[0])
		if !strings.HasPrefix(base, "qemu-") && !strings.HasPrefix(base, "firecracker") && !strings.HasPrefix(base, "jailer") {
			continue
		}
		if !slices.ContainsFunc(argv[1:], func(a string) bool { first, _, _ := strings.Cut(a, ","); return first == string(id) }) {
			continue
		}
		if p, ok := identify(pid); ok && !p.gone() {
			found = append(found, p)
		}
	}
	return found
}

// bootID identifies this boot of the host.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

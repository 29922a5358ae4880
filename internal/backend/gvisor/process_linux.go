package gvisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// bootID identifies this boot of the host.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// statOf returns a process's state letter, parent and start time. ok is false
// when there is no such process.
func statOf(pid int) (state byte, parent int, start uint64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0, false
	}
	// The name is in parentheses and may contain anything.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, 0, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return 0, 0, 0, false
	}
	parent, _ = strconv.Atoi(f[1])
	start, _ = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], parent, start, true
}

// identify returns the process as it is now.
func identify(pid int) (process, bool) {
	_, _, start, ok := statOf(pid)
	return process{PID: pid, Start: start}, ok
}

// gone reports whether p has ended. A zombie has: it holds nothing but its
// parent's attention.
func (p process) gone() bool {
	state, _, start, ok := statOf(p.PID)
	return !ok || start != p.Start || state == 'Z' || state == 'X'
}

// open returns a descriptor that keeps meaning p. ESRCH when p has ended.
func (p process) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
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
	fd, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// waitGone waits until p has ended, or the deadline.
func (p process) waitGone(deadline time.Time) bool {
	fd, err := p.open()
	if err != nil {
		return p.gone()
	}
	defer unix.Close(fd)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return p.gone()
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return true
		}
	}
}

// named finds the processes that name the instance on their command line:
// runtime, gofer and sentry end with it. It is the source that works without
// cgroups and without a record.
func named(id sandbox.InstanceID) []process {
	var found []process
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := append([]byte{0}, id...)
	want = append(want, 0)
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil || !bytes.HasSuffix(b, want) || !ours(b) {
			continue
		}
		if p, ok := identify(pid); ok && !p.gone() {
			p.Role = roleOf(b)
			found = append(found, p)
		}
	}
	return found
}

// ours tells runsc's command lines from those of people who look for them.
func ours(cmdline []byte) bool {
	argv0, _, _ := bytes.Cut(cmdline, []byte{0})
	base := filepath.Base(string(argv0))
	return strings.HasPrefix(base, "runsc") || strings.HasPrefix(base, "firebreak-runsc") || base == "exe"
}

// roleOf names what a runsc process does from its command line.
func roleOf(cmdline []byte) string {
	argv := bytes.Split(cmdline, []byte{0})
	for _, r := range []string{"boot", "gofer", "umount"} {
		if slices.ContainsFunc(argv, func(a []byte) bool { return string(a) == r }) {
			if r == "boot" {
				return "sentry"
			}
			return r
		}
	}
	if slices.ContainsFunc(argv, func(a []byte) bool { return string(a) == "run" }) {
		return "runtime"
	}
	return "stub"
}

// commandRole is roleOf for a live process.
func commandRole(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	if !ours(b) {
		return "stub"
	}
	return roleOf(b)
}

// members finds the live processes of the instance's cgroups and adds them to
// those of recorded that are alive.
func members(g cgroup, recorded []process) ([]process, error) {
	all := slices.DeleteFunc(slices.Clone(recorded), process.gone)
	pids, err := g.pids()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		p, ok := identify(pid)
		if !ok || p.gone() || slices.ContainsFunc(all, p.same) {
			continue
		}
		p.Role = commandRole(pid)
		all = append(all, p)
	}
	return all, nil
}

// same reports whether both mean one process.
func (p process) same(o process) bool { return p.PID == o.PID && p.Start == o.Start }

package gvisor

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

// bootID identifies this boot of the host.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// canSeeProcesses returns an error where /proc does not show processes, this
// one to begin with.
func canSeeProcesses() error {
	_, _, _, err := statOf(os.Getpid())
	return err
}

// statOf returns a process's state letter, parent and start time. Errors:
// fs.ErrNotExist when there is no such process; any other means that it could
// not be looked at.
func statOf(pid int) (state byte, parent int, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, unix.ESRCH) { // it ended between open and read
		err = fs.ErrNotExist
	}
	if err != nil {
		return 0, 0, 0, err
	}
	// The name is in parentheses and may contain anything.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, 0, 0, fmt.Errorf("/proc/%d/stat: unknown format", pid)
	}
	parent, _ = strconv.Atoi(f[1])
	start, _ = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], parent, start, nil
}

// identify returns the process as it is now.
func identify(pid int) (process, bool) {
	_, _, start, err := statOf(pid)
	return process{PID: pid, Start: start}, err == nil
}

// gone reports whether p has ended. A zombie has: it holds nothing but its
// parent's attention. One that cannot be looked at has not.
func (p process) gone() bool {
	state, _, start, err := statOf(p.PID)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return start != p.Start || ended(state)
}

// ended is the state of a process that is a zombie or less.
func ended(state byte) bool { return state == 'Z' || state == 'X' }

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

// withChildren adds the descendants of some processes: the stubs, which carry no
// name. Cost: all of /proc is read.
func withChildren(family []process) []process {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return family
	}
	type child struct{ pid, parent int }
	var all []child
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil {
			if _, parent, _, err := statOf(pid); err == nil {
				all = append(all, child{pid, parent})
			}
		}
	}
	for k := 0; k < len(family); k++ { // grows
		for _, c := range all {
			if c.parent != family[k].PID {
				continue
			}
			if p, ok := identify(c.pid); ok && !p.gone() && !slices.ContainsFunc(family, p.same) {
				p.Role = commandRole(p.PID)
				family = append(family, p)
			}
		}
	}
	return family
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
	if slices.ContainsFunc(argv, func(a []byte) bool {
		return slices.Contains([]string{"run", "create", "restore"}, string(a))
	}) {
		return "runtime"
	}
	return "stub"
}

// commandRole is roleOf for a live process. A stub has no command line: it has
// unmapped its memory. Neither has one that begins or ends at this moment, which
// must not be taken for a stub; but it does not keep a place for arguments either.
func commandRole(pid int) string {
	before := arguments(pid)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	switch {
	case err != nil:
		return rolePassing
	case ours(b):
		return roleOf(b)
	case len(b) == 0 && (before == "" || before != arguments(pid)):
		return rolePassing
	}
	return "stub"
}

// rolePassing is the role of a process that begins or ends at this moment.
const rolePassing = "passing"

// arguments is where a process's arguments end, or ended until it unmapped them;
// "" where they never were. Who may not know gets "?".
func arguments(pid int) string {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		const argEnd = 49 - 3 // proc_pid_stat(5) counts from 1, and the name ends the second
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > argEnd && f[argEnd] != "0" {
			return f[argEnd]
		}
	}
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); errors.Is(err, fs.ErrPermission) {
		return "?"
	}
	return ""
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
		state, _, start, err := statOf(pid)
		p := process{PID: pid, Start: start}
		if err != nil || ended(state) || slices.ContainsFunc(all, p.same) {
			continue
		}
		p.Role = commandRole(pid)
		all = append(all, p)
	}
	return all, nil
}

// same reports whether both mean one process.
func (p process) same(o process) bool { return p.PID == o.PID && p.Start == o.Start }

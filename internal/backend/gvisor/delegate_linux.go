package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A version 2 hierarchy has one writer per directory. Which directory may be
// ours is decided here, by what systemd documents for whom it delegates to:
//
//   - the nearest ancestor of our own cgroup that systemd marked as delegated,
//     unless a service manager lives there, which divides it itself;
//   - for root otherwise, the top of the hierarchy (of our namespace);
//   - for others, where nothing is marked (no systemd, or one before 251), the
//     topmost ancestor they may write, or their own cgroup below a manager.
//
// A directory that hands controllers to its children must hold no process
// itself. If processes of this program are in it they move to a leaf,
// supervisorLeaf, provided that nobody else's are there: others are never moved,
// and their cgroup is never divided under them.

// supervisorLeaf is where the processes of this program wait in a directory
// that was delegated to them.
const supervisorLeaf = "firebreak-supervisor"

// vacating bounds how long a directory may take to become empty, and how long a
// process may take from fork to exec.
const vacating = 3 * time.Second

// notDelegatedError says why a hierarchy is of no use.
type notDelegatedError struct{ dir, why string }

// Error implements error.
func (e *notDelegatedError) Error() string { return fmt.Sprintf("the cgroup %s %s", e.dir, e.why) }

// ownDir is the directory of this process's cgroup in the version 2 hierarchy
// mounted at mount, whose root there is the cgroup root.
func ownDir(mount, root, procCgroup string) (string, error) {
	for line := range strings.Lines(procCgroup) {
		own, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		own = strings.TrimSuffix(own, " (deleted)")
		rel, err := filepath.Rel(root, own)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") || strings.HasPrefix(root, "/..") {
			return "", &notDelegatedError{own, "is not visible below " + mount}
		}
		return filepath.Join(mount, rel), nil
	}
	return "", &notDelegatedError{mount, "is not this process's hierarchy"}
}

// territory returns the directory at or above own, up to mount, that is ours to
// divide; may says what this user may write. Whether that is enough is for
// prepare to find out.
func territory(mount, own string, asRoot bool, may func(dir string) bool) (string, error) {
	marked := false
	for d := own; ; d = filepath.Dir(d) {
		if isMarked(d) {
			if !isManager(d) {
				return d, nil
			}
			marked = true
		}
		if d == mount {
			break
		}
	}
	if asRoot {
		return mount, nil
	}
	top := ""
	for d := own; may(d); d = filepath.Dir(d) {
		if top = d; d == mount {
			break
		}
	}
	switch {
	case top == "" || marked:
		return "", &notDelegatedError{own, "is not delegated to this user"}
	case isManager(top) && (own == top || isManager(own)):
		return "", &notDelegatedError{top, "belongs to a service manager"}
	case isManager(top):
		return own, nil
	}
	return top, nil
}

// isMarked reports whether systemd delegated the directory to what runs in it.
func isMarked(dir string) bool {
	var v [8]byte
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Lgetxattr(dir, name, v[:]); err == nil && string(v[:n]) == "1" {
			return true
		}
	}
	return false
}

// isManager reports whether a systemd manager, the system's or a user's, keeps
// its units in the directory.
func isManager(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "init.scope"))
	return err == nil
}

// mayDivide reports whether this user may make children and move processes.
func mayDivide(dir string) bool {
	for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if unix.Faccessat(unix.AT_FDCWD, filepath.Join(dir, f), unix.W_OK, unix.AT_EACCESS) != nil {
			return false
		}
	}
	return true
}

// handDown makes dir give the controllers to its children, which takes them out
// of its own processes' hands: see vacate.
func handDown(dir string, controllers []string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	have := strings.Fields(string(b))
	if !slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(have, c) }) {
		return nil
	}
	for end := time.Now().Add(vacating); ; time.Sleep(5 * time.Millisecond) {
		if err := vacate(dir, end); err != nil {
			return err
		}
		err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+strings.Join(controllers, " +"))
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err // busy: somebody came since
		}
	}
}

// vacate empties dir: it moves the processes of this program to the leaf, this
// one included. Anybody else's make it fail, before anything is moved; one that
// has only just begun is waited for, because it may be ours before its exec. The
// top of the real hierarchy may hold processes and needs nothing.
func vacate(dir string, end time.Time) error {
	if _, err := os.Lstat(filepath.Join(dir, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for ; ; time.Sleep(5 * time.Millisecond) {
		pids, err := pidsIn(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		foreign := slices.IndexFunc(pids, func(pid int) bool { return !isProgram(pid) })
		switch {
		case foreign < 0:
			err = moveToLeaf(dir, pids)
		case !isNew(pids[foreign]):
			err = &notDelegatedError{dir, fmt.Sprintf("also holds process %d, which is not ours", pids[foreign])}
		}
		if err != nil {
			return err
		}
		if time.Now().After(end) {
			return &notDelegatedError{dir, "does not become empty"}
		}
	}
}

// moveToLeaf moves processes from dir to the leaf below it. Those that end
// meanwhile need no moving.
func moveToLeaf(dir string, pids []int) error {
	leaf := filepath.Join(dir, supervisorLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, pid := range pids {
		if err := writeFile(filepath.Join(leaf, "cgroup.procs"), strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// isNew reports whether the process has only just begun: it may be one of this
// program's between fork and exec.
func isNew(pid int) bool {
	if pid == 0 {
		return false
	}
	_, _, start, err := statOf(pid)
	if err != nil {
		return true // gone, or the next look will tell
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return false
	}
	const ticks = 100 // per second, in everything /proc shows
	return now.Nano()-int64(start)*int64(time.Second/ticks) < int64(vacating)
}

// isProgram reports whether the process runs what this one runs.
func isProgram(pid int) bool {
	mine, err := os.Stat("/proc/self/exe")
	if err != nil || pid == 0 { // 0: in another PID namespace
		return false
	}
	its, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return true // it has ended: the next look will not see it
	}
	return err == nil && os.SameFile(mine, its)
}

// residence counts who divides a directory in this process: where a process
// lives is the process's, not a Backend's, and there may be two of them in one.
var residence = residences{users: map[string]int{}}

type residences struct {
	mu    sync.Mutex
	users map[string]int // guarded by mu: Backends by directory
}

// count adds n users of c's directories and reports whether nobody uses them
// any more.
func (r *residences) count(c cgroupHost, n int) (last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last = true
	for _, h := range c.trees {
		r.users[h.top] += n
		last = last && r.users[h.top] == 0
	}
	return last
}

// claim prepares the hierarchies for one Backend; release is its inverse.
func (c cgroupHost) claim() error {
	residence.count(c, +1)
	err := c.prepare()
	if err != nil {
		c.release()
	}
	return err
}

// release removes the parents that hold no instance and, for the process's last
// Backend, leaves a delegated directory as it was found. All of it is a courtesy
// to whoever uses the directory next: what fails, because others rely on it, is
// for its owner to remove with the directory.
func (c cgroupHost) release() {
	last := residence.count(c, -1)
	for _, h := range c.trees {
		unlock, err := lockDir(h.top)
		if err != nil {
			continue
		}
		c.tidy(h)
		if c.v2 && last {
			_ = goHome(h)
		}
		unlock()
	}
}

// goHome moves this process from the leaf, where it must be the last, back to the
// directory, which then hands nothing down. The caller holds the lock.
func goHome(h hierarchy) error {
	leaf := filepath.Join(h.top, supervisorLeaf)
	pids, err := pidsIn(leaf)
	if err != nil {
		return err
	}
	if len(pids) != 1 || pids[0] != os.Getpid() {
		return unix.EBUSY
	}
	if err := writeFile(filepath.Join(h.top, "cgroup.subtree_control"), "-"+strings.Join(h.controllers, " -")); err != nil {
		return err // busy: a child hands them on
	}
	if err := writeFile(filepath.Join(h.top, "cgroup.procs"), strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	return unix.Rmdir(leaf)
}

// lockDir waits for its turn among the processes of this program that divide
// dir.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// pidsIn lists the processes in one directory; none if it is missing.
func pidsIn(dir string) (pids []int, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

package microvm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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

// A monitor is one process whose threads are known, so its cgroup is a backstop:
// the machine's RAM, disk and processors are bounded by what it was given. Only a
// share of a processor needs one.

// cgroupHost is where instances' cgroups are made: a directory per hierarchy.
type cgroupHost struct {
	v2     bool
	parent map[string]string // controller → directory
}

// findCgroups reads the hierarchies from a mountinfo file. Version 1 wins: a
// controller is in one version only.
func findCgroups(mountinfo io.Reader, parent string) (cgroupHost, error) {
	host := cgroupHost{parent: map[string]string{}}
	unified := ""
	sc := bufio.NewScanner(mountinfo)
	for sc.Scan() {
		pre, post, ok := strings.Cut(sc.Text(), " - ")
		f, p := strings.Fields(pre), strings.Fields(post)
		if !ok || len(f) < 5 || len(p) < 3 {
			continue
		}
		switch p[0] {
		case "cgroup2":
			unified = f[4]
		case "cgroup":
			for _, c := range strings.Split(p[2], ",") {
				if slices.Contains([]string{"memory", "cpu", "cpuacct", "pids"}, c) && host.parent[c] == "" {
					host.parent[c] = filepath.Join(f[4], parent)
				}
			}
		}
	}
	if err := sc.Err(); err != nil || len(host.parent) > 0 || unified == "" {
		return host, err
	}
	b, err := os.ReadFile(filepath.Join(unified, "cgroup.controllers"))
	if err != nil {
		return host, err
	}
	host.v2 = true
	for _, c := range strings.Fields(string(b)) {
		if c == "memory" || c == "cpu" || c == "pids" {
			host.parent[c] = filepath.Join(unified, parent)
		}
	}
	return host, nil
}

// prepare makes the parents, and doubles as the probe for being allowed to.
func (h cgroupHost) prepare() error {
	if len(h.parent) == 0 {
		return errors.New("no cgroup controllers are mounted")
	}
	for c, dir := range h.parent {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK, unix.AT_EACCESS); err != nil { // another user's
			return &fs.PathError{Op: "write", Path: dir, Err: err}
		}
		if !h.v2 {
			continue
		}
		for _, d := range []string{filepath.Dir(dir), dir} {
			if err := writeFile(filepath.Join(d, "cgroup.subtree_control"), "+"+c); err != nil {
				return err
			}
		}
	}
	return nil
}

// tidy removes the parents that hold no instance.
func (h cgroupHost) tidy() {
	for _, dir := range h.parent {
		_ = unix.Rmdir(dir) // in use, or gone
	}
}

// dirs are the directories of an instance's group.
func (h cgroupHost) dirs(id sandbox.InstanceID) (dirs []string) {
	for _, d := range h.parent {
		if dir := filepath.Join(d, string(id)); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// group is an instance's directories, wherever its maker had them.
type group []string

// has returns the directory with the control file, or "".
func (g group) has(file string) string {
	for _, d := range g {
		if _, err := os.Lstat(filepath.Join(d, file)); err == nil {
			return filepath.Join(d, file)
		}
	}
	return ""
}

// set writes the first of the control files that is there; none is no error.
func (g group) set(value string, files ...string) error {
	for _, f := range files {
		if p := g.has(f); p != "" {
			return writeFile(p, value)
		}
	}
	return nil
}

// create makes the group with room for memory bytes and tasks.
func (g group) create(h cgroupHost, memory int64, tasks int) error {
	for _, d := range g {
		err := os.Mkdir(d, 0o755)
		for range 3 { // another Backend may have tidied up
			if !errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err = h.prepare(); err == nil {
				err = os.Mkdir(d, 0o755)
			}
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(
		g.set(strconv.FormatInt(memory, 10), "memory.max", "memory.limit_in_bytes"),
		g.set("0", "memory.swap.max"),
		g.set(strconv.Itoa(tasks), "pids.max"),
	)
}

// limitCPU sets the share of processors.
func (g group) limitCPU(cpus float64) error {
	const period = 100_000
	quota := max(int64(cpus*period), 1000)
	if p := g.has("cpu.max"); p != "" {
		return writeFile(p, fmt.Sprintf("%d %d", quota, period))
	}
	return errors.Join(g.set(strconv.Itoa(period), "cpu.cfs_period_us"), g.set(strconv.FormatInt(quota, 10), "cpu.cfs_quota_us"))
}

// join moves this thread into the group and returns what moves it back. Version
// 1 only; the goroutine is locked to its thread.
func (g group) join() (leave func() error, err error) {
	self, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return func() error { return nil }, err
	}
	var back []string
	leave = func() error {
		var errs []error
		for _, b := range back {
			errs = append(errs, writeFile(b, "0"))
		}
		return errors.Join(errs...)
	}
	for _, d := range g {
		top := hierarchyOf(d, string(self))
		if err := writeFile(filepath.Join(d, "tasks"), "0"); err != nil {
			return leave, err
		}
		back = append(back, filepath.Join(top, "tasks"))
	}
	return leave, nil
}

// hierarchyOf is the directory, in the hierarchy of d, that procCgroup says a
// thread is in. d is <mount>/<parent…>/<instance>; the mount's last part names its
// controllers, as everywhere.
func hierarchyOf(d, procCgroup string) string {
	for mount := filepath.Dir(d); mount != "/"; mount = filepath.Dir(mount) {
		for line := range strings.Lines(procCgroup) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) == 3 && f[1] != "" && strings.Contains(","+f[1]+",", ","+strings.Split(filepath.Base(mount), ",")[0]+",") {
				return filepath.Join(mount, f[2])
			}
		}
	}
	return filepath.Dir(d)
}

// pids lists the processes in any of the directories.
func (g group) pids() (all []int, err error) {
	for _, d := range g {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all, nil
}

// remove removes the directories, waiting for the kernel to let go of the dead.
func (g group) remove(deadline time.Time) error {
	var errs []error
	for _, d := range g {
		for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
			err := unix.Rmdir(d)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
				errs = append(errs, &fs.PathError{Op: "rmdir", Path: d, Err: err})
				break
			}
			time.Sleep(wait)
		}
	}
	return errors.Join(errs...)
}

// oomKills counts the processes of the group the kernel killed for memory.
func (g group) oomKills() int {
	for _, f := range []string{"memory.events", "memory.oom_control"} {
		if p := g.has(f); p != "" {
			return int(readKey(p, "oom_kill"))
		}
	}
	return 0
}

// usage fills in what the group knows. Unknown stays zero.
func (g group) usage(u *sandbox.Usage) {
	number := func(files ...string) int64 {
		for _, f := range files {
			if p := g.has(f); p != "" {
				b, _ := os.ReadFile(p)
				n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
				return n
			}
		}
		return 0
	}
	u.Memory, u.MemoryPeak = number("memory.current", "memory.usage_in_bytes"), number("memory.peak", "memory.max_usage_in_bytes")
	u.PIDs = int(number("pids.current"))
	if p := g.has("cpu.stat"); p != "" && g.has("cpuacct.usage") == "" {
		u.CPU = time.Duration(readKey(p, "usage_usec")) * time.Microsecond
	} else {
		u.CPU = time.Duration(number("cpuacct.usage"))
	}
	u.OOMKills = g.oomKills()
}

// writeFile writes to an existing control file.
func writeFile(name, s string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s)
	return errors.Join(err, f.Close())
}

// readKey reads one value of a "key value" control file; 0 if it cannot.
func readKey(name, key string) int64 {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

package gvisor

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

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// cgroupPeriod is the CFS period, in microseconds.
const cgroupPeriod = 100_000

// hierarchy is one mounted cgroup tree that has controllers we use.
type hierarchy struct {
	top         string   // its mount point; in version 2 what of it is ours to divide
	controllers []string // of memory, cpu, cpuacct, pids
}

func (h hierarchy) has(c string) bool { return slices.Contains(h.controllers, c) }

// cgroupHost is what this host offers for limits. Version 1 spreads the
// controllers over hierarchies, version 2 has them in one.
type cgroupHost struct {
	v2     bool
	trees  []hierarchy
	parent string // below each top
}

// findCgroups reads the hierarchies from a mountinfo file. On a hybrid host the
// ones of version 1 win, because a controller is in one version only; but not
// for users other than root, to whom nobody delegates those. procCgroup is the
// content of /proc/self/cgroup.
//
// Errors: *notDelegatedError when there are controllers but not for us.
func findCgroups(mountinfo io.Reader, procCgroup, parent string, asRoot bool) (cgroupHost, error) {
	host := cgroupHost{parent: parent}
	unified, unifiedRoot := "", ""
	sc := bufio.NewScanner(mountinfo)
	for sc.Scan() {
		pre, post, ok := strings.Cut(sc.Text(), " - ")
		f, p := strings.Fields(pre), strings.Fields(post)
		if !ok || len(f) < 5 || len(p) < 3 {
			continue
		}
		mount := unescapeMount(f[4])
		switch p[0] {
		case "cgroup2":
			if unified == "" {
				unified, unifiedRoot = mount, unescapeMount(f[3])
			}
		case "cgroup":
			if !asRoot {
				continue
			}
			h := hierarchy{top: mount}
			for _, c := range strings.Split(p[2], ",") {
				if c == "memory" || c == "cpu" || c == "cpuacct" || c == "pids" {
					h.controllers = append(h.controllers, c)
				}
			}
			seen := slices.ContainsFunc(host.trees, func(o hierarchy) bool { return slices.Equal(o.controllers, h.controllers) })
			if len(h.controllers) > 0 && !seen {
				host.trees = append(host.trees, h)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return host, err
	}
	if len(host.trees) > 0 || unified == "" {
		return host, nil
	}
	own, err := ownDir(unified, unifiedRoot, procCgroup)
	if err != nil && !asRoot {
		return host, err
	}
	if err != nil {
		own = unified // root needs none of its own
	}
	top, err := territory(unified, own, asRoot, mayDivide)
	if err != nil {
		return host, err
	}
	b, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
	if err != nil {
		return host, err
	}
	h := hierarchy{top: top}
	for _, c := range strings.Fields(string(b)) {
		if c == "memory" || c == "cpu" || c == "pids" {
			h.controllers = append(h.controllers, c)
		}
	}
	if len(h.controllers) > 0 {
		host.v2, host.trees = true, []hierarchy{h}
	}
	return host, nil
}

// unescapeMount undoes mountinfo's octal escapes.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// limits is what the hierarchies can enforce.
func (c cgroupHost) limits() (set sandbox.LimitSet) {
	for _, h := range c.trees {
		if h.has("memory") {
			set |= sandbox.LimitMemory
		}
		if h.has("cpu") {
			set |= sandbox.LimitCPU
		}
		if h.has("pids") {
			set |= sandbox.LimitPIDs
		}
	}
	return set
}

// prepare makes the parent in every hierarchy, and on version 2 hands its
// controllers down. It doubles as the probe for being allowed to.
func (c cgroupHost) prepare() error {
	for _, h := range c.trees {
		if err := c.prepareTree(h); err != nil {
			return err
		}
	}
	return nil
}

func (c cgroupHost) prepareTree(h hierarchy) error {
	dir := filepath.Join(h.top, c.parent)
	if !c.v2 {
		return os.MkdirAll(dir, 0o755)
	}
	unlock, err := lockDir(h.top)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for d := h.top; ; {
		if err := handDown(d, h.controllers); err != nil {
			return err
		}
		if d == dir {
			return nil
		}
		rest, _ := filepath.Rel(d, dir)
		first, _, _ := strings.Cut(rest, "/")
		d = filepath.Join(d, first)
	}
}

// tidy removes the parents in one hierarchy that hold no instance.
func (c cgroupHost) tidy(h hierarchy) {
	for d := filepath.Join(h.top, c.parent); d != h.top; d = filepath.Dir(d) {
		if unix.Rmdir(d) != nil { // in use: by instances, or by others' groups
			break
		}
	}
}

// group returns the instance's cgroup, one directory per hierarchy.
func (c cgroupHost) group(id sandbox.InstanceID) cgroup {
	g := cgroup{v2: c.v2, host: c}
	for _, h := range c.trees {
		g.dirs = append(g.dirs, filepath.Join(h.top, c.parent, string(id)))
	}
	return g
}

// groupAt returns the group an intent names, wherever its maker lived: another
// scope, another parent, another version. What the directories can do is read
// off them; one that is gone can do nothing.
func groupAt(dirs []string) cgroup {
	g := cgroup{dirs: dirs}
	for _, d := range dirs {
		var h hierarchy
		for _, f := range []struct{ name, controller string }{
			{"memory.max", "memory"}, {"memory.limit_in_bytes", "memory"}, {"pids.max", "pids"},
			{"cpu.max", "cpu"}, {"cpu.cfs_quota_us", "cpu"}, {"cpuacct.usage", "cpuacct"},
		} {
			if _, err := os.Lstat(filepath.Join(d, f.name)); err == nil {
				h.controllers = append(h.controllers, f.controller)
			}
		}
		g.host.trees = append(g.host.trees, h)
		if _, err := os.Lstat(filepath.Join(d, "cgroup.controllers")); err == nil {
			g.v2, g.host.v2 = true, true
		}
	}
	return g
}

// cgroup is one instance's group: a directory in each hierarchy, in the order
// of host.trees.
type cgroup struct {
	v2   bool
	host cgroupHost
	dirs []string
}

// dir returns the directory that has controller c, or "".
func (g cgroup) dir(c string) string {
	for i, h := range g.host.trees {
		if h.has(c) {
			return g.dirs[i]
		}
	}
	return ""
}

// create makes the directories and sets the memory and pids limits. The CPU
// limit comes later, with limitCPU: booting at the guest's share of a CPU
// would only make it slow.
func (g cgroup) create(l sandbox.Limits, overhead int64) error {
	for _, d := range g.dirs {
		err := os.Mkdir(d, 0o755)
		for range 3 { // a Backend that was just closed may have removed the parent
			if !errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err = g.host.prepare(); err == nil {
				err = os.Mkdir(d, 0o755)
			}
		}
		if err != nil {
			return err
		}
		failpoint.Hit("gvisor.create/after-mkdir-cgroup")
	}
	return g.limit(l, overhead)
}

// limit sets the memory and pids limits.
func (g cgroup) limit(l sandbox.Limits, overhead int64) error {
	if d := g.dir("memory"); d != "" && l.Memory > 0 {
		if err := g.limitMemory(d, l.Memory+overhead); err != nil {
			return err
		}
	}
	if d := g.dir("pids"); d != "" && l.PIDs > 0 {
		if err := writeFile(filepath.Join(d, "pids.max"), strconv.Itoa(hostTasks(l.PIDs))); err != nil {
			return err
		}
	}
	return nil
}

// hostTasks is the backstop for host tasks: a guest task is one stub thread and
// one or two of the sentry's, which has some of its own.
func hostTasks(pids int) int { return 4*pids + 256 }

func (g cgroup) limitMemory(d string, bytes int64) error {
	n := strconv.FormatInt(bytes, 10)
	if g.v2 {
		if err := writeFile(filepath.Join(d, "memory.max"), n); err != nil {
			return err
		}
		return optional(writeFile(filepath.Join(d, "memory.swap.max"), "0"))
	}
	if err := writeFile(filepath.Join(d, "memory.limit_in_bytes"), n); err != nil {
		return err
	}
	if err := optional(writeFile(filepath.Join(d, "memory.memsw.limit_in_bytes"), n)); err != nil {
		return err
	}
	return optional(writeFile(filepath.Join(d, "memory.swappiness"), "0"))
}

// limitCPU sets the share of CPUs.
func (g cgroup) limitCPU(cpus float64) error {
	d := g.dir("cpu")
	if d == "" || cpus <= 0 {
		return nil
	}
	quota := max(int64(cpus*cgroupPeriod), 1000) // the kernel's minimum
	if g.v2 {
		return writeFile(filepath.Join(d, "cpu.max"), fmt.Sprintf("%d %d", quota, cgroupPeriod))
	}
	if err := writeFile(filepath.Join(d, "cpu.cfs_period_us"), strconv.Itoa(cgroupPeriod)); err != nil {
		return err
	}
	return writeFile(filepath.Join(d, "cpu.cfs_quota_us"), strconv.FormatInt(quota, 10))
}

// freezeSize keeps the group from getting new tasks, so that killing what is
// in it ends.
func (g cgroup) freezeSize() {
	if d := g.dir("pids"); d != "" {
		_ = writeFile(filepath.Join(d, "pids.max"), "0") // best effort: the kill loop is what counts
	}
}

// killAll asks the kernel to kill the group, where it can (version 2).
func (g cgroup) killAll() {
	for _, d := range g.dirs {
		if g.v2 {
			_ = writeFile(filepath.Join(d, "cgroup.kill"), "1") // ditto
		}
	}
}

// pids lists the processes in any of the directories. A missing directory has
// none.
func (g cgroup) pids() ([]int, error) {
	var all []int
	for _, d := range g.dirs {
		pids, err := pidsIn(d)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			if !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all, nil
}

// join moves the calling thread into the group (version 1 only) and returns
// what moves it back. The caller has locked its goroutine to the thread.
//
// Children forked in between are born inside, so no process of an instance is
// ever outside of its cgroup. And a thread that moves itself costs microseconds,
// where moving a process, or a thread by its id, waits for an RCU grace period.
func (g cgroup) join() (leave func() error, err error) {
	const myself = "0"
	var back []string
	leave = func() error {
		var errs []error
		for _, d := range back {
			errs = append(errs, writeFile(filepath.Join(d, "tasks"), myself))
		}
		back = nil
		return errors.Join(errs...)
	}
	self, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return leave, err
	}
	for i, h := range g.host.trees {
		if err := writeFile(filepath.Join(g.dirs[i], "tasks"), myself); err != nil {
			return leave, err
		}
		back = append(back, filepath.Join(h.top, cgroupOf(string(self), h.controllers[0])))
	}
	return leave, nil
}

// cgroupOf finds the path for a version 1 controller in a /proc/*/cgroup file.
func cgroupOf(procCgroup, controller string) string {
	for line := range strings.Lines(procCgroup) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			return f[2]
		}
	}
	return "/"
}

// remove removes the directories, those that never existed included. The kernel
// may take a moment to let go of a killed process; remove waits for it until
// the deadline.
func (g cgroup) remove(deadline time.Time) error {
	var errs []error
	for _, d := range g.dirs {
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
func (g cgroup) oomKills() int {
	d := g.dir("memory")
	if d == "" {
		return 0
	}
	name := "memory.oom_control"
	if g.v2 {
		name = "memory.events"
	}
	return int(readKey(filepath.Join(d, name), "oom_kill"))
}

// usage fills in what the group knows. Unknown stays zero.
func (g cgroup) usage(u *sandbox.Usage) {
	if d := g.dir("memory"); d != "" {
		now, peak := "memory.usage_in_bytes", "memory.max_usage_in_bytes"
		if g.v2 {
			now, peak = "memory.current", "memory.peak"
		}
		u.Memory, u.MemoryPeak = readInt(filepath.Join(d, now)), readInt(filepath.Join(d, peak))
	}
	if d := g.dir("pids"); d != "" {
		u.PIDs = int(readInt(filepath.Join(d, "pids.current")))
	}
	if g.v2 {
		if len(g.dirs) > 0 { // cpu.stat is there without the controller
			u.CPU = time.Duration(readKey(filepath.Join(g.dirs[0], "cpu.stat"), "usage_usec")) * time.Microsecond
		}
	} else if d := g.dir("cpuacct"); d != "" {
		u.CPU = time.Duration(readInt(filepath.Join(d, "cpuacct.usage")))
	}
	u.OOMKills = g.oomKills()
}

// writeFile writes to an existing control file. To the kernel O_TRUNC means
// nothing; to a plain file standing for one it does.
func writeFile(name, s string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s)
	return errors.Join(err, f.Close())
}

// optional forgives a control file the kernel was built without.
func optional(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// readInt reads a control file that holds one number; 0 if it cannot.
func readInt(name string) int64 {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
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

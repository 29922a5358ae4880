package node

import (
	"bufio"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// heedMemory makes the garbage collector keep this process within the limit of
// its own control group, or of one above it: without that it would be killed
// for memory it no longer uses. Who sets GOMEMLIMIT knows better.
func heedMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := memoryLimit(os.DirFS("/")); limit > 0 {
		// The rest is for what is not Go's: stacks of the kernel, page cache
		// that is being written, SQLite's and the runtime's own.
		debug.SetMemoryLimit(limit - limit/5)
	}
}

// forgetImage gives back the memory of what start-up has read of this program's
// own file, the embedded programs above all, and will hardly be read again. What
// is, the kernel brings back from its cache. Where that fails nothing is lost.
func forgetImage() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line) // 015eb000-03a70000 r--p offset device inode path
		if len(f) < 6 || f[1] != "r--p" || f[5] != exe {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err == nil && err2 == nil {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		}
	}
}

// memoryLimit is the lowest limit of the control groups this process is in, of
// either version; 0 without one.
func memoryLimit(root fs.FS) int64 {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0
	}
	mounts, err := root.Open("proc/self/mountinfo")
	if err != nil {
		return 0
	}
	defer mounts.Close()
	lowest := int64(math.MaxInt64)
	for s := bufio.NewScanner(mounts); s.Scan(); {
		left, right, _ := strings.Cut(s.Text(), " - ")
		f, t := strings.Fields(left), strings.Fields(right)
		if len(f) < 5 || len(t) < 3 {
			continue
		}
		file, controller := "memory.max", ""
		if t[0] == "cgroup" && strings.Contains(","+t[2]+",", ",memory,") {
			file, controller = "memory.limit_in_bytes", "memory"
		} else if t[0] != "cgroup2" {
			continue
		}
		// The group is named from the hierarchy's root, of which the mount may
		// show only a part.
		dir := strings.TrimPrefix(groupIn(string(groups), controller), strings.TrimSuffix(f[3], "/"))
		for dir = filepath.Clean("/" + dir); ; dir = filepath.Dir(dir) {
			b, err := fs.ReadFile(root, strings.TrimPrefix(filepath.Join(f[4], dir, file), "/"))
			n, nerr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err == nil && nerr == nil && n > 0 {
				lowest = min(lowest, n)
			}
			if dir == "/" {
				break
			}
		}
	}
	if lowest > 1<<50 { // "unlimited" of version 1
		return 0
	}
	return lowest
}

// groupIn finds this process's group among the lines of /proc/self/cgroup; the
// controller of version 2 has no name.
func groupIn(lines, controller string) string {
	for line := range strings.Lines(lines) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (f[1] == controller || controller != "" && strings.Contains(","+f[1]+",", ","+controller+",")) {
			return f[2]
		}
	}
	return ""
}

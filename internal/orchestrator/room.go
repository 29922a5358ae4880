package orchestrator

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Room is what the host has left. A negative value is unknown.
type Room struct {
	DiskFree, DiskTotal int64 // bytes, where the state lies
	Files               int64 // descriptors this process may still open
	Tasks               int64 // processes and threads that may still be made
}

// What a sandbox needs of the host beside memory and disk, generously: its
// pipes and pidfds; its sentry, gofer and their threads.
const (
	filesNeeded = 64
	tasksNeeded = 256
)

// room asks what the host has left, at most once a second, and refuses what
// would fail half way for want of it.
type room struct {
	ask     func() Room
	reserve int64 // bytes of disk
	ledger  *ledger

	mu   sync.Mutex
	last Room      // guarded by mu
	at   time.Time // guarded by mu
}

// roomFresh is how long what the host has left is believed.
const roomFresh = time.Second

// look asks now, for those who come within roomFresh.
func (r *room) look() {
	have := r.ask()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.at = have, time.Now()
}

// check refuses to begin op where the host is full. Errors: KindNoSpace and
// KindCapacity, with RetryAfter.
func (r *room) check(op string) error { return r.holds(op, 0) }

// holds is check for what writes size bytes.
func (r *room) holds(op string, size int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() || time.Since(r.at) >= roomFresh {
		r.last, r.at = r.ask(), time.Now()
	}
	have := r.last
	reserve := r.reserve
	if reserve == 0 {
		reserve = min(1<<30, have.DiskTotal/20)
	}
	refuse := func(what string, kind sandbox.Kind, hint, format string, args ...any) error {
		r.ledger.mu.Lock()
		r.ledger.refused[what]++
		r.ledger.mu.Unlock()
		e := sandbox.Errorf(op, kind, format, args...).WithHint("%s", hint)
		e.RetryAfter = 30 * time.Second
		return e
	}
	switch {
	case have.DiskFree >= 0 && have.DiskFree-size < reserve:
		return refuse("host_disk", sandbox.KindNoSpace, "free space on the server's data directory; disk_reserve in firebreak.yaml sets what must stay free",
			"the server's disk is full: %s free, %s are kept in reserve", sandbox.FormatSize(max(0, have.DiskFree-size)), sandbox.FormatSize(reserve))
	case have.Files >= 0 && have.Files < filesNeeded:
		return refuse("host_files", sandbox.KindCapacity, "retry when fewer sandboxes and callers are there; raise the server's limit of open files (ulimit -n, LimitNOFILE=)",
			"the server can open only %d more files", have.Files)
	case have.Tasks >= 0 && have.Tasks < tasksNeeded:
		return refuse("host_tasks", sandbox.KindCapacity, "retry when fewer sandboxes are there; raise kernel.pid_max, kernel.threads-max or the service's TasksMax=",
			"the host can make only %d more processes and threads", have.Tasks)
	}
	return nil
}

// hostRoom returns a function that looks at this host; dir is where the state
// lies.
func hostRoom(dir string) func() Room {
	return func() Room {
		r := Room{DiskFree: -1, Files: freeFiles(), Tasks: freeTasks()}
		var st syscall.Statfs_t
		if syscall.Statfs(dir, &st) == nil {
			r.DiskFree, r.DiskTotal = int64(st.Bavail)*int64(st.Bsize), int64(st.Blocks)*int64(st.Bsize)
			if st.Files > 0 && st.Ffree < 1024 { // a disk without inodes is full, too
				r.DiskFree = 0
			}
		}
		return r
	}
}

// freeFiles is how many descriptors this process may still open; -1 where that
// cannot be told. The Go runtime has raised the soft limit to the hard one.
func freeFiles() int64 {
	var l syscall.Rlimit
	dir, err := os.Open("/proc/self/fd")
	if err != nil || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return -1
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return -1
	}
	return int64(min(l.Cur, 1<<40)) - int64(len(names))
}

// freeTasks is how many tasks the kernel, and this process's cgroup where it
// has one, leave; -1 where that cannot be told.
func freeTasks() int64 {
	load, err := readSmall("/proc/loadavg") // "0.1 0.2 0.3 1/234 5678": 234 tasks
	if err != nil {
		return -1
	}
	fields := strings.Fields(string(load))
	if len(fields) < 4 {
		return -1
	}
	_, total, _ := strings.Cut(fields[3], "/")
	used, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return -1
	}
	free := int64(-1)
	lower := func(n int64) {
		if free < 0 || n < free {
			free = max(0, n)
		}
	}
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		if n, err := readInt(file); err == nil {
			lower(n - used)
		}
	}
	for _, dir := range pidsCgroups() {
		limit, err := readInt(dir + "/pids.max") // "max" is no number: no limit
		if current, e := readInt(dir + "/pids.current"); err == nil && e == nil {
			lower(limit - current)
		}
	}
	return free
}

// pidsCgroups are the directories in which this process's tasks are counted, on
// cgroup v2 or v1.
func pidsCgroups() (dirs []string) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		parts := strings.SplitN(sc.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		root := ""
		switch {
		case parts[0] == "0" && parts[1] == "":
			root = "/sys/fs/cgroup"
		case strings.Contains(","+parts[1]+",", ",pids,"):
			root = "/sys/fs/cgroup/pids"
		default:
			continue
		}
		for path := parts[2]; path != "/" && path != "" && path != "."; path = path[:strings.LastIndexByte(path, '/')] {
			dirs = append(dirs, root+path)
		}
	}
	return dirs
}

func readInt(file string) (int64, error) {
	b, err := readSmall(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// memoryFresh is how long what the host says of its memory is believed. What is
// promised meanwhile is counted apart from it.
const memoryFresh = 20 * time.Millisecond

// recent is f, asked at most once in memoryFresh.
func recent(f func() (total, available int64)) func() (total, available int64) {
	var mu sync.Mutex
	var total, available int64
	var at time.Time
	return func() (int64, int64) {
		mu.Lock()
		defer mu.Unlock()
		if at.IsZero() || time.Since(at) > memoryFresh {
			total, available = f()
			at = time.Now()
		}
		return total, available
	}
}

// hostMemory reads /proc/meminfo; zeros where there is none.
func hostMemory() (total, available int64) {
	b, err := readSmall("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range bytes.Lines(b) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		of := &total
		switch string(name) {
		case "MemTotal":
		case "MemAvailable":
			of = &available
		default:
			continue
		}
		kib, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte(" kB"))), 10, 64)
		if err != nil {
			return 0, 0
		}
		*of = kib << 10
		if of == &available {
			break
		}
	}
	return total, available
}

// readSmall reads a file of a few KiB that never waits, as the kernel's own are: with
// three calls and without the runtime's poller, which os.ReadFile asks, and which
// takes eight.
func readSmall(name string) ([]byte, error) {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	b := make([]byte, 8<<10)
	n, err := syscall.Read(fd, b)
	return b[:max(0, n)], err
}

package agent

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// Linux is the System of a real guest. It must be PID 1: that is what makes it
// the parent of every orphan, immune to user code's signals, and able to kill
// everything at once.
type Linux struct {
	private bool // the kernel is this sandbox's alone
	null    *os.File
	files   filer
	users   users
	reaper  reaper
	user    launcher // drops every capability
	root    launcher // keeps those a container's root has

	disks []string // writable file systems that had space at the start

	trusting sync.Mutex // held while files are changed that programs find certificates in

	limitOnce sync.Mutex
	nproc     int          // guarded by limitOnce; RLIMIT_NPROC as set
	memory    atomic.Int64 // the limit, as of the latest program
	base      int64        // bytes; set by once
	baseAnon  int64        // bytes; set by once
	once      sync.Once
}

// NewLinux prepares the guest: /proc and /dev/pts if the runtime did not mount
// them, the default user's home, no core dumps. Errors: when it is not PID 1, or
// there is no /proc.
func NewLinux() (*Linux, error) {
	if os.Getpid() != 1 {
		return nil, errors.New("the agent must be PID 1 of its sandbox")
	}
	if err := ensureProc(); err != nil {
		return nil, err
	}
	ensureTerminals()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	s := &Linux{null: null, private: strings.Contains(unix.ByteSliceToString(u.Release[:]), "gvisor")}
	s.files.users = &s.users
	s.user.keep = 0
	s.root.keep = rootCapabilities
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return nil, err
	}
	s.ensureHome()
	for _, dir := range []string{"/", "/tmp", guest.DefaultHome} {
		if !diskFull(dir) {
			s.disks = append(s.disks, dir)
		}
	}
	preferAgent()
	s.reaper.start()
	return s, nil
}

// preferAgent gives the agent's threads the highest ordinary priority, so that
// hundreds of spinning tasks cannot keep it from killing them. Threads yet to
// come inherit it; launchers undo it for the programs they start. Without the
// capability, or on gVisor, which does not schedule by priority, it has no
// effect.
func preferAgent() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, -20)
		}
	}
}

// ensureProc mounts /proc unless it shows this PID namespace.
func ensureProc() error {
	if self, err := os.Readlink("/proc/self"); err == nil && self == "1" {
		return nil
	}
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// ensureHome makes the default user's home where the template has none. A
// read-only root is no error: the home then is whatever the backend mounted.
func (s *Linux) ensureHome() {
	a, err := s.users.lookup(guest.DefaultUser)
	if err != nil {
		return
	}
	if _, err := os.Stat(a.home); err != nil && os.MkdirAll(a.home, 0o755) == nil {
		_ = os.Chown(a.home, a.uid, a.gid)
	}
}

// diskFull says whether a file system has no space left. Those that have no
// size, or are read-only, are never full.
func diskFull(dir string) bool {
	const nearly = 128 << 10
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Blocks == 0 || st.Flags&unix.ST_RDONLY != 0 {
		return false
	}
	return st.Bavail*uint64(st.Bsize) < nearly
}

// full says whether a file system that had space at the start has none now.
func (s *Linux) full() bool {
	for _, dir := range s.disks {
		if diskFull(dir) {
			return true
		}
	}
	return false
}

// Files implements System.
func (s *Linux) Files(user string) (Files, error) { return s.files.as(user) }

// Sample implements System.
//
// On gVisor the kernel is ours alone and one sysinfo call tells both: its task
// count is exact, and total less free bounds what user code can have. Only near
// the limit is that bound not good enough: it includes caches that the sentry
// would give up, and it saturates at what the sandbox is told it has. Then
// /proc/meminfo says what is anonymous, which costs a scan.
//
// On a kernel shared with others those numbers are the host's, so the processes
// of the PID namespace are added up instead.
func (s *Linux) Sample() (Sample, error) {
	if !s.private {
		return s.addUp()
	}
	s.measureBase()
	tasks, used, free, err := s.count()
	if err != nil {
		return Sample{}, err
	}
	m := Sample{Tasks: tasks, Memory: max(0, used-s.base)}
	if limit := s.memory.Load(); limit > 0 && (free == 0 || m.Memory > limit) {
		m.Memory = max(0, anonymous()-s.baseAnon)
	}
	return m, nil
}

// count asks the sandbox's own kernel for the tasks of user code and the
// memory in use and free.
func (s *Linux) count() (tasks int, used, free int64, err error) {
	own := ownThreads()
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 0, 0, 0, err
	}
	own = max(own, ownThreads()) // a thread may have started between
	unit := uint64(i.Unit)
	return max(0, int(i.Procs)-own), int64((i.Totalram - i.Freeram) * unit), int64(i.Freeram * unit), nil
}

// anonymous is the memory that only ending processes or removing files in
// memory can free.
func anonymous() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "AnonPages:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64) // the kernel's number
			return kib << 10
		}
	}
	return 0
}

// measureBase notes what the agent and the empty sandbox use, which is not the
// user's. Called before the first program.
func (s *Linux) measureBase() {
	s.once.Do(func() {
		if !s.private {
			return
		}
		if _, used, _, err := s.count(); err == nil {
			s.base, s.baseAnon = used, anonymous()
		}
	})
}

// noTasks says whether there is no user process at all, zombies aside.
func (s *Linux) noTasks() bool {
	if s.private {
		tasks, _, _, err := s.count()
		return err == nil && tasks == 0
	}
	return alive(processes()) == 0
}

func (s *Linux) addUp() (Sample, error) {
	var m Sample
	for _, p := range processes() {
		m.Tasks += p.threads
		if p.rss < 4<<20 {
			m.Memory += p.rss // too small to be worth another read
		} else {
			m.Memory += p.private()
		}
	}
	return m, nil
}

// KillAll implements System. kill(-1) spares only the agent. Linux does it
// atomically; gVisor walks a list, so that a child born meanwhile survives: the
// tasks are stopped first, which keeps the task limit used up, and what was
// missed is met again in the next round.
func (s *Linux) KillAll() error {
	s.reaper.gate.Lock()
	defer s.reaper.gate.Unlock()
	return s.killAll()
}

// killAll is KillAll. Preconditions: reaper.gate is held.
func (s *Linux) killAll() error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		_ = unix.Kill(-1, unix.SIGSTOP)
		_ = unix.Kill(-1, unix.SIGSTOP) // ESRCH is met below
		err := unix.Kill(-1, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if s.noTasks() {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("some processes resist SIGKILL")
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// KillLargest implements System.
func (s *Linux) KillLargest(running []Process) (Process, error) {
	var largest process
	all := processes()
	for _, p := range all {
		if p.rss >= largest.rss {
			largest = p
		}
	}
	if largest.pid == 0 {
		return nil, nil
	}
	byPID := map[int]process{}
	for _, p := range all {
		byPID[p.pid] = p
	}
	for _, r := range running {
		if r.(*program).owns(largest, byPID) {
			return r, r.Kill()
		}
	}
	return nil, unix.Kill(largest.pid, unix.SIGKILL)
}

// limitTasks backs the task limit with RLIMIT_NPROC, which every program
// inherits. Being the agent's own limit too, it needs CAP_SYS_RESOURCE not to
// hit the agent; without it the limit leaves room for the agent's threads.
func (s *Linux) limitTasks(pids int) {
	const headroom, agentThreads = 8, 64
	if !s.private || pids <= 0 {
		return
	}
	s.limitOnce.Lock()
	defer s.limitOnce.Unlock()
	if s.nproc == pids {
		return
	}
	n := uint64(pids + headroom)
	if !hasCapability(unix.CAP_SYS_RESOURCE) {
		n += agentThreads
	}
	if unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: n, Max: n}) == nil {
		s.nproc = pids
	}
}

// account is a user of the guest.
type account struct {
	name     string
	uid, gid int
	groups   []uint32
	home     string
}

// users reads /etc/passwd and /etc/group, which user code with root may change,
// and keeps what it read while the files are the same.
type users struct {
	mu     sync.Mutex
	passwd cached
	group  cached
}

// cached is a file's content and what tells whether it changed.
type cached struct {
	mtime time.Time
	size  int64
	lines []string
}

// read returns the lines of the file, at most 1 MiB of it.
func (c *cached) read(path string) []string {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() > 1<<20 {
		return nil
	}
	if c.lines == nil || !st.ModTime().Equal(c.mtime) || st.Size() != c.size {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		c.mtime, c.size, c.lines = st.ModTime(), st.Size(), strings.Split(string(b), "\n")
	}
	return c.lines
}

// lookup finds a user by name or number. The default user exists even where
// the template does not know it, and so does every number.
func (u *users) lookup(name string) (account, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	uid, err := strconv.ParseUint(name, 10, 31)
	numeric := err == nil
	for _, line := range u.passwd.read("/etc/passwd") {
		f := strings.Split(line, ":")
		if len(f) < 7 || !(f[0] == name || numeric && f[2] == name) {
			continue
		}
		id, err1 := strconv.ParseUint(f[2], 10, 31)
		gid, err2 := strconv.ParseUint(f[3], 10, 31)
		if err1 != nil || err2 != nil {
			continue
		}
		a := account{name: f[0], uid: int(id), gid: int(gid), home: f[5]}
		if !strings.HasPrefix(a.home, "/") {
			a.home = "/"
		}
		a.groups = u.groupsOf(a)
		return a, nil
	}
	switch {
	case name == guest.DefaultUser:
		return account{name: name, uid: guest.DefaultUID, gid: guest.DefaultUID, home: guest.DefaultHome}, nil
	case name == "root":
		return account{name: name, home: "/root"}, nil
	case numeric && uid == guest.DefaultUID:
		return account{name: guest.DefaultUser, uid: int(uid), gid: int(uid), home: guest.DefaultHome}, nil
	case numeric:
		return account{name: name, uid: int(uid), gid: int(uid), home: "/"}, nil
	}
	return account{}, notFound("no user %q in the sandbox", name)
}

// groupsOf returns a's supplementary groups. Preconditions: u.mu is held.
func (u *users) groupsOf(a account) []uint32 {
	var groups []uint32
	for _, line := range u.group.read("/etc/group") {
		f := strings.Split(line, ":")
		if len(f) < 4 {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil || int(gid) == a.gid || len(groups) == 64 {
			continue
		}
		for _, m := range strings.Split(f[3], ",") {
			if m == a.name {
				groups = append(groups, uint32(gid))
			}
		}
	}
	return groups
}

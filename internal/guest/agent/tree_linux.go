package agent

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// process is one line of /proc.
type process struct {
	pid, parent, group, session int
	threads                     int
	born                        uint64 // ticks since boot
	rss                         int64  // bytes
	zombie                      bool
}

// processes lists all processes but the agent.
func processes() []process {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1) // what was read is used
	var all []process
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil || pid == 1 {
			continue
		}
		// A kernel's own threads have neither session nor memory.
		if p, ok := readProcess(pid); ok && (p.session != 0 || p.rss != 0) {
			all = append(all, p)
		}
	}
	return all
}

// readProcess reads /proc/pid/stat.
func readProcess(pid int) (process, bool) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return process{}, false
	}
	var buf [1024]byte
	n, err := unix.Read(fd, buf[:])
	_ = unix.Close(fd)
	if err != nil || n <= 0 {
		return process{}, false
	}
	// The name is in parentheses and may hold anything, also parentheses.
	line := string(buf[:n])
	i := strings.LastIndexByte(line, ')')
	f := strings.Fields(line[i+1:])
	if i < 0 || len(f) < 22 {
		return process{}, false
	}
	num := func(i int) int {
		v, _ := strconv.ParseInt(f[i], 10, 64) // the kernel's numbers
		return int(v)
	}
	return process{pid: pid, zombie: f[0] == "Z" || f[0] == "X", parent: num(1), group: num(2), session: num(3),
		threads: max(1, num(17)), born: uint64(num(19)), rss: int64(num(21)) * int64(os.Getpagesize())}, true
}

// private is the memory that only this process has.
func (p process) private() int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/statm")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return p.rss
	}
	shared, _ := strconv.ParseInt(f[2], 10, 64)
	return max(0, p.rss-shared*int64(os.Getpagesize()))
}

// marked says whether the process still has the environment of the exec id.
func (p process) marked(id uint32) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/environ")
	return err == nil && bytes.Contains(append(b, 0), []byte(guest.ResultEnv+"="+guest.ResultPath(id)+"\x00"))
}

func alive(all []process) int {
	n := 0
	for _, p := range all {
		if !p.zombie {
			n++
		}
	}
	return n
}

// killWhile kills processes until none is left that doomed picks.
//
// What forks as fast as it is killed is stopped first: a stopped process keeps
// its place under the task limit, so that the others run out of room.
func killWhile(doomed func(process, map[int]process) bool) error {
	deadline := time.Now().Add(3 * time.Second)
	stopped := map[int]uint64{}
	for round := 0; ; round++ {
		all := map[int]process{}
		for _, p := range processes() {
			all[p.pid] = p
		}
		left, fresh := []int{}, 0
		for _, p := range all {
			if p.zombie || !doomed(p, all) {
				continue
			}
			left = append(left, p.pid)
			if round >= killRounds && stopped[p.pid] != p.born {
				stopped[p.pid] = p.born
				fresh++
				_ = unix.Kill(p.pid, unix.SIGSTOP) // it may just have ended
			}
		}
		if len(left) == 0 {
			return nil
		}
		late := time.Now().After(deadline)
		if fresh == 0 || late {
			for _, pid := range left {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if late {
			return errors.New("some processes resist SIGKILL")
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// killRounds is how often plain killing is tried.
const killRounds = 1

// ownThreads is the number of threads of the agent.
func ownThreads() int {
	n, _ := runtime.ThreadCreateProfile(nil)
	return n
}

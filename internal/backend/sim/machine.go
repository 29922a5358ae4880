package sim

import (
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// procMemory is what a modelled process is charged for existing.
const procMemory = 256 << 10

// taskHeadroom is how far above the limit fork fails: as with the resource
// limit that a real agent sets, there is room to notice who exceeds it.
const taskHeadroom = 8

// machine is the kernel of one instance: tasks, memory and CPU time are
// booked here and refused here.
type machine struct {
	limits sandbox.Limits
	fs     *memFS

	mu       sync.Mutex
	nextPID  int            // guarded by mu
	procs    map[int]*proc  // guarded by mu
	tasks    int            // guarded by mu; processes and their extra tasks
	memory   int64          // guarded by mu
	peak     int64          // guarded by mu
	cpu      time.Duration  // guarded by mu; of bursts that have ended
	burning  map[*proc]bool // guarded by mu; who spins
	settled  time.Time      // guarded by mu; until when bursts are booked in cpu
	oomKills int            // guarded by mu
	dead     bool           // guarded by mu

	wg sync.WaitGroup // every goroutine of the instance
}

func newMachine(l sandbox.Limits, readonlyRoot bool) *machine {
	m := &machine{
		limits: l, nextPID: 2,
		procs: map[int]*proc{}, burning: map[*proc]bool{},
	}
	m.fs = newFS(l.Disk)
	m.fs.readonly = readonlyRoot
	return m
}

// add books a task and its memory for p, gives it a pid and counts its
// goroutine, or fails with EAGAIN, ENOMEM or ESRCH.
func (m *machine) add(p *proc) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.dead, p.origin.doomed:
		return syscall.ESRCH
	case m.limits.PIDs > 0 && m.tasks >= m.limits.PIDs+taskHeadroom:
		return syscall.EAGAIN
	case m.limits.Memory > 0 && m.memory+procMemory > m.limits.Memory:
		return syscall.ENOMEM
	}
	p.pid = m.nextPID
	m.nextPID++
	m.procs[p.pid] = p
	m.tasks++
	m.wg.Add(1) // here, so that halt cannot miss it
	m.bookMemory(p, procMemory)
	return nil
}

// remove gives back everything p holds.
func (m *machine) remove(p *proc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.procs, p.pid)
	m.tasks--
	m.memory -= p.memory
	p.memory = 0
	m.settle()
	delete(m.burning, p)
}

// bookMemory charges p. Preconditions: m.mu is held.
func (m *machine) bookMemory(p *proc, n int64) {
	p.memory += n
	p.peak = max(p.peak, p.memory)
	m.memory += n
	m.peak = max(m.peak, m.memory)
}

// How alloc grows, and how long what is over the limit may wait for the agent
// to act before the modelled kernel does.
const (
	allocStep  = 8 << 20
	allocGrace = time.Second
)

// alloc charges p with n bytes as it touches them. Over the limit p stalls, as
// a process in direct reclaim does, until the agent kills something; if that
// does not happen it is killed itself.
func (m *machine) alloc(p *proc, n int64) {
	for n > 0 {
		p.alive()
		step := min(n, allocStep)
		m.mu.Lock()
		m.bookMemory(p, step)
		m.mu.Unlock()
		n -= step
		for waited := time.Duration(0); m.overMemory(); waited += time.Millisecond {
			p.sleep(time.Millisecond)
			if waited >= allocGrace {
				m.mu.Lock()
				m.oomKills++
				m.mu.Unlock()
				p.kill(syscall.SIGKILL)
			}
		}
	}
}

func (m *machine) overMemory() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.limits.Memory > 0 && m.memory > m.limits.Memory
}

// doom keeps what descends from origin from forking any more.
func (m *machine) doom(origin *proc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	origin.doomed = true
}

// burn marks p as computing, or as no longer so.
func (m *machine) burn(p *proc, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settle()
	if on {
		m.burning[p] = true
	} else {
		delete(m.burning, p)
	}
}

// settle books the CPU time that spinning processes have had: each one CPU,
// all together no more than the limit. Preconditions: m.mu is held.
func (m *machine) settle() {
	now := time.Now()
	if n := len(m.burning); n > 0 {
		share := float64(n)
		if m.limits.CPUs > 0 {
			share = min(share, m.limits.CPUs)
		}
		had := time.Duration(share * float64(now.Sub(m.settled)))
		m.cpu += had
		for p := range m.burning {
			p.origin.cpu += had / time.Duration(n)
		}
	}
	m.settled = now
}

// usage reports what the instance has consumed.
func (m *machine) usage() sandbox.Usage {
	disk := m.fs.Used()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settle()
	return sandbox.Usage{
		CPU: m.cpu, Memory: m.memory, MemoryPeak: m.peak,
		Disk: disk, PIDs: m.tasks, OOMKills: m.oomKills,
	}
}

// list is a snapshot of the living processes.
func (m *machine) list() []*proc {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*proc, 0, len(m.procs))
	for _, p := range m.procs {
		out = append(out, p)
	}
	return out
}

// halt kills everything and waits until it has ended.
func (m *machine) halt() {
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
	for _, p := range m.list() {
		p.kill(syscall.SIGKILL)
	}
	m.wg.Wait()
}

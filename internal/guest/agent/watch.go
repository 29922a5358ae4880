package agent

import (
	"strconv"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// sampleEvery is the time between two looks at what user code uses.
const sampleEvery = 25 * time.Millisecond

// watch enforces the limits of the sandbox while a program runs; without one
// it costs nothing. The host's own limits are behind it.
type watch struct {
	s *Server

	mu      sync.Mutex
	running []*proc // guarded by mu
	active  bool    // guarded by mu; the sampler runs

	// ticking is held while the sampler looks and kills, so that the end of a
	// program is not reported before the reason is known.
	ticking sync.Mutex
	over    int       // guarded by ticking; samples in a row above the task limit
	purged  time.Time // guarded by ticking; when all was last killed for it
	purge   string    // guarded by ticking; the detail of that
	mercy   time.Time // guarded by ticking; no kill for memory before, memory takes time to be freed
}

// add watches p until remove.
func (w *watch) add(p *proc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = append(w.running, p)
	if !w.active {
		w.active = true
		w.s.wg.Add(1)
		go func() {
			defer w.s.wg.Done()
			w.sample()
		}()
	}
}

// remove stops watching p, and waits for a look in progress. A program that was
// killed with all others before it was watched learns why here.
func (w *watch) remove(p *proc) {
	w.ticking.Lock()
	w.mu.Lock()
	for i, r := range w.running {
		if r == p {
			w.running = append(w.running[:i], w.running[i+1:]...)
			break
		}
	}
	w.mu.Unlock()
	if p.begun.Before(w.purged) {
		p.blame(sandbox.ReasonPIDs, w.purge)
	}
	w.ticking.Unlock()
}

// sample looks every tick until nothing runs.
func (w *watch) sample() {
	t := time.NewTicker(w.s.tick)
	defer t.Stop()
	for range t.C {
		w.mu.Lock()
		running := append([]*proc(nil), w.running...)
		w.active = len(running) > 0
		w.mu.Unlock()
		if len(running) == 0 {
			return
		}
		w.look(running)
	}
}

// look takes one sample and enforces the limits.
func (w *watch) look(running []*proc) {
	w.ticking.Lock()
	defer w.ticking.Unlock()
	set := w.s.settings()
	if set.PIDs <= 0 && set.Memory <= 0 {
		return
	}
	m, err := w.s.sys.Sample()
	if err != nil {
		return // the next one may work; the host's limits hold meanwhile
	}
	// Two in a row: a task that is being reaped, or a thread of the agent that
	// has just started, is no violation. RLIMIT_NPROC holds meanwhile.
	if set.PIDs > 0 && m.Tasks > set.PIDs {
		w.over++
	} else {
		w.over = 0
	}
	if w.over >= 2 {
		w.over = 0
		w.purge = "limit " + strconv.Itoa(set.PIDs)
		for _, p := range running {
			p.blame(sandbox.ReasonPIDs, w.purge)
		}
		_ = w.s.sys.KillAll() // what resists is the boundary's to end
		w.purged = time.Now()
		return
	}
	if set.Memory > 0 && m.Memory > set.Memory && time.Now().After(w.mercy) {
		w.killLargest(running, "limit "+sandbox.FormatSize(set.Memory))
	}
}

// killLargest does what a kernel's out-of-memory killer does, one victim at a
// time.
func (w *watch) killLargest(running []*proc, detail string) {
	procs := make([]Process, 0, len(running))
	of := map[Process]*proc{}
	for _, p := range running {
		p.mu.Lock()
		if p.p != nil {
			procs = append(procs, p.p)
			of[p.p] = p
		}
		p.mu.Unlock()
	}
	victim, err := w.s.sys.KillLargest(procs)
	if err == nil && victim != nil {
		of[victim].blame(sandbox.ReasonMemory, detail)
	}
	w.mercy = time.Now().Add(4 * w.s.tick)
}

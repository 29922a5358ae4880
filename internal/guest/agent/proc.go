package agent

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// proc is a program from its exec call until the host has acknowledged its end.
type proc struct {
	s       *Server
	id      uint32
	argv    []string
	user    string
	begun   time.Time // before the start
	started time.Time
	out     output
	errs    output
	in      *guest.Stream // nil without stdin

	mu      sync.Mutex
	link    *link          // guarded by mu; who is told of the end
	waiting bool           // guarded by mu; link has not said go
	told    *link          // guarded by mu; who has been told of the end
	p       Process        // guarded by mu; nil until it runs
	reason  sandbox.Reason // guarded by mu; why we killed it
	detail  string         // guarded by mu
	exit    *guest.Exit    // guarded by mu; nil while it runs
	unknown bool           // guarded by mu; the host has gone before it knew of it
	allowed time.Duration  // what it was given; constant
	late    *time.Timer    // guarded by mu; kills it at its deadline
}

// limit moves the deadline to left from now; 0: none.
func (p *proc) limit(left time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late != nil {
		p.late.Stop()
		p.late = nil
	}
	if left <= 0 || p.exit != nil {
		return
	}
	p.late = time.AfterFunc(left, func() { p.kill(sandbox.ReasonTimeout, "limit "+p.allowed.String()) })
}

// exec handles the call id. It returns at once; the program is started, waited
// for and reported in a goroutine of the server, not of the link.
func (l *link) exec(id uint32, c *guest.ExecCall) {
	s := l.s
	p := &proc{s: s, id: id, argv: shorten(c.Argv), user: s.userOf(c.User), link: l, begun: time.Now(), allowed: time.Duration(max(0, c.Timeout)) * time.Millisecond}
	p.out.init(id, guest.TypeStdout, l)
	p.errs.init(id, guest.TypeStderr, l)
	if c.Stdin {
		p.in = guest.NewStream(id, guest.TypeStdin, guest.DefaultWindow, 0, p.consumed)
	}
	s.mu.Lock()
	full := len(s.procs)-len(s.ended) >= maxProcesses || s.closed
	if !full {
		s.procs[id] = p
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if full {
		l.fail(id, guest.OpExec, capacity(guest.OpExec, "too many programs are running"))
		return
	}
	t := &transfer{cancel: p.discard}
	l.mu.Lock()
	l.calls[id] = t
	l.mu.Unlock()
	s.work.begin()
	go func() {
		defer s.wg.Done()
		defer s.work.end(s.Idle)
		p.run(l, c)
	}()
}

// run is the life of a program.
func (p *proc) run(l *link, c *guest.ExecCall) {
	s := p.s
	set := s.settings()
	sys, used, err := s.standby.start(Program{ID: p.id, Argv: c.Argv, Env: c.Env, Dir: c.Dir, User: p.user, Stdin: c.Stdin, PTY: c.PTY,
		PIDs: set.PIDs, Memory: set.Memory})
	l.mu.Lock()
	delete(l.calls, p.id)
	l.mu.Unlock()
	defer s.standby.ended(used)
	if err != nil {
		s.forget(p)
		l.fail(p.id, guest.OpExec, err)
		return
	}
	p.mu.Lock()
	p.p, p.started = sys, time.Now() // by a clock that nobody sets: the wall's is, where a machine goes on elsewhere
	doomed := p.unknown
	p.mu.Unlock()
	in, out, errs := sys.Stdio()
	p.limit(p.allowed) // before anybody can move it
	// Told in the zone that needs no file.
	l.reply(p.id, guest.Reply{Process: &guest.ProcessInfo{ID: p.id, PID: sys.PID(), User: p.user, Started: p.started.UTC()}})
	s.watch.add(p)
	if doomed {
		_ = sys.Kill()
	}

	var streams sync.WaitGroup
	streams.Go(func() { p.out.pump(out) })
	streams.Go(func() { p.errs.pump(errs) })
	if in != nil {
		streams.Go(func() { p.feed(in) })
	}
	st := sys.Wait()
	p.limit(0)
	s.watch.remove(p)
	p.ended(st)
	if in != nil {
		in.Close() // feed may wait for a process left behind to read
	}
	streams.Wait()
	// Without a host to acknowledge it, the proc stays in s.procs.
}

// feed gives the program what the host sends. When the program no longer
// reads, the rest vanishes and the host is told.
func (p *proc) feed(in io.WriteCloser) {
	defer in.Close()
	if _, err := p.in.WriteTo(in); err == nil {
		return
	}
	p.in.Close()
	p.mu.Lock()
	l := p.link
	p.mu.Unlock()
	if l != nil {
		_ = l.mark(guest.TypeEnd, p.id, guest.TypeStdin, 0)
	}
}

// consumed tells the host that the program has taken stdin up to at. Called
// under the stream's lock.
func (p *proc) consumed(at uint64) {
	p.mu.Lock()
	l, waiting := p.link, p.waiting
	p.mu.Unlock()
	if l != nil && !waiting {
		_ = l.mark(guest.TypeWindow, p.id, guest.TypeStdin, at)
	}
}

// kill ends the program for a reason, which is reported if it was in time.
func (p *proc) kill(why sandbox.Reason, detail string) {
	p.blame(why, detail)
	p.mu.Lock()
	sys, over := p.p, p.exit != nil
	p.mu.Unlock()
	if sys != nil && !over {
		_ = sys.Kill() // what resists is the boundary's to end
	}
}

// blame sets the reason reported for a program about to be killed. The first
// one counts.
func (p *proc) blame(why sandbox.Reason, detail string) {
	p.mu.Lock()
	if p.reason == "" && p.exit == nil {
		p.reason, p.detail = why, detail
	}
	p.mu.Unlock()
}

// ended records how the program ended, and tells the host.
func (p *proc) ended(st Status) {
	e := &guest.Exit{Code: st.Code, Signal: st.Signal, Reason: sandbox.ReasonDone,
		Result: st.Result, Duration: time.Since(p.started), CPU: st.CPU, MaxRSS: st.MaxRSS}
	p.mu.Lock()
	switch {
	case p.reason != "" && (st.Signal == sigkill || st.Signal == sighup):
		// To kill everything is to stop it first, and the kernel hangs up on a
		// stopped group that nobody waits for: it may die of that before.
		e.Reason, e.Detail = p.reason, p.detail
		e.Code, e.Signal = 128+sigkill, sigkill
	case st.DiskFull && st.Code != 0:
		e.Reason = sandbox.ReasonDisk
	}
	p.exit = e
	unknown := p.unknown
	p.mu.Unlock()
	if p.in != nil {
		p.in.Fail(io.ErrClosedPipe)
	}
	if unknown {
		p.s.forget(p)
		return
	}
	p.s.keep(p)
	p.tell()
}

const (
	sighup  = 1
	sigkill = 9
)

// tell sends the exit frame to the host that follows, once.
func (p *proc) tell() {
	p.mu.Lock()
	l, e := p.link, p.exit
	if l == nil || e == nil || p.waiting || p.told == l {
		p.mu.Unlock()
		return
	}
	p.told = l
	p.mu.Unlock()
	_ = l.json(guest.TypeExit, p.id, e) // if it fails, the next host asks
}

// discard kills a program that nobody will ask about and forgets it.
func (p *proc) discard() {
	p.mu.Lock()
	p.unknown = true
	over := p.exit != nil
	sys := p.p
	p.mu.Unlock()
	p.out.drop()
	p.errs.drop()
	switch {
	case over:
		p.s.forget(p)
	case sys != nil:
		_ = sys.Kill()
	}
	if p.in != nil {
		p.in.Fail(context.Canceled)
	}
}

func (p *proc) input() *guest.Stream { return p.in }

func (p *proc) output(channel guest.Type) *output {
	switch channel {
	case guest.TypeStdout:
		return &p.out
	case guest.TypeStderr:
		return &p.errs
	}
	return nil
}

// acknowledged handles a window frame of an output channel.
func (p *proc) acknowledged(l *link, o *output, at uint64) error {
	more, err := o.acknowledge(l, at)
	if err != nil {
		return err
	}
	p.mu.Lock()
	first := p.waiting && p.link == l
	if first {
		p.waiting = false
	}
	p.mu.Unlock()
	// In a goroutine: the link's reader waits for nobody.
	if more || first {
		p.s.wg.Add(1)
		go func() {
			defer p.s.wg.Done()
			if first {
				p.resumed(l)
			}
			o.flush()
		}()
	}
	return nil
}

// resumed tells a host that has just attached what it missed.
func (p *proc) resumed(l *link) {
	if p.in != nil {
		_, acked := p.in.Resume()
		_ = l.mark(guest.TypeWindow, p.id, guest.TypeStdin, acked)
	}
	p.tell()
}

// attach makes l follow the program. Nothing is sent before l says go, which
// it does with its first window frame.
func (p *proc) attach(l *link, at *guest.ProcCall) (guest.ProcessInfo, error) {
	p.mu.Lock()
	if p.link == l && !l.dead.Load() {
		p.mu.Unlock()
		return guest.ProcessInfo{}, sandbox.Errorf("attach", sandbox.KindConflict, "already followed")
	}
	p.link, p.waiting = l, true
	p.mu.Unlock()
	info := p.info()
	var ok1, ok2 bool
	info.Stdout, ok1 = p.out.attach(l, at.Stdout)
	info.Stderr, ok2 = p.errs.attach(l, at.Stderr)
	if !ok1 || !ok2 {
		p.detach(l)
		return info, sandbox.Errorf("attach", sandbox.KindInvalid, "the position is beyond what the process has written")
	}
	if p.in != nil {
		recv, _ := p.in.Resume()
		info.Stdin = int64(recv)
	}
	return info, nil
}

func (p *proc) detach(l *link) {
	p.mu.Lock()
	if p.link == l {
		p.link = nil
	}
	p.mu.Unlock()
	p.out.detach(l)
	p.errs.detach(l)
}

func (p *proc) followed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link != nil && !p.link.dead.Load()
}

// reported says whether the host has been told of the end.
func (p *proc) reported() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit != nil && p.told != nil
}

func (p *proc) info() guest.ProcessInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := guest.ProcessInfo{ID: p.id, Argv: p.argv, User: p.user, Started: p.started.UTC(), Exit: p.exit}
	if p.p != nil {
		i.PID = p.p.PID()
	}
	return i
}

// shorten makes an argument vector fit a listing.
func shorten(argv []string) []string {
	left := 256
	short := []string{}
	for i, a := range argv {
		if i == 8 || left <= 0 {
			break
		}
		short = append(short, a[:min(len(a), left)])
		left -= len(a)
	}
	return short
}

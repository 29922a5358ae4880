package agent

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Stander is a System that can start an interpreter before it is known what it is
// to run.
type Stander interface {
	// Stand starts an interpreter that waits to be told. Nothing else may run, and
	// nothing may be left of what ran before: KindConflict otherwise. Other errors are
	// those of Start.
	Stand(Program) (Standby, error)
}

// Standby is an interpreter that waits. It is used once.
type Standby interface {
	// Ready is closed once it waits, or has ended.
	Ready() <-chan struct{}
	// Become makes it run code, as the program it would have been had it been started
	// with Start. An error means that it cannot become this one; it has run nothing of
	// it, and is to be killed.
	Become(g Program, code string, args []string) (Process, error)
	// Kill ends it. It does not wait. After Become it does nothing.
	Kill()
}

const (
	// standSoon is after one was used. A start takes 20 ms of a processor, which whoever
	// makes a sandbox for one program would pay for nothing.
	standSoon  = 150 * time.Millisecond
	standLater = time.Second      // after one was not: who runs commands needs none
	standWait  = 30 * time.Second // for one to be ready
)

// standby keeps one interpreter ready, for a program that is given as source text:
// then nothing has to be started when it comes.
//
// It is used only by a program that finds the sandbox as the interpreter found it:
// nothing has run since, and nothing was written where interpreters look when they
// start. So whoever runs code cannot tell it from a fresh one, nor reach into the
// next one's.
type standby struct {
	s *Server

	mu      sync.Mutex
	want    *guest.StandbyCall // guarded by mu; nil: none
	now     Standby            // guarded by mu; nil: none
	running int                // guarded by mu; programs, those being started among them
	epoch   int                // guarded by mu; counts what makes an interpreter stale
	timer   *time.Timer        // guarded by mu; until the next one is made
	lying   bool               // guarded by mu; none is made until a host attaches
	touched int                // guarded by mu; counts changes of files by the host
	asOf    int                // guarded by mu; touched when now was begun
	closed  bool               // guarded by mu
}

// keep has one kept from now on, and returns when it is ready. Errors: those of
// Stand, KindTimeout, KindUnsupported.
func (b *standby) keep(c *guest.StandbyCall) error {
	if _, ok := b.s.sys.(Stander); !ok {
		return sandbox.Errorf(string(guest.OpStandby), sandbox.KindUnsupported, "this agent keeps no interpreters")
	}
	b.mu.Lock()
	b.want = c
	b.mu.Unlock()
	err := b.make()
	rehearse(c)
	return err
}

// rehearse does what is done for a program with what is said of one: what the agent
// needs for that is in memory then, and is not waited for by the first.
func rehearse(c *guest.StandbyCall) {
	said, _ := json.Marshal(guest.Call{Op: guest.OpExec, Exec: &guest.ExecCall{Argv: append(slices.Clone(c.Match), ""), Env: c.Env, Timeout: 1}})
	var call guest.Call
	_ = json.Unmarshal(said, &call)
	for _, v := range []any{guest.Reply{Process: &guest.ProcessInfo{Started: time.Now().UTC()}}, &guest.Exit{Duration: 1}} {
		_, _ = json.Marshal(v)
	}
}

// make starts one, unless there is one or something runs.
func (b *standby) make() error {
	b.mu.Lock()
	c, epoch, touched := b.want, b.epoch, b.touched
	idle := c != nil && b.now == nil && b.running == 0 && !b.lying && !b.closed
	b.mu.Unlock()
	if !idle {
		return nil
	}
	set := b.s.settings()
	made, err := b.s.sys.(Stander).Stand(Program{Argv: c.Argv, Env: c.Env, User: b.s.userOf(c.User), Stdin: true, PIDs: set.PIDs, Memory: set.Memory})
	if err != nil {
		return err
	}
	t := time.NewTimer(standWait)
	defer t.Stop()
	select {
	case <-made.Ready():
	case <-t.C:
		made.Kill()
		return sandbox.Errorf(string(guest.OpStandby), sandbox.KindTimeout, "the interpreter does not get ready")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.lying || b.now != nil || b.epoch != epoch {
		made.Kill()
		return nil
	}
	b.now, b.asOf = made, touched
	return nil
}

// start starts a program, or has the interpreter that waits become it: used.
func (b *standby) start(g Program) (p Process, used bool, err error) {
	b.mu.Lock()
	b.running++
	b.epoch++
	c, now, alone := b.want, b.now, b.running == 1
	g.Untouched = b.touched == b.asOf
	b.now = nil
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	if now != nil {
		defer now.Kill()
		if code, args, ok := split(c.Match, g.Argv); ok && alone && g.PTY == nil {
			if p, err = now.Become(g, code, args); err == nil {
				return p, true, nil
			}
		}
	}
	p, err = b.s.sys.Start(g)
	return p, false, err
}

// split takes source text and arguments off an argument vector that begins with
// match.
func split(match, argv []string) (code string, args []string, ok bool) {
	if n := len(match); n > 0 && len(argv) > n && slices.Equal(match, argv[:n]) {
		return argv[n], argv[n+1:], true
	}
	return "", nil, false
}

// ended notes that a program has, or did not start: when it was the last one, there
// may be an interpreter again.
func (b *standby) ended(used bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running--
	b.epoch++
	if b.running > 0 || b.want == nil || b.closed {
		return
	}
	wait := standLater
	if used {
		wait = standSoon
	}
	b.later(wait)
}

// later makes one in a while. Preconditions: b.mu is held.
func (b *standby) later(wait time.Duration) {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.timer = time.AfterFunc(wait, func() {
		b.mu.Lock()
		closed := b.closed
		if !closed {
			b.s.wg.Add(1)
		}
		b.mu.Unlock()
		if closed {
			return
		}
		defer b.s.wg.Done()
		_ = b.make() // without one, programs start as they do elsewhere
	})
}

// changed notes that the host has changed a file: an interpreter that would have
// read it when it started is stale.
func (b *standby) changed(path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.touched++
	if !startup(path) {
		return
	}
	b.epoch++
	if b.now == nil {
		return
	}
	b.now.Kill()
	b.now = nil
	if b.running == 0 {
		b.later(standSoon)
	}
}

// startup reports whether interpreters look at a path, or at what is below it, when
// they start.
func startup(path string) bool {
	for _, part := range []string{".local", "python", "site-packages", "dist-packages", "node_modules"} {
		if strings.Contains(path, part) {
			return true
		}
	}
	return strings.HasSuffix(path, ".pth") || strings.HasSuffix(path, "customize.py") || strings.HasSuffix(path, "pyvenv.cfg")
}

// down ends the one that waits, and one that is being made. None is made until up is
// called.
func (b *standby) down() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lying = true
	b.epoch++
	if b.timer != nil {
		b.timer.Stop()
	}
	if b.now != nil {
		b.now.Kill()
		b.now = nil
	}
}

// up has one made again, after down.
func (b *standby) up() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.lying {
		return
	}
	b.lying = false
	if b.want != nil && b.running == 0 && !b.closed {
		b.later(standSoon)
	}
}

// close ends the one that waits. None is made afterwards.
func (b *standby) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.timer != nil {
		b.timer.Stop()
	}
	if b.now != nil {
		b.now.Kill()
		b.now = nil
	}
}

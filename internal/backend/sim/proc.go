package sim

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// proc is a modelled process: a goroutine that runs a program against its
// machine and nothing else.
type proc struct {
	m              *machine
	pid, ppid      int
	group          *group
	argv           []string
	env            []string
	params         []string // $0 and so on, of the script it runs
	cwd            string
	cred           cred
	stdin          io.Reader
	stdout, stderr io.Writer
	tty            *terminal // nil without one

	origin *proc // the exec it descends from, itself if it is one

	memory, peak int64         // guarded by m.mu
	cpu          time.Duration // guarded by m.mu
	doomed       bool          // guarded by m.mu; an origin whose descendants may not fork any more

	dying chan struct{} // closed when a signal has killed it
	done  chan struct{} // closed when it has ended

	mu      sync.Mutex
	catch   chan struct{}           // written by p under mu; if not nil, SIGINT goes here, and ends a sleep
	ignored map[syscall.Signal]bool // guarded by mu
	killed  bool                    // guarded by mu
	signal  syscall.Signal          // guarded by mu; what killed it
	code    int                     // guarded by mu; set before done closes
}

// group is what a signal to an exec reaches: the process and its children,
// but not those that made a session of their own.
type group struct {
	mu    sync.Mutex
	procs []*proc // guarded by mu; living members
}

func (g *group) add(p *proc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.procs = append(g.procs, p)
}

func (g *group) remove(p *proc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.procs = slices.DeleteFunc(g.procs, func(q *proc) bool { return q == p })
}

// kill sends sig to all members and reports whether there was one.
func (g *group) kill(sig syscall.Signal) bool {
	g.mu.Lock()
	members := slices.Clone(g.procs)
	g.mu.Unlock()
	for _, p := range members {
		p.kill(sig)
	}
	return len(members) > 0
}

// start books p on its machine and runs program in a goroutine of the
// machine's. The caller has set the fields above memory, except pid.
func (p *proc) start(program program) error {
	p.dying, p.done = make(chan struct{}), make(chan struct{})
	p.ignored = map[syscall.Signal]bool{}
	if err := p.m.add(p); err != nil {
		return err
	}
	p.group.add(p)
	go p.run(program)
	return nil
}

// stopped is what unwinds a program whose process has been killed, or that
// called exit.
type stopped struct{ code int }

func (p *proc) run(program program) {
	defer p.m.wg.Done()
	code := p.call(program)
	p.group.remove(p)
	p.m.remove(p)
	for _, s := range []any{p.stdout, p.stderr} {
		if c, ok := s.(io.Closer); ok {
			c.Close()
		}
	}
	p.mu.Lock()
	if p.killed {
		code = 128 + int(p.signal)
	}
	p.code = code
	p.mu.Unlock()
	close(p.done)
}

func (p *proc) call(program program) (code int) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stopped:
			code = r.code
		default:
			panic(r)
		}
	}()
	code = program(p, p.argv)
	p.alive() // a killed program does not end by itself
	return code & 0xff
}

// kill delivers sig.
func (p *proc) kill(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed || sig == 0 {
		return
	}
	if sig != syscall.SIGKILL {
		if p.ignored[sig] {
			return
		}
		if !deadly(sig) {
			return
		}
		if sig == syscall.SIGINT && p.catch != nil {
			select {
			case p.catch <- struct{}{}:
			default:
			}
			return
		}
	}
	p.killed, p.signal = true, sig
	close(p.dying)
}

// ignore makes sig do nothing.
func (p *proc) ignore(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ignored[sig] = true
}

// alive unwinds the program if its process has been killed.
func (p *proc) alive() {
	select {
	case <-p.dying:
		panic(stopped{})
	default:
	}
}

// exit ends the program.
func (p *proc) exit(code int) { panic(stopped{code & 0xff}) }

// sleep waits for d, or for ever if that is negative.
func (p *proc) sleep(d time.Duration) {
	var timeUp <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timeUp = t.C
	}
	select {
	case <-p.dying:
		panic(stopped{})
	case <-p.catch:
		panic(caught{})
	case <-timeUp:
	}
}

// stream binds a queue to the process that uses it, whose death interrupts it.
type stream struct {
	*queue
	p *proc
}

func (s stream) Read(b []byte) (int, error) {
	n, err := s.queue.read(b, s.p.dying, nil)
	s.p.alive()
	return n, err
}

func (s stream) Write(b []byte) (int, error) {
	n, err := s.queue.write(b, s.p.dying, nil)
	s.p.alive()
	return n, err
}

// out writes to standard output. A reader that has gone kills, as SIGPIPE does.
func (p *proc) out(b []byte) {
	p.alive()
	if _, err := p.stdout.Write(b); err != nil {
		if errors.Is(err, io.ErrClosedPipe) {
			p.kill(syscall.SIGPIPE)
			p.alive()
		}
		p.fail("write error: %s", reasonText(err))
	}
}

func (p *proc) printf(format string, args ...any) { p.out(fmt.Appendf(nil, format, args...)) }

// fail says why on standard error and exits with 1.
func (p *proc) fail(format string, args ...any) {
	p.complain(format, args...)
	p.exit(1)
}

func (p *proc) complain(format string, args ...any) {
	p.alive()
	fmt.Fprintf(p.stderr, path.Base(p.argv[0])+": "+format+"\n", args...)
}

// abs makes name absolute by the working directory.
func (p *proc) abs(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return p.cwd + "/" + name
}

// getenv returns the last value of name.
func (p *proc) getenv(name string) string {
	for _, kv := range slices.Backward(p.env) {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v
		}
	}
	return ""
}

// fork starts program as a child. With newSession it leaves the group, as a
// daemon does.
func (p *proc) fork(program program, newSession bool) (*proc, error) {
	child := &proc{m: p.m, ppid: p.pid, group: p.group, argv: p.argv, env: slices.Clone(p.env), cwd: p.cwd,
		cred: p.cred, stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
	if newSession {
		child.group, child.ppid = &group{}, 1
	}
	child.origin, child.tty = p.origin, p.tty
	p.alive()
	return child, child.start(program)
}

// reasonText is the text of the errno in err.
func reasonText(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

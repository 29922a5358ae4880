package sim

import (
	"context"
	"errors"
	"io"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// system is the machine as its agent drives it.
type system struct{ m *machine }

var _ agent.System = system{}

// account looks a user up in the model's fixed passwd file.
func account(user string) (c cred, name, home string, err error) {
	switch user {
	case "", guest.DefaultUser, strconv.Itoa(guest.DefaultUID):
		return userCred, guest.DefaultUser, guest.DefaultHome, nil
	case "root", "0":
		return rootCred, "root", "/root", nil
	}
	if uid, err := strconv.Atoi(user); err == nil && uid > 0 && uid < 1<<16 {
		return cred{uid, uid}, user, "/", nil
	}
	return cred{}, "", "", sandbox.Errorf("exec", sandbox.KindNotFound, "no user %q in the sandbox", user)
}

// Start implements agent.System.
func (s system) Start(pr agent.Program) (agent.Process, error) {
	if len(pr.Argv) == 0 || pr.Argv[0] == "" {
		return nil, sandbox.Errorf("exec", sandbox.KindInvalid, "no program given")
	}
	c, name, home, err := account(pr.User)
	if err != nil {
		return nil, err
	}
	dir := home
	if pr.Dir != "" {
		if dir = pr.Dir; !strings.HasPrefix(dir, "/") {
			dir = home + "/" + dir
		}
	}
	st, err := s.m.fs.Stat(c, dir, true)
	if err == nil && !st.mode.IsDir() {
		err = pathErr("chdir", dir, syscall.ENOTDIR)
	}
	if err != nil {
		return nil, sandbox.Wrap("exec", "", err)
	}
	program, err := s.m.lookup(c, pr.Argv[0], dir)
	if err != nil {
		return nil, err
	}
	env := append([]string{"HOME=" + home, "USER=" + name, "LOGNAME=" + name, "PATH=" + guest.DefaultPath, "LANG=C.UTF-8",
		guest.ResultEnv + "=" + guest.ResultPath(pr.ID)}, pr.Env...)
	p := &proc{m: s.m, ppid: 1, group: &group{}, argv: pr.Argv, env: env, cwd: path.Clean(dir), cred: c}
	p.origin = p
	x := &process{p: p, result: guest.ResultPath(pr.ID), out: newQueue(), errs: newQueue()}
	p.stdin = strings.NewReader("")
	if pr.Stdin {
		x.in = newQueue()
		p.stdin = stream{x.in, p}
	}
	p.stdout, p.stderr = stream{x.out, p}, stream{x.errs, p}
	if pr.PTY != nil {
		p.env = append([]string{"TERM=xterm-256color"}, p.env...)
		p.tty = &terminal{in: x.in, out: x.out, group: p.group, size: *pr.PTY}
		p.stdout = screen{stream{x.out, p}}
		p.stderr = p.stdout
		x.errs.close()
	}
	if err := p.start(program); err != nil {
		return nil, sandbox.Errorf("exec", sandbox.KindCapacity, "cannot start %s: %w", pr.Argv[0], err)
	}
	return x, nil
}

// lookup finds the program that name means, as execvp would.
func (m *machine) lookup(c cred, name, dir string) (program, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, d := range strings.Split(guest.DefaultPath, ":") {
			candidates = append(candidates, d+"/"+name)
		}
	}
	denied, directory := false, false
	for _, file := range candidates {
		if !strings.HasPrefix(file, "/") {
			file = dir + "/" + file
		}
		m.fs.mu.Lock()
		n, err := m.fs.walk(c, file, true)
		ok := err == nil && n.kids == nil && n.allows(c, 1)
		directory = err == nil && n.kids != nil
		denied = denied || errors.Is(err, syscall.EACCES) || err == nil && !ok
		m.fs.mu.Unlock()
		if ok {
			if p := programOf(path.Base(file)); p != nil {
				return p, nil
			}
			return unmodelled, nil
		}
	}
	switch {
	case directory:
		return nil, sandbox.Errorf("exec", sandbox.KindIsDirectory, "%s is a directory", name)
	case denied:
		return nil, sandbox.Errorf("exec", sandbox.KindDenied, "%s: permission denied", name)
	}
	return nil, sandbox.Errorf("exec", sandbox.KindNotFound, "%s: not found in the sandbox", name)
}

// Files implements agent.System.
func (s system) Files(user string) (agent.Files, error) {
	c, _, home, err := account(user)
	if err != nil {
		return nil, err
	}
	return files{fs: s.m.fs, c: c, home: home}, nil
}

// echoPort is where a server listens that sends back what it is sent: the one
// there is in a model.
const echoPort = 7

// Dial implements agent.System.
func (s system) Dial(_ context.Context, port int) (agent.Conn, error) {
	if port != echoPort {
		return nil, sandbox.Errorf("dial", sandbox.KindNotFound, "nothing listens on port %d in the sandbox", port)
	}
	r, w := io.Pipe()
	return parrot{r, w}, nil
}

// parrot is a connection to the server at echoPort.
type parrot struct {
	*io.PipeReader
	w *io.PipeWriter
}

// Write implements agent.Conn.
func (e parrot) Write(p []byte) (int, error) { return e.w.Write(p) }

// CloseWrite implements agent.Conn.
func (e parrot) CloseWrite() error { return e.w.Close() }

// Close implements agent.Conn.
func (e parrot) Close() error { return errors.Join(e.w.Close(), e.PipeReader.Close()) }

// Sample implements agent.System.
func (s system) Sample() (agent.Sample, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return agent.Sample{Tasks: s.m.tasks, Memory: s.m.memory}, nil
}

// KillAll implements agent.System.
func (s system) KillAll() error {
	for {
		all := s.m.list()
		if len(all) == 0 {
			return nil
		}
		for _, p := range all {
			p.kill(syscall.SIGKILL)
		}
		for _, p := range all {
			<-p.done
		}
	}
}

// KillLargest implements agent.System.
func (s system) KillLargest(running []agent.Process) (agent.Process, error) {
	s.m.mu.Lock()
	var victim *proc
	for _, p := range s.m.procs {
		if victim == nil || p.memory > victim.memory {
			victim = p
		}
	}
	if victim != nil {
		s.m.oomKills++
	}
	s.m.mu.Unlock()
	if victim == nil {
		return nil, nil
	}
	for _, r := range running {
		if x, ok := r.(*process); ok && x.p == victim.origin {
			return x, x.Kill()
		}
	}
	victim.kill(syscall.SIGKILL)
	return nil, nil
}

// process is a started program.
type process struct {
	p             *proc
	result        string // path of its result file
	in, out, errs *queue
}

func (x *process) PID() int { return x.p.pid }

// Stdio implements agent.Process.
func (x *process) Stdio() (in io.WriteCloser, out, errs io.ReadCloser) {
	if x.p.tty != nil {
		in = x.p.tty
	} else if x.in != nil {
		in = pipeEnd{x.in}
	}
	return in, pipeEnd{x.out}, pipeEnd{x.errs}
}

// pipeEnd is the agent's end of a standard stream.
type pipeEnd struct{ q *queue }

func (e pipeEnd) Read(p []byte) (int, error)  { return e.q.read(p, nil, nil) }
func (e pipeEnd) Write(p []byte) (int, error) { return e.q.write(p, nil, nil) }
func (e pipeEnd) Close() error                { e.q.close(); return nil }

// Signal implements agent.Process.
func (x *process) Signal(sig int) error {
	if !x.p.group.kill(syscall.Signal(sig)) {
		return sandbox.Errorf("signal", sandbox.KindNotFound, "the program has ended")
	}
	return nil
}

// Kill implements agent.Process.
func (x *process) Kill() error {
	x.p.m.doom(x.p)
	for _, p := range x.p.m.list() {
		if p.origin == x.p {
			p.kill(syscall.SIGKILL)
		}
	}
	return nil
}

// Wait implements agent.Process.
func (x *process) Wait() agent.Status {
	<-x.p.done
	x.p.group.kill(syscall.SIGKILL)
	for _, q := range []*queue{x.in, x.out, x.errs} {
		if q != nil {
			q.close()
		}
	}
	x.p.m.mu.Lock()
	st := agent.Status{MaxRSS: x.p.peak, CPU: x.p.cpu}
	x.p.m.mu.Unlock()
	x.p.mu.Lock()
	st.Code = x.p.code
	if x.p.killed {
		st.Signal = int(x.p.signal)
	}
	x.p.mu.Unlock()
	st.DiskFull = st.Code != 0 && x.p.m.fs.full()
	_, err := x.p.m.fs.Stat(x.p.cred, x.result, false)
	st.Result = err == nil
	return st
}

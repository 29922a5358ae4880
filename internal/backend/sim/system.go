package sim

import (
	"errors"
	"io"
	"io/fs"
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
	env := append([]string{"HOME=" + home, "USER=" + name, "LOGNAME=" + name, "PATH=" + guest.DefaultPath, "LANG=C.UTF-8"}, pr.Env...)
	p := &proc{m: s.m, ppid: 1, group: &group{}, argv: pr.Argv, env: env, cwd: path.Clean(dir), cred: c}
	p.origin = p
	x := &process{p: p, out: newQueue(), errs: newQueue()}
	p.stdin = strings.NewReader("")
	if pr.Stdin {
		x.in = newQueue()
		p.stdin = stream{x.in, p}
	}
	p.stdout, p.stderr = stream{x.out, p}, stream{x.errs, p}
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
			p.kill(syscall.SIGKILL, "")
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
	victim.kill(syscall.SIGKILL, sandbox.ReasonMemory)
	return nil, nil
}

// process is a started program.
type process struct {
	p             *proc
	in, out, errs *queue
}

func (x *process) PID() int { return x.p.pid }

// Stdio implements agent.Process.
func (x *process) Stdio() (in io.WriteCloser, out, errs io.ReadCloser) {
	if x.in != nil {
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
	if !x.p.group.kill(syscall.Signal(sig), "") {
		return sandbox.Errorf("signal", sandbox.KindNotFound, "the program has ended")
	}
	return nil
}

// Kill implements agent.Process.
func (x *process) Kill() error {
	x.p.m.doom(x.p)
	for _, p := range x.p.m.list() {
		if p.origin == x.p {
			p.kill(syscall.SIGKILL, "")
		}
	}
	return nil
}

// Wait implements agent.Process.
func (x *process) Wait() agent.Status {
	<-x.p.done
	x.p.group.kill(syscall.SIGKILL, "")
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
	return st
}

// files is a user's view of the file system.
type files struct {
	fs   *memFS
	c    cred
	home string
}

var _ agent.Files = files{}

// typed gives err the kind that a caller of op can act on, where KindOf does
// not know the errno.
func typed(op string, err error) error {
	kind := sandbox.KindOf(err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG):
		kind = sandbox.KindInvalid
	case errors.Is(err, syscall.ENOTEMPTY):
		kind = sandbox.KindConflict
	case errors.Is(err, syscall.EROFS):
		kind = sandbox.KindDenied
	}
	return &sandbox.Error{Op: op, Kind: kind, Err: err}
}

func (f files) abs(name string) string {
	if !strings.HasPrefix(name, "/") {
		name = f.home + "/" + name
	}
	return name
}

func info(name string, s stat) guest.FileInfo {
	return guest.FileInfo{Path: name, Size: s.size, Mode: s.mode, ModTime: s.mtime, UID: s.uid, GID: s.gid, Target: s.target}
}

// Open implements agent.FileReader.
func (f files) Open(name string) (agent.File, error) {
	name = f.abs(name)
	st, err := f.fs.Stat(f.c, name, true)
	switch {
	case err != nil:
		return nil, typed("read", err)
	case st.mode.IsDir():
		return nil, sandbox.Errorf("read", sandbox.KindIsDirectory, "%s is a directory", name)
	case !st.mode.IsRegular():
		return nil, sandbox.Errorf("read", sandbox.KindInvalid, "%s is not a regular file", name)
	}
	h, err := f.fs.Open(f.c, name, oRead, 0)
	if err != nil {
		return nil, typed("read", err)
	}
	return openFile{h, path.Clean(name)}, nil
}

type openFile struct {
	*file
	name string
}

// Info implements agent.File.
func (o openFile) Info() guest.FileInfo {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	return info(o.name, o.n.stat(""))
}

// Stat implements agent.FileReader.
func (f files) Stat(name string) (guest.FileInfo, error) {
	name = f.abs(name)
	st, err := f.fs.Stat(f.c, name, false)
	if err != nil {
		return guest.FileInfo{}, typed("stat", err)
	}
	return info(path.Clean(name), st), nil
}

// List implements agent.FileReader.
func (f files) List(name string, depth, limit int) (out []guest.FileInfo, more bool, err error) {
	var walk func(dir, rel string, depth int) error
	walk = func(dir, rel string, depth int) error {
		kids, err := f.fs.List(f.c, dir)
		if err != nil {
			return err
		}
		for _, k := range kids {
			if limit > 0 && len(out) >= limit {
				more = true
				return nil
			}
			at := path.Join(rel, k.name)
			out = append(out, info(at, k))
			if k.mode.IsDir() && depth > 1 {
				// What may not be read below is left out, as find does.
				_ = walk(dir+"/"+k.name, at, depth-1)
			}
		}
		return nil
	}
	err = walk(f.abs(name), "", depth)
	return out, more, typed("list", err)
}

// Mkdir implements agent.FileChanger.
func (f files) Mkdir(name string, perm fs.FileMode, parents bool) error {
	if perm == 0 {
		perm = 0o755
	}
	if parents {
		return typed("mkdir", f.fs.MkdirAll(f.c, f.abs(name), perm))
	}
	return typed("mkdir", f.fs.Mkdir(f.c, f.abs(name), perm))
}

// Move implements agent.FileChanger.
func (f files) Move(from, to string) error {
	return typed("move", f.fs.Rename(f.c, f.abs(from), f.abs(to)))
}

// Remove implements agent.FileChanger.
func (f files) Remove(name string, tree, force bool) error {
	err := f.fs.Remove(f.c, f.abs(name), tree)
	if force && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return typed("remove", err)
}

// Create implements agent.FileChanger.
func (f files) Create(name string, o agent.CreateOptions) (agent.Writer, error) {
	name = path.Clean(f.abs(name))
	if o.Parents {
		if err := f.fs.MkdirAll(f.c, path.Dir(name), 0o755); err != nil {
			return nil, typed("write", err)
		}
	}
	perm := o.Perm.Perm()
	st, err := f.fs.Stat(f.c, name, true)
	switch {
	case err == nil && st.mode.IsDir():
		return nil, sandbox.Errorf("write", sandbox.KindIsDirectory, "%s is a directory", name)
	case err == nil && perm == 0:
		perm = st.mode.Perm()
	case perm == 0:
		perm = 0o644
	}
	w := &writer{f: f, name: name, temp: name}
	flags := oWrite | oCreate | oAppend
	if !o.Append {
		w.temp = path.Join(path.Dir(name), ".sim-"+f.fs.unique())
		flags = oWrite | oCreate | oExcl
	}
	if w.h, err = f.fs.Open(f.c, w.temp, flags, perm); err != nil {
		return nil, typed("write", err)
	}
	return w, nil
}

// writer is a file being written beside its final place.
type writer struct {
	f          files
	h          *file
	name, temp string
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) { return w.h.Write(p) }

// Commit implements agent.Writer.
func (w *writer) Commit() (guest.FileInfo, error) {
	if w.temp != w.name {
		if err := w.f.fs.Rename(w.f.c, w.temp, w.name); err != nil {
			w.Abort()
			return guest.FileInfo{}, typed("write", err)
		}
	}
	return w.f.Stat(w.name)
}

// Abort implements agent.Writer.
func (w *writer) Abort() {
	if w.temp != w.name {
		_ = w.f.fs.Remove(w.f.c, w.temp, false) // it is ours and was just made
	}
}

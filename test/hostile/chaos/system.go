package chaos

import (
	"context"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// System is sys with the triggers in it. sys may be nil: then there is nothing
// but the triggers.
func System(sys agent.System, c *Conn) agent.System {
	if sys == nil {
		sys = nothing{}
	}
	return &system{sys, c}
}

type system struct {
	agent.System
	c *Conn
}

// Start implements agent.System.
func (s *system) Start(p agent.Program) (agent.Process, error) {
	if p.Argv[0] == Program && len(p.Argv) > 1 {
		if script, ok := Find(Exec, p.Argv[1]); ok {
			s.c.Play(script, p.ID)
			return nil, sandbox.Errorf("exec", sandbox.KindInternal, "chaos is over")
		}
	}
	return s.System.Start(p)
}

// Files implements agent.System.
func (s *system) Files(user string) (agent.Files, error) {
	f, err := s.System.Files(user)
	if err != nil {
		return nil, err
	}
	return &files{f, s.c}, nil
}

type files struct {
	agent.Files
	c *Conn
}

// play plays the script that path asks for and reports whether there was one.
func (f *files) play(at, path string) bool {
	name, ok := strings.CutPrefix(path, Dir)
	if strings.HasPrefix(path, guest.ResultPrefix) && forging.Load() {
		name, ok = "file-endless", true
	}
	if !ok {
		return false
	}
	s, ok := Find(at, name)
	if ok {
		f.c.Play(s, f.c.Last())
	}
	return ok
}

var errOver = sandbox.Errorf("file", sandbox.KindInternal, "chaos is over")

// Open implements agent.Files.
func (f *files) Open(path string) (agent.File, error) {
	if f.play(Read, path) {
		return nil, errOver
	}
	return f.Files.Open(path)
}

// Stat implements agent.Files. The scripts' files are there.
func (f *files) Stat(path string) (guest.FileInfo, error) {
	if name, ok := strings.CutPrefix(path, Dir); ok {
		mode := fs.FileMode(0o644)
		if _, ok := Find(List, name); ok {
			mode |= fs.ModeDir
		}
		return guest.FileInfo{Path: path, Size: 10, Mode: mode, ModTime: time.Unix(1e9, 0)}, nil
	}
	return f.Files.Stat(path)
}

// List implements agent.Files.
func (f *files) List(path string, depth, max int) ([]guest.FileInfo, bool, error) {
	if f.play(List, path) {
		return nil, false, errOver
	}
	return f.Files.List(path, depth, max)
}

// Create implements agent.Files.
func (f *files) Create(path string, o agent.CreateOptions) (agent.Writer, error) {
	if f.play(Write, path) {
		return nil, errOver
	}
	return f.Files.Create(path, o)
}

// nothing is a System without anything.
type nothing struct{}

var errNothing = sandbox.Errorf("chaos", sandbox.KindUnsupported, "there is nothing here")

// Start implements agent.System.
func (nothing) Start(agent.Program) (agent.Process, error) { return nil, errNothing }

// Files implements agent.System.
func (nothing) Dial(context.Context, int) (agent.Conn, error) { return nil, fs.ErrNotExist }
func (nothing) Files(string) (agent.Files, error)             { return nowhere{}, nil }

// Sample implements agent.System.
func (nothing) Sample() (agent.Sample, error) { return agent.Sample{}, nil }

// KillAll implements agent.System.
func (nothing) KillAll() error { return nil }

// KillLargest implements agent.System.
func (nothing) KillLargest([]agent.Process) (agent.Process, error) { return nil, nil }

// nowhere has no files.
type nowhere struct{}

// Open implements agent.Files.
func (nowhere) Open(string) (agent.File, error) { return nil, errNothing }

// Stat implements agent.Files.
func (nowhere) Stat(string) (guest.FileInfo, error) { return guest.FileInfo{}, errNothing }

// List implements agent.Files.
func (nowhere) List(string, int, int) ([]guest.FileInfo, bool, error) { return nil, false, errNothing }

// Watch implements agent.FileReader.
func (nowhere) Watch(string, bool, *guest.FileEvents) (io.Closer, error) { return nil, errNothing }

// Create implements agent.Files.
func (nowhere) Create(string, agent.CreateOptions) (agent.Writer, error) { return nil, errNothing }

// Mkdir implements agent.Files.
func (nowhere) Mkdir(string, fs.FileMode, bool) error { return errNothing }

// Move implements agent.Files.
func (nowhere) Move(string, string) error { return errNothing }

// Symlink implements agent.Files.
func (nowhere) Symlink(string, string) error { return errNothing }

// Remove implements agent.Files.
func (nowhere) Remove(string, bool, bool) error { return errNothing }

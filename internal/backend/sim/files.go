package sim

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/sandbox"
)

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
	return guest.FileInfo{Path: name, Size: s.size, Mode: s.mode, ModTime: s.mtime, UID: s.uid, GID: s.gid, Target: s.target, Attributes: s.attrs}
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

// Symlink implements agent.FileChanger.
func (f files) Symlink(target, name string) error {
	name = path.Clean(f.abs(name))
	err := f.fs.MkdirAll(f.c, path.Dir(name), 0o755)
	temp := path.Join(path.Dir(name), tempPrefix+f.fs.unique())
	if err == nil {
		err = f.fs.Symlink(f.c, target, temp)
	}
	if err == nil {
		if err = f.fs.Rename(f.c, temp, name); err != nil {
			_ = f.fs.Remove(f.c, temp, false) // it is ours and was just made
		}
	}
	return typed("symlink", err)
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
		w.temp = path.Join(path.Dir(name), tempPrefix+f.fs.unique())
		flags = oWrite | oCreate | oExcl
	}
	if w.h, err = f.fs.Open(f.c, w.temp, flags, perm); err != nil {
		return nil, typed("write", err)
	}
	if !o.Append {
		f.fs.mu.Lock()
		w.h.n.attrs = o.Attributes
		f.fs.mu.Unlock()
	}
	return w, nil
}

// tempPrefix is what the names of files being written begin with.
const tempPrefix = ".sim-"

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

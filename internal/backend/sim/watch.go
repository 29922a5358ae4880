package sim

import (
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// watch is a directory being watched, as inotify would.
type watch struct {
	fs        *memFS
	root      *node
	recursive bool
	out       *guest.FileEvents
}

// Watch implements agent.FileReader.
func (f files) Watch(name string, recursive bool, q *guest.FileEvents) (io.Closer, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.fs.walk(f.c, f.abs(name), true)
	switch {
	case err != nil:
	case n.kids == nil:
		err = syscall.ENOTDIR
	case !n.allows(f.c, 4):
		err = syscall.EACCES
	}
	if err != nil {
		return nil, typed("watch", pathErr("watch", name, err))
	}
	w := &watch{fs: f.fs, root: n, recursive: recursive, out: q}
	f.fs.watches = append(f.fs.watches, w)
	return w, nil
}

// Close implements io.Closer.
func (w *watch) Close() error {
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	w.fs.watches = slices.DeleteFunc(w.fs.watches, func(x *watch) bool { return x == w })
	return nil
}

// tell reports that something happened to name in dir. n is what it names, if
// that leaves its place. Preconditions: f.mu is held.
func (f *memFS) tell(kind string, dir *node, name string, n *node) {
	if strings.HasPrefix(name, tempPrefix) {
		return
	}
	for _, w := range f.watches {
		if n != nil && n == w.root {
			w.out.Put(guest.FileEvent{Type: kind})
			w.out.End(nil)
		}
		at := name
		for d := dir; ; d = d.parent {
			if d == w.root {
				w.out.Put(guest.FileEvent{Type: kind, Path: at})
				break
			}
			if !w.recursive || d == d.parent {
				break
			}
			at = d.nameIn(d.parent) + "/" + at
		}
	}
}

// nameIn is the name of directory n in its parent.
func (n *node) nameIn(parent *node) string {
	for name, k := range parent.kids {
		if k == n {
			return name
		}
	}
	return "?" // removed: nobody watches above it
}

// tellAt is tell about the entry that name leads to. Preconditions: f.mu is held.
func (f *memFS) tellAt(kind, name string) {
	if len(f.watches) == 0 {
		return
	}
	if dir, base, err := f.walkParent(rootCred, name); err == nil {
		f.tell(kind, dir, base, nil)
	}
}

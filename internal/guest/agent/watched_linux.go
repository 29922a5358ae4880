package agent

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// add watches the open directory fd. The path names what is open, whatever
// happened to its name; the dot makes every kernel follow it.
func (t *tree) add(fd int) (wd int32, err error) {
	cerr := t.notifier.Control(func(q uintptr) {
		n, e := unix.InotifyAddWatch(int(q), "/proc/thread-self/fd/"+itoa(fd)+"/.", interest)
		wd, err = int32(n), e
	})
	return wd, errors.Join(cerr, err)
}

// mark watches the open directory fd, which is name in parent. known says that it
// was watched before, met that this was seen in this round.
func (t *tree) mark(fd int, parent *watched, name string) (n *watched, known, met bool, err error) {
	wd, err := t.add(fd)
	if err != nil {
		return nil, false, false, err
	}
	if n = t.nodes[wd]; n != nil {
		if !t.place(n, parent, name) {
			return nil, true, false, errMoving
		}
		met, n.round = n.round == t.round, t.round
		return n, true, met, nil
	}
	if len(t.nodes) >= maxWatched {
		t.unmark(wd)
		return nil, false, false, errTooMany
	}
	n = &watched{wd: wd, round: t.round}
	t.nodes[n.wd] = n
	t.place(n, parent, name)
	return n, false, false, nil
}

// errMoving says that the picture does not fit what is there.
var errMoving = errors.New("the directory is on its way elsewhere")

func (t *tree) unmark(wd int32) {
	_ = t.notifier.Control(func(q uintptr) { _, _ = unix.InotifyRmWatch(int(q), uint32(wd)) }) // it may be gone
}

// place puts n where it is now. What it takes the place of is forgotten: an event
// of its own tells where that went. It fails for a place below n itself, which is
// seen when the events have yet to say how that came to be.
func (t *tree) place(n, parent *watched, name string) bool {
	if n.parent == parent && n.name == name {
		return true
	}
	if n == t.top {
		return false
	}
	for p := parent; p != nil; p = p.parent {
		if p == n {
			return false
		}
	}
	if old := n.parent; old != nil && old.kids[n.name] == n {
		delete(old.kids, n.name)
	}
	for i, r := range t.limbo {
		if r.n == n {
			t.limbo = append(t.limbo[:i:i], t.limbo[i+1:]...)
			break
		}
	}
	n.parent, n.name = parent, name
	if parent == nil {
		return true
	}
	if old := parent.kids[name]; old != nil && old != n {
		t.forget(old)
	}
	if parent.kids == nil {
		parent.kids = map[string]*watched{}
	}
	parent.kids[name] = n
	return true
}

// forget stops watching n and all below it.
func (t *tree) forget(n *watched) {
	for _, k := range n.kids {
		t.forget(k)
	}
	if n.parent != nil && n.parent.kids[n.name] == n {
		delete(n.parent.kids, n.name)
	}
	if t.nodes[n.wd] == n {
		delete(t.nodes, n.wd)
		t.unmark(n.wd)
	}
}

// scan watches what is below the open directory fd, and reports what is in
// directories that were not watched before; with report, that of fd too. Order matters: a directory is watched before it
// is read, so that what comes into it is in its events or in what is read.
// What the user may not read stays unwatched.
func (t *tree) scan(fd int, n *watched, level int, report bool) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(dup), "/proc/thread-self/fd/"+itoa(fd)) // the name is for file systems that tell no types
	defer d.Close()
	for {
		entries, err := d.ReadDir(1000)
		for _, e := range entries {
			if report {
				t.put(guest.EventCreate, n, e.Name())
			}
			if !e.IsDir() {
				continue
			}
			if err := t.descend(fd, n, e.Name(), level, t.begun); err != nil {
				return err
			}
		}
		if err == io.EOF || err == nil && len(entries) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// descend watches the directory name in the open directory fd, and what is below
// it, unless that was done in this round. With report, what it holds is reported if
// it was not watched before. That it is gone, or none, or not readable, is no error.
func (t *tree) descend(fd int, n *watched, name string, level int, report bool) error {
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return err
	case err != nil:
		return nil
	case level+1 >= maxDepth:
		_ = unix.Close(sub)
		return errTooMany
	}
	defer unix.Close(sub)
	var fsys unix.Statfs_t
	if unix.Fstatfs(sub, &fsys) == nil && pseudo(&fsys) {
		return nil
	}
	kid, known, met, err := t.mark(sub, n, name)
	switch {
	case err == errMoving:
		t.distrust()
		return nil
	case err != nil || met:
		return err
	}
	return t.scan(sub, kid, level+1, report && !known)
}

// enter looks what the directory name in n is now, and watches it. What it holds
// is reported as created, unless it was watched before.
func (t *tree) enter(n *watched, name string) {
	err := t.u.do(guest.OpWatch, func() error {
		root, err := t.reopen()
		if err != nil {
			return err
		}
		defer unix.Close(root)
		fd, level, err := open(root, n)
		if err != nil {
			t.distrust()
			return nil
		}
		defer unix.Close(fd)
		if err := t.same(fd, n); err != nil {
			t.distrust()
			return nil
		}
		return t.descend(fd, n, name, level, true)
	})
	if err != nil {
		t.out.Lose()
	}
}

// reopen opens the watched directory, and makes sure that it is still the one.
func (t *tree) reopen() (int, error) {
	fd, err := t.openRoot()
	if err != nil {
		return -1, err
	}
	if err = t.same(fd, t.top); err != nil {
		_ = unix.Close(fd)
	}
	return fd, err
}

// same makes sure that the open directory fd is n.
func (t *tree) same(fd int, n *watched) error {
	wd, err := t.add(fd)
	if err == nil && wd != n.wd {
		if t.nodes[wd] == nil {
			t.unmark(wd)
		}
		err = errMoving
	}
	return err
}

// open opens the directory of n, from the root, following no link.
func open(root int, n *watched) (fd, level int, err error) {
	if n.parent == nil {
		fd, err = unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
		return fd, 0, err
	}
	up, level, err := open(root, n.parent)
	if err != nil {
		return -1, 0, err
	}
	defer unix.Close(up)
	fd, err = unix.Openat(up, n.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	return fd, level + 1, err
}

// look looks at everything: the kernel has dropped events, or what they said could
// not be followed. Directories found only now are reported with what they hold.
func (t *tree) look() {
	t.stale = time.Time{}
	if !t.recursive {
		return
	}
	t.round++
	t.top.round = t.round
	err := t.u.do(guest.OpWatch, func() error {
		root, err := t.reopen()
		if err != nil {
			return err
		}
		defer unix.Close(root)
		return t.scan(root, t.top, 0, false)
	})
	if err != nil {
		t.out.Lose()
		return
	}
	for _, n := range t.nodes {
		if n.round != t.round && t.nodes[n.wd] == n {
			t.forget(n)
		}
	}
}

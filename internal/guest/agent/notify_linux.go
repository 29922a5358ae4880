package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of one watch.
const (
	maxWatched = 8192 // directories
	maxDepth   = 128  // levels of them
)

// interest is what a directory reports. Links are never watched: each directory
// is opened without following any, and the watch is put on what was opened.
const interest = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CREATE |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// pause is how long the second half of a rename may take to be read, and the
// silence that a look at everything waits for, for as long as staleWait.
const (
	pause     = 100 * time.Millisecond
	staleWait = time.Second
)

// tree is a directory being watched, with those below it if it is recursive. It
// is a picture of the directories, kept true by their events: each event that
// concerns a directory's name makes it look what that name is now. Where it cannot
// look because what is above has moved on, too, it looks at everything once there
// is a pause.
//
// One goroutine reads the kernel's queue and never waits for the host, so the
// queue stays short (gVisor's has no bound but the sandbox's memory).
type tree struct {
	u         *userFiles
	events    *os.File // inotify
	notifier  syscall.RawConn
	path      string // of the watched directory
	recursive bool
	out       *guest.FileEvents
	done      chan struct{}

	nodes map[int32]*watched // by watch descriptor
	top   *watched
	limbo []renamed
	ours  map[uint32]bool // cookies of the agent's own renames: was there a file before?
	begun bool            // what is found from now on is news
	round int             // of looks at everything
	stale time.Time       // since when the next one is due; zero: it is not
}

// watched is a watched directory.
type watched struct {
	wd     int32
	name   string
	parent *watched // nil: the root
	kids   map[string]*watched
	round  int // when it was last met
}

// renamed is a directory between the two halves of a rename.
type renamed struct {
	cookie uint32
	n      *watched
}

// Watch implements FileReader.
func (u *userFiles) Watch(p string, recursive bool, q *guest.FileEvents) (io.Closer, error) {
	p = u.path(p)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, sandbox.Errorf(string(guest.OpWatch), sandbox.KindCapacity, "%w", os.NewSyscallError("inotify_init1", err))
	}
	t := &tree{u: u, events: os.NewFile(uintptr(fd), "inotify"), path: p, recursive: recursive, out: q,
		done: make(chan struct{}), nodes: map[int32]*watched{}, ours: map[uint32]bool{}}
	if t.notifier, err = t.events.SyscallConn(); err == nil {
		err = u.do(guest.OpWatch, t.begin)
	}
	if err != nil {
		t.events.Close()
		return nil, err
	}
	t.begun = true
	go t.run()
	return t, nil
}

// begin watches the directory, and with recursive all below it.
func (t *tree) begin() error {
	fd, err := t.openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(fd, &fsys); err == nil && pseudo(&fsys) {
		return sandbox.Errorf(string(guest.OpWatch), sandbox.KindUnsupported, "changes in %s are not reported", t.path)
	}
	if t.top, _, _, err = t.mark(fd, nil, ""); err != nil {
		return &fs.PathError{Op: "watch", Path: t.path, Err: err}
	}
	if !t.recursive {
		return nil
	}
	return t.scan(fd, t.top, 0, false)
}

// openRoot opens what is at the path. It is not kept open: Linux tells of the end
// of a directory when nobody has it open.
func (t *tree) openRoot() (int, error) {
	fd, err := unix.Open(t.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "watch", Path: t.path, Err: err}
	}
	return fd, nil
}

// pseudo says whether a file system changes without telling.
func pseudo(st *unix.Statfs_t) bool {
	return int64(st.Type) == unix.PROC_SUPER_MAGIC || int64(st.Type) == unix.SYSFS_MAGIC
}

var errTooMany = sandbox.Errorf(string(guest.OpWatch), sandbox.KindTooLarge, "%w", guest.Because(guest.CauseTree,
	fmt.Errorf("the tree has more than %d directories, or %d levels", maxWatched, maxDepth)))

// Close implements io.Closer.
func (t *tree) Close() error {
	err := t.events.Close()
	<-t.done
	return err
}

// run reads events until the watch is closed or its directory is gone.
func (t *tree) run() {
	defer close(t.done)
	buf := make([]byte, 32<<10)
	for {
		var due time.Time
		if len(t.limbo) > 0 || !t.stale.IsZero() {
			due = time.Now().Add(pause)
		}
		_ = t.events.SetReadDeadline(due)
		n, err := t.events.Read(buf)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.out.End(nil)
			return
		}
		quiet, before := err != nil, append([]renamed(nil), t.limbo...)
		if !t.batch(buf[:max(n, 0)]) {
			t.out.End(nil)
			return
		}
		for _, r := range before { // they left
			for i := range t.limbo {
				if t.limbo[i] == r {
					t.limbo = append(t.limbo[:i:i], t.limbo[i+1:]...)
					t.forget(r.n)
					break
				}
			}
		}
		if !t.stale.IsZero() && (quiet || time.Since(t.stale) > staleWait) {
			t.look()
		}
	}
}

// distrust makes t look at everything soon.
func (t *tree) distrust() {
	if t.stale.IsZero() {
		t.stale = time.Now()
	}
}

// batch handles what one read returned, and says whether the watch goes on.
func (t *tree) batch(b []byte) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask, cookie := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:])
		size := int(binary.NativeEndian.Uint32(b[12:]))
		name := unix.ByteSliceToString(b[unix.SizeofInotifyEvent:min(len(b), unix.SizeofInotifyEvent+size)])
		b = b[min(len(b), unix.SizeofInotifyEvent+size):]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			t.out.Lose()
			t.distrust()
			continue
		}
		if n := t.nodes[wd]; n != nil && !t.event(n, mask, cookie, name) {
			return false
		}
	}
	return true
}

// event handles one event, and says whether the watch goes on.
func (t *tree) event(n *watched, mask, cookie uint32, name string) bool {
	dir := mask&unix.IN_ISDIR != 0 && t.recursive
	switch {
	case n == t.top && mask&(unix.IN_DELETE_SELF|unix.IN_UNMOUNT|unix.IN_IGNORED) != 0:
		t.put(guest.EventRemove, nil, "")
		return false
	case n == t.top && mask&unix.IN_MOVE_SELF != 0:
		t.put(guest.EventRename, nil, "")
		return false
	case mask&(unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
		t.forget(n)
	case name == "": // what a directory says of itself, the one above it says, too
	case t.own(n, mask, cookie, name):
	case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		t.put(guest.EventCreate, n, name)
		if dir {
			t.enter(n, name)
		}
	case mask&unix.IN_MOVED_FROM != 0:
		t.put(guest.EventRename, n, name)
		if kid := n.kids[name]; dir && kid != nil {
			delete(n.kids, name)
			t.limbo = append(t.limbo, renamed{cookie, kid})
		}
	case mask&unix.IN_DELETE != 0:
		t.put(guest.EventRemove, n, name)
	case mask&unix.IN_MODIFY != 0:
		t.put(guest.EventWrite, n, name)
	case mask&unix.IN_ATTRIB != 0:
		t.put(guest.EventChmod, n, name)
		if dir && n.kids[name] == nil { // perhaps it can be read now
			t.enter(n, name)
		}
	}
	return true
}

// own handles the renames by which the agent itself writes files: it shows them
// as what they stand for, and not its temporary files.
func (t *tree) own(n *watched, mask, cookie uint32, name string) bool {
	if existed, ours := t.u.temps.find(name); ours {
		if mask&unix.IN_MOVED_FROM != 0 && len(t.ours) < maxCalls {
			t.ours[cookie] = existed
		}
		return true
	}
	existed, ours := t.ours[cookie]
	if cookie == 0 || !ours || mask&unix.IN_MOVED_TO == 0 {
		return false
	}
	delete(t.ours, cookie)
	if !existed {
		t.put(guest.EventCreate, n, name)
	}
	t.put(guest.EventWrite, n, name)
	return true
}

// put reports an event about name in n.
func (t *tree) put(kind string, n *watched, name string) {
	for ; n != nil && n.parent != nil; n = n.parent {
		name = n.name + "/" + name
	}
	if len(name) > guest.MaxPath {
		t.out.Lose()
		return
	}
	t.out.Put(guest.FileEvent{Type: kind, Path: name})
}

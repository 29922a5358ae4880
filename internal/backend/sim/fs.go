package sim

import (
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// blockSize is the unit in which files use up the disk limit.
const blockSize = 4096

// cred is who a file operation is done for.
type cred struct{ uid, gid int }

var (
	rootCred = cred{0, 0}
	userCred = cred{1000, 1000}
)

// node is a file, directory or symbolic link. All fields are guarded by
// memFS.mu.
type node struct {
	mode     fs.FileMode
	uid, gid int
	mtime    time.Time
	data     []byte
	kids     map[string]*node // directories only
	target   string           // symbolic links only
	attrs    map[string]string
	parent   *node  // directories only; the root is its own
	scratch  bool   // writable although the root is read-only (/tmp, the home)
	special  string // devices: "null", "zero"
	base     bool   // of the synthetic root: not charged until it is changed
}

// memFS is an instance's file system: a synthetic base that is not charged,
// and a writable layer of a fixed size. It fails with the errors a kernel
// returns, wrapped in *fs.PathError.
type memFS struct {
	mu       sync.Mutex
	root     *node
	used     int64    // bytes in whole blocks
	limit    int64    // 0 is none
	readonly bool     // no writes outside of scratch trees
	serial   int      // guarded by mu
	watches  []*watch // guarded by mu
}

// node returns what name leads to, for set-up code.
func (f *memFS) node(name string) *node {
	n, err := f.walk(rootCred, name, true)
	must(err)
	return n
}

// walk resolves name from the root, following symbolic links in the middle
// and, if follow is set, at the end. ".." at the root stays there.
// Preconditions: f.mu is held, or nothing else knows f yet.
func (f *memFS) walk(c cred, name string, follow bool) (*node, error) {
	todo := strings.Split(name, "/")
	at := f.root
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		if at.kids == nil {
			return nil, syscall.ENOTDIR
		}
		if !at.allows(c, 1) {
			return nil, syscall.EACCES
		}
		switch part {
		case "", ".":
			continue
		case "..":
			at = at.parent
			continue
		}
		next, ok := at.kids[part]
		if !ok {
			return nil, syscall.ENOENT
		}
		if next.mode&fs.ModeSymlink != 0 && (follow || len(todo) > 0) {
			if links++; links > 40 {
				return nil, syscall.ELOOP
			}
			todo = append(strings.Split(next.target, "/"), todo...)
			if strings.HasPrefix(next.target, "/") {
				at = f.root
			}
			continue
		}
		at = next
	}
	return at, nil
}

// walkParent resolves the directory that holds name's last element.
// Preconditions: as walk.
func (f *memFS) walkParent(c cred, name string) (dir *node, base string, err error) {
	name = strings.TrimRight(name, "/")
	i := strings.LastIndexByte(name, '/')
	base = name[i+1:]
	if base == "" || base == "." || base == ".." {
		return nil, "", syscall.EINVAL
	}
	if len(base) > 255 {
		return nil, "", syscall.ENAMETOOLONG
	}
	dir, err = f.walk(c, name[:i+1], true)
	if err == nil && dir.kids == nil {
		err = syscall.ENOTDIR
	}
	return dir, base, err
}

// allows reports whether c has all of want (4 read, 2 write, 1 execute or
// search) on n.
func (n *node) allows(c cred, want fs.FileMode) bool {
	perm := n.mode.Perm()
	switch {
	case c.uid == 0:
		return true
	case c.uid == n.uid:
		perm >>= 6
	case c.gid == n.gid:
		perm >>= 3
	}
	return perm&want == want
}

// writable checks that entries of dir may be changed by c.
func (f *memFS) writable(c cred, dir *node) error {
	if f.readonly && !inScratch(dir) {
		return syscall.EROFS
	}
	if !dir.allows(c, 3) {
		return syscall.EACCES
	}
	return nil
}

func inScratch(dir *node) bool {
	for ; ; dir = dir.parent {
		if dir.scratch {
			return true
		}
		if dir == dir.parent {
			return false
		}
	}
}

// removable checks the sticky bit: in /tmp one removes one's own only.
func removable(c cred, dir, n *node) error {
	if dir.mode&fs.ModeSticky != 0 && c.uid != 0 && c.uid != n.uid && c.uid != dir.uid {
		return syscall.EPERM
	}
	return nil
}

func blocks(n int) int64 { return (int64(n) + blockSize - 1) / blockSize * blockSize }

// charge books bytes of the writable layer, or fails with ENOSPC.
// Preconditions: f.mu is held.
func (f *memFS) charge(delta int64) error {
	if f.limit > 0 && delta > 0 && f.used+delta > f.limit {
		return syscall.ENOSPC
	}
	f.used += delta
	return nil
}

// full reports whether the writable layer has no block left.
func (f *memFS) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.limit > 0 && f.used+blockSize > f.limit
}

// unique returns a name that was never returned before.
func (f *memFS) unique() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serial++
	return strconv.Itoa(f.serial)
}

// Used reports the bytes the writable layer holds.
func (f *memFS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

func pathErr(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Mkdir makes one directory.
func (f *memFS) Mkdir(c cred, name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pathErr("mkdir", name, f.mkdir(c, name, perm))
}

func (f *memFS) mkdir(c cred, name string, perm fs.FileMode) error {
	if strings.Trim(name, "/") == "" {
		return syscall.EEXIST
	}
	dir, base, err := f.walkParent(c, name)
	if err != nil {
		return err
	}
	if _, ok := dir.kids[base]; ok {
		return syscall.EEXIST
	}
	if err := f.writable(c, dir); err != nil {
		return err
	}
	if err := f.charge(blockSize); err != nil {
		return err
	}
	dir.kids[base] = &node{mode: fs.ModeDir | perm.Perm(), uid: c.uid, gid: c.gid,
		mtime: time.Now(), kids: map[string]*node{}, parent: dir}
	dir.mtime = time.Now()
	f.tell(guest.EventCreate, dir, base, nil)
	return nil
}

// MkdirAll makes name and its missing parents. A directory that exists is
// left as it is.
func (f *memFS) MkdirAll(c cred, name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := ""
	for _, part := range strings.Split(path.Clean("/"+name), "/") {
		if part == "" {
			continue
		}
		at += "/" + part
		n, err := f.walk(c, at, true)
		switch {
		case err == syscall.ENOENT:
			err = f.mkdir(c, at, perm)
		case err == nil && n.kids == nil:
			err = syscall.ENOTDIR
		}
		if err != nil {
			return pathErr("mkdir", at, err)
		}
	}
	return nil
}

// Symlink makes name a symbolic link to target.
func (f *memFS) Symlink(c cred, target, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, base, err := f.walkParent(c, name)
	if err == nil && dir.kids[base] != nil {
		err = syscall.EEXIST
	}
	if err == nil {
		err = f.writable(c, dir)
	}
	if err != nil {
		return pathErr("symlink", name, err)
	}
	dir.kids[base] = &node{mode: fs.ModeSymlink | 0o777, uid: c.uid, gid: c.gid, mtime: time.Now(), target: target}
	f.tell(guest.EventCreate, dir, base, nil)
	return nil
}

// Remove deletes name; a directory that is not empty only with all.
func (f *memFS) Remove(c cred, name string, all bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, base, err := f.walkParent(c, name)
	if err != nil {
		return pathErr("remove", name, err)
	}
	n, ok := dir.kids[base]
	switch {
	case !ok:
		err = syscall.ENOENT
	case n.kids != nil && len(n.kids) > 0 && !all:
		err = syscall.ENOTEMPTY
	default:
		if err = f.writable(c, dir); err == nil {
			err = removable(c, dir, n)
		}
	}
	if err != nil {
		return pathErr("remove", name, err)
	}
	f.used -= n.size()
	delete(dir.kids, base)
	dir.mtime = time.Now()
	f.tell(guest.EventRemove, dir, base, n)
	return nil
}

// markBase makes n and everything under it part of the root.
func (n *node) markBase() {
	n.base = true
	for _, k := range n.kids {
		k.markBase()
	}
}

// size is what n and everything under it charges.
func (n *node) size() int64 {
	total := int64(0)
	switch {
	case n.base:
	case n.kids != nil:
		total = blockSize
	default:
		total = blocks(len(n.data))
	}
	for _, k := range n.kids {
		total += k.size()
	}
	return total
}

// Rename moves from to to, replacing a file there.
func (f *memFS) Rename(c cred, from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pathErr("rename", from, f.rename(c, from, to))
}

func (f *memFS) rename(c cred, from, to string) error {
	fromDir, fromBase, err := f.walkParent(c, from)
	if err != nil {
		return err
	}
	n, ok := fromDir.kids[fromBase]
	if !ok {
		return syscall.ENOENT
	}
	toDir, toBase, err := f.walkParent(c, to)
	if err != nil {
		return err
	}
	for _, dir := range []*node{fromDir, toDir} {
		if err := f.writable(c, dir); err != nil {
			return err
		}
	}
	if err := removable(c, fromDir, n); err != nil {
		return err
	}
	if n.kids != nil {
		for d := toDir; ; d = d.parent { // a directory cannot move into itself
			if d == n {
				return syscall.EINVAL
			}
			if d == d.parent {
				break
			}
		}
	}
	old, replaced := toDir.kids[toBase]
	if replaced && old != n {
		switch {
		case old.kids != nil && n.kids == nil:
			return syscall.EISDIR
		case old.kids == nil && n.kids != nil:
			return syscall.ENOTDIR
		case len(old.kids) > 0:
			return syscall.ENOTEMPTY
		}
		f.used -= old.size()
	}
	delete(fromDir.kids, fromBase)
	toDir.kids[toBase] = n
	f.tell(guest.EventRename, fromDir, fromBase, n)
	if n.kids != nil {
		n.parent = toDir
	}
	written := strings.HasPrefix(fromBase, tempPrefix)
	if !replaced || !written {
		f.tell(guest.EventCreate, toDir, toBase, nil)
	}
	if written {
		f.tell(guest.EventWrite, toDir, toBase, nil)
	}
	return nil
}

// stat is a copy of a node's attributes.
type stat struct {
	name     string
	mode     fs.FileMode
	size     int64
	uid, gid int
	mtime    time.Time
	target   string
	attrs    map[string]string
}

func (n *node) stat(name string) stat {
	return stat{name: name, mode: n.mode, size: int64(len(n.data)), uid: n.uid, gid: n.gid, mtime: n.mtime, target: n.target, attrs: n.attrs}
}

// Stat describes name; a symbolic link itself unless follow is set.
func (f *memFS) Stat(c cred, name string, follow bool) (stat, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.walk(c, name, follow)
	if err != nil {
		return stat{}, pathErr("stat", name, err)
	}
	return n.stat(path.Base(path.Clean("/" + name))), nil
}

// List describes the entries of directory name, sorted by name.
func (f *memFS) List(c cred, name string) ([]stat, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.walk(c, name, true)
	switch {
	case err != nil:
	case n.kids == nil:
		err = syscall.ENOTDIR
	case !n.allows(c, 4):
		err = syscall.EACCES
	}
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	out := make([]stat, 0, len(n.kids))
	for k, kid := range n.kids {
		out = append(out, kid.stat(k))
	}
	slices.SortFunc(out, func(a, b stat) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// Chmod sets name's permission bits; only its owner and root may.
func (f *memFS) Chmod(c cred, name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.walk(c, name, true)
	if err == nil && c.uid != 0 && c.uid != n.uid {
		err = syscall.EPERM
	}
	if err != nil {
		return pathErr("chmod", name, err)
	}
	n.mode = n.mode&^fs.ModePerm | perm.Perm()
	f.tellAt(guest.EventChmod, name)
	return nil
}

// ReadFile returns a copy of name's content.
func (f *memFS) ReadFile(c cred, name string) ([]byte, error) {
	h, err := f.Open(c, name, oRead, 0)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(h)
}

// WriteFile replaces name's content.
func (f *memFS) WriteFile(c cred, name string, data []byte, perm fs.FileMode) error {
	h, err := f.Open(c, name, oWrite|oCreate|oTrunc, perm)
	if err != nil {
		return err
	}
	_, err = h.Write(data)
	return err
}

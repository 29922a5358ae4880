package vmimage

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Tree is what a root file system is made of.
type Tree struct {
	// Dir is the root; whatever is at the target of a mount gives way to it.
	Dir    string
	Mounts []sandbox.Mount
	// Owner says who owns the file at a path of the image, given who owns it on
	// the host. Nil keeps it.
	Owner func(path string, uid, gid uint32) (uint32, uint32)
	// MaxBytes bounds the content of all files; 0 means no bound.
	MaxBytes int64
}

// kinds of directory entries, as EROFS numbers them.
const (
	kindFile    = 1
	kindDir     = 2
	kindSymlink = 7
)

// node is one inode of the image.
type node struct {
	kind     uint8
	mode     uint16 // permissions and set-id bits, without the type
	uid, gid uint32
	mtime    int64
	nsec     uint32
	links    uint32
	size     int64
	target   string  // of a symbolic link
	source   string  // of a file: where its content is
	names    []entry // of a directory, sorted, with . and ..
	parent   *node

	number uint32 // from 1, in order
	at     int64  // offset below the metadata's beginning
	block  uint32 // of what does not lie behind the inode
}

type entry struct {
	name string
	to   *node
}

// collector walks directories into nodes.
type collector struct {
	t       Tree
	all     []*node // in order of numbers
	linked  map[inode]*node
	content int64
}

// inode identifies a file on the host.
type inode struct{ dev, ino uint64 }

// collect reads the directories. Sockets, FIFOs and devices are left out: a
// root file system has none that could work.
func collect(t Tree) (*collector, error) {
	c := &collector{t: t, linked: map[inode]*node{}}
	mounts := map[string]string{}
	for _, m := range t.Mounts {
		mounts[filepath.Clean(m.Target)] = m.Source
	}
	root, err := c.directory(t.Dir, "/", nil, mounts)
	if err != nil {
		return nil, err
	}
	root.parent = root
	return c, nil
}

// directory reads the directory src, which is at path in the image.
func (c *collector) directory(src, path string, parent *node, mounts map[string]string) (*node, error) {
	fi, err := os.Lstat(src)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, &fs.PathError{Op: "image", Path: src, Err: fmt.Errorf("not a directory")}
	}
	n := c.add(path, fi)
	n.kind, n.parent, n.links = kindDir, parent, 2
	if parent == nil {
		n.parent = n
	}
	list, err := os.ReadDir(src) // sorted
	if err != nil {
		return nil, err
	}
	n.names = append(n.names, entry{".", n}, entry{"..", n.parent})
	for _, e := range list {
		at := filepath.Join(path, e.Name())
		from := filepath.Join(src, e.Name())
		if m, ok := mounts[at]; ok {
			from = m
		}
		child, err := c.child(from, at, n, mounts)
		if err != nil {
			return nil, err
		}
		if child == nil {
			continue
		}
		if child.kind == kindDir {
			n.links++
		}
		n.names = append(n.names, entry{e.Name(), child})
	}
	slices.SortFunc(n.names, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	n.size = directorySize(n.names)
	return n, nil
}

func (c *collector) child(src, path string, parent *node, mounts map[string]string) (*node, error) {
	fi, err := os.Lstat(src)
	if err != nil {
		return nil, err
	}
	switch {
	case fi.IsDir():
		return c.directory(src, path, parent, mounts)
	case fi.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(src)
		if err != nil {
			return nil, err
		}
		n := c.add(path, fi)
		n.kind, n.target, n.size, n.mode = kindSymlink, target, int64(len(target)), 0o777
		return n, nil
	case !fi.Mode().IsRegular():
		return nil, nil
	}
	id, links := identity(fi)
	if n := c.linked[id]; n != nil && links > 1 {
		n.links++
		return n, nil
	}
	n := c.add(path, fi)
	n.kind, n.source, n.size = kindFile, src, fi.Size()
	c.linked[id] = n
	if c.content += fi.Size(); c.t.MaxBytes > 0 && c.content > c.t.MaxBytes {
		return nil, sandbox.Errorf("image", sandbox.KindTooLarge, "the root file system has more than %s of files", sandbox.FormatSize(c.t.MaxBytes)).
			WithHint("build a smaller template: firebreak template build python")
	}
	return n, nil
}

func (c *collector) add(path string, fi fs.FileInfo) *node {
	n := &node{links: 1, number: uint32(len(c.all) + 1), mtime: fi.ModTime().Unix(), nsec: uint32(fi.ModTime().Nanosecond())}
	n.mode = uint16(fi.Mode().Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint16
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if fi.Mode()&b.mode != 0 {
			n.mode |= b.bit
		}
	}
	n.uid, n.gid = owner(fi)
	if c.t.Owner != nil {
		n.uid, n.gid = c.t.Owner(path, n.uid, n.gid)
	}
	c.all = append(c.all, n)
	return n
}

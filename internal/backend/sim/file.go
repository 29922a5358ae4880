package sim

import (
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// How a file is opened.
const (
	oRead = 1 << iota
	oWrite
	oCreate
	oTrunc
	oAppend
	oExcl
)

// file is an open file. It is not safe for concurrent use by itself; the node
// behind it is.
type file struct {
	fs    *memFS
	n     *node
	name  string
	flags int
	off   int64
}

// Open opens name, making it first with oCreate.
func (f *memFS) Open(c cred, name string, flags int, perm fs.FileMode) (*file, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.open(c, name, flags, perm)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	return &file{fs: f, n: n, name: name, flags: flags}, nil
}

func (f *memFS) open(c cred, name string, flags int, perm fs.FileMode) (*node, error) {
	n, err := f.walk(c, name, true)
	switch {
	case err == syscall.ENOENT && flags&oCreate != 0:
		return f.create(c, name, perm)
	case err != nil:
		return nil, err
	case flags&(oCreate|oExcl) == oCreate|oExcl:
		return nil, syscall.EEXIST
	case n.kids != nil && flags&oWrite != 0:
		return nil, syscall.EISDIR
	case flags&oRead != 0 && !n.allows(c, 4), flags&oWrite != 0 && !n.allows(c, 2):
		return nil, syscall.EACCES
	}
	if flags&oWrite != 0 && n.special == "" && f.readonly {
		if dir, _, err := f.walkParent(c, name); err != nil || !inScratch(dir) {
			return nil, syscall.EROFS
		}
	}
	if flags&oTrunc != 0 && n.special == "" {
		f.used -= n.size()
		n.data, n.mtime, n.base = nil, time.Now(), false
		f.tellAt(guest.EventWrite, name)
	}
	return n, nil
}

func (f *memFS) create(c cred, name string, perm fs.FileMode) (*node, error) {
	dir, base, err := f.walkParent(c, name)
	if err != nil {
		return nil, err
	}
	if _, dangling := dir.kids[base]; dangling {
		return nil, syscall.ENOENT // a link to nowhere is not written through
	}
	if err := f.writable(c, dir); err != nil {
		return nil, err
	}
	n := &node{mode: perm.Perm(), uid: c.uid, gid: c.gid, mtime: time.Now()}
	dir.kids[base] = n
	dir.mtime = n.mtime
	f.tell(guest.EventCreate, dir, base, nil)
	return n, nil
}

// Read implements io.Reader.
func (h *file) Read(p []byte) (int, error) {
	n, err := h.ReadAt(p, h.off)
	h.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	switch {
	case h.flags&oRead == 0:
		return 0, pathErr("read", h.name, syscall.EBADF)
	case h.n.kids != nil:
		return 0, pathErr("read", h.name, syscall.EISDIR)
	case h.n.special == "zero":
		clear(p)
		return len(p), nil
	case off < 0:
		return 0, pathErr("read", h.name, syscall.EINVAL)
	case off >= int64(len(h.n.data)):
		return 0, io.EOF
	}
	n := copy(p, h.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Write implements io.Writer. Like a kernel's it may write less than all of p
// before the disk is full.
func (h *file) Write(p []byte) (int, error) {
	if h.flags&oAppend != 0 {
		h.fs.mu.Lock()
		h.off = int64(len(h.n.data))
		h.fs.mu.Unlock()
	}
	n, err := h.WriteAt(p, h.off)
	h.off += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt.
func (h *file) WriteAt(p []byte, off int64) (int, error) {
	f := h.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case h.flags&oWrite == 0:
		return 0, pathErr("write", h.name, syscall.EBADF)
	case h.n.special != "":
		return len(p), nil
	case off < 0 || off > 1<<40:
		return 0, pathErr("write", h.name, syscall.EINVAL)
	}
	f.tellAt(guest.EventWrite, h.name)
	if h.n.base { // copied up whole, as an overlay does
		if err := f.charge(blocks(len(h.n.data))); err != nil {
			return 0, pathErr("write", h.name, err)
		}
		h.n.base = false
	}
	end, old := off+int64(len(p)), int64(len(h.n.data))
	if end > old {
		want := blocks(int(end)) - blocks(int(old))
		if err := f.charge(want); err != nil {
			// Fill what is left, then say so.
			room := (f.limit-f.used)/blockSize*blockSize + blocks(int(old)) - off
			if room <= 0 {
				return 0, pathErr("write", h.name, err)
			}
			p, end = p[:room], off+room
			if end > old {
				f.used += blocks(int(end)) - blocks(int(old))
				h.n.grow(end)
			}
			n := copy(h.n.data[off:], p)
			return n, pathErr("write", h.name, err)
		}
		h.n.grow(end)
	}
	h.n.mtime = time.Now()
	return copy(h.n.data[off:], p), nil
}

// grow lengthens the content to size with zeroes, amortised.
func (n *node) grow(size int64) {
	if int64(cap(n.data)) >= size {
		old := len(n.data)
		n.data = n.data[:size]
		clear(n.data[old:])
		return
	}
	data := make([]byte, size, max(size, int64(cap(n.data))*2))
	copy(data, n.data)
	n.data = data
}

// Size is the file's present length.
func (h *file) Size() int64 {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return int64(len(h.n.data))
}

// Close implements io.Closer.
func (h *file) Close() error { return nil }

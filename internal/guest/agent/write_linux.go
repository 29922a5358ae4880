package agent

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

var errEOF = io.EOF

func itoa(i int) string { return strconv.Itoa(i) }

func setGroups(groups []uint32) error {
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return e
	}
	return nil
}

// Create implements FileChanger. A new content is written beside path and
// renamed over it by Commit; a symbolic link at path is followed first.
func (u *userFiles) Create(p string, o CreateOptions) (Writer, error) {
	p = u.path(p)
	w := &fileWriter{u: u, path: p, attributes: o.Attributes}
	existed := false
	err := u.do(guest.OpWrite, func() error {
		if o.Parents {
			if err := makeAll(path.Dir(p), 0o755); err != nil {
				return err
			}
		}
		perm := o.Perm
		st, err := os.Stat(p)
		switch {
		case err == nil && !st.Mode().IsRegular():
			return notRegular(guest.OpWrite, p, modeOf(st))
		case err == nil:
			existed = true
			if w.path, err = filepath.EvalSymlinks(p); err != nil {
				return err
			}
			if perm == 0 {
				perm = st.Mode().Perm()
			}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if perm == 0 {
			perm = 0o644
		}
		return w.open(perm, o, existed)
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

func modeOf(st fs.FileInfo) uint32 {
	if st.IsDir() {
		return unix.S_IFDIR
	}
	return unix.S_IFCHR // anything else: not regular
}

// fileWriter implements Writer.
type fileWriter struct {
	u    *userFiles
	fd   int
	path string
	temp string // "": appending in place

	attributes map[string]string
}

// open opens the file to write to. existed says that it takes the place of one.
func (w *fileWriter) open(perm fs.FileMode, o CreateOptions, existed bool) (err error) {
	if o.Append {
		w.fd, _, err = openRegular(guest.OpWrite, w.path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT, uint32(perm))
		return err
	}
	w.temp = path.Join(path.Dir(w.path), randomName(path.Base(w.path)))
	w.u.temps.add(path.Base(w.temp), existed)
	w.fd, _, err = openRegular(guest.OpWrite, w.temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return &fs.PathError{Op: pe.Op, Path: w.path, Err: pe.Err} // the caller knows no other name
	}
	if err != nil {
		return err
	}
	if err = unix.Fchmod(w.fd, uint32(perm)); err == nil { // the umask does not apply
		err = setAttributes(w.fd, o.Attributes)
	}
	if err != nil {
		_ = unix.Close(w.fd)
		_ = unix.Unlink(w.temp)
	}
	return err
}

func (w *fileWriter) Write(b []byte) (int, error) {
	total := 0
	for total < len(b) {
		n, err := unix.Write(w.fd, b[total:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return total, fileError(guest.OpWrite, &fs.PathError{Op: "write", Path: w.path, Err: err})
		}
		total += n
	}
	return total, nil
}

// Commit implements Writer.
func (w *fileWriter) Commit() (guest.FileInfo, error) {
	var st unix.Stat_t
	err := unix.Fstat(w.fd, &st)
	if cerr := unix.Close(w.fd); err == nil {
		err = cerr
	}
	if err == nil && w.temp != "" {
		err = w.u.do(guest.OpWrite, func() error { return os.Rename(w.temp, w.path) })
	}
	if err != nil {
		w.unlink()
		return guest.FileInfo{}, fileError(guest.OpWrite, err)
	}
	info := infoOf(w.path, &st)
	info.Attributes = w.attributes
	return info, nil
}

// Abort implements Writer.
func (w *fileWriter) Abort() {
	_ = unix.Close(w.fd)
	w.unlink()
}

func (w *fileWriter) unlink() {
	if w.temp != "" {
		_ = w.u.do(guest.OpWrite, func() error { return unix.Unlink(w.temp) }) // it may be gone
	}
}

// temps are the latest names of temporary files: whoever watches a directory
// does not see them.
type temps struct {
	mu      sync.Mutex
	names   [256]string // guarded by mu; four times what can be written at once
	existed [256]bool   // guarded by mu; it takes the place of a file
	next    int         // guarded by mu
}

func (t *temps) add(name string, existed bool) {
	t.mu.Lock()
	t.names[t.next], t.existed[t.next] = name, existed
	t.next = (t.next + 1) % len(t.names)
	t.mu.Unlock()
}

func (t *temps) find(name string) (existed, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, n := range t.names {
		if n == name {
			return t.existed[i], true
		}
	}
	return false, false
}

// moveFile moves a regular file to another file system.
func moveFile(from, to string, temps *temps) error {
	st, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return &os.LinkError{Op: "move", Old: from, New: to, Err: unix.EXDEV}
	}
	fd, _, err := openRegular(guest.OpMove, from, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), from)
	defer src.Close()
	w := &fileWriter{u: &userFiles{temps: temps}, path: to} // on this thread the rights are the user's already
	w.attributes = attributes(from)
	_, err = os.Lstat(to)
	if err := w.open(st.Mode().Perm(), CreateOptions{Attributes: w.attributes}, err == nil); err != nil {
		return err
	}
	if _, err := io.Copy(w, src); err != nil {
		w.Abort()
		return err
	}
	if _, err := w.Commit(); err != nil {
		return err
	}
	return os.Remove(from)
}

package agent

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// filer makes Files that act as a user.
//
// An operation runs on an OS thread whose effective ids are the user's for its
// duration; the kernel then decides as it does for the user's own programs,
// and drops the effective capabilities. The real uid stays root's, so that
// user code may neither signal nor trace the thread. (setfsuid would be
// lighter, gVisor does not have it; a helper process would cost its memory in
// every idle sandbox.)
type filer struct {
	users *users
	temps temps
}

func (f *filer) as(name string) (Files, error) {
	a, err := f.users.lookup(name)
	if err != nil {
		return nil, err
	}
	return &userFiles{a, &f.temps}, nil
}

// userFiles implements Files.
type userFiles struct {
	a     account
	temps *temps
}

// do runs f with the user's rights. op is for the error.
func (u *userFiles) do(op guest.Op, f func() error) error {
	if u.a.uid == 0 {
		return fileError(op, f())
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := assume(u.a)
		if err == nil {
			err = f()
		}
		result <- err
		if resume() == nil {
			runtime.UnlockOSThread() // else the thread ends here, with its ids
		}
	}()
	return fileError(op, <-result)
}

// assume and resume change this thread's ids only: raw system calls, where
// package syscall would change those of every thread.
func assume(a account) error {
	groups := append([]uint32{uint32(a.gid)}, a.groups...)
	if err := setGroups(groups); err != nil {
		return err
	}
	if err := setIDs(unix.SYS_SETRESGID, a.gid); err != nil {
		return err
	}
	return setIDs(unix.SYS_SETRESUID, a.uid)
}

func resume() error {
	if err := setIDs(unix.SYS_SETRESUID, 0); err != nil {
		return err
	}
	if err := setIDs(unix.SYS_SETRESGID, 0); err != nil {
		return err
	}
	return setGroups([]uint32{0})
}

// setIDs sets the effective id only.
func setIDs(call uintptr, id int) error {
	if _, _, e := unix.RawSyscall(call, ^uintptr(0), uintptr(id), ^uintptr(0)); e != 0 {
		return e
	}
	return nil
}

// fileErrors are what the kernel says about files and KindOf does not know, or
// knows as something else: a directory that is not empty is no name that is taken.
var fileErrors = []struct {
	errno unix.Errno
	kind  sandbox.Kind
	cause guest.Cause
}{
	{unix.EROFS, sandbox.KindDenied, guest.CauseReadOnly},
	{unix.EFBIG, sandbox.KindTooLarge, guest.CauseSize},
	{unix.EBUSY, sandbox.KindConflict, guest.CauseBusy},
	{unix.ETXTBSY, sandbox.KindConflict, guest.CauseBusy},
	{unix.ENOTEMPTY, sandbox.KindConflict, guest.CauseNotEmpty},
	{unix.EINVAL, sandbox.KindInvalid, guest.CauseArgument},
	{unix.ENAMETOOLONG, sandbox.KindInvalid, guest.CauseName},
	{unix.ELOOP, sandbox.KindInvalid, guest.CauseLinks},
	{unix.EXDEV, sandbox.KindInvalid, guest.CauseDevices},
	{unix.ENXIO, sandbox.KindInvalid, guest.CauseSpecial},
	{unix.ENODEV, sandbox.KindInvalid, guest.CauseSpecial},
	{unix.EOPNOTSUPP, sandbox.KindInvalid, guest.CauseArgument},
}

// fileError types what the kernel said.
func fileError(op guest.Op, err error) error {
	var typed *sandbox.Error
	if err == nil || errors.As(err, &typed) {
		return err
	}
	for _, e := range fileErrors {
		if errors.Is(err, e.errno) {
			return sandbox.Errorf(string(op), e.kind, "%w", guest.Because(e.cause, err))
		}
	}
	return sandbox.Errorf(string(op), sandbox.KindOf(err), "%w", err)
}

func (u *userFiles) path(p string) string { return absolute(u.a, p) }

// notRegular types the use of something that is no regular file.
func notRegular(op guest.Op, p string, mode uint32) error {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return sandbox.Errorf(string(op), sandbox.KindIsDirectory, "%s is a directory", p)
	}
	return sandbox.Errorf(string(op), sandbox.KindInvalid, "%w", guest.Because(guest.CauseSpecial, fmt.Errorf("%s is not a regular file", p)))
}

// openRegular opens a regular file without ever waiting, as a FIFO would make
// it, and without reaching into the agent through /proc/self.
func openRegular(op guest.Op, p string, flags int, perm uint32) (int, *unix.Stat_t, error) {
	const flagsAlways = unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := unix.Open(p, flags|flagsAlways, perm)
	if errors.Is(err, unix.ENXIO) { // a socket, or a FIFO that nobody reads
		return -1, nil, notRegular(op, p, 0)
	}
	if err != nil {
		return -1, nil, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	var st unix.Stat_t
	var fsys unix.Statfs_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = notRegular(op, p, st.Mode)
	}
	if err == nil && unix.Fstatfs(fd, &fsys) == nil && int64(fsys.Type) == unix.PROC_SUPER_MAGIC {
		if real, rerr := os.Readlink("/proc/thread-self/fd/" + itoa(fd)); rerr != nil || real == "/proc/1" || strings.HasPrefix(real, "/proc/1/") {
			err = sandbox.Errorf(string(op), sandbox.KindDenied, "%s belongs to the agent", p)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, nil, err
	}
	return fd, &st, nil
}

// Open implements FileReader.
func (u *userFiles) Open(p string) (File, error) {
	p = u.path(p)
	var f *openFile
	err := u.do(guest.OpRead, func() error {
		fd, st, err := openRegular(guest.OpRead, p, unix.O_RDONLY, 0)
		if err == nil {
			f = &openFile{fd: fd, info: infoOf(p, st)}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openFile implements File.
type openFile struct {
	fd   int
	info guest.FileInfo
}

func (f *openFile) Info() guest.FileInfo { return f.info }
func (f *openFile) Close() error         { return unix.Close(f.fd) }

func (f *openFile) ReadAt(b []byte, off int64) (int, error) {
	total := 0
	for total < len(b) {
		n, err := unix.Pread(f.fd, b[total:], off+int64(total))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return total, fileError(guest.OpRead, err)
		}
		if n == 0 {
			return total, errEOF
		}
		total += n
	}
	return total, nil
}

// Stat implements FileReader.
func (u *userFiles) Stat(p string) (guest.FileInfo, error) {
	p = u.path(p)
	var info guest.FileInfo
	err := u.do(guest.OpStat, func() (err error) { info, err = lstat(p, p); return err })
	return info, err
}

// lstat describes what is at p under the name shown.
func lstat(p, shown string) (guest.FileInfo, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return guest.FileInfo{}, &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	info := infoOf(shown, &st)
	switch info.Mode.Type() {
	case fs.ModeSymlink:
		info.Target, _ = os.Readlink(p) // it may just have gone
	case 0, fs.ModeDir:
		info.Attributes = attributes(p)
	}
	return info, nil
}

func infoOf(p string, st *unix.Stat_t) guest.FileInfo {
	mode := fs.FileMode(st.Mode & 0o777)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	}
	for bit, m := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if st.Mode&bit != 0 {
			mode |= m
		}
	}
	return guest.FileInfo{Path: p, Size: st.Size, Mode: mode, UID: int(st.Uid), GID: int(st.Gid),
		ModTime: time.Unix(int64(st.Mtim.Sec), int64(st.Mtim.Nsec)).UTC()}
}

// maxNames bounds what listing one directory may take in memory.
const maxNames = 200_000

// List implements FileReader.
func (u *userFiles) List(p string, depth, max int) (entries []guest.FileInfo, more bool, err error) {
	p = u.path(p)
	err = u.do(guest.OpList, func() error {
		names, cut, err := readNames(p)
		if err != nil {
			return err
		}
		more = cut
		l := lister{max: max}
		l.walk(p, "", names, depth)
		entries, more = l.entries, more || l.more
		return nil
	})
	return entries, more, err
}

type lister struct {
	entries []guest.FileInfo
	max     int
	more    bool
}

// walk lists the names of the directory p, whose path below the root of the
// listing is rel. Directories that cannot be read are listed as empty.
func (l *lister) walk(p, rel string, names []string, depth int) {
	for _, n := range names {
		if len(l.entries) >= l.max {
			l.more = true
			return
		}
		info, err := lstat(p+"/"+n, path.Join(rel, n))
		if err != nil {
			continue // gone meanwhile
		}
		l.entries = append(l.entries, info)
		if !info.IsDir() || depth <= 1 {
			continue
		}
		if sub, cut, err := readNames(p + "/" + n); err == nil {
			l.more = l.more || cut
			l.walk(p+"/"+n, info.Path, sub, depth-1)
		}
	}
}

// readNames returns the sorted names in a directory; cut says that there were
// too many.
func readNames(p string) (names []string, cut bool, err error) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	d := os.NewFile(uintptr(fd), p)
	defer d.Close()
	names, err = d.Readdirnames(maxNames)
	if err != nil && !errors.Is(err, errEOF) {
		return nil, false, err
	}
	sort.Strings(names)
	return names, len(names) == maxNames, nil
}

// Mkdir implements FileChanger.
func (u *userFiles) Mkdir(p string, perm fs.FileMode, parents bool) error {
	p = u.path(p)
	if perm == 0 {
		perm = 0o755
	}
	return u.do(guest.OpMkdir, func() error {
		if parents {
			return makeAll(p, perm)
		}
		return os.Mkdir(p, perm)
	})
}

// makeAll makes a directory and what is missing above it. A link in a circle is in
// the way as such, not as a name that is taken.
func makeAll(p string, perm fs.FileMode) error {
	err := os.MkdirAll(p, perm)
	var at *fs.PathError
	if errors.Is(err, fs.ErrExist) && errors.As(err, &at) {
		if _, serr := os.Stat(at.Path); errors.Is(serr, unix.ELOOP) {
			return serr
		}
	}
	return err
}

// Symlink implements FileChanger. It is made beside path and renamed over it.
func (u *userFiles) Symlink(target, p string) error {
	p = u.path(p)
	return u.do(guest.OpSymlink, func() error {
		if err := makeAll(path.Dir(p), 0o755); err != nil {
			return err
		}
		_, err := os.Lstat(p)
		temp := path.Join(path.Dir(p), randomName(path.Base(p)))
		u.temps.add(path.Base(temp), err == nil)
		if err := os.Symlink(target, temp); err != nil {
			return err
		}
		if err := os.Rename(temp, p); err != nil {
			_ = os.Remove(temp)
			return err
		}
		return nil
	})
}

// Move implements FileChanger. Between file systems it copies a regular file;
// a directory cannot be moved there.
func (u *userFiles) Move(from, to string) error {
	from, to = u.path(from), u.path(to)
	return u.do(guest.OpMove, func() error {
		err := os.Rename(from, to)
		if errors.Is(err, fs.ErrNotExist) { // gVisor says so of a name that is too long, too
			if _, serr := os.Lstat(from); serr != nil {
				return serr
			}
		}
		if !errors.Is(err, unix.EXDEV) {
			return err
		}
		return moveFile(from, to, u.temps)
	})
}

// Remove implements FileChanger.
func (u *userFiles) Remove(p string, tree, force bool) error {
	p = u.path(p)
	return u.do(guest.OpRemove, func() error {
		_, err := os.Lstat(p)
		switch {
		case err != nil && force && errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case tree:
			return os.RemoveAll(p) // never follows symbolic links
		}
		return os.Remove(p)
	})
}

// lookPath finds the program name as exec would. It looks with the agent's
// rights; whether the user may execute it, exec itself decides.
func (u *userFiles) lookPath(name, dir, search string) (string, error) {
	if strings.Contains(name, "/") {
		if !strings.HasPrefix(name, "/") {
			name = path.Join(dir, name)
		}
		st, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			return "", notFound("no program %s", name)
		case err == nil && st.IsDir():
			return "", sandbox.Errorf("exec", sandbox.KindIsDirectory, "%s is a directory", name)
		}
		return name, nil
	}
	for _, d := range strings.Split(search, ":") {
		if !strings.HasPrefix(d, "/") {
			d = path.Join(dir, d)
		}
		p := path.Join(d, name)
		var st syscall.Stat_t
		if syscall.Stat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0 {
			return p, nil
		}
	}
	return "", notFound("no program %q in PATH", name)
}

func randomName(base string) string {
	var b [6]byte
	rand.Read(b[:])
	return "." + base[:min(len(base), 200)] + "." + hex.EncodeToString(b[:])
}

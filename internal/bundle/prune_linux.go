package bundle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// digestName is the name of an installed set.
var digestName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// hold returns the set's directory below libexec, made if need be, the verified
// sums of its files, and a shared lock on it: until the file is closed, nobody
// prunes it. What is verified is what is locked.
func (s set) hold(libexec string) (dir string, sums map[string]string, f *os.File, err error) {
	dir = filepath.Join(libexec, s.digest())
	f, err = tryLock(dir, unix.LOCK_SH)
	if err != nil || !same(f, filepath.Join(dir, sumsName)) {
		f.Close() // of nil it does nothing
		if f, err = s.place(libexec, dir); err != nil {
			return dir, nil, nil, err
		}
	}
	if sums, err = verify(dir, s); err != nil {
		f.Close()
		return dir, nil, nil, err
	}
	return dir, sums, f, nil
}

// place makes the set's directory, unless it is there, and locks it. Nobody
// unpacks or prunes meanwhile.
func (s set) place(libexec, dir string) (*os.File, error) {
	if err := os.MkdirAll(libexec, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(libexec, ".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := s.unpack(libexec, dir); err != nil {
			return nil, err
		}
	}
	f, err := tryLock(dir, unix.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) { // there, but without what is locked
		_, err = verify(dir, s)
	}
	return f, err
}

// tryLock locks an installed set without waiting.
func tryLock(dir string, how int) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, sumsName))
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// Prune removes the installed sets below dir that no process has open and that
// used does not name by digest. It asks used only after nobody can open a set
// any more, so a sandbox that was made before is counted.
//
// It returns the digests it removed. Interrupted anywhere, the next Prune or
// unpacking finishes.
func Prune(dir string, used func() (map[string]bool, error)) (removed []string, err error) {
	const op = "prune programs"
	libexec := filepath.Join(dir, "libexec")
	if _, err := os.Stat(libexec); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	unlock, err := lock(filepath.Join(libexec, ".lock"))
	if err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	defer unlock()
	entries, err := os.ReadDir(libexec)
	if err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	idle := map[string]*os.File{}
	defer func() {
		for _, f := range idle {
			f.Close()
		}
	}()
	for _, e := range entries {
		if !e.IsDir() || !digestName.MatchString(e.Name()) {
			continue
		}
		if f, err := tryLock(filepath.Join(libexec, e.Name()), unix.LOCK_EX); err == nil {
			idle[e.Name()] = f
		}
	}
	if len(idle) == 0 {
		return nil, nil
	}
	keep, err := used()
	if err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	for name := range idle {
		if keep[name] {
			continue
		}
		// Under a name that counts as unfinished, so that half of it is never
		// taken for a set.
		tmp := filepath.Join(libexec, ".unpack-"+name)
		err := os.RemoveAll(tmp)
		if err == nil {
			err = os.Rename(filepath.Join(libexec, name), tmp)
		}
		failpoint.Hit("prune/after-rename")
		if err == nil {
			err = os.RemoveAll(tmp)
		}
		failpoint.Hit("prune/after-remove")
		if err != nil {
			return removed, sandbox.Wrap(op, name, err)
		}
		removed = append(removed, name)
	}
	return removed, nil
}

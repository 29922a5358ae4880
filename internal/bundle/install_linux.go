package bundle

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// sumsName is a file in each installed directory, in sha256sum's format. It is
// written before the directory gets its name, so a directory with a name is
// complete.
const sumsName = ".sha256"

// install returns the set's directory below libexec, made if need be, and the
// verified sums of its files.
func (s set) install(libexec string) (dir string, sums map[string]string, err error) {
	dir, sums, f, err := s.hold(libexec)
	if err == nil {
		err = f.Close()
	}
	return dir, sums, err
}

// lock serialises unpacking, across processes and within this one.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// unpack writes the set to a temporary directory and renames it to dir, all of
// it durable. The lock is held, so what else is temporary is left from a crash.
func (s set) unpack(libexec, dir string) (err error) {
	stale, _ := filepath.Glob(filepath.Join(libexec, ".unpack-*"))
	for _, d := range stale {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(libexec, ".unpack-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	var sums strings.Builder
	for _, f := range s {
		sum, err := f.writeTo(filepath.Join(tmp, filepath.FromSlash(f.name)))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%s  %s\n", sum, f.name)
		failpoint.Hit("bundle/after-file")
	}
	f := file{name: sumsName, perm: 0o644, source: []byte(sums.String())}
	if _, err := f.writeTo(filepath.Join(tmp, sumsName)); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := syncTree(tmp); err != nil {
		return err
	}
	failpoint.Hit("bundle/after-sync")
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	failpoint.Hit("bundle/after-rename")
	return syncFile(libexec)
}

// writeSize is how much is written at once: the page cache then keeps a program in a few
// large pieces, and who starts it faults in a fifth less.
const writeSize = 4 << 20

// writeTo writes the file, synced, and returns its sum.
func (f file) writeTo(name string) (sum string, err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return "", err
	}
	out, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, f.perm)
	if err != nil {
		return "", err
	}
	defer out.Close()
	h := sha256.New()
	size := 0 // what is not packed is written at once
	if f.packing != "" {
		size = writeSize
	}
	large := bufio.NewWriterSize(out, size)
	if err = f.write(io.MultiWriter(large, h)); err == nil {
		err = large.Flush()
	}
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", f.name, err)
	}
	if err := out.Chmod(f.perm); err != nil { // whatever the umask
		return "", err
	}
	if err := out.Sync(); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), out.Close()
}

// syncTree makes the entries of all directories below root durable.
func syncTree(root string) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if err := os.Chmod(p, 0o755); err != nil {
			return err
		}
		return syncFile(p)
	})
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// verify checks every file of an installed set. fs.ErrNotExist means that the
// set is not installed; anything else that is wrong with it is refused, for
// what is in there becomes part of the boundary.
func verify(dir string, s set) (map[string]string, error) {
	if _, err := os.Lstat(dir); err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) error {
		return sandbox.Errorf("unpack", sandbox.KindInternal, format, args...).
			WithHint("somebody changed it; remove %s to have it unpacked again", dir)
	}
	sums, err := readSums(filepath.Join(dir, sumsName))
	if err != nil {
		return nil, bad("%s: %v", dir, err)
	}
	for _, f := range s {
		p := filepath.Join(dir, filepath.FromSlash(f.name))
		if err := private(p); err != nil {
			return nil, bad("%w", err)
		}
		sum, err := sumOf(p)
		if err != nil {
			return nil, bad("%v", err)
		}
		if sum != sums[f.name] {
			return nil, bad("%s is not what was unpacked", p)
		}
	}
	return sums, nil
}

// private refuses a file that others than its owner could write, or that
// belongs to somebody who is neither us nor root.
func private(name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("%s is not a regular file", name)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s is writable by others", name)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d", name, st.Uid)
	}
	return nil
}

func sumOf(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 256<<10)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func readSums(name string) (map[string]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, errors.New("its list of checksums is missing")
	}
	defer f.Close()
	sums := map[string]string{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if sum, name, ok := strings.Cut(sc.Text(), "  "); ok {
			sums[name] = sum
		}
	}
	return sums, sc.Err()
}

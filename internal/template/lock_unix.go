//go:build unix

package template

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

type lockMode int

const (
	shared    lockMode = syscall.LOCK_SH
	exclusive lockMode = syscall.LOCK_EX
)

// tryLock opens the existing file path and locks it without waiting. The lock
// ends when the returned file, and every copy a child inherited, is closed. It
// returns errLocked while somebody else holds a lock that excludes this one.
func tryLock(path string, mode lockMode) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := tryFlock(f, mode); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// tryFlock locks an open file without waiting.
func tryFlock(f *os.File, mode lockMode) error {
	err := flock(f, int(mode)|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errLocked
	}
	return err
}

// lock takes the store's own lock, which is only ever held for moments (a host
// layout at most), and returns what gives it back.
func (s *Store) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(f, syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err != syscall.EINTR {
			return err
		}
	}
}

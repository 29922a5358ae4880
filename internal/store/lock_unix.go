//go:build unix

package store

import (
	"errors"
	"os"
	"syscall"
)

// died reports whether there is no process pid; false where pid is unknown.
func died(pid int) bool { return pid > 0 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// flock takes the exclusive lock on f without waiting.
func flock(f *os.File) (taken bool, err error) {
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return errors.Is(err, syscall.EWOULDBLOCK), err
		}
	}
}

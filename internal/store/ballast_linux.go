package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate takes space for n bytes at off without changing the file's size.
func allocate(f *os.File, off, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

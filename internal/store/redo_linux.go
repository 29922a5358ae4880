package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// flushData flushes what reading f needs, and not its times.
func flushData(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

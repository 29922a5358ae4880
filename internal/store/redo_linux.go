package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// beginFlush has the kernel send a part of f to the disk, where it is not durable yet.
// A flush of it has less to wait for then, and one that fails says so.
func beginFlush(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// flushData flushes what reading f needs, and not its times.
func flushData(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

//go:build !linux

package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// discardInput drops what a terminal has received and nobody has read.
func discardInput(f *os.File) {
	const read = 1
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCFLUSH, read)
}

// Package umount is the process that takes /proc away from a sentry, which by then has
// no privilege to do it. Importing it is enough: where the program was started for
// that, it is all that the program does.
//
// gVisor starts its own program for it, by a command line that sentrycmd.Umount
// understands. This package is initialised before gVisor's: some milliseconds of
// processor time, of every start of a sandbox, are not spent on setting up what one
// system call needs nothing of.
package umount

import (
	"os"
	"syscall"
)

// descriptor is the pipe's end that says when. sandboxsetup.ExecProcUmounter hands it
// down as the first after the standard ones.
const descriptor = 3

// arguments are the command line, as sandboxsetup.ExecProcUmounter writes it. Another one
// is left to gVisor.
var arguments = []string{"umount", "--sync-fd=3", "/proc"}

func init() {
	if asked(os.Args) {
		syscall.Exit(wait(descriptor, arguments[2], syscall.Unmount))
	}
}

func asked(args []string) bool {
	if len(args) != 1+len(arguments) {
		return false
	}
	for k, a := range arguments {
		if args[1+k] != a {
			return false
		}
	}
	return true
}

// wait unmounts dir once a byte has come, and returns the exit status: 128 as gVisor's
// commands have it when they fail.
func wait(fd int, dir string, unmount func(dir string, flags int) error) int {
	var b [1]byte
	for {
		n, err := syscall.Read(fd, b[:])
		if err == syscall.EINTR {
			continue
		}
		if n != 1 || unmount(dir, syscall.MNT_DETACH) != nil {
			return 128
		}
		return 0
	}
}

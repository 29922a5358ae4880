package first

import (
	"os"
	"runtime"
	"syscall"
)

// A sentry that is about to give up its privileges starts a process that takes /proc
// away from it later. gVisor starts its own program for it, by a command line that
// sentrycmd.Umount understands. Here it is all that the program does: some milliseconds
// of processor time, of every start of a sandbox, are not spent on setting up what one
// system call needs nothing of.

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
	procs = runtime.GOMAXPROCS(1)
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

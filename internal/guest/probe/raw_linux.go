package probe

import (
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:norace
//go:nosplit
func rawExit() {
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// rawReport writes v to fd as 8 little-endian bytes.
//
//go:norace
//go:nosplit
func rawReport(fd int, v uintptr) {
	n := uint64(v)
	syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&n)), 8)
}

// resetSignal gives a signal its default action behind the Go runtime's back.
func resetSignal(n int) {
	var act [32]byte // struct kernel_sigaction: SIG_DFL, no flags, empty mask
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
}

// network reports interfaces other than lo, and whether the address that
// clouds serve credentials from can be reached.
func network([]string) error {
	names := []string{}
	if b, err := os.ReadFile("/proc/net/dev"); err == nil {
		for _, line := range strings.Split(string(b), "\n") {
			if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
				names = append(names, strings.TrimSpace(name))
			}
		}
	}
	result := "connected"
	if err := dial([4]byte{169, 254, 169, 254}, 80, 300*time.Millisecond); err != nil {
		result = err.Error()
	}
	return printJSON(map[string]any{"interfaces": names, "metadata": result})
}

// dial connects without package net, which would double this program.
func dial(ip [4]byte, port int, timeout time.Duration) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: ip})
	if err != unix.EINPROGRESS {
		return err
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p, int(timeout.Milliseconds()))
	if err != nil {
		return err
	}
	if n == 0 {
		return unix.ETIMEDOUT
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = syscall.Errno(code)
	}
	return err
}

package machine

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// keep is what the agent needs to serve all users of the guest, as in a
// boundary that shares a kernel: change to them, act on their files and
// processes, give everything up for them. Whoever becomes root inside has these,
// and so can neither load modules nor mount, nor reach a device.
var keep = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SYS_RESOURCE,
}

// Enter is what runs first in the agent's namespaces. It mounts their /proc,
// gives up what the agent does not need, and becomes the agent. It returns only
// on an error.
func Enter(args []string) error {
	runtime.LockOSThread() // what is given up is the thread's, and execve keeps the caller's
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	keys := len(args) == 1 && args[0] == "-keys"
	if keys {
		args = nil
	}
	if err := hideProc(keys); err != nil {
		return err
	}
	for c := uintptr(0); ; c++ {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // beyond the last
		} else if has == 0 || kept(c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("give up capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
		return err
	}
	return syscall.Exec(guest.AgentPath, append([]string{guest.AgentPath, "init"}, args...), os.Environ())
}

// hideProc takes away what of /proc is the machine's and not a sandbox's: its
// settings, by which root inside could have the kernel start programs for it, and
// its keys, unless a test wants those.
func hideProc(keys bool) error {
	readonly := []string{"/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger"}
	if keys {
		readonly = readonly[:len(readonly)-1]
	}
	for _, p := range readonly {
		if _, err := os.Lstat(p); err != nil {
			continue // a kernel without it
		}
		if err := unix.Mount(p, p, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", p, err)
		}
		if err := unix.Mount("", p, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", p, err)
		}
	}
	for _, p := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/kmsg"} {
		if _, err := os.Lstat(p); err != nil {
			continue
		}
		if err := unix.Mount("/dev/null", p, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", p, err)
		}
	}
	return nil
}

func kept(c uintptr) bool {
	for _, k := range keep {
		if k == c {
			return true
		}
	}
	return false
}

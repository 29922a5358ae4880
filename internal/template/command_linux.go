package template

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// runIsolated runs cmd, made by exec.CommandContext, so that nothing it started
// outlives it: as root in a process namespace that dies with it, else in a process
// group that is killed. It also dies with this process.
func runIsolated(cmd *exec.Cmd) error {
	attr := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		attr.Cloneflags = syscall.CLONE_NEWPID
		attr.Unshareflags = syscall.CLONE_NEWNS // its mounts, should it make any, are its own
	}
	cmd.SysProcAttr = attr
	retry := *cmd
	err := runGroup(cmd)
	if errors.Is(err, syscall.EPERM) && cmd.Process == nil && attr.Cloneflags != 0 { // root without CAP_SYS_ADMIN
		retry.SysProcAttr = &syscall.SysProcAttr{}
		err = runGroup(&retry)
	}
	return err
}

// runChroot runs a program of the pack itself inside it, without a network. An
// ordinary user becomes root of a user namespace for it.
func runChroot(rootfs string, cmd *exec.Cmd) error {
	attr := &syscall.SysProcAttr{
		Chroot:     rootfs,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	if uid := os.Geteuid(); uid != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	return runGroup(cmd)
}

// runGroup runs cmd at the head of a process group and, where no process namespace
// does it, kills what is left of the group afterwards.
func runGroup(cmd *exec.Cmd) error {
	// The death signal comes when the thread that started the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	signal := syscall.SIGKILL
	if os.Geteuid() != 0 { // give mmdebstrap the time to remove what only it can
		signal = syscall.SIGTERM
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, signal) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	err := cmd.Wait()
	if cmd.SysProcAttr.Cloneflags&syscall.CLONE_NEWPID != 0 {
		return err // the kernel has ended everything in the namespace
	}
	if killErr := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); killErr != nil && killErr != syscall.ESRCH {
		err = errors.Join(err, fmt.Errorf("ending %s: %w", cmd.Args[0], killErr))
	}
	return err
}

// tailWriter hands over output line by line and remembers the end of it.
type tailWriter struct {
	line    func(string)
	partial string
	errs    []string
	last    string
}

const maxLine = 4096

// Write implements io.Writer and never fails.
func (t *tailWriter) Write(p []byte) (int, error) {
	t.partial += string(p)
	for {
		line, rest, ok := strings.Cut(t.partial, "\n")
		if !ok && len(t.partial) < maxLine {
			return len(p), nil
		}
		t.partial = rest
		t.see(strings.TrimSpace(line))
	}
}

func (t *tailWriter) see(line string) {
	if line == "" {
		return
	}
	t.last = line
	if strings.HasPrefix(line, "E: ") && len(t.errs) < 3 {
		t.errs = append(t.errs, clip(strings.TrimPrefix(line, "E: ")))
	}
	if t.line != nil {
		t.line(line)
	}
}

// reason is what the program said went wrong, as far as can be told.
func (t *tailWriter) reason() string {
	if len(t.errs) > 0 {
		return strings.Join(t.errs, "; ")
	}
	return clip(t.last)
}

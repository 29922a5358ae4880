//go:build linux

// Command init is PID 1 of the virtual machine that package vm boots: it makes a
// root file system and a cgroup hierarchy of version 2, runs the steps of
// /plan.json one after another, and writes what became of each to the second
// serial port.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Step is one command.
type Step struct {
	Name string
	UID  int
	// Delegated gives the command a cgroup of its own that it may divide.
	// Otherwise it lives in one that belongs to root.
	Delegated bool
	Copies    int // how many run at once in that cgroup; 0 is one
	Argv      []string
	Timeout   time.Duration
}

// Outcome is what became of it.
type Outcome struct {
	Name, Output, Error string
	Code                int
	Took                time.Duration
	Left                []string // cgroups below the command's own
	Alive               int      // processes in the command's cgroup and below
}

const groups = "/sys/fs/cgroup/steps"

func main() {
	if err := run(); err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	if err := settle(); err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	var plan []Step
	b, err := os.ReadFile("/plan.json")
	if err == nil {
		err = json.Unmarshal(b, &plan)
	}
	if err != nil {
		return err
	}
	port, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	go adopt()
	out := json.NewEncoder(port)
	for _, s := range plan {
		fmt.Println("step", s.Name)
		if err := out.Encode(perform(s)); err != nil {
			return err
		}
	}
	return nil
}

// settle moves to a root of its own: gVisor changes the root of its processes,
// which the kernel does not allow on the one it starts with.
func settle() error {
	const root = "/new"
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("root", root, "tmpfs", 0, "mode=755,size=90%"); err != nil {
		return err
	}
	if err := filepath.WalkDir("/", func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == "/" {
			return err
		}
		if path == root || path == "/dev" || path == "/proc" || path == "/sys" {
			return fs.SkipDir
		}
		return move(path, root+path, e)
	}); err != nil {
		return err
	}
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""},
		{"cgroup2", "/sys/fs/cgroup", "nsdelegate"}, {"tmpfs", "/tmp", "mode=1777,size=90%"},
	} {
		if err := os.MkdirAll(root+m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, root+m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("%s: %w", m.dir, err)
		}
	}
	if err := errors.Join(os.Chdir(root), unix.Mount(root, "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return err
	}
	if err := os.Mkdir(groups, 0o755); err != nil {
		return err
	}
	for _, d := range []string{"/sys/fs/cgroup", groups} {
		if err := os.WriteFile(d+"/cgroup.subtree_control", []byte("+memory +pids +cpu"), 0); err != nil {
			return err
		}
	}
	return nil
}

// move moves one file from the kernel's own file system, whose pages are memory.
func move(from, to string, e fs.DirEntry) error {
	fi, err := e.Info()
	if err != nil {
		return err
	}
	switch {
	case e.IsDir():
		return os.Mkdir(to, fi.Mode().Perm())
	case e.Type() == fs.ModeSymlink:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case !fi.Mode().IsRegular():
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, fi.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Remove(from))
}

func perform(s Step) (o Outcome) {
	o.Name = s.Name
	group := filepath.Join(groups, s.Name)
	if err := makeGroup(group, s); err != nil {
		o.Error = err.Error()
		return o
	}
	defer os.Remove(group)
	dir, err := os.Open(group)
	if err != nil {
		o.Error = err.Error()
		return o
	}
	defer dir.Close()
	home := "/tmp/" + s.Name
	if err := errors.Join(os.Mkdir(home, 0o700), os.Chown(home, s.UID, s.UID)); err != nil {
		o.Error = err.Error()
		return o
	}
	defer os.RemoveAll(home)
	ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
	defer cancel()
	began := time.Now()
	copies := make([]bytes.Buffer, max(s.Copies, 1))
	var running sync.WaitGroup
	var mu sync.Mutex
	for k := range copies {
		running.Go(func() {
			cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
			cmd.Dir, cmd.Stdout, cmd.Stderr = home, &copies[k], &copies[k]
			cmd.Env = []string{"PATH=/usr/bin", "HOME=" + home, "TMPDIR=" + home}
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Setsid: true}
			if s.UID != 0 {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.UID)}
			}
			err := start(cmd)
			if err == nil {
				err = cmd.Wait()
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				o.Error = err.Error()
			}
			if cmd.ProcessState != nil {
				o.Code = max(o.Code, cmd.ProcessState.ExitCode())
			}
		})
	}
	running.Wait()
	o.Took = time.Since(began)
	for k := range copies {
		o.Output += copies[k].String()
	}
	_ = filepath.WalkDir(group, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		if path != group {
			o.Left = append(o.Left, path)
		}
		b, _ := os.ReadFile(path + "/cgroup.procs")
		o.Alive += len(strings.Fields(string(b)))
		return nil
	})
	return o
}

// adopt collects what ends without a parent, until the end of time: nobody else
// does, and what is not collected looks as if it were still there.
func adopt() {
	for ; ; time.Sleep(5 * time.Millisecond) {
		dirs, _ := os.ReadDir("/proc")
		for _, d := range dirs {
			pid, err := strconv.Atoi(d.Name())
			if err != nil {
				continue
			}
			b, err := os.ReadFile("/proc/" + d.Name() + "/stat")
			if err != nil {
				continue
			}
			f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
			own.Lock()
			if len(f) > 1 && f[0] == "Z" && f[1] == "1" && !own.pids[pid] {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
			own.Unlock()
		}
	}
}

// own are the processes that are waited for where they were started.
var own = struct {
	sync.Mutex
	pids map[int]bool // guarded by Mutex
}{pids: map[int]bool{}}

// start starts cmd so that adopt knows it.
func start(cmd *exec.Cmd) error {
	own.Lock()
	defer own.Unlock()
	err := cmd.Start()
	if err == nil {
		own.pids[cmd.Process.Pid] = true
	}
	return err
}

// makeGroup makes a cgroup, and gives it away as delegation does.
func makeGroup(group string, s Step) error {
	if err := os.Mkdir(group, 0o755); err != nil || !s.Delegated {
		return err
	}
	var errs []error
	for _, f := range []string{"", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads"} {
		errs = append(errs, os.Chown(group+f, s.UID, s.UID))
	}
	return errors.Join(errs...)
}

package machine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// patience is how long a device may take to appear.
const patience = 30 * time.Second

// Boot does not return: it ends by switching the machine off.
func Boot() {
	if err := boot(); err != nil {
		say("%v", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // a machine without a switch
	for {
		time.Sleep(time.Hour) // the end of PID 1 would be a panic
	}
}

// say writes a line to the console.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "firebreak: "+format+"\n", args...)
}

func boot() error {
	for _, m := range []struct{ target, kind string }{{"/dev", "devtmpfs"}, {"/proc", "proc"}, {"/sys", "sysfs"}} {
		if err := mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return err
		}
	}
	if c, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		_ = unix.Dup2(int(c.Fd()), 2) // the kernel had none to give when it started us
	}
	s, err := parse(os.Getenv("firebreak"))
	if err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := lacking(s, "/proc/filesystems", "/sys/bus/virtio"); err != nil {
		return err
	}
	if s.Probe {
		return hello(s)
	}
	k, err := newKeeper()
	if err != nil {
		return err
	}
	port, err := k.channels(s)
	if err != nil {
		return err
	}
	if err := mountRoot(s); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return err
	}
	loopback()
	if s.Network != nil {
		hosts, err := s.Network.up(s.Hostname)
		if err != nil {
			return err
		}
		k.network, k.hosts = s.Network, hosts
	}
	tune()
	group := limitTasks(s.PIDs)
	if err := switchRoot(); err != nil {
		return err
	}
	return runAgent(s, port, group, k)
}

// channels opens what the host reaches the agent and k through, and returns the
// agent's end. Both are there before anything of the sandbox is.
func (k *keeper) channels(s Settings) (agent *os.File, err error) {
	do := func(o Order) (int64, error) {
		sent, err := k.do(o)
		if err != nil {
			say("an order of the host's: %v", err)
		}
		return sent, err
	}
	if s.VSock == 0 {
		orders, err := openPort(OrdersName)
		if err != nil {
			return nil, err
		}
		k.begin = func() { obey(orders, do) }
		return openPort(PortName)
	}
	if k.relay, agent, err = NewRelay(); err != nil {
		return nil, err
	}
	to, err := listenVSock(s.VSock)
	if err != nil {
		return nil, err
	}
	orders, err := listenVSock(s.Orders)
	if err != nil {
		return nil, err
	}
	k.begin = func() {
		go func() { say("the agent's port: %v", k.relay.Serve(to)) }()
		say("the port for orders: %v", Obey(orders, do))
	}
	return agent, nil
}

// hello answers the host and then waits for its end: a machine that switched itself
// off could be gone before it was heard.
func hello(s Settings) error {
	if s.VSock != 0 {
		l, err := listenVSock(s.VSock)
		for err == nil {
			var c net.Conn
			if c, err = l.Accept(); err == nil {
				_, _ = c.Write([]byte(Hello)) // the host comes again, or has what it wanted
			}
		}
		return err
	}
	port, err := openPort(PortName)
	if err != nil {
		return err
	}
	if _, err := port.WriteString(Hello); err != nil {
		return err
	}
	for {
		time.Sleep(time.Hour)
	}
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	return nil
}

// loadModules loads what the initial file system has, and then frees it.
func loadModules() error {
	list, err := os.ReadDir(ModuleDir)
	if err != nil {
		return nil // a kernel that has everything built in
	}
	for _, e := range list {
		name := filepath.Join(ModuleDir, e.Name())
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		flags := 0
		if !strings.HasSuffix(name, ".ko") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w: it is of another build than the kernel, %s", e.Name(), err, release())
		}
		_ = os.Remove(name)
	}
	return nil
}

// await looks until there is something, a device that has yet to appear.
func await(what string, look func() bool) error {
	for end := time.Now().Add(patience); !look(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s did not appear", what)
		}
	}
	return nil
}

// openPort opens a virtio port by its name.
func openPort(name string) (port *os.File, err error) {
	err = await("the port "+name, func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == name {
				port, err = os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
				return err == nil
			}
		}
		return false
	})
	return port, err
}

// Where the pieces are mounted before the root is switched.
const (
	atRoot    = "/image"
	atRuntime = "/runtime"
	atDisk    = "/disk"
	atNew     = "/new"
)

// mountRoot assembles the sandbox's file system at atNew.
func mountRoot(s Settings) error {
	for _, d := range []string{deviceRoot, deviceRuntime, deviceDisk} {
		if err := await(d, func() bool { _, err := os.Stat(d); return err == nil }); err != nil {
			return err
		}
	}
	if err := errors.Join(
		mountImage(s.Given),
		mount(deviceRuntime, atRuntime, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""),
		mount(deviceDisk, atDisk, "ext4", unix.MS_NODEV|unix.MS_NOATIME, ""),
	); err != nil {
		return err
	}
	lower := atRoot
	if s.Given != "" {
		if err := furnish(); err != nil {
			return fmt.Errorf("the root image: %w", err)
		}
		lower = atOurs + ":" + atRoot
	}
	if s.Readonly {
		if err := readonlyRoot(lower); err != nil {
			return err
		}
	} else if err := overlay(lower); err != nil {
		return err
	}
	if err := mount(atRuntime, atNew+filepath.Dir(guest.AgentPath), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := mount("sysfs", atNew+"/sys", "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	return devices(atNew + "/dev")
}

func overlay(lower string) error {
	up, work := atDisk+"/up", atDisk+"/work"
	for _, d := range []string{up, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	top, _, _ := strings.Cut(lower, ":")
	if err := unix.Stat(top, &st); err != nil {
		return err
	}
	if err := errors.Join(unix.Chown(up, int(st.Uid), int(st.Gid)), unix.Chmod(up, st.Mode&0o7777)); err != nil {
		return err
	}
	return mount("overlay", atNew, "overlay", unix.MS_NODEV, "lowerdir="+lower+",upperdir="+up+",workdir="+work)
}

// readonlyRoot binds the image, or what it is made of, and, over /tmp and the home,
// the disk.
func readonlyRoot(lower string) error {
	err := error(nil)
	if lower == atRoot {
		err = mount(atRoot, atNew, "", unix.MS_BIND, "")
	} else {
		err = mount("overlay", atNew, "overlay", unix.MS_RDONLY|unix.MS_NODEV, "lowerdir="+lower)
	}
	if err != nil {
		return err
	}
	for _, w := range []struct {
		source, target string
		mode           uint32
		uid            int
	}{{atDisk + "/tmp", "/tmp", 0o1777, 0}, {atDisk + "/home", guest.DefaultHome, 0o755, guest.DefaultUID}} {
		if err := errors.Join(os.Mkdir(w.source, 0o755), unix.Chown(w.source, w.uid, w.uid), unix.Chmod(w.source, w.mode)); err != nil {
			return err
		}
		if err := mount(w.source, atNew+w.target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := mount("none", atNew+w.target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return err
		}
	}
	return nil
}

// shmSize bounds /dev/shm, whose files are memory.
const shmSize = 64 << 20

// devices makes the few devices programs expect. None of them is hardware.
func devices(dir string) error {
	if err := mount("dev", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return err
	}
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		p := filepath.Join(dir, d.name)
		if err := unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return err
		}
		if err := unix.Chmod(p, 0o666); err != nil { // whatever the umask
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return errors.Join(
		mount("devpts", dir+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"),
		mount("shm", dir+"/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size="+strconv.Itoa(shmSize)),
	)
}

// tune sets what a small machine of its own wants otherwise than a server. A kernel
// that does not know one of them goes without.
func tune() {
	for _, k := range []struct{ name, value string }{
		// More may be asked for than there is, as in every other boundary: what counts
		// is what is used, and the agent ends who uses too much.
		{"vm/overcommit_memory", "1"},
		// Files go to the disk at once: there they are the host's to count, and here
		// they do not take memory.
		{"vm/dirty_background_bytes", "4194304"},
		{"vm/dirty_expire_centisecs", "10"},
		{"vm/dirty_writeback_centisecs", "10"},
		// The kernel starts no program of a root file system that user code can write
		// to, takes no more modules, and tells no addresses.
		{"kernel/modprobe", "\n"},
		{"kernel/modules_disabled", "1"},
		{"kernel/core_pattern", "core"},
		{"kernel/dmesg_restrict", "1"},
		{"kernel/kptr_restrict", "2"},
		{"kernel/unprivileged_bpf_disabled", "1"},
	} {
		_ = os.WriteFile("/proc/sys/"+k.name, []byte(k.value), 0)
	}
}

// loopback is the only interface of a machine without a network; without it
// programs that talk to themselves fail, which is theirs to notice.
func loopback() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if r, err := unix.NewIfreq("lo"); err == nil {
		r.SetUint16(unix.IFF_UP)
		_ = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	}
}

// agentTasks is what the agent's own threads may take of the kernel's limit.
const agentTasks = 64

// limitTasks makes the agent's control group. A kernel without the controller
// leaves the limit to the agent.
func limitTasks(pids int) *os.File {
	const top, group = "/cgroup", "/cgroup/sandbox"
	if pids <= 0 || mount("cgroup2", top, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") != nil {
		return nil
	}
	if os.WriteFile(top+"/cgroup.subtree_control", []byte("+pids"), 0) != nil || os.Mkdir(group, 0o755) != nil {
		return nil
	}
	if os.WriteFile(group+"/pids.max", []byte(strconv.Itoa(pids+agentTasks)), 0) != nil {
		return nil
	}
	f, err := os.Open(group)
	if err != nil {
		return nil
	}
	return f
}

// switchRoot makes the assembled file system this process's root.
func switchRoot() error {
	if err := os.Chdir(atNew); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	return errors.Join(unix.Chroot("."), os.Chdir("/"))
}

// runAgent starts the agent and returns when it has ended.
func runAgent(s Settings, port, group *os.File, k *keeper) error {
	argv := []string{"enter"}
	switch {
	case s.Test == TestKeys:
		argv = append(argv, "-keys")
	case s.Test == TestFreeze:
		argv = append(argv, "-freeze")
	}
	cmd := exec.Command(guest.AgentPath, argv...)
	cmd.Env = []string{"PATH=" + guest.DefaultPath}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = port, port, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP}
	if group != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	port.Close()
	k.agent, k.group = cmd.Process.Pid, group
	go k.begin()
	err := cmd.Wait()
	return fmt.Errorf("the agent has ended: %w", errors.Join(err, errEnded))
}

var errEnded = errors.New("switching off")

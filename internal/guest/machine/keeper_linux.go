package machine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keeper obeys the host's orders. It holds what it needs for that from before the
// root was switched: nothing it opens later by name is where user code can put
// something else.
type keeper struct {
	random *os.File // /dev/urandom
	proc   *os.File // /proc, of all processes

	begin func() // serves the host

	// Set before begin runs.
	agent int      // pid of the first process in the agent's namespaces
	group *os.File // its control group; nil without one
	relay *Relay   // what the agent is reached through; nil where that is a virtio port

	network *Network // nil without one
	hosts   *os.File // the file that names the machine
}

func newKeeper() (*keeper, error) {
	random, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	proc, err := os.Open("/proc")
	return &keeper{random: random, proc: proc}, err
}

// do does all that an order says, whatever fails of it. sent is how much of what the
// agent has said the host was given over its connection; -1 when the agent was not
// given all of the host's.
func (k *keeper) do(o Order) (sent int64, err error) {
	if o.Freeze {
		all := o.Sent == nil || k.relay == nil || k.relay.Settle(*o.Sent) // before the agent stands still
		err = k.freeze(true)
		if k.relay != nil {
			sent = k.relay.Park()
		}
		if !all {
			sent = -1
		}
	}
	if o.Time != 0 {
		ts := unix.NsecToTimespec(o.Time)
		err = errors.Join(err, os.NewSyscallError("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &ts)))
	}
	if o.Renew != nil {
		err = errors.Join(err, k.renew(*o.Renew))
	}
	if o.Thaw {
		err = errors.Join(err, k.freeze(false))
	}
	return sent, err
}

// freezePatience bounds the wait for tasks that cannot be stopped at once. One that
// cannot be at all is in the kernel, where it does nothing of its own.
const freezePatience = 2 * time.Second

// freeze stops or lets go on what is in the agent's control group.
func (k *keeper) freeze(on bool) error {
	if k.group == nil {
		return nil
	}
	value := "0"
	if on {
		value = "1"
	}
	if err := k.write("cgroup.freeze", value); err != nil {
		return err
	}
	for end := time.Now().Add(freezePatience); on && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if b, err := k.read("cgroup.events"); err != nil || bytes.Contains(b, []byte("frozen 1")) {
			return err
		}
	}
	return nil
}

func (k *keeper) openIn(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (k *keeper) write(name, value string) error {
	f, err := k.openIn(k.group, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (k *keeper) read(name string) ([]byte, error) {
	f, err := k.openIn(k.group, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, err := f.Read(b)
	return b[:n], err
}

// renew replaces what a copy of a machine has in common with the others.
func (k *keeper) renew(r Renewal) error {
	return errors.Join(k.reseed(r.Seed), machineID(r.MachineID), k.rewire(r.Hostname), k.inside(r))
}

// rewire leaves nothing of the network that the machine had before: where it is
// called as it was, and where it is connected.
func (k *keeper) rewire(hostname string) error {
	if k.network == nil {
		return nil
	}
	_, err := k.hosts.WriteAt([]byte(k.network.hosts(hostname)), 0)
	if err == nil {
		err = k.hosts.Truncate(int64(len(k.network.hosts(hostname))))
	}
	return errors.Join(err, k.network.reset())
}

// reseed adds seed to the kernel's random numbers and has it make them anew: what
// was drawn before says nothing about what is drawn now.
func (k *keeper) reseed(seed []byte) error {
	pool := binary.NativeEndian.AppendUint32(nil, uint32(8*len(seed)))
	pool = append(binary.NativeEndian.AppendUint32(pool, uint32(len(seed))), seed...)
	for _, c := range []struct {
		request uintptr
		arg     unsafe.Pointer
	}{{unix.RNDADDENTROPY, unsafe.Pointer(&pool[0])}, {unix.RNDRESEEDCRNG, nil}} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, k.random.Fd(), c.request, uintptr(c.arg)); errno != 0 {
			return fmt.Errorf("reseed: %w", errno)
		}
	}
	return nil
}

// machineID replaces the file of that name where a template has one and the root
// can be written to. Whatever user code has put there instead is left alone.
func machineID(id []byte) error {
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, "/etc/machine-id", &how)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "machine-id")
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 {
		return nil
	}
	_, err = f.WriteAt([]byte(hex.EncodeToString(id)+"\n"), 0)
	return errors.Join(err, f.Truncate(int64(2*len(id)+1)))
}

// inside sets what belongs to the agent's namespaces, on a thread that enters them
// and is not used again.
func (k *keeper) inside(r Renewal) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		done <- k.enter(r)
	}()
	return <-done
}

func (k *keeper) enter(r Renewal) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // what entering a mount namespace changes is this thread's alone
		return fmt.Errorf("unshare: %w", err)
	}
	for _, ns := range []struct {
		name string
		kind int
	}{{"uts", unix.CLONE_NEWUTS}, {"mnt", unix.CLONE_NEWNS}} {
		f, err := k.openIn(k.proc, fmt.Sprintf("%d/ns/%s", k.agent, ns.name), unix.O_RDONLY)
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), ns.kind)
		f.Close()
		if err != nil {
			return fmt.Errorf("enter the %s namespace: %w", ns.name, err)
		}
	}
	return errors.Join(os.NewSyscallError("sethostname", unix.Sethostname([]byte(r.Hostname))), bootID(r.BootID))
}

// bootID covers the kernel's, which cannot be changed. The file that does has no
// name once it does.
func bootID(id []byte) error {
	const target = "/proc/sys/kernel/random/boot_id"
	h := hex.EncodeToString(id)
	name := "/dev/." + h
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s-%s-%s-%s-%s\n", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
	err = errors.Join(err, f.Close())
	if err == nil {
		_ = unix.Unmount(target, unix.MNT_DETACH) // that of an earlier restore
		err = os.NewSyscallError("mount", unix.Mount(name, target, "", unix.MS_BIND, ""))
	}
	if err == nil {
		err = os.NewSyscallError("mount", unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	}
	return errors.Join(err, os.Remove(name))
}

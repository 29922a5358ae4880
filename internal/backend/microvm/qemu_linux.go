package microvm

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// fileQMP is QEMU's control socket, and dirEmpty the root directory it goes to.
const (
	fileQMP     = "qmp"     // held by who watches the machine
	fileControl = "control" // for who saves it
	dirEmpty    = "empty"
)

// qemu runs machines with QEMU.
type qemu struct {
	program string
	// version returns what QEMU says of itself. It asks the program, once.
	version func() (qemuVersion, error)
}

// qemuVersion is major and minor, and the whole line.
type qemuVersion struct {
	number [2]int
	line   string
}

var reVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// findQEMU looks for the program. It starts nothing: whoever makes no machine does
// not pay for it.
func findQEMU(program string) (*qemu, error) {
	path, err := exec.LookPath(orDefault(program, "qemu-system-x86_64"))
	if err != nil {
		return nil, err
	}
	return &qemu{program: path, version: sync.OnceValues(func() (qemuVersion, error) { return askVersion(path) })}, nil
}

func askVersion(path string) (v qemuVersion, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-version").Output()
	if err != nil {
		return v, fmt.Errorf("%s -version: %w", path, err)
	}
	m := reVersion.FindStringSubmatch(string(out))
	if m == nil {
		return v, fmt.Errorf("%s does not say which version it is", path)
	}
	v.number[0], _ = strconv.Atoi(m[1]) // digits, by the expression
	v.number[1], _ = strconv.Atoi(m[2])
	v.line, _, _ = strings.Cut(string(out), "\n")
	if v.number[0] < 6 {
		return v, fmt.Errorf("QEMU %d.%d is too old: 6 or newer is needed", v.number[0], v.number[1])
	}
	return v, nil
}

func (q *qemu) prepare(m vm) (string, []string, error) {
	version, err := q.version()
	if err != nil {
		return "", nil, err
	}
	return q.program, arguments(m, version.number), errors.Join(makeFIFOs(m.dir), os.Mkdir(filepath.Join(m.dir, dirEmpty), 0o700))
}

// arguments are QEMU's.
func arguments(m vm, version [2]int) []string {
	cpu, accel := "host", "kvm"
	if m.accel == accelTCG {
		cpu, accel = "max", "tcg,thread=multi,tb-size=64"
	}
	args := []string{
		"-name", string(m.id), "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none",
		"-machine", "pc,usb=off,vmport=off,dump-guest-core=off,mem-merge=off,memory-backend=ram", "-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(m.cpus), "-m", strconv.FormatInt(m.ramSize()>>20, 10) + "M",
		// Shared, though with nobody: what is not QEMU's own it leaves out of what it
		// saves, and the file can be copied as it is.
		"-object", "memory-backend-file,id=ram,share=on,mem-path=" + ramPath + ",size=" + strconv.FormatInt(m.ramSize(), 10),
		"-bios", "qboot.rom", "-kernel", m.kernel, "-initrd", m.initial,
		// Without an answer to a fault it would start again: it stops instead, and
		// its last words are read.
		"-action", "reboot=shutdown,shutdown=pause,panic=pause,watchdog=pause",
		"-append", "console=ttyS0 quiet panic=-1 reboot=k no_timer_check rdinit=/init " + m.argument,
		"-chardev", "ringbuf,id=console,size=" + strconv.Itoa(consoleSize), "-serial", "chardev:console",
		"-chardev", "pipe,id=agent,path=" + fileChannel,
		"-device", "virtio-serial-pci,max_ports=3", "-device", "virtserialport,chardev=agent,nr=1,name=" + machine.PortName,
		"-chardev", "pipe,id=orders,path=" + fileOrders, "-device", "virtserialport,chardev=orders,nr=2,name=" + machine.OrdersName,
		"-qmp", "unix:" + fileQMP + ",server=on,wait=off", "-qmp", "unix:" + fileControl + ",server=on,wait=off",
		"-sandbox", filter(m),
	}
	if !m.probe {
		args = append(args, drive("root", m.root, true, m.rate)...)
		args = append(args, drive("runtime", m.runtime, true, m.rate)...)
		args = append(args, drive("disk", m.disk, false, m.rate)...)
	}
	args = append(args, m.nic.device(version)...)
	if m.saved != nil {
		args = append(args, "-S", "-incoming", "defer")
	}
	return append(args, confine(m, version)...)
}

// ramSize is the machine's memory in whole mebibytes.
func (m vm) ramSize() int64 { return (m.memory + 1<<20 - 1) >> 20 << 20 }

// filter is QEMU's own seccomp filter. Changing the user is what confine needs it
// for, once; afterwards there is nothing to be elevated to.
func filter(m vm) string {
	f := "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
	if m.uid == 0 {
		f += ",elevateprivileges=deny"
	}
	return f
}

// confine makes QEMU leave the host's files and this user's rights before the
// machine runs.
func confine(m vm, version [2]int) []string {
	if m.uid == 0 {
		return nil
	}
	user := fmt.Sprintf("%d:%d", m.uid, m.uid)
	if version[0] > 9 || version[0] == 9 && version[1] >= 1 {
		return []string{"-run-with", "chroot=" + dirEmpty + ",user=" + user}
	}
	return []string{"-chroot", dirEmpty, "-runas", user}
}

// throttle is the options of a disk that share a machine's rate with its others.
func throttle(r Rate) (o string) {
	if r.Bytes > 0 {
		o += ",throttling.bps-total=" + strconv.FormatInt(r.Bytes, 10)
	}
	if r.Ops > 0 {
		o += ",throttling.iops-total=" + strconv.FormatInt(r.Ops, 10)
	}
	if o != "" {
		o += ",throttling.group=disks"
	}
	return o
}

// drive attaches a file as a disk. An option's commas are doubled.
func drive(id, file string, readonly bool, rate Rate) []string {
	o := "if=none,format=raw,id=" + id + ",file=" + strings.ReplaceAll(file, ",", ",,")
	if readonly {
		o += ",readonly=on,file.locking=off"
	} else {
		// Nothing on it outlives the machine. Saving one must not have the file opened
		// anew, which is not there in the empty root directory.
		o += ",cache=unsafe,discard=unmap,auto-read-only=off"
	}
	o += throttle(rate)
	d := "virtio-blk-pci,drive=" + id
	if !readonly {
		d += ",werror=report,rerror=report" // a full host is the guest's error, not a machine that stands still
	}
	return []string{"-drive", o, "-device", d}
}

func (q *qemu) dial(_ context.Context, dir string) (net.Conn, error) {
	s, err := dialFIFOs(dir, fileChannel)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (q *qemu) ended(ctx context.Context, dir string) (ending, error) {
	for {
		conn, err := dialIn(dir, fileQMP)
		switch {
		case err == nil:
			return follow(ctx, conn)
		case ctx.Err() != nil:
			return ending{}, ctx.Err()
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED):
			return ending{}, err
		}
		select { // it has yet to listen
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// console asks over the socket of who saves a machine, which nobody does to one that
// has yet to answer.
func (q *qemu) console(ctx context.Context, dir string) string {
	conn, err := dialIn(dir, fileControl)
	if err != nil {
		return ""
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c, err := newQMP(conn)
	if err != nil {
		return ""
	}
	return c.console()
}

func (q *qemu) objects(dir string) []sandbox.Object {
	o := []sandbox.Object{
		{Kind: "socket", Name: filepath.Join(dir, fileQMP)}, {Kind: "socket", Name: filepath.Join(dir, fileControl)},
		{Kind: "file", Name: filepath.Join(dir, fileDisk)},
	}
	for _, name := range fifos {
		o = append(o, sandbox.Object{Kind: "fifo", Name: filepath.Join(dir, name)})
	}
	return o
}

// firstUser is where the users of monitors begin: far above those of people, and
// below those of containers that map the highest.
const firstUser = 0x70000000

// userOf is an instance's own user on this host; 0 when this process cannot give
// one.
func userOf(id sandbox.InstanceID) int {
	if os.Geteuid() != 0 {
		return 0
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	return firstUser + int(h.Sum32()&0xffffff)
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

//go:build linux

package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/firecracker"
	"github.com/firebreak-dev/firebreak/internal/firecracker/fake"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What stands in for jailer and Firecracker here is this test binary: it takes the
// jailer's arguments, looks at the jail as Firecracker would, serves the API held
// against its definition, and a vsock with a toy of a guest behind it. What a real one
// does with a machine is TestRealFirecracker's.

// jailerEnv makes the test binary the stand-in, of the version that versionEnv says.
const (
	jailerEnv  = "FIREBREAK_TEST_JAILER"
	versionEnv = "FIREBREAK_TEST_FIRECRACKER"
)

// stub writes the stand-in's programs and a kernel that looks like one.
func stub(t *testing.T, version string) (f *fireVMM, kernel string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: a jail needs root")
	}
	dir := t.TempDir()
	f = &fireVMM{Program: filepath.Join(dir, "firecracker-v"+version), Jailer: filepath.Join(dir, "jailer"), Version: version}
	kernel = filepath.Join(dir, "vmlinux")
	for name, text := range map[string]string{
		f.Program: "#!/bin/sh\necho 'Firecracker v" + version + "'\n",
		f.Jailer: "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'Jailer v" + version + "'; exit; }\nexport " + jailerEnv + "=1 " + versionEnv + "=" + version +
			"\nexec " + os.Args[0] + " \"$@\"\n",
		kernel: "\x7fELF…",
	} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f, kernel
}

// pretend is a look around that found Firecracker and KVM working.
func pretend(b *Backend, f *fireVMM, kernel string) func() probed {
	p := probed{monitor: f, vmm: vmmFirecracker, accel: accelKVM, kernel: kernel, vsock: agentPort, patience: kvmPatience * 6}
	p.info = sandbox.Info{Name: "microvm", Isolation: sandbox.IsolationHypervisor, Available: true}
	p.info.Capabilities.Wire = true
	p.info.Capabilities.Snapshot, p.info.Capabilities.ReadonlyRoot = firecracker.Saves(f.Version), true
	p.info.Capabilities.Boot = true
	if err := b.probeCgroups(&p); err == nil {
		p.info.Capabilities.Limits = sandbox.AllLimits
	}
	return func() probed { return p }
}

// fakeJailer does not return.
func fakeJailer(args []string) {
	if err := jailed(args); err != nil {
		fmt.Fprintln(os.Stderr, "fake:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func jailed(args []string) error {
	flags := map[string]string{}
	for len(args) > 1 && args[0] != "--" {
		k, v := args[0], args[1]
		if k == "--resource-limit" {
			name, value, _ := strings.Cut(v, "=")
			k, v = k+" "+name, value
		}
		flags[k], args = v, args[2:]
	}
	if len(args) != 5 || args[0] != "--" || args[1] != "--api-sock" || args[3] != "--level" {
		return fmt.Errorf("arguments for firecracker: %q", args)
	}
	root := filepath.Join(flags["--chroot-base-dir"], filepath.Base(flags["--exec-file"]), flags["--id"], "root")
	if err := os.Chdir(root); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(".", &st); err != nil || fmt.Sprint(st.Uid) != flags["--uid"] || flags["--uid"] != flags["--gid"] {
		return fmt.Errorf("the jail belongs to %d: %w", st.Uid, err)
	}
	// No file becomes larger than said, as the jailer has it.
	size, err := strconv.ParseUint(flags["--resource-limit fsize"], 10, 63)
	if err == nil {
		err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: size})
	}
	if err != nil {
		return fmt.Errorf("the limit of a file: %w", err)
	}
	api, err := net.Listen("unix", "."+args[2])
	if err != nil {
		return err
	}
	p := fake.New(orDefault(os.Getenv(versionEnv), "1.13.1"), ".")
	g := newToy()
	p.Memory, p.Loaded = g.memory, g.remember
	p.Ended = func() { os.Exit(1) }
	p.Started = func(configured fake.Configuration) {
		err := look(configured, flags["--uid"], g.restored)
		if err == nil {
			err = attach(configured["PUT /network-interfaces/wire"], flags["--netns"], flags["--uid"])
		}
		var l net.Listener
		if err == nil {
			l, err = net.Listen("unix", "."+configured["PUT /vsock"]["uds_path"].(string))
		}
		if err == nil {
			err = g.boot(l, p)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "fake:", err)
			os.Exit(1)
		}
	}
	return http.Serve(api, p)
}

// wantRate is testRate as Firecracker is told it.
const wantRate = "map[bandwidth:map[refill_time:100 size:5.3687091e+07] ops:map[refill_time:100 size:5000]]"

// look checks that the configured files are in the jail, and whose they are. A machine
// that was restored has its kernel in its memory, which nobody writes.
func look(configured fake.Configuration, user string, restored bool) error {
	boot := configured["PUT /boot-source"]
	if !strings.Contains(boot["boot_args"].(string), " firebreak=") {
		return errors.New("no settings on the command line")
	}
	files := map[string]bool{boot["kernel_image_path"].(string): true, boot["initrd_path"].(string): true}
	if restored {
		files = map[string]bool{jailState: true, jailMemory: true}
	}
	for _, d := range []string{"root", "runtime", "disk"} {
		c := configured["PUT /drives/"+d]
		files[c["path_on_host"].(string)] = c["is_read_only"].(bool)
		if fmt.Sprint(c["rate_limiter"]) != wantRate {
			return fmt.Errorf("%s has the rate %v", d, c["rate_limiter"])
		}
	}
	if len(files) != 5 {
		return fmt.Errorf("files %v", files)
	}
	for f, readonly := range files {
		var st unix.Stat_t
		if err := unix.Stat("."+f, &st); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		if mine := fmt.Sprint(st.Uid) == user; mine == readonly || readonly && st.Mode&0o022 != 0 {
			return fmt.Errorf("%s: read-only %t, but of user %d, mode %o", f, readonly, st.Uid, st.Mode)
		}
	}
	list, err := os.ReadDir(".")
	for _, e := range list {
		if name := "/" + e.Name(); err == nil && e.Type().IsRegular() && !files[name] && name != jailDisk {
			err = fmt.Errorf("%s is in the jail", name)
		}
	}
	return err
}

// attach takes the TAP that is configured, as Firecracker does after it was jailed:
// in the namespace, as the user. A machine without one has no namespace to enter.
func attach(c map[string]any, netns, user string) error {
	if c == nil || netns == "" {
		if c != nil || netns != "" {
			return fmt.Errorf("a network device %v, and the namespace %q", c, netns)
		}
		return nil
	}
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: it keeps the TAP
		done <- func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				return errno
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			req, err := unix.NewIfreq(c["host_dev_name"].(string))
			if err != nil {
				return err
			}
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
				return fmt.Errorf("attach to %v as user %d: %w", c["host_dev_name"], uid, err)
			}
			return nil
		}()
		select {}
	}()
	return <-done
}

// TestFirecrackerLife: created, reached, taken over, destroyed, with the right
// files in the jail and nothing left of it.
func TestFirecrackerLife(t *testing.T) {
	f, kernel := stub(t, "1.13.1")
	b := open(t, t.TempDir())
	b.look = pretend(b, f, kernel)
	inst, err := b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	reach(t, inst)
	next := open(t, b.cfg.Dir)
	again, err := next.Attach(patient(t), inst.ID())
	if err != nil {
		t.Fatal(err)
	}
	reach(t, again)
	if st, err := again.Status(patient(t)); err != nil || !st.Alive {
		t.Errorf("%+v, %v", st, err)
	}
	r, err := inst.Destroy(patient(t))
	if err != nil || !slices.ContainsFunc(r.Objects, func(o sandbox.Object) bool {
		return o.Kind == "socket" && strings.HasSuffix(o.Name, "/root/vsock.sock")
	}) {
		t.Errorf("receipt %+v, %v", r, err)
	}
	if exit, err := again.Wait(patient(t)); err != nil || exit.Reason != sandbox.ReasonCrashed && exit.Reason != sandbox.ReasonLost {
		t.Errorf("%+v, %v", exit, err)
	}
	if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func reach(t *testing.T, inst sandbox.Instance) {
	t.Helper()
	conn, err := inst.Dial(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(patient(t), func() { conn.Close() })
	defer stop()
	if err := handshake(conn); err != nil {
		t.Errorf("nobody answers: %v", err)
	}
}

// TestFirecrackerWire: a machine's TAP is there by its name, for its user, in the
// namespace it enters, and goes with it; the wire stays.
func TestFirecrackerWire(t *testing.T) {
	f, kernel := stub(t, "1.13.1")
	l, _ := openWire(t)
	b := open(t, t.TempDir())
	b.look = pretend(b, f, kernel)
	inst, err := b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t), Wire: &l.Wire})
	if err != nil {
		t.Fatal(err)
	}
	reach(t, inst)
	_, err = b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t), Wire: &l.Wire})
	if sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("another machine on the same wire: %v", err)
	}
	r, err := inst.Destroy(patient(t))
	if err != nil || !slices.ContainsFunc(r.Objects, func(o sandbox.Object) bool {
		return o.Kind == "link" && strings.HasPrefix(o.Name, wire.MachineLink+" in net:[") && o.Gone
	}) {
		t.Errorf("receipt %+v, %v", r, err)
	}
	if theirs, err := wireNamespace(l.Wire.NetNS); err != nil || slices.ContainsFunc(r.Objects, func(o sandbox.Object) bool { return o.Name == theirs }) {
		t.Errorf("the receipt lists the wire's own namespace (%v): %+v", err, r)
	}
	if links := linksIn(t, l.Wire); !slices.Equal(links, []string{"lo", wire.LinkName}) {
		t.Errorf("the wire's namespace has %q", links)
	}
}

// TestFirecrackerCrashes kills the creator at each step of the lifecycle.
func TestFirecrackerCrashes(t *testing.T) {
	f, kernel := stub(t, "1.13.1")
	root := minimalRoot(t)
	for _, point := range []string{"microvm.create/after-intent", "microvm.create/after-cgroup", "microvm.create/after-files", "microvm.create/after-start",
		"wire.plug/after-tap", "wire.plug/after-join", "wire.plug/after-persist", "microvm.create/after-plug",
		"microvm.create/after-processes", "microvm.firecracker/after-api", "microvm.firecracker/after-configure", "microvm.firecracker/after-start",
		"microvm.create/after-answer", "microvm.create/after-ready", "microvm.destroy/after-kill", "microvm.destroy/after-cgroup", "microvm.destroy/after-files"} {
		t.Run(filepath.Base(filepath.Dir(point))+"-"+filepath.Base(point), func(t *testing.T) {
			b := open(t, t.TempDir())
			h := helper{Config: b.cfg, Root: root, ID: sandbox.NewInstanceID(), Destroy: strings.Contains(point, "destroy"), Fake: f, Kernel: kernel}
			l, _ := openWire(t)
			h.Wire = &l.Wire
			cmd, _, _ := startHelper(t, h, failpoint.Env+"="+point)
			err := cmd.Wait()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("the creator ended with %v, not by its failpoint", err)
			}
			if strings.HasSuffix(point, "after-files") && h.Destroy {
				if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				return
			}
			all, err := b.List(patient(t))
			if alive := strings.HasSuffix(point, "after-ready"); err != nil || len(all) != 1 || all[0].Alive != alive {
				t.Errorf("List = %+v, %v; want one, alive %t", all, err, alive)
			}
			checkRemoved(t, b, h.ID)
			if links := linksIn(t, l.Wire); !slices.Equal(links, []string{"lo", wire.LinkName}) {
				t.Errorf("the wire's namespace has %q", links)
			}
		})
	}
}

// TestFirecrackerRefused: what is wrong with it is an error that says so, and
// leaves nothing.
func TestFirecrackerRefused(t *testing.T) {
	f, kernel := stub(t, "1.13.1")
	for what, spoil := range map[string]func() *fireVMM{
		"no jailer":      func() *fireVMM { return &fireVMM{Program: f.Program, Jailer: "/nonexistent/jailer"} },
		"one that fails": func() *fireVMM { return &fireVMM{Program: f.Program, Jailer: "/bin/false"} },
	} {
		b := open(t, t.TempDir())
		b.look = pretend(b, spoil(), kernel)
		_, err := b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)})
		if sandbox.KindOf(err) != sandbox.KindInternal {
			t.Errorf("%s: %v", what, err)
		}
		if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
			t.Errorf("%s left: %v", what, left)
		}
	}
	// A link a monitor left in its jail is not followed.
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Symlink("theirs", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if c, err := dialIn(dir, "theirs"); err != nil {
		t.Errorf("a socket: %v", err)
	} else {
		c.Close()
	}
	if c, err := dialIn(dir, "link"); err == nil {
		c.Close()
		t.Error("a link was followed")
	}
}

// TestFirecrackerFound: the programs must be of one version, and supported.
func TestFirecrackerFound(t *testing.T) {
	f, _ := stub(t, "1.13.1")
	find := func() (probed, error) {
		b := open(t, t.TempDir())
		b.cfg.Firecracker, b.cfg.Jailer = f.Program, f.Jailer
		var p probed
		return p, b.findFirecracker(patient(t), &p)
	}
	if _, err := find(); err != nil {
		t.Error(err)
	}
	for _, says := range []string{"Firecracker v1.12.0", "Firecracker v1.7.0", "x", ""} {
		if err := os.WriteFile(f.Program, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := find(); err == nil {
			t.Errorf("%q was taken", says)
		}
	}
	junk := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(junk, []byte("MZ compressed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if checkUncompressed(junk) == nil {
		t.Error("a compressed kernel was taken")
	}
}

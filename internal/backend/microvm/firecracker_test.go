//go:build linux

package microvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/firecracker/fake"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What stands in for jailer and Firecracker here is this test binary: it takes the
// jailer's arguments, looks at the jail as Firecracker would, serves the API held
// against its definition, and a vsock with something behind it. What a real one
// does with a machine is TestRealFirecracker's.

// jailerEnv makes the test binary the stand-in.
const jailerEnv = "FIREBREAK_TEST_JAILER"

// stub writes the stand-in's programs and a kernel that looks like one.
func stub(t *testing.T) (f *fireVMM, kernel string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: a jail needs root")
	}
	dir := t.TempDir()
	f = &fireVMM{Program: filepath.Join(dir, "firecracker-v1.13.1"), Jailer: filepath.Join(dir, "jailer")}
	kernel = filepath.Join(dir, "vmlinux")
	for name, text := range map[string]string{
		f.Program: "#!/bin/sh\necho 'Firecracker v1.13.1'\n",
		f.Jailer:  "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'Jailer v1.13.1'; exit; }\nexport " + jailerEnv + "=1\nexec " + os.Args[0] + " \"$@\"\n",
		kernel:    "\x7fELF…",
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
		flags[args[0]], args = args[1], args[2:]
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
	api, err := net.Listen("unix", "."+args[2])
	if err != nil {
		return err
	}
	p := fake.New("1.13.1")
	p.Started = func(configured map[string]map[string]any) {
		if err := look(configured, flags["--uid"]); err != nil {
			fmt.Fprintln(os.Stderr, "fake:", err)
			os.Exit(1)
		}
		l, err := net.Listen("unix", "."+configured["PUT /vsock"]["uds_path"].(string))
		if err != nil {
			os.Exit(1)
		}
		go answer(l)
	}
	return http.Serve(api, p)
}

// wantRate is testRate as Firecracker is told it.
const wantRate = "map[bandwidth:map[refill_time:100 size:5.3687091e+07] ops:map[refill_time:100 size:5000]]"

// look checks that the configured files are in the jail, and whose they are.
func look(configured map[string]map[string]any, user string) error {
	boot := configured["PUT /boot-source"]
	if !strings.Contains(boot["boot_args"].(string), " firebreak=") {
		return errors.New("no settings on the command line")
	}
	files := map[string]bool{boot["kernel_image_path"].(string): true, boot["initrd_path"].(string): true}
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
	return nil
}

// answer is a guest that sends back what it gets.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			in := bufio.NewReader(c)
			if line, err := in.ReadString('\n'); err != nil || line != fmt.Sprintf("CONNECT %d\n", agentPort) {
				c.Close()
				return
			}
			io.WriteString(c, "OK 1073741824\n")
			io.Copy(c, in)
		}()
	}
}

// TestFirecrackerLife: created, reached, taken over, destroyed, with the right
// files in the jail and nothing left of it.
func TestFirecrackerLife(t *testing.T) {
	f, kernel := stub(t)
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

// TestFirecrackerCrashes kills the creator at each step of the lifecycle.
func TestFirecrackerCrashes(t *testing.T) {
	f, kernel := stub(t)
	root := minimalRoot(t)
	for _, point := range []string{"microvm.create/after-intent", "microvm.create/after-cgroup", "microvm.create/after-files", "microvm.create/after-start",
		"microvm.create/after-processes", "microvm.firecracker/after-api", "microvm.firecracker/after-configure", "microvm.firecracker/after-start",
		"microvm.create/after-answer", "microvm.create/after-ready", "microvm.destroy/after-kill", "microvm.destroy/after-cgroup", "microvm.destroy/after-files"} {
		t.Run(filepath.Base(filepath.Dir(point))+"-"+filepath.Base(point), func(t *testing.T) {
			b := open(t, t.TempDir())
			h := helper{Config: b.cfg, Root: root, ID: sandbox.NewInstanceID(), Destroy: strings.Contains(point, "destroy"), Fake: f, Kernel: kernel}
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
		})
	}
}

// TestFirecrackerRefused: what is wrong with it is an error that says so, and
// leaves nothing.
func TestFirecrackerRefused(t *testing.T) {
	f, kernel := stub(t)
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
	f, _ := stub(t)
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

// TestRealFirecracker boots, where there is what it takes.
func TestRealFirecracker(t *testing.T) {
	if _, err := exec.LookPath("firecracker"); err != nil {
		t.Skip("not run: there is no firecracker on the PATH")
	}
	kernel := os.Getenv("FIREBREAK_MACHINE_KERNEL")
	if kernel == "" {
		t.Skip("not run: FIREBREAK_MACHINE_KERNEL names no uncompressed kernel")
	}
	cfg := open(t, t.TempDir()).cfg
	cfg.VMM, cfg.Kernel = vmmFirecracker, kernel
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if info, err := b.Info(patient(t)); err != nil || !info.Available {
		t.Skipf("not run: %s (%v)", info.Reason, err)
	}
	inst, s := boot(t, b)
	if out := probeAs(t, s, "", "echo", "hello"); out != "hello\n" {
		t.Errorf("echo: %q", out)
	}
	probeAs(t, s, "root", "write", "/proc/sysrq-trigger", "c")
	if exit, err := inst.Wait(patient(t)); err != nil || exit.Reason != sandbox.ReasonCrashed {
		t.Errorf("%+v, %v", exit, err)
	}
}

package residue

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Each test plants one kind of residue, sees it found, removes it and sees the
// scope clean again: an oracle that never finds anything would fail here.

func TestProcess(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("not run: no sleep on this system")
	}
	id := string(sandbox.NewInstanceID())
	for _, c := range []struct {
		where string
		plant func(dir string) *exec.Cmd
	}{
		{"cmdline", func(string) *exec.Cmd { return exec.Command("sh", "-c", "read x; : "+id) }},
		{"environ", func(string) *exec.Cmd {
			cmd := exec.Command(sleep, "60")
			cmd.Env = []string{"FIREBREAK_INSTANCE=" + id}
			return cmd
		}},
		{"cwd", func(dir string) *exec.Cmd {
			cmd := exec.Command(sleep, "60")
			cmd.Dir = dir
			return cmd
		}},
		{"exe", func(dir string) *exec.Cmd {
			b, err := os.ReadFile(sleep)
			if err != nil {
				t.Fatal(err)
			}
			prog := filepath.Join(dir, "kept", "prog")
			write(t, prog)
			if err := os.WriteFile(prog, b, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(prog, "60")
			cmd.Args[0] = "nothing"
			return cmd
		}},
		{"descriptor", func(dir string) *exec.Cmd {
			write(t, filepath.Join(dir, "kept", "log"))
			f, err := os.OpenFile(filepath.Join(dir, "kept", "log"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			cmd := exec.Command(sleep, "60")
			cmd.ExtraFiles = []*os.File{f}
			return cmd
		}},
		{"child of this process", func(string) *exec.Cmd { return exec.Command(sleep, "60") }},
	} {
		t.Run(c.where, func(t *testing.T) {
			dir := t.TempDir()
			base := take(t, Scope{Dirs: []string{dir}, Keep: []string{"kept"}})
			base.Track(id)
			cmd := c.plant(dir)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			// fork has happened, exec perhaps not: until then the child shows our own image.
			eventually(t, func() bool {
				for _, f := range now(base) {
					if f.Kind == "process" && strings.Contains(f.Detail, c.where) {
						return true
					}
				}
				return false
			})
			if c.where == "cmdline" || c.where == "environ" {
				if f := Of(Scope{Dirs: []string{dir}}, id); len(f) == 0 {
					t.Error("Of did not find the process by its id")
				}
			}
			cmd.Process.Kill()
			eventually(t, func() bool { // dead, and nobody has waited: a zombie
				p, ok := readProcess(cmd.Process.Pid)
				return ok && p.state == "Z"
			})
			found(t, base, "process", "")
			cmd.Wait()
			for _, fd := range cmd.ExtraFiles {
				fd.Close()
			}
			clean(t, base)
		})
	}
}

func TestOrphanIsFoundByGroup(t *testing.T) {
	id := string(sandbox.NewInstanceID())
	group := cgroupTop(t) + "/residue-" + id
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("not run: control groups are not writable: %v", err)
	}
	defer os.Remove(group)
	base := take(t, Scope{Dirs: []string{t.TempDir()}})
	base.Track(id)
	found(t, now0(base), "cgroup", id) // made before Take, yet…
	if err := os.Remove(group); err != nil {
		t.Fatal(err)
	}
	if f := Of(Scope{}, id); len(f) != 0 {
		t.Fatalf("after removal: %v", f)
	}
	base = take(t, Scope{Cgroups: []string{"residue-top"}})
	parent := cgroupTop(t) + "/residue-top"
	if err := os.MkdirAll(parent+"/child", 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(parent)
	defer os.Remove(parent + "/child")
	found(t, base, "cgroup", "residue-top/child")
	os.Remove(parent + "/child")
	clean(t, base)
}

// now0 forgets the baseline, as Of does.
func now0(b *Baseline) *Baseline { return &Baseline{scope: b.scope, ids: b.ids} }

func cgroupTop(t *testing.T) string {
	for _, d := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(d + "/cgroup.procs"); err == nil {
			return d
		}
	}
	t.Skip("not run: no control group hierarchy is mounted")
	return ""
}

func TestMount(t *testing.T) {
	dir := t.TempDir()
	point := filepath.Join(dir, "with space", "m")
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	base := take(t, Scope{Dirs: []string{dir}})
	if err := syscall.Mount("none", point, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("not run: cannot mount: %v", err)
	}
	defer syscall.Unmount(point, syscall.MNT_DETACH)
	found(t, base, "mount", point)
	if err := syscall.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	clean(t, base)
}

func TestMountInAnotherNamespace(t *testing.T) {
	dir := t.TempDir()
	point := filepath.Join(dir, "m")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	base := take(t, Scope{Dirs: []string{dir}})
	// $0, not the path, so that the command line does not give it away.
	cmd := exec.Command("sh", "-c", "mount -t tmpfs none m && cd / && unset PWD OLDPWD && echo up && exec cat")
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("not run: cannot make a mount namespace: %v", err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Skip("not run: cannot mount in a new namespace")
	}
	found(t, base, "mount", point+" in mnt:[")
	in.Close()
	cmd.Wait()
	clean(t, base)
}

func TestNamespaces(t *testing.T) {
	base := take(t, Scope{Dirs: []string{t.TempDir()}, Prefixes: []string{"resid"}})
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Skip("not run: no network namespaces")
	}
	defer f.Close()
	found(t, base, "descriptor", "")
	f.Close()
	clean(t, base)

	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Skipf("not run: %v", err)
	}
	defer os.Remove("/run/netns") // only if we made it: fails while it holds others
	name := "/run/netns/residue-test"
	write(t, name)
	defer os.Remove(name)
	found(t, base, "netns", name)
	os.Remove(name)
	clean(t, base)
}

// TestNetnsOfAMount: a namespace nobody is in, kept as a wire is.
func TestNetnsOfAMount(t *testing.T) {
	id := string(sandbox.NewInstanceID())
	file := filepath.Join(t.TempDir(), id)
	base := take(t, Scope{})
	base.Track(id)
	write(t, file)
	if out, err := exec.Command("unshare", "--net="+file, "true").CombinedOutput(); err != nil {
		t.Skipf("not run: cannot keep a network namespace: %v %s", err, out)
	}
	unmount := func() { syscall.Unmount(file, syscall.MNT_DETACH) }
	defer unmount()
	found(t, base, "netns", "net:[")
	found(t, base, "mount", file)
	unmount()
	os.Remove(file)
	clean(t, base)
}

// TestTap: a descriptor that keeps a link.
func TestTap(t *testing.T) {
	base := take(t, Scope{})
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("not run: %v", err)
	}
	defer f.Close()
	found(t, base, "descriptor", "")
	f.Close()
	clean(t, base)
}

func TestNetnsOfAProcess(t *testing.T) {
	base := take(t, Scope{})
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("not run: cannot make a network namespace: %v", err)
	}
	defer cmd.Wait()
	defer in.Close()
	found(t, base, "netns", "net:[")
	in.Close()
	cmd.Wait()
	clean(t, base)
}

func TestLink(t *testing.T) {
	base := take(t, Scope{Prefixes: []string{"resid"}})
	if out, err := exec.Command("ip", "link", "add", "resid0", "type", "veth", "peer", "name", "resid1").CombinedOutput(); err != nil {
		t.Skipf("not run: cannot add a link: %v %s", err, out)
	}
	del := func() { exec.Command("ip", "link", "del", "resid0").Run() }
	defer del()
	found(t, base, "link", "resid0")
	del()
	clean(t, base)
}

func TestSocket(t *testing.T) {
	id := string(sandbox.NewInstanceID())
	dir := t.TempDir()
	base := take(t, Scope{Dirs: []string{dir}})
	base.Track(id)
	for _, name := range []string{filepath.Join(dir, "s"), "@firebreak/" + id} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		found(t, base, "socket", name)
		l.Close()
		clean(t, base)
	}
}

func TestTemporaryEntries(t *testing.T) {
	id := string(sandbox.NewInstanceID())
	base := take(t, Scope{Prefixes: []string{"residue-oracle-"}})
	base.Track(id)
	for _, place := range []string{"/tmp", "/run", "/dev/shm"} {
		for _, name := range []string{"residue-oracle-x", "x." + id} {
			path := filepath.Join(place, name)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Logf("not run: %s: %v", place, err)
				continue
			}
			defer os.Remove(path)
			found(t, base, "file", path)
			os.Remove(path)
			clean(t, base)
		}
	}
	// Without a name of ours it counts on an exclusive machine only.
	path := filepath.Join("/tmp", "nobodys-"+time.Now().Format("150405.000000"))
	base = take(t, Scope{})
	write(t, path)
	defer os.Remove(path)
	clean(t, base)
	base.scope.Exclusive = true
	found(t, base, "file", path)
}

func TestDescriptor(t *testing.T) {
	dir := t.TempDir()
	base := take(t, Scope{Dirs: []string{dir}, Keep: []string{"f"}})
	write(t, filepath.Join(dir, "f"))
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found(t, base, "descriptor", "")
	f.Close()
	clean(t, base)

	base = take(t, Scope{Descriptors: true})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	found(t, base, "descriptor", "")
	r.Close()
	w.Close()
	clean(t, base)
}

func TestLoop(t *testing.T) {
	dir := t.TempDir()
	img := filepath.Join(dir, "kept")
	if err := os.WriteFile(img, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	base := take(t, Scope{Dirs: []string{dir}})
	out, err := exec.Command("losetup", "--find", "--show", img).CombinedOutput()
	if err != nil {
		t.Skipf("not run: no loop devices: %v %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", dev).Run()
	found(t, base, "loop", dev)
	exec.Command("losetup", "-d", dev).Run()
	clean(t, base)
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen within 5 s")
		}
	}
}

//go:build linux

package gvisor

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// box is a live instance with a session.
type box struct {
	*Instance
	*guest.Session
}

// create boots an instance and destroys it when the test ends.
func create(t *testing.T, b *Backend, s sandbox.Spec) box {
	t.Helper()
	s.Instance = sandbox.NewInstanceID()
	inst, err := b.Create(within(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r, err := inst.Destroy(within(t)); err != nil || !r.Clean {
			t.Errorf("Destroy: %+v, %v", r, err)
		}
	})
	conn, err := inst.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	sess, err := guest.Open(within(t), conn, guest.Config{PIDs: s.Limits.PIDs, Memory: s.Limits.Memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sess.Close() })
	return box{inst.(*Instance), sess}
}

// probe runs a verb inside and returns its output.
func (x box) probe(t *testing.T, verb ...string) (string, guest.Exit) {
	t.Helper()
	p, err := x.Exec(within(t), guest.Command{Argv: append([]string{guest.AgentPath, "probe"}, verb...)})
	if err != nil {
		t.Fatalf("%q: %v", verb, err)
	}
	go io.Copy(io.Discard, p.Stderr())
	var out bytes.Buffer
	if _, err := io.Copy(&out, p.Stdout()); err != nil {
		t.Fatalf("%q: %v", verb, err)
	}
	exit, err := p.Wait(within(t))
	if err != nil {
		t.Fatalf("%q: %v", verb, err)
	}
	return out.String(), exit
}

// TestHostSide looks at the processes of a sandbox as a host would.
func TestHostSide(t *testing.T) {
	b := open(t, t.TempDir())
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	mine := func(ns string) string {
		s, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	roles := map[string]int{}
	for _, p := range x.running.Processes {
		roles[p.Role]++
		status := statusFile(t, p.PID)
		if status["NoNewPrivs"] != "1" || status["Seccomp"] != "2" {
			t.Errorf("%s: NoNewPrivs %s, Seccomp %s; want 1, 2", p.Role, status["NoNewPrivs"], status["Seccomp"])
		}
		for _, ns := range []string{"user", "pid", "net", "mnt", "ipc", "uts"} {
			if s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, ns)); err != nil || s == mine(ns) {
				t.Errorf("%s shares the host's %s namespace (%v)", p.Role, ns, err)
			}
		}
		// What gVisor itself would have dropped, no more and no less: these
		// hold in the sandbox's own user namespace.
		want, ok := map[string]string{"sentry": "000000000008001f", "gofer": "000000000004001f"}[p.Role]
		if ok && (status["CapEff"] != want || status["CapPrm"] != want || status["CapBnd"] != want) {
			t.Errorf("%s has capabilities %s, %s, bounding %s; want %s", p.Role, status["CapEff"], status["CapPrm"], status["CapBnd"], want)
		}
		inside, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
		if err != nil || !strings.Contains(string(inside), string(x.id)) {
			t.Errorf("%s is outside of the cgroup: %s %v", p.Role, inside, err)
		}
	}
	if roles["sentry"] != 1 || roles["gofer"] != 1 || roles["stub"] < 2 || len(roles) != 3 {
		t.Errorf("processes: %v", roles)
	}
	root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", x.running.Sentry.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range root {
		if !slices.Contains([]string{"etc", "proc", "sys", "dev"}, e.Name()) {
			t.Errorf("the sentry's root has %s", e.Name())
		}
	}
}

func statusFile(t *testing.T, pid int) map[string]string {
	t.Helper()
	m := map[string]string{}
	for line := range strings.Lines(get(t, fmt.Sprintf("/proc/%d/status", pid))) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.TrimSpace(v)
	}
	return m
}

// TestGuestSide looks at the machine a guest sees.
func TestGuestSide(t *testing.T) {
	b := open(t, t.TempDir())
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t), Hostname: "fire", Limits: sandbox.Limits{Memory: 100 << 20, CPUs: 1}})
	meminfo, _ := x.probe(t, "read", "/proc/meminfo")
	if want := fmt.Sprintf("MemTotal:%15d kB", 100<<10); !strings.HasPrefix(meminfo, want) {
		t.Errorf("the guest sees %.40q, want %q", meminfo, want)
	}
	cpuinfo, _ := x.probe(t, "read", "/proc/cpuinfo")
	if n := strings.Count(cpuinfo, "processor"); n != guestCPUs(1) {
		t.Errorf("the guest sees %d CPUs, want %d", n, guestCPUs(1))
	}
	host, _ := x.probe(t, "read", "/proc/sys/kernel/hostname")
	if strings.TrimSpace(host) != "fire" {
		t.Errorf("hostname %q", host)
	}
	net, _ := x.probe(t, "ls", "/sys/class/net")
	if f := strings.Fields(net); len(f) > 1 || len(f) == 1 && f[0] != "lo" {
		t.Errorf("network devices %q", f)
	}
	mounts, _ := x.probe(t, "mounts")
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if f[4] == "/tmp" {
			t.Errorf("/tmp is a mount of its own: its files would count as memory: %s", line)
		}
		if f[4] == RuntimeTarget && !strings.HasPrefix(f[5], "ro") {
			t.Errorf("the runtime is writable: %s", line)
		}
	}
	if _, err := x.WriteFile(within(t), RuntimeTarget+"/firebreak-guest", strings.NewReader("evil"), guest.WriteOptions{User: "root"}); err == nil {
		t.Error("root inside replaced the agent")
	}
}

// TestFilesAreNotMemory writes three times the memory limit to disk, and says
// what that does to the cgroup.
func TestFilesAreNotMemory(t *testing.T) {
	for _, c := range []struct {
		name     string
		readonly bool
		file     string
	}{
		{"Root", false, "/home/user/big"},
		{"Tmp", false, "/tmp/big"},
		{"ReadonlyHome", true, "/home/user/big"},
		{"ReadonlyTmp", true, "/tmp/big"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := open(t, t.TempDir())
			x := create(t, b, sandbox.Spec{Root: minimalRoot(t), ReadonlyRoot: c.readonly,
				Limits: sandbox.Limits{Memory: 64 << 20, Disk: 500 << 20}})
			const n = 200 << 20
			if _, exit := x.probe(t, "fill", c.file, strconv.Itoa(n)); exit.Code != 0 {
				t.Errorf("writing %d bytes: %+v", n, exit)
			}
			st := x.status()
			t.Logf("%s in the cgroup, peak %s of %s", sandbox.FormatSize(st.Usage.Memory), sandbox.FormatSize(st.Usage.MemoryPeak),
				sandbox.FormatSize(64<<20+st.Usage.Overhead))
			if st.Usage.OOMKills != 0 {
				t.Errorf("%d kills for memory", st.Usage.OOMKills)
			}
			if st.Usage.Disk < n {
				t.Errorf("Usage.Disk = %s", sandbox.FormatSize(st.Usage.Disk))
			}
			if _, exit := x.probe(t, "fill", c.file+"2", strconv.Itoa(400<<20)); exit.Code == 0 {
				t.Error("the disk limit does not hold")
			}
		})
	}
}

// TestMountPointsMustExist: the gofer would make a missing one in the root all
// sandboxes share.
func TestMountPointsMustExist(t *testing.T) {
	b := open(t, t.TempDir())
	for _, missing := range []string{"tmp", "home/user", ".firebreak", "proc"} {
		root := minimalRoot(t)
		if err := os.Remove(filepath.Join(root.Dir, missing)); err != nil {
			t.Fatal(err)
		}
		_, err := b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root})
		if sandbox.KindOf(err) != sandbox.KindInvalid || !strings.Contains(err.Error(), missing) {
			t.Errorf("without /%s: %v", missing, err)
		}
		if _, err := os.Lstat(filepath.Join(root.Dir, missing)); err == nil {
			t.Errorf("/%s was made in the shared root", missing)
		}
	}
}

// TestMounts binds directories over the root, one inside another.
func TestMounts(t *testing.T) {
	b := open(t, t.TempDir())
	outer, inner := t.TempDir(), t.TempDir()
	put(t, filepath.Join(outer, "a"), "outer")
	put(t, filepath.Join(inner, "a"), "inner")
	if err := os.Mkdir(filepath.Join(outer, "local"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{outer, inner} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := minimalRoot(t)
	root.Mounts = []sandbox.Mount{{Source: inner, Target: "/usr/local"}, {Source: outer, Target: "/usr"}}
	for _, mutable := range []bool{false, true} {
		root.Mutable = mutable
		x := create(t, b, sandbox.Spec{Root: root})
		if s, _ := x.probe(t, "read", "/usr/a"); s != "outer" {
			t.Errorf("/usr/a is %q", s)
		}
		if s, _ := x.probe(t, "read", "/usr/local/a"); s != "inner" {
			t.Errorf("/usr/local/a is %q", s)
		}
		if _, err := x.WriteFile(within(t), "/usr/planted", strings.NewReader("x"), guest.WriteOptions{User: "root"}); err == nil {
			t.Error("root inside wrote to a mount")
		}
		if _, err := os.Lstat(filepath.Join(outer, "planted")); err == nil {
			t.Error("and to the host")
		}
	}
	root.Mounts = []sandbox.Mount{{Source: outer, Target: "/usr"}, {Source: inner, Target: "/usr/missing"}}
	_, err := b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root})
	if sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("a mount point that another mount lacks: %v", err)
	}
}

// TestSaysWhatRunscSaid: a boot that fails says why, and leaves nothing.
func TestSaysWhatRunscSaid(t *testing.T) {
	b := open(t, t.TempDir())
	b.agent = []string{"/no/such/agent"}
	_, err := b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)})
	if err == nil || !strings.Contains(err.Error(), "/no/such/agent") {
		t.Errorf("Create: %v", err)
	}
	if entries, _ := os.ReadDir(b.cfg.Dir); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestProbe(t *testing.T) {
	b := open(t, t.TempDir())
	if info, err := b.Probe(within(t)); err != nil || !info.Available {
		t.Errorf("Probe = %+v, %v", info, err)
	}
	b.agent = []string{"/no/such/agent"}
	if info, err := b.Probe(within(t)); err != nil || info.Available || info.Reason == "" || info.Hint == "" {
		t.Errorf("Probe of what does not boot = %+v, %v", info, err)
	}
	if entries, _ := os.ReadDir(b.cfg.Dir); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}

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
	"time"

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
	b, root := open(t, t.TempDir()), minimalRoot(t)
	x := create(t, b, sandbox.Spec{Root: root})
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
		if len(x.group.dirs) == 0 {
			continue // nothing to be outside of
		}
		if err != nil || !strings.Contains(string(inside), string(x.id)) {
			t.Errorf("%s is outside of the cgroup: %s %v", p.Role, inside, err)
		}
	}
	if roles["sentry"] != 1 || roles["gofer"] != 1 || roles["stub"] < 2 || len(roles) != 3 {
		t.Errorf("processes: %v", roles)
	}
	// No path leads to the host: the sentry lives in an empty directory, the
	// gofer in the template.
	for _, p := range x.running.Processes {
		allowed := []string{"etc", "proc", "sys", "dev"}
		if p.Role == "gofer" {
			allowed = names(t, root.Dir)
		}
		for _, name := range names(t, fmt.Sprintf("/proc/%d/root", p.PID)) {
			if !slices.Contains(allowed, name) {
				t.Errorf("%s sees /%s", p.Role, name)
			}
		}
	}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
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

// TestUsageOutlivesTheInstance: what was used is asked for after the end.
func TestUsageOutlivesTheInstance(t *testing.T) {
	b := open(t, t.TempDir())
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	x.probe(t, "fill", "f", strconv.Itoa(3<<20))
	if _, err := x.Destroy(within(t)); err != nil {
		t.Fatal(err)
	}
	st, err := x.Instance.Status(within(t))
	if err != nil || st.Alive || st.Exit.Reason != sandbox.ReasonOperator {
		t.Errorf("Status = %+v, %v", st, err)
	}
	measured := len(x.group.dirs) > 0
	if u := st.Usage; measured && (u.CPU == 0 || u.MemoryPeak == 0) || u.Disk < 3<<20 {
		t.Errorf("usage after the end: %+v", u)
	}
}

// TestHostCrashLeavesADirectory: after a power cut the intent may be empty.
func TestHostCrashLeavesADirectory(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for _, content := range []string{"", "{\"instance\":\"in", "{}", "\x00\x00\x00\x00"} {
		id := sandbox.NewInstanceID()
		if err := os.Mkdir(b.dir(id), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(b.dir(id), fileIntent), content)
		checkDead(t, b, id)
		checkRemoved(t, b, id)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Dir: t.TempDir(), Runsc: "/bin/runsc", Runtime: "/runtime"}
	for name, change := range map[string]func(*Config){
		"relative directory": func(c *Config) { c.Dir = "instances" },
		"comma in directory": func(c *Config) { c.Dir += ",size=1" },
		"no runsc":           func(c *Config) { c.Runsc = "" },
		"cgroup elsewhere":   func(c *Config) { c.Cgroup = "../other" },
		"relative runtime":   func(c *Config) { c.Runtime = "./runtime" },
	} {
		c := good
		change(&c)
		if b, err := New(c); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
}

// TestProgramsMissing: Info says that nothing can run, and what to do.
func TestProgramsMissing(t *testing.T) {
	b, err := New(Config{Dir: t.TempDir(), Runsc: "/nonexistent/runsc", Runtime: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	info, err := b.Info(within(t))
	if err != nil || info.Available || info.Reason == "" || !strings.Contains(info.Hint, "make") {
		t.Errorf("Info = %+v, %v", info, err)
	}
	_, err = b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: sandbox.Root{Dir: "/"}})
	if sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("Create: %v", err)
	}
}

// TestKernelKillsTheGuest: with the agent looking away, the cgroup is full
// before long, and the kernel picks the program that filled it: not the
// sentry, not the agent. The kernel weighs, it does not promise: a sandbox may
// be lost to it, three in a row are not.
func TestKernelKillsTheGuest(t *testing.T) {
	b := open(t, t.TempDir())
	enforcing(t, b, sandbox.LimitMemory)
	for range 3 {
		if kernelKillsTheGuest(t, b) {
			return
		}
	}
	t.Error("the kernel killed the sandbox, not the program, three times")
}

// kernelKillsTheGuest is false when the sandbox did not survive the first
// program.
func kernelKillsTheGuest(t *testing.T, b *Backend) bool {
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t), Limits: sandbox.Limits{Memory: 64 << 20}})
	x.Session.Close()
	conn, err := x.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if x.Session, err = guest.Open(within(t), conn, guest.Config{}); err != nil { // no limit
		t.Fatal(err)
	}
	defer x.Session.Close()
	for range 3 {
		p, err := x.Exec(within(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "alloc", strconv.Itoa(1 << 30)}})
		if err != nil {
			t.Logf("the sandbox is gone: %v", err)
			return false
		}
		exit, err := p.Wait(within(t))
		if err != nil {
			t.Logf("the sandbox is gone: %v", err)
			return false
		}
		if exit.Signal != 9 {
			t.Errorf("alloc of 16 times the limit: %+v", exit)
		}
		// The sentry gives the dead program's memory back a moment later; until
		// then nothing new fits.
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			p, err := x.Exec(within(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "exit", "0"}})
			if x.Session.Err() != nil {
				t.Logf("the sandbox is gone: %v", err)
				return false
			}
			if err != nil {
				if time.Now().After(end) {
					t.Fatalf("the sandbox does not serve afterwards: %v", err)
				}
				continue
			}
			exit, err := p.Wait(within(t))
			if x.Session.Err() != nil {
				t.Logf("the sandbox is gone: %v", err)
				return false
			}
			if err != nil || exit.Code != 0 {
				t.Errorf("the sandbox does not serve afterwards: %+v, %v", exit, err)
			}
			break
		}
	}
	st := x.status()
	if !st.Alive || st.Usage.OOMKills < 3 {
		t.Errorf("alive %v, %d kills", st.Alive, st.Usage.OOMKills)
	}
	limit := int64(64<<20) + st.Usage.Overhead
	if st.Usage.MemoryPeak > limit+1<<20 { // a dying process may take a few pages more
		t.Errorf("peak %d above the limit %d", st.Usage.MemoryPeak, limit)
	}
	return true
}

// TestCPUShare watches two spinning programs from the host alone, which needs no
// agent that gets the CPU in time.
func TestCPUShare(t *testing.T) {
	b := open(t, t.TempDir())
	enforcing(t, b, sandbox.LimitCPU)
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t), Limits: sandbox.Limits{CPUs: 0.25}})
	for range 2 {
		if _, err := x.Exec(within(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "spin"}}); err != nil {
			t.Fatal(err)
		}
	}
	before, began := x.status().Usage.CPU, time.Now()
	time.Sleep(3 * time.Second)
	share := float64(x.status().Usage.CPU-before) / float64(time.Since(began))
	t.Logf("%.2f CPUs", share)
	if share > 0.5 || share < 0.02 { // unbounded it would be one or two; a starved machine gives less
		t.Errorf("two spinning programs used %.2f CPUs, the limit is 0.25", share)
	}
}

// TestEndSaysMemory: when the boundary itself is what the kernel killed for
// memory, that is the reason of the end.
func TestEndSaysMemory(t *testing.T) {
	b := open(t, t.TempDir())
	enforcing(t, b, sandbox.LimitMemory)
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t), Limits: sandbox.Limits{Memory: 64 << 20}})
	for _, p := range x.running.Processes { // now everything is a candidate, the sentry before all
		setOOMScore(p.PID, map[string]int{"sentry": 1000}[p.Role])
	}
	x.Session.Close()
	conn, err := x.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := guest.Open(within(t), conn, guest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Exec(within(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "alloc", strconv.Itoa(1 << 30)}}); err != nil {
		t.Fatal(err)
	}
	exit, err := x.Instance.Wait(within(t))
	if err != nil || exit.Reason != sandbox.ReasonMemory || exit.Detail != "limit 64 MiB" {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}

// TestFirstStub: without the stub that all others are forked from a sandbox can
// start nothing. It ends, rather than look alive.
func TestFirstStub(t *testing.T) {
	b := open(t, t.TempDir())
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	first := stubs(x.running.Processes)[0]
	if err := first.kill(); err != nil {
		t.Fatal(err)
	}
	exit, err := x.Wait(within(t))
	if err != nil || exit.Reason != sandbox.ReasonCrashed {
		t.Errorf("%+v, %v", exit, err)
	}
}

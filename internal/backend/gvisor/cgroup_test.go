//go:build linux

package gvisor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestFindCgroups(t *testing.T) {
	unified := t.TempDir()
	put(t, filepath.Join(unified, "cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n")
	v1 := `30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 30 0:28 / /mnt/second\040memory rw,relatime - cgroup cgroup rw,memory
`
	for name, c := range map[string]struct {
		mountinfo string
		v2        bool
		dirs      []string
		limits    sandbox.LimitSet
	}{
		"none": {"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n", false, nil, 0},
		"v1": {v1, false, []string{
			"/sys/fs/cgroup/cpu,cpuacct/fb/inx", "/sys/fs/cgroup/memory/fb/inx", "/sys/fs/cgroup/pids/fb/inx",
		}, sandbox.LimitMemory | sandbox.LimitCPU | sandbox.LimitPIDs},
		"hybrid": {v1 + "36 30 0:31 / " + unified + " rw - cgroup2 cgroup2 rw\n", false, []string{
			"/sys/fs/cgroup/cpu,cpuacct/fb/inx", "/sys/fs/cgroup/memory/fb/inx", "/sys/fs/cgroup/pids/fb/inx",
		}, sandbox.LimitMemory | sandbox.LimitCPU | sandbox.LimitPIDs},
		"v2": {"36 30 0:31 / " + unified + " rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n", true,
			[]string{unified + "/fb/inx"}, sandbox.LimitMemory | sandbox.LimitCPU | sandbox.LimitPIDs},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := findCgroups(strings.NewReader(c.mountinfo), "0::/\n", "fb", true)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.group("inx").dirs; h.v2 != c.v2 || !slices.Equal(got, c.dirs) || h.limits() != c.limits {
				t.Errorf("v2 %v, %q, %s; want %v, %q, %s", h.v2, got, h.limits(), c.v2, c.dirs, c.limits)
			}
		})
	}
}

// fakeV2 is a directory that looks like a version 2 hierarchy, with the
// control files of one instance's group already there: a real kernel makes
// them with the directory.
func fakeV2(t *testing.T) (cgroupHost, string) {
	t.Helper()
	root := t.TempDir()
	put(t, filepath.Join(root, "cgroup.subtree_control"), "")
	h := cgroupHost{v2: true, parent: "a/b", trees: []hierarchy{{top: root, controllers: []string{"cpu", "memory", "pids"}}}}
	for _, d := range []string{"a", "a/b"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(root, d, "cgroup.subtree_control"), "")
	}
	return h, root
}

func TestPrepareV2HandsControllersDown(t *testing.T) {
	h, root := fakeV2(t)
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{".", "a", "a/b"} {
		if got := get(t, filepath.Join(root, d, "cgroup.subtree_control")); got != "+cpu +memory +pids" {
			t.Errorf("%s hands down %q", d, got)
		}
	}
}

func TestLimitsV2(t *testing.T) {
	h, root := fakeV2(t)
	g := h.group("inx")
	dir := filepath.Join(root, "a/b/inx")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.kill", "cgroup.procs"} {
		put(t, filepath.Join(dir, f), "")
	}
	if err := g.limit(sandbox.Limits{Memory: 64 << 20, PIDs: 100}, 10<<20); err != nil {
		t.Fatal(err)
	}
	if err := g.limitCPU(0.5); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]string{
		"memory.max": "77594624", "memory.swap.max": "0", "pids.max": "656", "cpu.max": "50000 100000", "cgroup.kill": "",
	} {
		if got := get(t, filepath.Join(dir, f)); got != want {
			t.Errorf("%s = %q, want %q", f, got, want)
		}
	}
	if err := g.limitCPU(0.001); err != nil || !strings.HasPrefix(get(t, filepath.Join(dir, "cpu.max")), "1000 ") {
		t.Errorf("a quota below the kernel's minimum: %q, %v", get(t, filepath.Join(dir, "cpu.max")), err)
	}
	g.freezeSize()
	g.killAll()
	if get(t, filepath.Join(dir, "pids.max")) != "0" || get(t, filepath.Join(dir, "cgroup.kill")) != "1" {
		t.Error("killing does not stop the group from growing, or does not use cgroup.kill")
	}
	put(t, filepath.Join(dir, "cgroup.procs"), "12\n345\n12\n")
	if pids, err := g.pids(); err != nil || !slices.Equal(pids, []int{12, 345}) {
		t.Errorf("pids = %v, %v", pids, err)
	}
	if err := os.Remove(filepath.Join(dir, "memory.swap.max")); err != nil { // a kernel without swap
		t.Fatal(err)
	}
	if err := g.limit(sandbox.Limits{Memory: 64 << 20}, 0); err != nil {
		t.Errorf("without swap accounting: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "memory.max")); err != nil {
		t.Fatal(err)
	}
	if err := g.limit(sandbox.Limits{Memory: 64 << 20}, 0); err == nil {
		t.Error("a memory limit that could not be set was accepted")
	}
}

func TestUsage(t *testing.T) {
	h, root := fakeV2(t)
	dir := filepath.Join(root, "a/b/inx")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for f, s := range map[string]string{
		"memory.current": "1000\n", "memory.peak": "2000\n", "pids.current": "7\n",
		"cpu.stat":      "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
		"memory.events": "low 0\nhigh 0\nmax 5\noom 2\noom_kill 3\noom_group_kill 0\n",
	} {
		put(t, filepath.Join(dir, f), s)
	}
	var u sandbox.Usage
	h.group("inx").usage(&u)
	if want := (sandbox.Usage{CPU: 1500 * time.Microsecond, Memory: 1000, MemoryPeak: 2000, PIDs: 7, OOMKills: 3}); u != want {
		t.Errorf("v2: %+v, want %+v", u, want)
	}
	u = sandbox.Usage{}
	h.group("inother").usage(&u) // gone
	if u != (sandbox.Usage{}) {
		t.Errorf("of a group that is gone: %+v", u)
	}

	v1 := cgroupHost{parent: "fb"}
	for _, c := range []string{"memory", "cpu", "cpuacct", "pids"} {
		v1.trees = append(v1.trees, hierarchy{top: filepath.Join(root, c), controllers: []string{c}})
		if err := os.MkdirAll(filepath.Join(root, c, "fb", "inx"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for f, s := range map[string]string{
		"memory/fb/inx/memory.usage_in_bytes": "1000\n", "memory/fb/inx/memory.max_usage_in_bytes": "2000\n",
		"memory/fb/inx/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
		"pids/fb/inx/pids.current":         "7\n", "cpuacct/fb/inx/cpuacct.usage": "1500000\n",
	} {
		put(t, filepath.Join(root, f), s)
	}
	u = sandbox.Usage{}
	v1.group("inx").usage(&u)
	if want := (sandbox.Usage{CPU: 1500 * time.Microsecond, Memory: 1000, MemoryPeak: 2000, PIDs: 7, OOMKills: 3}); u != want {
		t.Errorf("v1: %+v, want %+v", u, want)
	}
}

func TestCgroupOf(t *testing.T) {
	const f = "9:name=systemd:/x\n8:pids:/\n4:memory:/process_api/6b\n1:cpu,cpuacct:/c:d\n0::/\n"
	for c, want := range map[string]string{"memory": "/process_api/6b", "pids": "/", "cpuacct": "/c:d", "freezer": "/"} {
		if got := cgroupOf(f, c); got != want {
			t.Errorf("%s: %q, want %q", c, got, want)
		}
	}
}

func put(t *testing.T, name, s string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// lowDisk is where a sandbox's own disk limit stops being what ends first.
const lowDisk = 2 << 30

// hostChecks looks at the machine without starting anything.
func hostChecks(c *config.Config) []cli.Check {
	return []cli.Check{checkKernel(), checkUser(), checkCgroups(), checkDisk(c), checkNetwork()}
}

func checkKernel() cli.Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return cli.Check{Name: "kernel", Status: failed, Detail: err.Error()}
	}
	return cli.Check{Name: "kernel", Status: ok, Detail: fmt.Sprintf("Linux %s %s, %d CPUs",
		unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU())}
}

// checkUser says who this is. What it means for the limits is the backend's to
// say: it depends on the cgroup, too.
func checkUser() cli.Check {
	if os.Geteuid() == 0 {
		return cli.Check{Name: "privilege", Status: ok, Detail: "root"}
	}
	return cli.Check{Name: "privilege", Status: ok, Detail: fmt.Sprintf("uid %d, rootless: sandboxes live in user namespaces of this user", os.Geteuid())}
}

// checkCgroups finds the controllers, wherever this machine mounts them.
func checkCgroups() cli.Check {
	const name = "cgroups"
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cli.Check{Name: name, Status: failed, Detail: err.Error()}
	}
	defer f.Close()
	v1, v2 := map[string]bool{}, map[string]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		left, right, found := strings.Cut(s.Text(), " - ")
		fields, fs := strings.Fields(left), strings.Fields(right)
		if !found || len(fields) < 5 || len(fs) < 3 {
			continue
		}
		switch fs[0] {
		case "cgroup":
			for _, o := range strings.Split(fs[2], ",") {
				v1[o] = true
			}
		case "cgroup2":
			data, err := os.ReadFile(filepath.Join(fields[4], "cgroup.controllers"))
			if err == nil {
				for _, o := range strings.Fields(string(data)) {
					v2[o] = true
				}
			}
		}
	}
	var have, miss []string
	for _, want := range []string{"memory", "cpu", "pids"} {
		switch {
		case v2[want]:
			have = append(have, want+" (v2)")
		case v1[want]:
			have = append(have, want+" (v1)")
		default:
			miss = append(miss, want)
		}
	}
	if len(miss) > 0 {
		return cli.Check{Name: name, Status: weak, Detail: fmt.Sprintf("controllers %s; missing %s", strings.Join(have, ", "), strings.Join(miss, ", ")),
			Fix: "mount cgroup2 on /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"}
	}
	return cli.Check{Name: name, Status: ok, Detail: strings.Join(slices.Clip(have), ", ")}
}

// checkNetwork makes a wire, as a sandbox with rules gets one. Without them none
// has a network, and none is needed.
func checkNetwork() cli.Check {
	const name = "network rules"
	err := wire.Probe()
	if err == nil {
		return cli.Check{Name: name, Status: ok, Detail: "a wire can be made, and its filter holds; sandboxes without rules have no network device"}
	}
	c := cli.Check{Name: name, Status: weak, Detail: err.Error()}
	var e *sandbox.Error
	if errors.As(err, &e) {
		c.Detail, c.Fix = "refused: "+e.Message(), e.Hint
	}
	return c
}

func checkDisk(c *config.Config) cli.Check {
	const name = "disk"
	dir := c.Data
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return cli.Check{Name: name, Status: failed, Detail: err.Error()}
	}
	free := int64(st.Bavail) * st.Bsize
	check := cli.Check{Name: name, Status: ok, Detail: sandbox.FormatSize(free) + " free for " + c.Data}
	if free < lowDisk {
		check.Status, check.Fix = weak, "free some space, or set FIREBREAK_DATA to a larger file system"
	}
	return check
}

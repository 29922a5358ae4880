package residue

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// scan lists the host's objects of every kind the package knows.
func scan(scope Scope, m matcher) ([]object, error) {
	objs, err := scanTree(scope)
	if err != nil {
		return nil, err
	}
	procs, err := scanProcesses(scope, m)
	if err != nil {
		return nil, err
	}
	mounts, err := scanMounts(m)
	if err != nil {
		return nil, err
	}
	fds, err := scanDescriptors(scope, m)
	if err != nil {
		return nil, err
	}
	objs = slices.Concat(objs, procs, mounts, fds)
	objs = append(objs, scanCgroups(scope, m)...)
	objs = append(objs, scanNamedNetns(scope, m)...)
	objs = append(objs, scanLinks(scope, m)...)
	objs = append(objs, scanUnixSockets(m)...)
	objs = append(objs, scanLoops(m)...)
	objs = append(objs, scanTemporary(scope, m, "/tmp", "/run", "/var/run", "/dev/shm", "/var/tmp", os.TempDir())...)
	return objs, nil
}

// pids lists the processes of the host.
func pids() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	return out, nil
}

// process is what /proc says about one.
type process struct {
	pid, ppid int
	start     string // in clock ticks since boot: with pid, unique
	state     string
	comm      string
}

// readProcess parses /proc/pid/stat. ok is false when the process has gone.
func readProcess(pid int) (p process, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, false
	}
	s := string(b)
	// comm is in parentheses and may itself hold any byte.
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return p, false
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 20 {
		return p, false
	}
	p = process{pid: pid, comm: s[open+1 : end], state: f[0], start: f[19]}
	p.ppid, _ = strconv.Atoi(f[1])
	return p, true
}

func scanProcesses(scope Scope, m matcher) ([]object, error) {
	all, err := pids()
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	var objs []object
	for _, pid := range all {
		if pid == self || slices.Contains(scope.IgnorePIDs, pid) {
			continue
		}
		p, ok := readProcess(pid)
		if !ok {
			continue
		}
		o := object{
			Finding: Finding{Kind: "process", Name: fmt.Sprintf("%d (%s)", pid, p.comm)},
			key:     fmt.Sprintf("process:%d:%s", pid, p.start),
		}
		if o.Detail = processMention(pid, m); o.Detail != "" {
			o.ours = true
		} else if p.ppid == self {
			o.ours, o.Detail = true, "child of this process"
			if p.state == "Z" {
				o.Detail = "child of this process that nobody waited for"
			}
		}
		objs = append(objs, o)
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
			objs = append(objs, object{
				Finding: Finding{Kind: "netns", Name: ns, Detail: "held by process " + o.Name + ", whose " + o.Detail},
				key:     "netns:" + ns, ours: o.ours, alien: true,
			})
		}
	}
	return objs, nil
}

// processMention says where a process mentions the scope. Files that cannot be
// read (the process has ended) mention nothing.
func processMention(pid int, m matcher) string {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, f := range []string{"cmdline", "environ", "cgroup"} {
		b, _ := os.ReadFile(dir + f)
		if why := m.why(f, strings.ReplaceAll(string(b), "\x00", " ")); why != "" {
			return why
		}
	}
	for _, l := range []string{"exe", "cwd", "root"} {
		to, _ := os.Readlink(dir + l)
		if why := m.why(l, to); why != "" {
			return why
		}
	}
	fds, _ := os.ReadDir(dir + "fd")
	for _, fd := range fds {
		to, _ := os.Readlink(dir + "fd/" + fd.Name())
		if why := m.why("descriptor "+fd.Name(), to); why != "" {
			return why
		}
	}
	return ""
}

// scanMounts reads the mount table of our mount namespace and of those of our
// processes, once each. Others may have copies of mounts of ours merely because
// they were made while those existed: the sandboxes of a neighbour, say.
func scanMounts(m matcher) ([]object, error) {
	all, err := pids()
	if err != nil {
		return nil, err
	}
	slices.Sort(all)
	own := os.Getpid()
	all = append([]int{own}, all...)
	seen := map[string]bool{}
	var objs []object
	for _, pid := range all {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[ns] {
			continue
		}
		if p, ok := readProcess(pid); pid != own && (!ok || p.ppid != own && processMention(pid, m) == "") {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			continue
		}
		seen[ns] = true
		where := ""
		if pid != own {
			where = fmt.Sprintf(" in %s of process %d", ns, pid)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 {
				continue
			}
			point := unescape(f[4])
			o := object{
				Finding: Finding{Kind: "mount", Name: point + where},
				key:     "mount:" + ns + ":" + strings.Join(f[2:], " "),
				alien:   pid == own,
			}
			if o.Detail = m.why("mount "+point, unescape(line)); o.Detail != "" {
				o.ours = true
			}
			objs = append(objs, o)
			if strings.HasPrefix(f[3], "net:[") && pid == own { // a namespace that a mount keeps
				objs = append(objs, object{
					Finding: Finding{Kind: "netns", Name: f[3], Detail: "held by mount " + point},
					key:     "netns:" + f[3] + ":" + point, ours: o.ours, alien: true,
				})
			}
		}
	}
	if len(seen) == 0 {
		return nil, fmt.Errorf("residue: no mount table is readable")
	}
	return objs, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func scanCgroups(scope Scope, m matcher) []object {
	const top = "/sys/fs/cgroup"
	var objs []object
	_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil // groups come and go while we look
		}
		o := object{Finding: Finding{Kind: "cgroup", Name: path}, key: "cgroup:" + path, alien: true}
		if o.Detail = m.why("name", path); o.Detail != "" {
			o.ours = true
		}
		for _, c := range scope.Cgroups {
			c = "/" + strings.Trim(c, "/") + "/"
			if rel := strings.TrimPrefix(path, top); strings.Contains(rel+"/", c) && !strings.HasSuffix(rel+"/", c) {
				o.ours, o.Detail = true, "under our group "+c
			}
		}
		objs = append(objs, o)
		return nil
	})
	return objs
}

func scanNamedNetns(scope Scope, m matcher) []object {
	var objs []object
	entries, _ := os.ReadDir("/run/netns")
	for _, e := range entries {
		path := "/run/netns/" + e.Name()
		o := object{Finding: Finding{Kind: "netns", Name: path}, key: "netns:" + path, alien: true}
		if o.Detail = m.why("name", path); o.Detail != "" {
			o.ours = true
		} else if hasAnyPrefix(e.Name(), scope.Prefixes) {
			o.ours, o.Detail = true, "name has our prefix"
		}
		objs = append(objs, o)
	}
	return objs
}

// scanLinks lists the links of this network namespace. A link's name has room
// for 15 bytes and so for no id; its alias has.
func scanLinks(scope Scope, m matcher) []object {
	var objs []object
	links, _ := net.Interfaces()
	for _, l := range links {
		o := object{
			Finding: Finding{Kind: "link", Name: l.Name},
			key:     fmt.Sprintf("link:%d:%s", l.Index, l.Name), alien: true,
		}
		alias, _ := os.ReadFile("/sys/class/net/" + l.Name + "/ifalias")
		if o.Detail = m.why("name or alias", l.Name+" "+string(alias)); o.Detail != "" {
			o.ours = true
		} else if hasAnyPrefix(l.Name, scope.Prefixes) {
			o.ours, o.Detail = true, "name has our prefix"
		}
		objs = append(objs, o)
	}
	return objs
}

// scanUnixSockets lists named sockets, abstract ones included ("@name").
func scanUnixSockets(m matcher) []object {
	b, _ := os.ReadFile("/proc/net/unix")
	var objs []object
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[0] == "Num" {
			continue
		}
		name := strings.Join(f[7:], " ")
		o := object{Finding: Finding{Kind: "socket", Name: name}, key: "socket:" + f[6] + ":" + name}
		if o.Detail = m.why("name", name); o.Detail != "" {
			o.ours = true
		}
		objs = append(objs, o)
	}
	return objs
}

func scanLoops(m matcher) []object {
	var objs []object
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		dev := "/dev/" + strings.Split(f, "/")[3]
		backing := strings.TrimSpace(string(b))
		o := object{Finding: Finding{Kind: "loop", Name: dev}, key: "loop:" + dev + ":" + backing, alien: true}
		if o.Detail = m.why("backing file "+backing, backing); o.Detail != "" {
			o.ours = true
		}
		objs = append(objs, o)
	}
	return objs
}

// scanDescriptors lists what this process itself holds open.
func scanDescriptors(scope Scope, m matcher) ([]object, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var objs []object
	for _, e := range entries {
		to, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || strings.HasPrefix(to, "/proc/") {
			continue // the directory we are reading, or closed meanwhile
		}
		o := object{
			Finding: Finding{Kind: "descriptor", Name: e.Name()},
			key:     "descriptor:" + e.Name() + ":" + to,
		}
		switch {
		case m.find(to) != "":
			o.ours, o.Detail = true, m.why(to, to)
		case strings.HasPrefix(to, "net:["), strings.HasPrefix(to, "mnt:["):
			o.ours, o.Detail = true, "open namespace "+to
		case to == "/dev/net/tun":
			info, _ := os.ReadFile("/proc/self/fdinfo/" + e.Name())
			_, iff, _ := strings.Cut(string(info), "iff:")
			o.ours, o.Detail = true, "far end of the link "+strings.TrimSpace(iff)
		case scope.Descriptors && !runtimeOwned(to):
			o.ours, o.Detail = true, "open "+to
		}
		objs = append(objs, o)
	}
	return objs, nil
}

// runtimeOwned recognises what the Go runtime opens once, when first needed.
func runtimeOwned(to string) bool {
	return to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]" || to == "/dev/null" || to == "/dev/urandom"
}

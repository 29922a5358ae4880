package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// inventory lists what the instance owned. Nothing of it has to exist.
func (i *Instance) inventory(killed []process) []sandbox.Object {
	var o []sandbox.Object
	processes := slices.Clone(i.running.Processes)
	for _, p := range killed {
		if !slices.ContainsFunc(processes, p.same) {
			processes = append(processes, p)
		}
	}
	for _, p := range processes {
		o = append(o, sandbox.Object{Kind: "process", Name: p.name()})
	}
	for _, ns := range i.running.Namespaces {
		o = append(o, sandbox.Object{Kind: "namespace", Name: ns})
	}
	for _, d := range i.cgroupDirs() {
		o = append(o, sandbox.Object{Kind: "cgroup", Name: d})
	}
	for _, m := range mountsBelow(i.dir) {
		o = append(o, sandbox.Object{Kind: "mount", Name: m})
	}
	for _, f := range []string{fileIn, fileOut} {
		o = append(o, sandbox.Object{Kind: "fifo", Name: filepath.Join(i.dir, f)})
	}
	socket := filepath.Join(i.dir, dirState, "runsc-"+string(i.id)+".sock")
	return append(o,
		sandbox.Object{Kind: "socket", Name: socket},
		sandbox.Object{Kind: "directory", Name: i.dir})
}

// name is how a receipt names p.
func (p process) name() string { return fmt.Sprintf("%d@%d", p.PID, p.Start) }

// cgroupDirs unites what the intent named with what this host has now.
func (i *Instance) cgroupDirs() []string {
	dirs := slices.Clone(i.intent.Cgroups)
	for _, d := range i.group.dirs {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// namespacesOf lists the namespaces of processes that are not this process's
// own. Processes that cannot be looked at have none.
func namespacesOf(procs []process) (found []string) {
	for _, p := range procs {
		for _, kind := range []string{"user", "pid", "net", "mnt", "ipc", "uts", "cgroup"} {
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, kind))
			own, _ := os.Readlink("/proc/self/ns/" + kind)
			if err == nil && ns != own && !slices.Contains(found, ns) {
				found = append(found, ns)
			}
		}
	}
	return found
}

// How each kind of object is looked for.
const (
	checkProcess   = "no process has this pid and start time"
	checkNamespace = "every process that was in it is gone, and no mount in /proc/self/mountinfo holds it"
	checkMount     = "not in /proc/self/mountinfo"
	checkPath      = "lstat finds nothing"
)

// recheck looks for every object again.
func (i *Instance) recheck(objects []sandbox.Object, trouble error) sandbox.Receipt {
	left, err := members(i.group, i.running.Processes)
	if err != nil {
		trouble = errors.Join(trouble, err)
	}
	bound := boundNamespaces() // once: it is long where there are many wires
	for k := range objects {
		o := &objects[k]
		switch o.Kind {
		case "process":
			var p process
			_, err := fmt.Sscanf(o.Name, "%d@%d", &p.PID, &p.Start)
			o.Gone, o.Check = err == nil && p.gone(), checkProcess
		case "namespace": // behind all processes
			o.Gone, o.Check = len(left) == 0 && !survivors(objects[:k]) && !bound(o.Name), checkNamespace
		case "mount":
			o.Gone, o.Check = !slices.Contains(mountsBelow(i.dir), o.Name), checkMount
		default:
			_, err := os.Lstat(o.Name)
			o.Gone, o.Check = errors.Is(err, fs.ErrNotExist), checkPath
		}
		o.Checked = time.Now().UTC()
		if !o.Gone && trouble != nil {
			o.Detail = trouble.Error()
		}
	}
	for _, p := range left { // came after the kill: must not happen, must not be hidden
		if !slices.ContainsFunc(objects, func(o sandbox.Object) bool { return o.Name == p.name() }) {
			objects = append(objects, sandbox.Object{Kind: "process", Name: p.name(), Detail: "appeared during teardown",
				Check: checkProcess, Checked: time.Now().UTC()})
		}
	}
	return sandbox.Receipt{Instance: i.id, Objects: objects}.Seal()
}

// survivors reports whether a process is among objects that is not gone.
func survivors(objects []sandbox.Object) bool {
	return slices.ContainsFunc(objects, func(o sandbox.Object) bool { return o.Kind == "process" && !o.Gone })
}

// boundNamespaces tells whether a mount of this process's namespace holds a namespace, or
// whether that cannot be told. Numbers of namespaces are used again, most of all by the
// wires of other instances, which are mounts named by an instance: none of them is an
// instance's own.
func boundNamespaces() func(ns string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return func(string) bool { return true }
	}
	held := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.Contains(f[3], ":[") && !sandbox.InstanceID(filepath.Base(f[4])).Valid() {
			held[f[3]] = true
		}
	}
	return func(ns string) bool { return held[ns] }
}

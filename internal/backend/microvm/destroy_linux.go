package microvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// destroyTimeout bounds a teardown. A killed process leaves within milliseconds;
// one stuck in the kernel for longer is reported as resisting.
const destroyTimeout = 10 * time.Second

// Destroy implements sandbox.Instance. The guest is not asked: its monitor is
// killed. A receipt that is not clean is not final: the next call tries again.
func (i *Instance) Destroy(ctx context.Context) (sandbox.Receipt, error) {
	i.destroying.Lock()
	defer i.destroying.Unlock()
	if i.receipt.Clean {
		return i.receipt, nil
	}
	usage := i.status().Usage
	i.mu.Lock()
	i.killer = sandbox.ReasonOperator
	if i.last == nil {
		i.last = &usage
	}
	i.mu.Unlock()
	deadline := time.Now().Add(destroyTimeout)

	namespaces := namespacesOf(i.processes)
	if theirs, err := wireNamespace(i.intent.NetNS); err == nil { // not ours, though a monitor may be in it
		namespaces = slices.DeleteFunc(namespaces, func(ns string) bool { return ns == theirs })
	}
	killed, errs := i.killAll(deadline)
	if i.launched != nil {
		i.launched.reap()
		i.said = i.launched.said()
		i.launched.log.Close()
	}
	i.over(sandbox.ReasonOperator)
	i.recovering.Wait() // it ends with the instance, and leaves nothing in its directory afterwards
	failpoint.Hit("microvm.destroy/after-kill")
	objects := i.inventory(killed, namespaces) // before what it lists goes
	unplugged, err := i.unplug()
	errs = append(errs, err, i.group.remove(deadline))
	failpoint.Hit("microvm.destroy/after-cgroup")
	errs = append(errs, os.RemoveAll(i.dir))
	failpoint.Hit("microvm.destroy/after-files")
	i.receipt = i.recheck(objects, unplugged, errors.Join(errs...))
	if !i.receipt.Clean {
		return i.receipt, sandbox.Errorf("destroy", sandbox.KindInternal, "objects are left: %w", errors.Join(errs...)).
			WithID(string(i.id)).WithHint("destroy it again; the receipt names what resists")
	}
	i.b.forget(i)
	return i.receipt, nil
}

// members finds the live processes of the instance: recorded ones, those in its
// cgroup, and where one of the two is missing those with its name.
func (i *Instance) members() ([]process, error) {
	alive := slices.DeleteFunc(slices.Clone(i.processes), process.gone)
	pids, err := i.group.pids()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if p, ok := identify(pid); ok && !p.gone() && !slices.Contains(alive, p) {
			alive = append(alive, p)
		}
	}
	if len(i.processes) == 0 || len(i.group) == 0 {
		for _, p := range named(i.id) {
			if !slices.Contains(alive, p) {
				alive = append(alive, p)
			}
		}
	}
	return alive, nil
}

// killAll kills until no source knows of a live process any more, and returns all
// it killed.
func (i *Instance) killAll(deadline time.Time) (killed []process, errs []error) {
	_ = i.group.set("0", "pids.max") // best effort: the loop is what counts
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		alive, err := i.members()
		if err != nil {
			return killed, append(errs, err)
		}
		if len(alive) == 0 {
			return killed, errs
		}
		for _, p := range alive {
			if err := p.kill(); err != nil {
				errs = append(errs, fmt.Errorf("kill %d: %w", p.PID, err))
			}
			if !slices.Contains(killed, p) {
				killed = append(killed, p)
			}
		}
		for _, p := range alive {
			p.waitGone(deadline)
		}
		if time.Now().After(deadline) {
			return killed, append(errs, errors.New("processes survived being killed"))
		}
		time.Sleep(wait)
	}
}

// inventory lists what the instance owned. Nothing of it has to exist.
func (i *Instance) inventory(killed []process, namespaces []string) (o []sandbox.Object) {
	all := slices.Clone(i.processes)
	for _, p := range killed {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	for _, p := range all {
		o = append(o, sandbox.Object{Kind: "process", Name: p.name()})
	}
	for _, ns := range namespaces {
		o = append(o, sandbox.Object{Kind: "namespace", Name: ns})
	}
	for _, d := range i.group {
		o = append(o, sandbox.Object{Kind: "cgroup", Name: d})
	}
	o = append(o, i.monitor.objects(i.dir)...)
	return append(o, sandbox.Object{Kind: "directory", Name: i.dir})
}

// namespacesOf lists the namespaces of processes that are not this process's own.
func namespacesOf(procs []process) (found []string) {
	for _, p := range procs {
		for _, kind := range []string{"user", "pid", "net", "mnt", "ipc", "uts"} {
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, kind))
			own, _ := os.Readlink("/proc/self/ns/" + kind)
			if err == nil && !p.gone() && ns != own && !slices.Contains(found, ns) {
				found = append(found, ns)
			}
		}
	}
	return found
}

// How each kind of object is looked for.
const (
	checkProcess   = "no process has this pid and start time"
	checkNamespace = "every process that was in it is gone"
	checkPath      = "lstat finds nothing"
)

// recheck looks for every object again, but for those of others, whose makers have.
func (i *Instance) recheck(objects, others []sandbox.Object, trouble error) sandbox.Receipt {
	left, err := i.members()
	trouble = errors.Join(trouble, err)
	for k := range objects {
		o := &objects[k]
		switch o.Kind {
		case "process":
			var p process
			_, err := fmt.Sscanf(o.Name, "%d@%d", &p.PID, &p.Start)
			o.Gone, o.Check = err == nil && p.gone(), checkProcess
		case "namespace": // behind all processes
			o.Gone, o.Check = len(left) == 0 && !slices.ContainsFunc(objects[:k], func(o sandbox.Object) bool { return o.Kind == "process" && !o.Gone }), checkNamespace
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
	for _, o := range others {
		if !o.Gone && o.Detail == "" && trouble != nil {
			o.Detail = trouble.Error()
		}
		objects = append(objects, o)
	}
	return sandbox.Receipt{Instance: i.id, Objects: objects}.Seal()
}

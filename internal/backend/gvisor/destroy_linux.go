package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// destroyTimeout bounds a teardown. A killed process leaves within
// milliseconds; one stuck in the kernel for longer is reported as resisting.
const destroyTimeout = 10 * time.Second

// Destroy implements sandbox.Instance. A receipt that is not clean is not
// final: the next call tries again.
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

	killed, errs := i.killAll(deadline)
	if i.launch != nil {
		<-i.launch.done // it was among the killed; this reaps it
	}
	i.said = lastWords(i.dir)
	i.over(sandbox.ReasonOperator)
	failpoint.Hit("gvisor.destroy/after-kill")
	objects := i.inventory(killed) // before what it lists goes
	errs = append(errs, i.group.remove(deadline))
	failpoint.Hit("gvisor.destroy/after-cgroup")
	errs = append(errs, unmountBelow(i.dir), os.RemoveAll(i.dir))

	failpoint.Hit("gvisor.destroy/after-files")
	i.receipt = i.recheck(objects, errors.Join(errs...))
	if !i.receipt.Clean {
		return i.receipt, sandbox.Errorf("destroy", sandbox.KindInternal, "objects are left: %w", errors.Join(errs...)).
			WithID(string(i.id)).WithHint("destroy it again; the receipt names what resists")
	}
	i.b.forget(i)
	return i.receipt, nil
}

// forget drops a destroyed instance.
func (b *Backend) forget(i *Instance) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.instances[i.id] == i {
		delete(b.instances, i.id)
	}
}

// killAll kills until no source knows of a live process any more, and returns
// all it killed. The sources are the cgroups and the record; command lines and
// descendants too where one of the two is missing, because that means reading all
// of /proc.
func (i *Instance) killAll(deadline time.Time) (killed []process, errs []error) {
	recorded := i.running.Processes
	scan := len(recorded) == 0 || len(i.group.dirs) == 0
	i.group.freezeSize()
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		alive, err := members(i.group, recorded)
		if err != nil {
			return killed, append(errs, err)
		}
		if scan && len(alive) == 0 {
			alive = named(i.id)
		}
		if len(i.group.dirs) == 0 { // nothing else knows of the stubs that were made since
			alive = withChildren(alive)
		}
		if len(alive) == 0 {
			return killed, errs
		}
		i.group.killAll()
		for _, p := range alive {
			if err := p.kill(); err != nil {
				errs = append(errs, fmt.Errorf("kill %d: %w", p.PID, err))
			}
			if !slices.ContainsFunc(killed, p.same) {
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

// mountsBelow lists the mount points at or below dir, deepest first.
func mountsBelow(dir string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if m := unescapeMount(f[4]); m == dir || strings.HasPrefix(m, dir+"/") {
			found = append(found, m)
		}
	}
	slices.Reverse(found)
	return found
}

// unmountBelow detaches every mount at or below dir.
func unmountBelow(dir string) error {
	var errs []error
	for _, m := range mountsBelow(dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, &fs.PathError{Op: "unmount", Path: m, Err: err})
		}
	}
	return errors.Join(errs...)
}

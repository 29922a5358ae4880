package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/firecracker"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var (
	_ sandbox.Snapshotter = (*Instance)(nil)
	_ sandbox.Restorer    = (*Backend)(nil)
)

// imageVersion is that of what this package saves: the devices of a machine and how
// they are ordered, what runs in it before the agent, its memory's size.
const imageVersion = 2

// fileOrigin says what an instance was booted from, for a snapshot of it.
const fileOrigin = "origin.json"

// origin is the part of a manifest that is known once an instance is made.
type origin struct {
	Template     string            `json:"template"`
	ReadonlyRoot bool              `json:"readonly_root"`
	Builds       []snapimage.Build `json:"builds"`
}

// builds is what a machine's memory fits one of only, in addition to the monitor's.
func (c *images) builds(m vm, monitor []snapimage.Build) ([]snapimage.Build, error) {
	processor := "emulated"
	if m.accel != accelTCG {
		processor = snapimage.Processor()
	}
	list := append(monitor, snapimage.Build{What: "accelerator", Is: m.accel}, snapimage.Build{What: "kind of processor", Is: processor},
		snapimage.Build{What: "number of processors", Is: fmt.Sprint(m.cpus)}, snapimage.Build{What: "size of memory", Is: fmt.Sprint(m.ramSize())})
	for _, f := range []struct{ what, path string }{{"kernel", m.kernel}, {"build of the agent", m.initial},
		{"build of the agent's files", m.runtime}, {"image of its template", m.root}} {
		sum, err := c.digestOf(f.path)
		if err != nil {
			return nil, err
		}
		list = append(list, snapimage.Build{What: f.what, Is: sum})
	}
	return list, nil
}

// trace notes what m is made from, for a snapshot of it, and holds img against that.
func (i *Instance) trace(s sandbox.Spec, m *vm, img *snapimage.Image) error {
	k, ok := i.monitor.(keeper)
	if !ok || !i.b.look().info.Capabilities.Snapshot {
		return nil
	}
	builds, err := k.builds(i.b.images)
	if err == nil {
		builds, err = i.b.images.builds(*m, builds)
	}
	if err != nil {
		return err
	}
	if img != nil {
		if err := img.Built(s, builds); err != nil {
			return err
		}
		m.saved = img
	}
	b, err := json.Marshal(origin{Template: s.Root.Digest, ReadonlyRoot: s.ReadonlyRoot, Builds: builds})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(i.dir, fileOrigin), b, 0o600)
}

func (i *Instance) readOrigin() (o origin, err error) {
	b, err := os.ReadFile(filepath.Join(i.dir, fileOrigin))
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	return o, err
}

// Snapshot implements sandbox.Snapshotter. What runs inside is frozen before the
// machine is stopped, so that nothing of a copy goes on before the copy has random
// numbers of its own. A server that is killed meanwhile leaves a machine that stands
// still; the next one lets it go on.
func (i *Instance) Snapshot(ctx context.Context, dir string) (sandbox.Snapshot, error) {
	k, m, err := i.savable()
	if err != nil {
		return sandbox.Snapshot{}, err
	}
	from, err := i.readOrigin()
	if err != nil {
		return sandbox.Snapshot{}, i.unsaved(ctx, err)
	}
	release, err := i.hold(ctx)
	if err != nil {
		return sandbox.Snapshot{}, i.unsaved(ctx, err)
	}
	defer release()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return sandbox.Snapshot{}, i.unsaved(ctx, err)
	}
	failpoint.Hit("microvm.snapshot/after-mkdir")
	meta := snapimage.Manifest{Version: imageVersion, Created: time.Now().UTC(), Tenant: i.intent.Tenant, Template: from.Template,
		ReadonlyRoot: from.ReadonlyRoot, Wired: i.intent.NetNS != "", Limits: i.intent.Limits, Builds: from.Builds}
	var s sandbox.Snapshot
	sparse, err := i.saveFrozen(ctx, k, m, dir)
	if err == nil {
		failpoint.Hit("microvm.snapshot/after-save")
		s, err = snapimage.Seal(ctx, dir, meta, sparse...)
	}
	if err != nil {
		return sandbox.Snapshot{}, errors.Join(i.unsaved(ctx, err), bare(os.RemoveAll(dir)))
	}
	failpoint.Hit("microvm.snapshot/after-seal")
	return s, nil
}

// saveFrozen saves the machine with nothing of the sandbox running, and lets it go
// on, also when ctx has ended. A stream to the agent that would be cut by it is held.
func (i *Instance) saveFrozen(ctx context.Context, k keeper, m vm, dir string) (sparse []string, err error) {
	i.mu.Lock()
	l, _ := i.conn.(*line)
	i.mu.Unlock()
	defer func() {
		l.drop() // or the machine might wait for us, which is to do as it is told
		if thawed := i.thaw(i.life); err == nil {
			err = thawed
		}
		l.release(i.life)
	}()
	r, err := i.order(ctx, machine.Order{Freeze: true, Sent: l.hold()})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("microvm.snapshot/after-freeze")
	l.settle(ctx, r.sent)
	return k.save(ctx, m, dir)
}

// savable says why an instance cannot be saved, or by whom it is.
func (i *Instance) savable() (keeper, vm, error) {
	refuse := func(k sandbox.Kind, hint, format string, args ...any) (keeper, vm, error) {
		return nil, vm{}, sandbox.Errorf("snapshot", k, format, args...).WithID(string(i.id)).WithHint("%s", hint)
	}
	select {
	case <-i.ended:
		i.mu.Lock()
		defer i.mu.Unlock()
		return nil, vm{}, i.goneLocked("snapshot")
	case <-i.released:
		return refuse(sandbox.KindUnavailable, "", "the backend is closed")
	default:
	}
	k, ok := i.monitor.(keeper)
	if !ok {
		return refuse(sandbox.KindUnsupported, "use another backend", "machines of %s are not saved", i.intent.VMM)
	}
	if o, err := i.readOrigin(); err != nil || len(o.Builds) == 0 {
		return refuse(sandbox.KindUnsupported, "create another one; of Firecracker's machines those of "+firecracker.FirstToSave+" and newer are saved",
			"the sandbox was made by a version that saves none")
	}
	l, p := i.intent.Limits, i.processes[0]
	return k, vm{id: i.id, dir: i.dir, pid: p.PID, started: p.Start, disk: filepath.Join(i.dir, fileDisk), memory: l.Memory + guestOverhead(l.Memory)}, nil
}

// unsaved is why a snapshot could not be taken.
func (i *Instance) unsaved(ctx context.Context, err error) error {
	id := string(i.id)
	select {
	case <-i.ended:
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.goneLocked("snapshot")
	default:
	}
	if cause := ctx.Err(); cause != nil {
		return sandbox.Wrap("snapshot", id, cause)
	}
	switch kind := sandbox.KindOf(err); kind {
	case sandbox.KindExists:
		return sandbox.Errorf("snapshot", kind, "the snapshot exists").WithID(id)
	case sandbox.KindNoSpace:
		return sandbox.Errorf("snapshot", kind, "the host's disk is full").WithID(id).
			WithHint("free space on the disk of the data directory; the sandbox runs on")
	}
	return sandbox.Wrap("snapshot", id, bare(err))
}

// hold waits until nobody else, in this process or another, saves the machine or
// gives its first process orders.
func (i *Instance) hold(ctx context.Context) (release func(), err error) {
	i.saving.Lock()
	unlock, err := i.b.images.lock(ctx, filepath.Join(i.dir, fileOrders+".lock"))
	if err != nil {
		i.saving.Unlock()
		return nil, err
	}
	return func() { unlock(); i.saving.Unlock() }, nil
}

// recover lets a machine go on whose last server was saving it when it died.
func (i *Instance) recover() {
	k, ok := i.monitor.(keeper)
	if o, err := i.readOrigin(); !ok || err != nil || len(o.Builds) == 0 || i.life.Err() != nil {
		return // never saved, or it has ended
	}
	release, err := i.hold(i.life)
	if err != nil {
		return // we leave, or it has ended
	}
	defer release()
	if err = k.wake(i.life, i.dir); err == nil {
		err = i.thaw(i.life)
	}
	if err != nil && i.life.Err() == nil {
		i.b.log.Warn("a machine that was taken over may stand still", "instance", i.id, "error", err)
	}
}

// Restore implements sandbox.Restorer. The image is read once, into memory and a disk
// of the instance's own; Firecracker maps its memory's file, see ADR 47.
func (b *Backend) Restore(ctx context.Context, s sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	return b.make(ctx, s, &from)
}

// admitImage checks what an image says of itself, and whether it is for s.
func (b *Backend) admitImage(s sandbox.Spec, p probed, from sandbox.Snapshot) (*snapimage.Image, error) {
	switch {
	case !p.info.Capabilities.Snapshot:
		return nil, sandbox.Errorf("restore", sandbox.KindUnsupported, "machines of this %s are not saved", p.vmm).WithID(string(s.Sandbox)).
			WithHint("use QEMU, Firecracker %s or newer, or another backend", firecracker.FirstToSave)
	case strings.TrimSpace(from.Dir) == "":
		return nil, sandbox.Errorf("restore", sandbox.KindNotFound, "the snapshot's files are not there")
	}
	img, err := snapimage.Open(from, imageVersion)
	if err == nil {
		err = img.Fits(s)
	}
	return img, err
}

package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var (
	_ sandbox.Snapshotter = (*Instance)(nil)
	_ sandbox.Restorer    = (*Backend)(nil)
)

// Snapshot implements sandbox.Snapshotter. The sentry saves itself, into files
// that a short-lived runsc opens for it; a server that is killed meanwhile leaves
// it running.
func (i *Instance) Snapshot(ctx context.Context, dir string) (sandbox.Snapshot, error) {
	if err := i.savable(); err != nil {
		return sandbox.Snapshot{}, err
	}
	here, err := i.b.builds()
	if err != nil {
		return sandbox.Snapshot{}, sandbox.Wrap("snapshot", string(i.id), bare(err))
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return sandbox.Snapshot{}, i.unsaved(ctx, err)
	}
	failpoint.Hit("gvisor.snapshot/after-mkdir")
	m := manifest{Version: manifestVersion, Created: time.Now().UTC(), Tenant: i.intent.Tenant, Template: i.intent.Template,
		ReadonlyRoot: i.intent.ReadonlyRoot, Wired: i.intent.Wired, Limits: i.intent.Limits, builds: here}
	s, err := sandbox.Snapshot{}, i.checkpoint(ctx, dir)
	if err == nil {
		failpoint.Hit("gvisor.snapshot/after-checkpoint")
		s, err = seal(ctx, dir, m)
	}
	if err != nil {
		return sandbox.Snapshot{}, errors.Join(i.unsaved(ctx, err), bare(os.RemoveAll(dir)))
	}
	failpoint.Hit("gvisor.snapshot/after-seal")
	return s, nil
}

// savable says why an instance cannot be saved.
func (i *Instance) savable() error {
	refuse := func(k sandbox.Kind, hint, format string, args ...any) error {
		return sandbox.Errorf("snapshot", k, format, args...).WithID(string(i.id)).WithHint("%s", hint)
	}
	p, err := i.b.probe()
	if err != nil {
		return sandbox.Wrap("snapshot", string(i.id), err)
	}
	select {
	case <-i.ended:
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.goneLocked("snapshot")
	case <-i.released:
		return sandbox.Errorf("snapshot", sandbox.KindUnavailable, "the backend is closed").WithID(string(i.id))
	default:
	}
	switch {
	case !p.info.Capabilities.Snapshot:
		return refuse(sandbox.KindUnsupported, "run the server as root", "gVisor restores sandboxes for root only")
	case i.intent.Runsc != i.b.cfg.Runsc || i.intent.Runtime != i.b.cfg.Runtime:
		return refuse(sandbox.KindUnsupported, "create another one", "the sandbox was made by another version")
	}
	return nil
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
	switch kind := sandbox.KindOf(err); {
	case kind == sandbox.KindExists:
		return sandbox.Errorf("snapshot", kind, "the snapshot exists").WithID(id)
	case kind == sandbox.KindNoSpace, strings.Contains(err.Error(), syscall.ENOSPC.Error()):
		return sandbox.Errorf("snapshot", sandbox.KindNoSpace, "the host's disk is full").WithID(id).
			WithHint("free space on the disk of the data directory; the sandbox runs on")
	}
	return sandbox.Wrap("snapshot", id, bare(err))
}

// checkpoint has the sentry write its image into dir and go on. One image of an
// instance is written at a time.
func (i *Instance) checkpoint(ctx context.Context, dir string) error {
	i.saving.Lock()
	defer i.saving.Unlock()
	said := filepath.Join(i.dir, fileSnapshotLog)
	defer os.Remove(said)
	args := []string{"--root=" + dirState, "--log=" + fileSnapshotLog, "checkpoint", "-leave-running", "-image-path=" + dir, string(i.id)}
	cmd := exec.CommandContext(ctx, i.b.cfg.Runsc, args...)
	cmd.Args[0] = "runsc"
	cmd.Dir = i.dir
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	i.b.monitors.Go(func() {
		runtime.LockOSThread() // the thread is the parent the death signal is about
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	})
	if err := <-done; err != nil {
		return fmt.Errorf("runsc could not save it: %w: %s", err, lastLine(said))
	}
	return nil
}

// Restore implements sandbox.Restorer.
func (b *Backend) Restore(ctx context.Context, s sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	return b.make(ctx, s, &from)
}

// admitImage checks an image and whether it fits what is to be made of it.
func (b *Backend) admitImage(ctx context.Context, s sandbox.Spec, p probed, from sandbox.Snapshot) (*image, error) {
	if !p.info.Capabilities.Snapshot {
		return nil, sandbox.Errorf("restore", sandbox.KindUnsupported, "gVisor restores sandboxes for root only").WithID(string(s.Sandbox)).
			WithHint("run the server as root")
	}
	here, err := b.builds()
	if err != nil {
		return nil, sandbox.Wrap("restore", string(s.Sandbox), bare(err))
	}
	img, err := check(ctx, from)
	if err == nil {
		err = img.fits(s, here)
	}
	return img, err
}

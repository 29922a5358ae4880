package gvisor

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
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
	m := i.manifest(here)
	var s sandbox.Snapshot
	files, err := makeImageFiles(dir)
	if err == nil {
		err = i.saveInto(ctx, files)
	}
	if err == nil {
		failpoint.Hit("gvisor.snapshot/after-checkpoint")
		s, err = snapimage.Seal(ctx, dir, m)
	}
	closeAll(files)
	if err != nil {
		return sandbox.Snapshot{}, errors.Join(i.unsaved(ctx, err), bare(os.RemoveAll(dir)))
	}
	failpoint.Hit("gvisor.snapshot/after-seal")
	return s, nil
}

// manifest is what there is to know of an image of the instance beside its files.
func (i *Instance) manifest(here []snapimage.Build) snapimage.Manifest {
	return snapimage.Manifest{Version: imageVersion, Created: time.Now().UTC(), Tenant: i.intent.Tenant, Template: i.intent.Template,
		ReadonlyRoot: i.intent.ReadonlyRoot, Wired: i.intent.Wired, Limits: i.intent.Limits, Builds: here}
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

// makeImageFiles makes the files of an image in dir.
func makeImageFiles(dir string) (files []*os.File, err error) {
	for _, name := range imageNames {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Restore implements sandbox.Restorer.
func (b *Backend) Restore(ctx context.Context, s sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	if s.Wire != nil { // runsc finds the links of its namespace
		return b.make(ctx, s, &from)
	}
	ctx, cancel := b.within(ctx)
	defer cancel()
	s, p, err := b.admitNow(ctx, s)
	if err != nil {
		return nil, err
	}
	img, err := b.openFor(s, p, from)
	if err != nil {
		return nil, err
	}
	defer img.close()
	checked := make(chan error, 1) // while all that the image does not hold is made
	go func() { checked <- img.verify(ctx) }()
	x, err := b.blank(ctx, s, p, false)
	bad := <-checked
	if err != nil {
		return nil, cmp.Or(bad, err)
	}
	if bad != nil {
		_, left := x.Destroy(context.WithoutCancel(ctx))
		return nil, errors.Join(bad, left)
	}
	return x.fill(ctx, img)
}

// admitImage checks an image and whether it fits what is to be made of it.
func (b *Backend) admitImage(ctx context.Context, s sandbox.Spec, p probed, from sandbox.Snapshot) (*image, error) {
	img, err := b.openFor(s, p, from)
	if err == nil {
		err = img.verify(ctx)
	}
	if err != nil {
		return nil, err
	}
	img.close() // runsc opens them by name
	return img, nil
}

// openFor opens an image that fits what is to be made of it. That nothing of it was
// changed is verify's to find out.
func (b *Backend) openFor(s sandbox.Spec, p probed, from sandbox.Snapshot) (*image, error) {
	if !p.info.Capabilities.Snapshot {
		return nil, sandbox.Errorf("restore", sandbox.KindUnsupported, "gVisor restores sandboxes for root only").WithID(string(s.Sandbox)).
			WithHint("run the server as root")
	}
	here, err := b.builds()
	if err != nil {
		return nil, sandbox.Wrap("restore", string(s.Sandbox), bare(err))
	}
	var img *image
	if from.Dir == "" {
		img, err = b.openHeld(from)
	} else {
		img = new(image)
		img.Image, err = snapimage.Open(from, imageVersion)
	}
	if err != nil {
		return nil, err
	}
	if err = img.Fits(s); err == nil {
		err = img.Built(s, here)
	}
	if err != nil {
		img.close()
		return nil, err
	}
	return img, nil
}

package gvisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var (
	_ sandbox.Preparer = (*Backend)(nil)
	_ sandbox.Blank    = (*blank)(nil)
	_ sandbox.Holder   = (*Instance)(nil)
)

// blank is an instance without a guest: sentry and gofer wait for what to go on
// from. There is nothing in it that anybody wrote, and nothing runs in it.
type blank struct {
	i    *Instance
	spec sandbox.Spec
}

// Status says what the boundary uses.
func (b *blank) Status(ctx context.Context) (sandbox.Status, error) { return b.i.Status(ctx) }

// Prepare implements sandbox.Preparer.
func (b *Backend) Prepare(ctx context.Context, s sandbox.Spec) (sandbox.Blank, error) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	s, p, err := b.admitNow(ctx, s)
	if err != nil {
		return nil, err
	}
	if !p.info.Capabilities.Snapshot || s.Wire != nil {
		return nil, sandbox.Errorf("prepare", sandbox.KindUnsupported, "nothing is made ahead with a network, or where nothing is restored").WithID(string(s.Instance))
	}
	return b.blank(ctx, s, p, true)
}

// blank makes everything of an instance but its guest; ahead: which is not there yet.
func (b *Backend) blank(ctx context.Context, s sandbox.Spec, p probed, ahead bool) (*blank, error) {
	i, lock, err := b.intend(ctx, s, p, ahead)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	let, err := i.begin(s, p, i.createCommand()...)
	if err == nil {
		let()
		err = i.awaitRuntime(ctx)
	}
	if err == nil {
		failpoint.Hit("gvisor.blank/after-created")
		i.running.Blank = true
		if err = i.call(ctx, callNetwork, alone(true)); err == nil {
			err = i.settle(s)
		}
	}
	if err != nil {
		return nil, i.undo(ctx, err)
	}
	failpoint.Hit("gvisor.blank/after-running")
	return &blank{i, s}, nil
}

// awaitRuntime returns when the runtime has done what it was started for.
func (i *Instance) awaitRuntime(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-i.launch.done:
		if i.launch.err != nil {
			return fmt.Errorf("runsc failed: %w", i.launch.err)
		}
		return nil
	}
}

// ID implements sandbox.Blank.
func (x *blank) ID() sandbox.InstanceID { return x.i.id }

// Destroy implements sandbox.Blank.
func (x *blank) Destroy(ctx context.Context) (sandbox.Receipt, error) { return x.i.Destroy(ctx) }

// Restore implements sandbox.Blank.
func (x *blank) Restore(ctx context.Context, from sandbox.Snapshot) (sandbox.Instance, error) {
	b := x.i.b
	ctx, cancel := b.within(ctx)
	defer cancel()
	p, err := b.probe()
	if err != nil {
		return nil, sandbox.Wrap("restore", string(x.i.id), x.i.undo(ctx, err))
	}
	img, err := b.openFor(x.spec, p, from)
	if err == nil {
		defer img.close()
		err = img.verify(ctx)
	}
	if err != nil {
		_, left := x.Destroy(context.WithoutCancel(ctx))
		return nil, errors.Join(err, left)
	}
	return x.fill(ctx, img)
}

// fill puts the guest of an image, which has been verified, into the blank. On an
// error nothing is left of either.
func (x *blank) fill(ctx context.Context, img *image) (sandbox.Instance, error) {
	i := x.i
	failpoint.Hit("gvisor.restore/before-fill")
	err := i.goOnFrom(ctx, img.files)
	if err == nil {
		failpoint.Hit("gvisor.restore/after-fill")
		err = i.meet(ctx)
	}
	if err == nil {
		failpoint.Hit("gvisor.create/after-answer")
		i.running = running{} // there are others now
		err = i.settle(x.spec)
	}
	if err != nil {
		return nil, i.undo(ctx, err)
	}
	failpoint.Hit("gvisor.create/after-running")
	return i, i.b.adopt(i)
}

// meet returns when the agent of a guest that goes on has answered.
func (i *Instance) meet(ctx context.Context) error {
	conn, err := dialFIFOs(i.dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	return i.awaitAgent(ctx, conn)
}

// Hold implements sandbox.Holder. The image's files never have names.
func (i *Instance) Hold(ctx context.Context) (sandbox.Snapshot, error) {
	if err := i.savable(); err != nil {
		return sandbox.Snapshot{}, err
	}
	if i.intent.Wired { // runsc restores it, and opens an image by its name
		return sandbox.Snapshot{}, sandbox.Errorf("hold", sandbox.KindUnsupported, "nothing with a network is held").WithID(string(i.id))
	}
	here, err := i.b.builds()
	if err != nil {
		return sandbox.Snapshot{}, sandbox.Wrap("hold", string(i.id), bare(err))
	}
	img := &image{Image: &snapimage.Image{Manifest: i.manifest(here)}}
	for range imageNames {
		fd, err := unix.Open(i.b.cfg.Dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			img.close()
			return sandbox.Snapshot{}, i.unsaved(ctx, &os.PathError{Op: "open", Path: i.b.cfg.Dir, Err: err})
		}
		img.files = append(img.files, os.NewFile(uintptr(fd), "image"))
	}
	s := sandbox.Snapshot{Digest: "held:" + rand.Text(), Created: img.Created, Limits: img.Limits, ReadonlyRoot: img.ReadonlyRoot}
	if err = i.saveInto(ctx, img.files); err == nil {
		for _, f := range img.files {
			fi, e := f.Stat()
			if err = e; err != nil {
				break
			}
			s.Size += fi.Size()
		}
	}
	if err == nil {
		failpoint.Hit("gvisor.hold/after-save")
		err = i.b.hold(s.Digest, img)
	}
	if err != nil {
		img.close()
		return sandbox.Snapshot{}, i.unsaved(ctx, err)
	}
	return s, nil
}

// hold keeps an image until it is released.
func (b *Backend) hold(digest string, img *image) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.openLocked("hold", ""); err != nil {
		return err
	}
	b.held[digest] = img
	return nil
}

// Release implements sandbox.Preparer.
func (b *Backend) Release(s sandbox.Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if img := b.held[s.Digest]; img != nil && s.Dir == "" {
		delete(b.held, s.Digest)
		img.close()
	}
}

// openHeld opens an image that is held.
func (b *Backend) openHeld(from sandbox.Snapshot) (*image, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	img := b.held[from.Digest]
	if img == nil {
		return nil, sandbox.Errorf("restore", sandbox.KindNotFound, "the snapshot is not held any more")
	}
	files, err := img.again()
	if err != nil {
		return nil, sandbox.Wrap("restore", "", bare(err))
	}
	return &image{Image: img.Image, files: files}, nil
}

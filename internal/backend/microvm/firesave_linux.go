package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/firecracker"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var _ keeper = (*fireVMM)(nil)

// What Firecracker writes into its jail when a machine is saved. Both are removed as
// soon as they were copied.
const (
	savedState  = "/saved.state"
	savedMemory = "/saved.memory"
)

// resumePatience bounds the wait until a machine goes on whose saver has no more time:
// Firecracker answers when it has written what it was asked for.
const resumePatience = 10 * time.Minute

// builds: Firecracker wants to be the same, on the same kernel. A release has a format
// of its own for a machine's state; one that calls itself the same need not.
func (f *fireVMM) builds(c *images) ([]snapimage.Build, error) {
	sum, err := c.digestOf(f.Program)
	if err != nil {
		return nil, err
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return nil, err
	}
	return []snapimage.Build{{What: "monitor", Is: "Firecracker " + f.Version}, {What: "build of the monitor", Is: sum},
		{What: "kernel of the host", Is: unix.ByteSliceToString(host.Release[:])}}, nil
}

// wake lets a machine go on that stands still.
func (f *fireVMM) wake(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, resumePatience)
	defer cancel()
	c := client(dir)
	i, err := c.Instance(ctx)
	if err == nil && i.State == firecracker.Paused {
		err = goOn(ctx, c, i.Version, false)
	}
	return errors.Join(err, dropSaved(dir))
}

// goOn resumes a machine that was paused, and saved since then or not.
func goOn(ctx context.Context, c *firecracker.Client, version string, saved bool) error {
	if !saved && firecracker.Deaf(version) {
		_ = c.CreateSnapshot(ctx, savedState, savedMemory) // for what it does to the vsock: without it the agent is out of reach, and that will be noticed
	}
	return c.Resume(ctx)
}

// dropSaved removes what was saved into the jail of the instance in dir.
func dropSaved(dir string) (err error) {
	root := jailRootOf(dir)
	if root == "" {
		return nil
	}
	for _, name := range []string{savedState, savedMemory} {
		if e := os.RemoveAll(filepath.Join(root, name)); err == nil {
			err = e
		}
	}
	return err
}

func (f *fireVMM) save(ctx context.Context, m vm, to string) (sparse []string, err error) {
	disk, err := os.OpenFile(m.disk, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	size, err := disk.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if err := dropSaved(m.dir); err != nil { // of who died
		return nil, err
	}
	defer func() { err = errors.Join(err, dropSaved(m.dir)) }()
	c := client(m.dir)
	i, err := c.Instance(ctx)
	if err != nil {
		return nil, err
	}
	saved := false
	defer func() { // whatever has become of ctx
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumePatience)
		defer cancel()
		err = errors.Join(err, goOn(ctx, c, i.Version, saved))
	}()
	if err := c.Pause(ctx); err != nil {
		return nil, err
	}
	failpoint.Hit("microvm.snapshot/after-stop")
	if err := c.CreateSnapshot(ctx, savedState, savedMemory); err != nil {
		if nearlyFull(m.dir) {
			err = errors.Join(unix.ENOSPC, err)
		}
		return nil, err
	}
	saved = true
	failpoint.Hit("microvm.snapshot/after-state")
	if err := collect(ctx, m, to); err != nil {
		return nil, err
	}
	return []string{imageMemory}, snapimage.Pack(ctx, filepath.Join(to, imageDisk), disk, size)
}

// collect copies what the monitor has written. It may be anything, when a guest has
// taken the monitor over: then it is what the guest's copies get.
func collect(ctx context.Context, m vm, to string) error {
	root := jailRootOf(m.dir)
	state, size, err := openSaved(root, savedState)
	if err != nil {
		return err
	}
	defer state.Close()
	if size > maxState {
		return errors.New("the monitor's state is too large")
	}
	memory, size, err := openSaved(root, savedMemory)
	if err != nil {
		return err
	}
	defer memory.Close()
	if size != m.ramSize() {
		return fmt.Errorf("the monitor has saved %d bytes of memory, not %d", size, m.ramSize())
	}
	f, err := os.OpenFile(filepath.Join(to, imageState), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, io.LimitReader(state, maxState)); err != nil {
		f.Close()
		return err
	}
	return errors.Join(f.Close(), snapimage.Sparse(ctx, filepath.Join(to, imageMemory), memory, size))
}

// openSaved opens a regular file of the monitor's, which must not be a link.
func openSaved(root, name string) (*os.File, int64, error) {
	f, err := os.OpenFile(filepath.Join(root, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("what the monitor has saved: %w", bare(err))
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, 0, errors.New("what the monitor has saved is no file")
	}
	return f, fi.Size(), nil
}

// place puts what a machine goes on from into its jail, checked. The memory's file is
// the image's own, which the monitor can only read: all machines of one image share it
// until they write.
func (f *fireVMM) place(ctx context.Context, m vm) error {
	root := f.jail(m).Root()
	state, err := m.saved.Read(ctx, imageState, maxState)
	if err != nil {
		return err
	}
	to, err := os.OpenFile(filepath.Join(root, jailState), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	_, err = to.Write(state)
	if err := errors.Join(err, to.Close()); err != nil {
		return err
	}
	if err := m.saved.Lend(ctx, imageMemory, filepath.Join(root, jailMemory)); err != nil {
		return err
	}
	failpoint.Hit("microvm.restore/after-memory")
	return nil
}

// load has the machine go on from what was placed.
func (f *fireVMM) load(ctx context.Context, c *firecracker.Client) error {
	err := c.LoadSnapshot(ctx, jailState, jailMemory, true)
	if fault := (*firecracker.Fault)(nil); errors.As(err, &fault) {
		return sandbox.Errorf("restore", sandbox.KindConflict, "the monitor does not take the snapshot: %w", err).WithHint("take another snapshot")
	}
	if err == nil {
		failpoint.Hit("microvm.restore/after-state")
	}
	return err
}

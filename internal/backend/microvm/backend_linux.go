package microvm

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Backend makes virtual machines below one directory. It is safe for concurrent
// use; two Backends, in this process or others, may share a Dir.
type Backend struct {
	cfg    Config
	log    *slog.Logger
	images *images
	test   string // of machine.Settings, for tests

	look     func() probed // once, then remembered
	watchers sync.WaitGroup

	mu        sync.Mutex
	closed    bool                             // guarded by mu
	instances map[sandbox.InstanceID]*Instance // guarded by mu: created or attached here, until destroyed
	cgroups   cgroupHost                       // guarded by mu: whose parents were made
}

var _ sandbox.Backend = (*Backend)(nil)

// New returns a Backend over c.Dir. It makes and starts nothing; whether machines
// work here is Info's to say.
//
// Errors: KindInvalid for a relative or missing path, or a choice that is none.
func New(c Config) (*Backend, error) {
	bad := func(format string, args ...any) error {
		return sandbox.Errorf("microvm", sandbox.KindInvalid, format, args...)
	}
	for name, p := range map[string]string{"directory": c.Dir, "cache": c.Cache, "runtime": c.Runtime} {
		if !filepath.IsAbs(p) {
			return nil, bad("%s %q is not an absolute path", name, p)
		}
	}
	if c.Cgroup == "" {
		c.Cgroup = "firebreak"
	}
	switch {
	case !filepath.IsLocal(c.Cgroup):
		return nil, bad("cgroup %q is not a path below the mount point", c.Cgroup)
	case c.VMM != "" && c.VMM != vmmQEMU && c.VMM != vmmFirecracker:
		return nil, bad("unknown monitor %q", c.VMM).(*sandbox.Error).WithHint("qemu or firecracker")
	case c.Accel != "" && c.Accel != accelKVM && c.Accel != accelTCG:
		return nil, bad("unknown accelerator %q", c.Accel).(*sandbox.Error).WithHint("kvm or tcg")
	case !c.Rate.valid():
		return nil, bad("a disk's rate of %d bytes and %d requests per second", c.Rate.Bytes, c.Rate.Ops).(*sandbox.Error).
			WithHint("at least %s and %d; 0 is no bound", sandbox.FormatSize(minBytes), minOps)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	sweep(c.Dir)
	b := &Backend{cfg: c, log: c.Log, images: newImages(c.Cache),
		instances: map[sandbox.InstanceID]*Instance{}}
	b.look = sync.OnceValue(b.lookAround)
	return b, nil
}

// dir is where an instance lives.
func (b *Backend) dir(id sandbox.InstanceID) string { return filepath.Join(b.cfg.Dir, string(id)) }

// Attach implements sandbox.Backend. An instance that is still being made is not
// found; one whose maker died before handing it out is, as a dead one.
func (b *Backend) Attach(ctx context.Context, id sandbox.InstanceID) (sandbox.Instance, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.openLocked("attach", id); err != nil {
		return nil, err
	}
	if i, ok := b.instances[id]; ok {
		if _, err := os.Lstat(i.dir); !errors.Is(err, fs.ErrNotExist) {
			return i, nil
		}
		return nil, notFound("attach", id) // another Backend destroyed it
	}
	if !id.Valid() {
		return nil, notFound("attach", id)
	}
	in, err := readIntent(b.dir(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, notFound("attach", id)
	case err != nil:
		return nil, cannotLook("attach", id, err)
	}
	if making, err := beingMade(b.dir(id)); err != nil {
		return nil, cannotLook("attach", id, err)
	} else if making {
		return nil, notFound("attach", id)
	}
	i, err := b.found(in)
	if err != nil {
		return nil, cannotLook("attach", id, err)
	}
	i.watch()
	i.recovering.Add(1)
	b.watchers.Go(func() {
		defer i.recovering.Done()
		i.recover()
	})
	b.instances[id] = i
	return i, nil
}

// found is an instance as its directory describes it. It needs nothing that a
// probe might find missing: an instance outlives the means to make another.
func (b *Backend) found(in intent) (*Instance, error) {
	i := newInstance(b, in, b.monitorOf(in.VMM))
	if in.Boot != bootID() {
		return i, nil
	}
	var err error
	if i.processes, err = readProcesses(i.dir); err != nil {
		return nil, err
	}
	_, err = os.Lstat(filepath.Join(i.dir, fileReady))
	i.ready = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return i, err
}

// cannotLook is the error of somebody who could not see, which must not be taken
// for having seen nothing.
func cannotLook(op string, id sandbox.InstanceID, err error) error {
	return sandbox.Errorf(op, sandbox.KindUnavailable, "cannot look at the instances: %w", err).WithID(string(id))
}

// openLocked fails when the Backend was closed. b.mu is held.
func (b *Backend) openLocked(op string, id sandbox.InstanceID) error {
	if b.closed {
		return sandbox.Errorf(op, sandbox.KindUnavailable, "the backend is closed").WithID(string(id))
	}
	return nil
}

func notFound(op string, id sandbox.InstanceID) error {
	return sandbox.Errorf(op, sandbox.KindNotFound, "no such instance").WithID(string(id))
}

// List implements sandbox.Backend. It reads directories and processes, not this
// process's memory. Instances being made count as alive.
//
// Errors: KindUnavailable when it cannot look.
func (b *Backend) List(ctx context.Context) ([]sandbox.Status, error) {
	if _, _, err := statOf(os.Getpid()); err != nil {
		return nil, cannotLook("list", "", err)
	}
	entries, err := os.ReadDir(b.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was ever made
	}
	if err != nil {
		return nil, cannotLook("list", "", err)
	}
	var list []sandbox.Status
	for _, e := range entries {
		id := sandbox.InstanceID(e.Name())
		if !e.IsDir() || !id.Valid() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, sandbox.Wrap("list", "", err)
		}
		st, err := b.statusOf(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // destroyed meanwhile
		}
		if err != nil {
			return nil, cannotLook("list", id, err)
		}
		list = append(list, st)
	}
	return list, nil
}

// statusOf looks at an instance without attaching to it.
func (b *Backend) statusOf(id sandbox.InstanceID) (sandbox.Status, error) {
	b.mu.Lock()
	i := b.instances[id]
	b.mu.Unlock()
	if i != nil {
		return i.status(), nil
	}
	making, err := beingMade(b.dir(id))
	if err != nil {
		return sandbox.Status{}, err
	}
	in, err := readIntent(b.dir(id))
	if err != nil {
		return sandbox.Status{}, err
	}
	if i, err = b.found(in); err != nil {
		return sandbox.Status{}, err
	}
	st := i.status()
	if making {
		st.Alive, st.Exit = true, sandbox.Exit{}
	}
	return st, nil
}

// Close implements sandbox.Backend. Streams and waits of the instances end; the
// instances live on. A second call does nothing.
func (b *Backend) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	all, cgroups := b.instances, b.cgroups
	b.instances = map[sandbox.InstanceID]*Instance{}
	b.mu.Unlock()
	for _, i := range all {
		i.release()
	}
	b.watchers.Wait()
	b.images.close()
	cgroups.tidy()
	return nil
}

// forget drops a destroyed instance.
func (b *Backend) forget(i *Instance) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.instances[i.id] == i {
		delete(b.instances, i.id)
	}
}

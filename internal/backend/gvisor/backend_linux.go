package gvisor

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Backend makes gVisor sandboxes below one directory. It is safe for
// concurrent use; two Backends, in this process or others, may share a Dir.
type Backend struct {
	cfg Config
	log *slog.Logger

	probe  func() (probed, error)            // once, then remembered
	builds func() ([]snapimage.Build, error) // ditto
	agent  []string                          // what runs as PID 1

	monitors sync.WaitGroup

	mu        sync.Mutex
	closed    bool                             // guarded by mu
	instances map[sandbox.InstanceID]*Instance // guarded by mu: created or attached here, until destroyed
	held      map[string]*image                // guarded by mu: by digest; images that have no names
}

var _ sandbox.Backend = (*Backend)(nil)

// New returns a Backend over c.Dir, which it makes if need be. It starts
// nothing; whether sandboxes work here is Info's to say.
//
// Errors: KindInvalid for a relative or missing path.
func New(c Config) (*Backend, error) {
	for name, p := range map[string]string{"directory": c.Dir, "runsc": c.Runsc, "runtime": c.Runtime} {
		if !filepath.IsAbs(p) {
			return nil, sandbox.Errorf("gvisor", sandbox.KindInvalid, "%s %q is not an absolute path", name, p)
		}
	}
	if strings.ContainsAny(c.Dir, ",\n") { // it becomes part of a flag with options
		return nil, sandbox.Errorf("gvisor", sandbox.KindInvalid, "directory %q has a comma in its name", c.Dir)
	}
	if c.Cgroup == "" {
		c.Cgroup = "firebreak"
	}
	if !filepath.IsLocal(c.Cgroup) {
		return nil, sandbox.Errorf("gvisor", sandbox.KindInvalid, "cgroup %q is not a path below the mount point", c.Cgroup)
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		return nil, sandbox.Wrap("gvisor", "", err)
	}
	sweep(c.Dir)
	b := &Backend{
		cfg:       c,
		log:       c.Log,
		agent:     []string{guest.AgentPath, "init"},
		instances: map[sandbox.InstanceID]*Instance{},
		held:      map[string]*image{},
	}
	b.probe, b.builds = sync.OnceValues(b.probeHost), sync.OnceValues(b.buildsHere)
	return b, nil
}

// dir is where an instance lives.
func (b *Backend) dir(id sandbox.InstanceID) string { return filepath.Join(b.cfg.Dir, string(id)) }

// Attach implements sandbox.Backend. An instance that is still being made is
// not found; one whose maker died before handing it out is, as a dead one.
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
	b.instances[id] = i
	return i, nil
}

// found is an instance as its directory describes it. It needs nothing that the
// probe might find missing: an instance outlives the means to make another.
func (b *Backend) found(in intent) (*Instance, error) {
	i := newInstance(b, in, groupAt(in.Cgroups))
	r, err := readRunning(i.dir)
	switch {
	case err == nil && in.Boot == bootID():
		i.running = r
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return i, nil
}

// cannotLook is the error of somebody who could not see, which must not be
// taken for having seen nothing.
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

// List implements sandbox.Backend. It reads directories, processes and cgroups,
// not this process's memory. Instances being made count as alive. It works also
// where Info says that no sandbox can be made.
//
// Errors: KindUnavailable when it cannot look. What it could not look at is never
// reported dead or left out.
func (b *Backend) List(ctx context.Context) ([]sandbox.Status, error) {
	if err := canSeeProcesses(); err != nil {
		return nil, cannotLook("list", "", err)
	}
	entries, err := os.ReadDir(b.cfg.Dir)
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
	dir := b.dir(id)
	making, err := beingMade(dir)
	if err != nil {
		return sandbox.Status{}, err
	}
	in, err := readIntent(dir)
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

// Close implements sandbox.Backend. Streams and waits of the instances end;
// the instances live on. A second call does nothing.
func (b *Backend) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	all := b.instances
	b.instances = map[sandbox.InstanceID]*Instance{}
	for digest, img := range b.held {
		delete(b.held, digest)
		img.close()
	}
	b.mu.Unlock()
	for _, i := range all {
		i.release()
	}
	b.monitors.Wait()
	if p, err := b.probe(); err == nil {
		p.cgroups.release()
	}
	return nil
}

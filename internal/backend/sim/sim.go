package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Config says how a Backend behaves. The zero value is ready to use.
type Config struct {
	// Dir names the instances: backends with the same Dir share theirs. With
	// an empty one they are this backend's own. Nothing is written to it.
	Dir string
	// Boot is how long an instance takes until its agent answers.
	Boot time.Duration
	// Frozen makes agents that never answer, to test that Create gives up.
	Frozen bool
	// Unenforced are limits that this model claims not to enforce, to test
	// what refuses or reports that.
	Unenforced sandbox.LimitSet
}

// What a Spec that leaves a limit at zero gets.
const (
	DefaultMemory = 512 << 20
	DefaultCPUs   = 1
	DefaultPIDs   = 256
	DefaultDisk   = 1 << 30
)

// bootTimeout bounds Create when its context has no deadline.
const bootTimeout = 30 * time.Second

// Backend makes modelled instances. It is safe for concurrent use.
type Backend struct {
	cfg  Config
	host *host
}

var _ sandbox.Backend = (*Backend)(nil)

// host is what backends with one Dir share.
type host struct {
	mu        sync.Mutex
	instances map[sandbox.InstanceID]*instance // guarded by mu; nil while being made
}

// hosts by directory, for the life of the process: they stand for the disk.
var hosts struct {
	sync.Mutex
	byDir map[string]*host // guarded by Mutex
}

// New returns a Backend. Release it with Close.
func New(cfg Config) *Backend {
	fresh := &host{instances: map[sandbox.InstanceID]*instance{}}
	if cfg.Dir == "" {
		return &Backend{cfg: cfg, host: fresh}
	}
	hosts.Lock()
	defer hosts.Unlock()
	h, ok := hosts.byDir[cfg.Dir]
	if !ok {
		if hosts.byDir == nil {
			hosts.byDir = map[string]*host{}
		}
		h = fresh
		hosts.byDir[cfg.Dir] = h
	}
	return &Backend{cfg: cfg, host: h}
}

// Info implements sandbox.Backend. A model works everywhere.
func (b *Backend) Info(context.Context) (sandbox.Info, error) {
	return sandbox.Info{
		Name: "sim", Isolation: sandbox.IsolationNone, Version: "1", Available: true,
		Capabilities: sandbox.Capabilities{
			Limits:       sandbox.AllLimits &^ b.cfg.Unenforced,
			ReadonlyRoot: true,
		},
		Notes: []string{"a model: it executes no code and isolates nothing"},
	}, nil
}

// Create implements sandbox.Backend.
func (b *Backend) Create(ctx context.Context, spec sandbox.Spec) (_ sandbox.Instance, err error) {
	id := spec.Instance
	if !id.Valid() {
		return nil, sandbox.Errorf("create", sandbox.KindInvalid, "instance id %q is malformed", id).
			WithHint("use sandbox.NewInstanceID")
	}
	if err := spec.Limits.Validate(); err != nil {
		return nil, err
	}
	info, err := b.Info(ctx)
	if err != nil {
		return nil, err
	}
	if err := info.Check(spec); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap("create", string(id), err)
	}
	if !b.host.reserve(id) {
		return nil, sandbox.Errorf("create", sandbox.KindExists, "the instance exists").WithID(string(id))
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	inst := b.boot(spec)
	defer func() {
		if err != nil {
			inst.end(sandbox.ReasonOperator, "creation failed")
			b.host.forget(id)
		}
	}()
	if err := inst.ready(ctx); err != nil {
		return nil, sandbox.Wrap("create", string(id), err)
	}
	b.host.put(inst)
	return inst, nil
}

// enforced fills in defaults and drops the limits the model claims not to
// enforce.
func (b *Backend) enforced(l sandbox.Limits) (sandbox.Limits, sandbox.LimitSet) {
	def := func(v, d int64) int64 {
		if v == 0 {
			return d
		}
		return v
	}
	l.Memory, l.Disk = def(l.Memory, DefaultMemory), def(l.Disk, DefaultDisk)
	l.PIDs = int(def(int64(l.PIDs), DefaultPIDs))
	if l.CPUs == 0 {
		l.CPUs = DefaultCPUs
	}
	off := b.cfg.Unenforced
	if off&sandbox.LimitMemory != 0 {
		l.Memory = 0
	}
	if off&sandbox.LimitCPU != 0 {
		l.CPUs = 0
	}
	if off&sandbox.LimitPIDs != 0 {
		l.PIDs = 0
	}
	if off&sandbox.LimitDisk != 0 {
		l.Disk = 0
	}
	return l, sandbox.AllLimits &^ off
}

func (b *Backend) boot(spec sandbox.Spec) *instance {
	limits, enforced := b.enforced(spec.Limits)
	inst := &instance{
		id: spec.Instance, host: b.host, enforced: enforced, created: time.Now().UTC(),
		m: newMachine(limits, spec.ReadonlyRoot), line: newLine(),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	name := spec.Hostname
	if name == "" {
		name = string(spec.Sandbox)
	}
	if name != "" {
		inst.m.fs.setHostname(name)
	}
	if !b.cfg.Frozen {
		inst.serve(b.cfg.Boot)
	}
	return inst
}

// Attach implements sandbox.Backend.
func (b *Backend) Attach(_ context.Context, id sandbox.InstanceID) (sandbox.Instance, error) {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	if inst := b.host.instances[id]; inst != nil {
		return inst, nil
	}
	return nil, sandbox.Errorf("attach", sandbox.KindNotFound, "no such instance").WithID(string(id))
}

// List implements sandbox.Backend.
func (b *Backend) List(context.Context) ([]sandbox.Status, error) {
	b.host.mu.Lock()
	all := make([]*instance, 0, len(b.host.instances))
	for _, inst := range b.host.instances {
		if inst != nil {
			all = append(all, inst)
		}
	}
	b.host.mu.Unlock()
	out := make([]sandbox.Status, 0, len(all))
	for _, inst := range all {
		out = append(out, inst.status())
	}
	slices.SortFunc(out, func(a, b sandbox.Status) int {
		return strings.Compare(string(a.Instance), string(b.Instance))
	})
	return out, nil
}

// Crash ends an instance's boundary as a fault from outside would, for tests
// of what notices that.
func (b *Backend) Crash(id sandbox.InstanceID) error {
	b.host.mu.Lock()
	inst := b.host.instances[id]
	b.host.mu.Unlock()
	if inst == nil {
		return sandbox.Errorf("crash", sandbox.KindNotFound, "no such instance").WithID(string(id))
	}
	inst.end(sandbox.ReasonCrashed, "the modelled boundary was killed from outside")
	return nil
}

// Close implements sandbox.Backend. Instances live on for other backends over
// the same Dir; those of a backend without one end here, since nobody else can
// reach them.
func (b *Backend) Close() error {
	if b.cfg.Dir != "" {
		return nil
	}
	b.host.mu.Lock()
	all := make([]*instance, 0, len(b.host.instances))
	for _, inst := range b.host.instances {
		if inst != nil {
			all = append(all, inst)
		}
	}
	b.host.mu.Unlock()
	for _, inst := range all {
		if r, err := inst.Destroy(context.Background()); err != nil {
			return fmt.Errorf("sim: %v: %w", r.Objects, err)
		}
	}
	return nil
}

// reserve takes id, and reports false if it is in use.
func (h *host) reserve(id sandbox.InstanceID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, used := h.instances[id]; used {
		return false
	}
	h.instances[id] = nil
	return true
}

func (h *host) put(inst *instance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.instances[inst.id] = inst
}

func (h *host) forget(id sandbox.InstanceID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.instances, id)
}

func (h *host) has(id sandbox.InstanceID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.instances[id]
	return ok
}

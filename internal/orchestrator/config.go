package orchestrator

import (
	"context"
	"log/slog"
	"path/filepath"
	"runtime"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Templates is where root file systems come from; *template.Store is one.
type Templates interface {
	// Resolve finds a template by name or digest.
	Resolve(ctx context.Context, name string) (template.Template, error)
	// Choose finds one that can run a language.
	Choose(ctx context.Context, language string) (template.Template, error)
	// Acquire keeps a template from being removed until release.
	Acquire(digest string) (release func(), err error)
	// Check compares the files of a template that is acquired with what was
	// built.
	Check(ctx context.Context, digest string) error
}

// Events is where what happens is told to whoever watches; *event.Hub is one.
type Events interface {
	// Publish appends an event to a sandbox's sequence. It never waits for a
	// reader.
	Publish(id sandbox.ID, e event.Event) (uint64, error)
	// Size is how many bytes a sandbox's events take on disk, and Retain how
	// long they do after its end.
	Size(id sandbox.ID) int64
	Retain() time.Duration
	// Printed is what has been published of a process.
	Printed(id sandbox.ID, process string) (event.Printed, error)
	// Expire removes the events that are older than before and of no sandbox
	// that known names.
	Expire(ctx context.Context, before time.Time, known event.Known) (more bool, err error)
}

// Config joins an Orchestrator to the rest.
type Config struct {
	// Backends are those of this host, the preferred first among equals.
	Backends  []sandbox.Backend
	Store     *store.Store
	Recorder  sandbox.Recorder // one that can refuse for long says so by Err() error: *audit.Log does
	Events    Events
	Templates Templates
	// Network makes the wires of sandboxes that may reach something; nil: none may,
	// and a create with network rules is refused.
	Network Network
	// Bindings are those of tenants; nil: nobody has any, and a create with some is
	// refused.
	Bindings Bindings
	Log      *slog.Logger
	// Runs is the directory for what runs leave behind; made if need be.
	Runs string
	// Processes is the directory where processes under way are noted; made if
	// need be. Default: "processes" beside Runs.
	Processes string
	// Snapshots is the directory of what sandboxes are restored from; made when
	// there is something. Default: "snapshots" beside Runs.
	Snapshots string
	// Patience is how long an agent may not answer, while its boundary lives,
	// before the sandbox counts as crashed: 75 s, so that a machine that stood
	// still for a minute loses nothing.
	Patience time.Duration

	// AllowRoot permits execs and file operations as the guest's root. It is
	// root of nothing but the guest, yet one boundary less.
	AllowRoot bool

	Defaults Defaults
	Quota    Quota
	// DestroyOnClose makes Close end every sandbox instead of leaving them to
	// the next process.
	DestroyOnClose bool
	// Alone says that no process will follow this one and go on where it was
	// killed: what runs is not noted for it. For `firebreak run` without a server.
	Alone bool
	// Abandoned says that whoever the living sandboxes in Store were for has
	// died: Start ends them, lost, without asking their agents anything.
	Abandoned bool
	// Retain is how long records, events and artifacts of what has ended are
	// kept. Default 7 days.
	Retain time.Duration
	// Memory reports the host's memory, total and available, in bytes; zeros
	// where unknown. Default: /proc/meminfo.
	Memory func() (total, available int64)
	// Room reports what else the host has left. Default: this host, and the
	// disk that Runs is on.
	Room func() Room
	// Clock is the wall clock. Default time.Now. What happens within this
	// process follows the steady clock instead.
	Clock func() time.Time
}

// Defaults fill in what a request leaves out. Zero fields get the values below.
type Defaults struct {
	Backend string // "auto"
	// MinIsolation is the weakest class of any sandbox here, whatever a request says:
	// none.
	MinIsolation sandbox.Isolation
	Template     string         // "host"
	Limits       sandbox.Limits // 256 MiB, 1 CPU, 128 tasks, 1 GiB
	// Timeout is a sandbox's maximum life: 1 h. Nobody comes back for a
	// forgotten sandbox; whoever needs more says so.
	Timeout time.Duration
	// IdleTimeout is none: a sandbox that waits for its user is not wrong.
	IdleTimeout time.Duration
	// ExecTimeout bounds one exec: 5 min.
	ExecTimeout time.Duration
	// ContextIdle and ContextLife are when a context ends by itself: never before
	// its sandbox.
	ContextIdle, ContextLife time.Duration
	// SnapshotTTL is how long a snapshot is kept: 30 days.
	SnapshotTTL time.Duration
	// CreateTimeout bounds a boot, and the start of a context: 60 s.
	CreateTimeout time.Duration
}

func (c *Config) fill() {
	d, q := &c.Defaults, &c.Quota
	def(&d.Backend, Auto)
	def(&d.Template, template.Host)
	def(&d.Limits.Memory, 256<<20)
	def(&d.Limits.CPUs, 1)
	def(&d.Limits.PIDs, 128)
	def(&d.Limits.Disk, 1<<30)
	def(&d.Timeout, time.Hour)
	def(&d.ExecTimeout, 5*time.Minute)
	def(&d.CreateTimeout, time.Minute)
	def(&d.SnapshotTTL, 30*24*time.Hour)
	def(&q.Host, 500)
	def(&q.Overcommit, 2)
	def(&q.Creating, 2*runtime.NumCPU())
	def(&q.Starting, 16*runtime.NumCPU())
	def(&q.Waiting, 256)
	def(&q.Wait, 10*time.Second)
	def(&c.Retain, 7*24*time.Hour)
	def(&c.Patience, 75*time.Second)
	def(&c.Processes, filepath.Join(filepath.Dir(c.Runs), "processes"))
	def(&c.Snapshots, filepath.Join(filepath.Dir(c.Runs), "snapshots"))
	if c.Memory == nil {
		c.Memory = recent(hostMemory)
	}
	if c.Room == nil {
		c.Room = hostRoom(c.Runs)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

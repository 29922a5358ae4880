package orchestrator

import (
	"context"
	"log/slog"
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
}

// Events is where what happens is told to whoever watches; *event.Hub is one.
type Events interface {
	// Publish appends an event to a sandbox's sequence. It never waits for a
	// reader.
	Publish(id sandbox.ID, e event.Event) (uint64, error)
}

// Config joins an Orchestrator to the rest.
type Config struct {
	// Backends are those of this host, the preferred first among equals.
	Backends  []sandbox.Backend
	Store     *store.Store
	Recorder  sandbox.Recorder
	Events    Events
	Templates Templates
	Log       *slog.Logger
	// Runs is the directory for what runs leave behind; made if need be.
	Runs string

	// AllowRoot permits execs and file operations as the guest's root. It is
	// root of nothing but the guest, yet one boundary less.
	AllowRoot bool

	Defaults Defaults
	Quota    Quota
	// DestroyOnClose makes Close end every sandbox instead of leaving them to
	// the next process: for `firebreak run` without a server.
	DestroyOnClose bool
	// Abandoned says that whoever the living sandboxes in Store were for has
	// died: Start ends them, lost, without asking their agents anything.
	Abandoned bool
	// Retain is how long records, events and artifacts of what has ended are
	// kept. Default 7 days.
	Retain time.Duration
	// Memory reports the host's memory, total and available, in bytes; zeros
	// where unknown. Default: /proc/meminfo.
	Memory func() (total, available int64)
}

// Defaults fill in what a request leaves out. Zero fields get the values below.
type Defaults struct {
	Backend  string         // "auto"
	Template string         // "host"
	Limits   sandbox.Limits // 256 MiB, 1 CPU, 128 tasks, 1 GiB
	// Timeout is a sandbox's maximum life: 1 h. Nobody comes back for a
	// forgotten sandbox; whoever needs more says so.
	Timeout time.Duration
	// IdleTimeout is none: a sandbox that waits for its user is not wrong.
	IdleTimeout time.Duration
	// ExecTimeout bounds one exec: 5 min.
	ExecTimeout time.Duration
	// CreateTimeout bounds a boot: 60 s.
	CreateTimeout time.Duration
}

// Quota bounds what may exist. Zero fields get the values below.
type Quota struct {
	// Tenant and Host are live sandboxes: 200 of one tenant, 500 of all.
	Tenant, Host int
	// Overcommit is how many times the host's memory the limits of all live
	// sandboxes may add up to: 2. Whatever it says, a new sandbox's limit must
	// fit into what is available when it is made.
	Overcommit float64
	// Creating is how many boots run at once: twice the CPUs.
	Creating int
	// Waiting is how many creates may wait for that: 128, and Wait how long:
	// 10 s. Tenants take turns.
	Waiting int
	Wait    time.Duration
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
	def(&q.Tenant, 200)
	def(&q.Host, 500)
	def(&q.Overcommit, 2)
	def(&q.Creating, 2*runtime.NumCPU())
	def(&q.Waiting, 128)
	def(&q.Wait, 10*time.Second)
	def(&c.Retain, 7*24*time.Hour)
	if c.Memory == nil {
		c.Memory = hostMemory
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

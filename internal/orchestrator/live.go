package orchestrator

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// live is a sandbox that has not ended, as this process holds it. One costs
// three goroutines (its watcher and the session's two) and a timer.
type live struct {
	o        *Orchestrator
	id       sandbox.ID
	tenant   sandbox.TenantID
	instance sandbox.InstanceID
	name     string
	bindings []string           // what its requests may be made through, by name
	promised promise            // in the ledger
	release  func()             // of the template
	cancel   context.CancelFunc // of the boot
	booted   chan struct{}      // closed when the boot is over, well or badly
	dying    chan struct{}      // closed when ending is set

	// changing holds whoever pauses, resumes, saves or ends the sandbox.
	changing chan struct{}
	// starting is held for reading while a process starts, and for writing
	// while processes that nobody follows are looked for.
	starting sync.RWMutex
	// wiring is held while the sandbox's wire is taken up, updated or removed.
	wiring sync.Mutex
	// trusting is held while its programs are made to trust the wire's authority.
	trusting sync.Mutex

	mu      sync.Mutex
	sb      Sandbox          // guarded by mu; as last stored, or nearly
	inst    sandbox.Instance // guarded by mu; nil until booted
	sess    *guest.Session   // guarded by mu
	opening chan struct{}    // guarded by mu; closed when a reopening is over
	still   *standstill      // guarded by mu; nil while it runs
	uses    int              // guarded by mu; operations under way
	used    time.Time        // guarded by mu; when the last one ended
	timer   *time.Timer      // guarded by mu; fires due
	stored  time.Time        // guarded by mu; the deadline that expires was made from
	expires time.Time        // guarded by mu; by the steady clock; see deadline
	usage   sandbox.Usage    // guarded by mu
	sampled time.Time        // guarded by mu; when usage was measured
	series  series           // guarded by mu
	kept    flowsKept        // guarded by mu; what it wanted to reach
	invoked map[string]bool  // guarded by mu; see invokedBefore
	noted   time.Time        // guarded by mu; the value of used when it was last told to be idle
	parking bool             // guarded by mu; its time is over, and it is being paused for that
	ending  *ending          // guarded by mu; set once
	// execs are the processes that somebody follows, by the guest's id.
	execs map[uint32]*execution // guarded by mu
	none  chan struct{}         // guarded by mu; if not nil, closed when there are none any more
	// ended are processes that are over, the latest last.
	ended   []past          // guarded by mu
	claimed map[string]bool // guarded by mu; tags of processes that are starting
	// contexts are those that live, and those that ended lately, by id.
	contexts map[string]*warm // guarded by mu
	// watchers are the directories watched for callers who poll, by id.
	watchers map[string]*watcher // guarded by mu
}

// ending is the one end of a sandbox; whoever asks for it later shares it.
type ending struct {
	who    Caller
	reason sandbox.Reason
	detail string
	exit   *sandbox.Exit // what the backend said, if it ended by itself
	done   chan struct{} // closed when it is over
	// Valid once done is closed.
	sb  Sandbox
	err error // what could not be made clean, or written

	again    sync.Mutex // held while what could not be written is tried again
	recorded bool       // the receipt is evidence; written before done is closed, then guarded by again
}

func (o *Orchestrator) newLive(sb Sandbox, release func(), cancel context.CancelFunc) *live {
	l := &live{o: o, id: sb.ID, tenant: sb.Tenant, instance: sb.Instance, name: sb.Name, bindings: sb.Bindings(), promised: promiseOf(sb.Tenant, sb.Limits),
		release: release, cancel: cancel, booted: make(chan struct{}), dying: make(chan struct{}), changing: make(chan struct{}, 1), sb: sb, used: time.Now(),
		execs: map[uint32]*execution{}, contexts: map[string]*warm{}}
	l.kept.restore(sb.Details.Flows)
	return l
}

// snapshot returns the sandbox as it stands.
func (l *live) snapshot() Sandbox {
	l.mu.Lock()
	defer l.mu.Unlock()
	sb := l.sb
	sb.Details.Flows = l.kept.report()
	return sb.clone()
}

// arm sets the timer to the next moment something may be due.
// Preconditions: l.mu is held.
func (l *live) arm() {
	if l.ending != nil || l.sb.State != store.Running && l.sb.State != store.Paused {
		return
	}
	next := l.deadline()
	if idle := l.sb.IdleTimeout; idle > 0 && l.still == nil && l.uses == 0 && !l.noted.Equal(l.used) {
		if t := l.used.Add(idle); next.IsZero() || t.Before(next) {
			next = t
		}
	}
	switch {
	case next.IsZero() && l.timer != nil:
		l.timer.Stop()
	case next.IsZero():
	case l.timer == nil:
		l.timer = time.AfterFunc(time.Until(next), l.due)
	default:
		l.timer.Reset(time.Until(next))
	}
}

// due ends the sandbox, or says that it is idle, if a deadline has passed. The timer may be early: it is
// not set back each time a sandbox is used.
func (l *live) due() {
	if l.o.begin() != nil {
		return
	}
	defer l.o.work.Done()
	l.mu.Lock()
	now, idle, at := time.Now(), l.sb.IdleTimeout, l.deadline()
	expired := !at.IsZero() && !now.Before(at)
	unused := idle > 0 && l.still == nil && l.uses == 0 && !l.noted.Equal(l.used) && !now.Before(l.used.Add(idle))
	action := l.sb.Details.IdleAction
	told := unused && !expired && action == IdleEvent
	if told || unused && action == IdlePause {
		l.noted = l.used
	}
	if told || !expired && !unused {
		l.arm()
	}
	detail, paused := "limit "+short(l.sb.MaxLife), l.still != nil && l.still.image != nil
	if paused && l.still.image.Life != nil {
		detail = "kept paused for " + short(time.Since(l.still.since))
	}
	again := expired && l.parking
	park := expired && !paused && l.sb.Details.ExpireAction == ExpirePause
	l.parking = l.parking || park
	l.mu.Unlock()
	switch {
	case again:
	case park:
		l.pauseExpired()
	case expired:
		l.end(system(l.tenant), sandbox.ReasonTimeout, detail, nil)
	case told:
		l.publishState(store.Running, sandbox.ReasonIdle, "unused for "+short(idle), false)
	case unused && action == IdlePause:
		l.pauseIdle(idle)
	case unused:
		l.end(system(l.tenant), sandbox.ReasonIdle, "unused for "+short(idle), nil)
	}
}

// short prints a duration without needless digits.
func short(d time.Duration) string {
	if d >= time.Second {
		d = d.Round(100 * time.Millisecond)
	} else {
		d = d.Round(time.Millisecond)
	}
	return d.String()
}

// hold marks the sandbox as in use until the returned function is called, once.
// It waits for a boot. Errors: KindGone, or ctx's.
func (l *live) hold(ctx context.Context) (func(), error) {
	select {
	case <-l.booted:
	case <-ctx.Done():
		return nil, sandbox.Wrap("wait for boot", string(l.id), ctx.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending != nil {
		return nil, l.goneLocked()
	}
	l.uses++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.uses--
		l.used = time.Now()
		if l.uses == 0 && l.sb.IdleTimeout > 0 {
			l.arm()
			if l.ending == nil && !l.o.DestroyOnClose {
				_ = l.o.journal.touch(l.id) // without it, a restart counts from the start
			}
		}
	}, nil
}

// gone says why the sandbox cannot be used any more.
func (l *live) gone() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.goneLocked()
}

// goneLocked is gone. Preconditions: l.mu is held, l.ending is set.
func (l *live) goneLocked() error {
	return goneError(l.id, l.ending.reason, l.ending.detail, time.Time{})
}

// goneError is the answer about a sandbox that has ended, or is about to.
func goneError(id sandbox.ID, reason sandbox.Reason, detail string, at time.Time) error {
	text := string(reason)
	if detail != "" {
		text += " (" + detail + ")"
	}
	if !at.IsZero() {
		text += " at " + at.UTC().Format(time.RFC3339)
	}
	e := sandbox.Errorf("use", sandbox.KindGone, "the sandbox has ended: %s", text).WithID(string(id))
	switch reason {
	case sandbox.ReasonTimeout:
		return e.WithHint("create another one; timeout_ms makes it live longer")
	case sandbox.ReasonIdle:
		return e.WithHint("create another one; idle_timeout_ms makes it wait longer")
	case sandbox.ReasonMemory:
		return e.WithHint("create another one; limits.memory_bytes gives it more memory")
	}
	return e.WithHint("create another one; its record and receipt remain")
}

// sample measures the sandbox's use, at most once a second: many may ask.
func (l *live) sample(ctx context.Context) sandbox.Usage {
	l.mu.Lock()
	inst, fresh := l.inst, time.Since(l.sampled) < time.Second
	if fresh || inst == nil || l.ending != nil {
		defer l.mu.Unlock()
		return l.usage
	}
	l.sampled = time.Now()
	l.mu.Unlock()
	st, err := inst.Status(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.usage = l.total(st.Usage)
	}
	return l.usage
}

// total is what the sandbox has used if its instance has used u. Preconditions: l.mu
// is held.
func (l *live) total(u sandbox.Usage) sandbox.Usage {
	before := l.sb.Details.Spent
	u.CPU, u.OOMKills = u.CPU+before.CPU, u.OOMKills+before.OOMKills
	u.MemoryPeak = max(u.MemoryPeak, before.MemoryPeak)
	return u
}

// limitDetail is what a kill's detail says when nobody said more.
func limitDetail(r sandbox.Reason, l sandbox.Limits) string {
	switch {
	case r == sandbox.ReasonMemory && l.Memory > 0:
		return "limit " + sandbox.FormatSize(l.Memory)
	case r == sandbox.ReasonPIDs && l.PIDs > 0:
		return fmt.Sprintf("limit %d", l.PIDs)
	case r == sandbox.ReasonDisk && l.Disk > 0:
		return "limit " + sandbox.FormatSize(l.Disk)
	}
	return ""
}

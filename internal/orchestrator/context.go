package orchestrator

import (
	"cmp"
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// ContextState is what a context is up to.
type ContextState string

// The states.
const (
	ContextStarting ContextState = "starting"
	ContextReady    ContextState = "ready"
	ContextBusy     ContextState = "busy" // a turn runs
	ContextDead     ContextState = "dead"
)

// Context is a warm interpreter of a sandbox, as callers see it.
type Context struct {
	ID          string
	Language    string
	State       ContextState
	Reason      sandbox.Reason // why it is dead
	Detail      string
	PID         int // in the sandbox
	Dir, User   string
	EnvNames    []string // values may be secrets
	Created     time.Time
	Used        time.Time // when the last turn ended
	IdleTimeout time.Duration
	MaxLife     time.Duration
	Turns       int // that were begun
	Waiting     int // turns that wait
}

// ContextRequest says what interpreter to keep warm. The zero value takes every
// default.
type ContextRequest struct {
	Language    string // python or node; default the sandbox's, else python
	Dir         string // where it starts; default the user's home
	User        string
	Env         map[string]string
	IdleTimeout *time.Duration // ends it when it has had no turn for so long; nil: the default; 0: none
	MaxLife     *time.Duration // ends it in any case; nil: the default; 0: none but the sandbox's
}

// CreateContext starts an interpreter that stays warm and returns once it takes
// turns. It lives, over broken connections and restarts of the server, until it
// is deleted, ends itself, or its idle timeout, its own or the sandbox's life are
// over. A context without a turn does not keep its sandbox from being idle.
//
// Errors: those of Exec; KindCapacity when the sandbox has too many;
// KindUnsupported for a language without contexts.
// Cost: what starting the interpreter costs.
func (o *Orchestrator) CreateContext(ctx context.Context, who Caller, ref string, req ContextRequest) (Context, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Context{}, err
	}
	defer done()
	w, err := l.warmUp(ctx, who, req, "cx"+strings.ToLower(rand.Text()[:20]), nil)
	if err != nil {
		return Context{}, err
	}
	return w.made(ctx)
}

// ListContexts returns the contexts of a live sandbox, those that ended lately
// included, oldest first. Errors: those of finding the sandbox.
func (o *Orchestrator) ListContexts(ctx context.Context, tenant sandbox.TenantID, ref string) ([]Context, error) {
	l, done, err := o.look(ctx, tenant, ref)
	if err != nil {
		return nil, err
	}
	defer done()
	l.mu.Lock()
	all := slices.Collect(maps.Values(l.contexts))
	l.mu.Unlock()
	out := make([]Context, len(all))
	for i, w := range all {
		out[i] = w.show()
	}
	slices.SortFunc(out, func(a, b Context) int { return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID)) })
	return out, nil
}

// GetContext returns one. Errors: KindNotFound, those of finding the sandbox.
func (o *Orchestrator) GetContext(ctx context.Context, tenant sandbox.TenantID, ref, id string) (Context, error) {
	l, done, err := o.look(ctx, tenant, ref)
	if err != nil {
		return Context{}, err
	}
	defer done()
	w, err := l.warmed(id)
	if err != nil {
		return Context{}, err
	}
	return w.show(), nil
}

// DeleteContext ends a context, with the turn it runs and everything it started,
// and forgets it. It returns when that is over. Errors: KindNotFound, ctx's.
func (o *Orchestrator) DeleteContext(ctx context.Context, who Caller, ref, id string) (Context, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Context{}, err
	}
	defer done()
	w, err := l.warmed(id)
	if err != nil {
		return Context{}, err
	}
	if err := w.stop(ctx, who, "context.delete", "deleted by "+who.Principal); err != nil {
		return Context{}, err
	}
	l.mu.Lock()
	if l.contexts[id] == w {
		delete(l.contexts, id)
	}
	l.mu.Unlock()
	return w.show(), nil
}

// RestartContext ends a context's interpreter, if it lives, and starts a fresh one
// with the same id, language, directory, user and environment. Turns that wait
// are refused. Errors: as CreateContext, KindNotFound.
func (o *Orchestrator) RestartContext(ctx context.Context, who Caller, ref, id string) (Context, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Context{}, err
	}
	defer done()
	old, err := l.warmed(id)
	if err != nil {
		return Context{}, err
	}
	if err := old.stop(ctx, who, "context.restart", "restarted by "+who.Principal); err != nil {
		return Context{}, err
	}
	req := old.req
	req.Language = old.entry.Language
	w, err := l.warmUp(ctx, who, req, id, old)
	if err != nil {
		return Context{}, err
	}
	return w.made(ctx)
}

// InterruptContext interrupts the turn that a context runs, as Ctrl-C does; its
// state stays. Without one it does nothing. It does not wait for the turn's end.
// Errors: KindNotFound, KindGone.
func (o *Orchestrator) InterruptContext(ctx context.Context, who Caller, ref, id string) (Context, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return Context{}, err
	}
	defer done()
	w, err := l.warmed(id)
	if err != nil {
		return Context{}, err
	}
	if w.isDead() {
		return Context{}, w.gone()
	}
	if err := l.record(ctx, who, sandbox.Record{Action: "context.interrupt", Outcome: sandbox.OutcomeAllowed, Object: clip(id)}); err != nil {
		return Context{}, err
	}
	w.mu.Lock()
	t := w.turn
	w.mu.Unlock()
	if t != nil {
		w.interrupt(t, sandbox.ReasonOperator, "interrupted by "+who.Principal)
	}
	return w.show(), nil
}

// show is w for callers.
func (w *warm) show() Context {
	w.l.mu.Lock()
	c := Context{ID: w.entry.ID, Language: w.entry.Language, Dir: w.entry.Dir, Created: w.created, IdleTimeout: w.entry.Idle,
		EnvNames: slices.Sorted(maps.Keys(w.req.Env)), User: w.req.User}
	if w.x != nil {
		c.PID, c.MaxLife = w.x.entry.PID, w.x.entry.Timeout
	}
	w.l.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	c.Used, c.Turns, c.Waiting = w.used, w.turns, w.queue.length()
	switch {
	case w.isDead() && w.exit != nil:
		c.State, c.Reason, c.Detail = ContextDead, w.exit.Reason, w.exit.Detail
	case w.turn != nil || w.sync != 0:
		c.State = ContextBusy
	default:
		c.State = ContextReady
		select {
		case <-w.ready:
		default:
			c.State = ContextStarting
		}
	}
	return c
}

// find returns the context called id. Errors: KindNotFound.
func (l *live) warmed(id string) (*warm, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.contexts[id]; w != nil {
		return w, nil
	}
	return nil, sandbox.Errorf("find context", sandbox.KindNotFound, "no context %q in this sandbox", clip(id)).WithID(string(l.id)).
		WithHint("list the sandbox's contexts; python and node are made when they are first used")
}

// contextDetail is what the evidence of a context's start holds.
func contextDetail(req ExecRequest, p program, e *entry) map[string]string {
	d := map[string]string{"language": p.pack, "max_life": e.Timeout.String(), "idle_timeout": e.Context.Idle.String()}
	if len(req.Env) > 0 {
		d["env"] = clip(strings.Join(slices.Sorted(maps.Keys(req.Env)), " "))
	}
	if req.User != "" {
		d["user"] = clip(req.User)
	}
	if req.Dir != "" {
		d["cwd"] = clip(req.Dir)
	}
	return d
}

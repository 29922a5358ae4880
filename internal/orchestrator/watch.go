package orchestrator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of watchers, which are polled.
const (
	maxWatchers = 8               // of one sandbox; the agent has twice as many watches
	watcherIdle = 5 * time.Minute // without a poll
)

// WatchFiles watches a directory, and with Recursive all below it. ready is called
// once it does; then each change goes to send, in order, until ctx ends (its
// error), send fails (its error), or the directory is removed or renamed (nil).
// When more happens than send takes, an event of type overflow stands for what is
// missing. While it is watched the sandbox is not idle.
//
// Errors: those of files and of guest.Session.Watch; when the connection to the
// agent breaks, that: changes are missing then, and the caller begins anew.
func (o *Orchestrator) WatchFiles(ctx context.Context, who Caller, ref, path string, opt guest.WatchOptions, ready func() error, send func(guest.FileEvent) error) error {
	a, err := o.access(ctx, who, ref, opt.User, watchRecord(path, opt, ""), nil)
	if err != nil {
		return err
	}
	defer a.done()
	w, err := a.s.Watch(ctx, path, opt)
	if err != nil {
		return a.settled(ctx, path, err)
	}
	defer w.Close()
	if err := ready(); err != nil {
		return err
	}
	for {
		e, err := w.Next(ctx)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return a.settled(ctx, path, err)
		}
		if err := send(e); err != nil {
			return err
		}
	}
}

func watchRecord(path string, opt guest.WatchOptions, watcher string) sandbox.Record {
	r := sandbox.Record{Class: sandbox.Flow, Action: "file.watch", Object: path, Detail: map[string]string{}}
	if opt.Recursive {
		r.Detail["recursive"] = "true"
	}
	if watcher != "" {
		r.Detail["watcher"] = watcher
	}
	return r
}

// watcher is a watch that is polled. It lives in this process: a restart of the
// server ends it, as the end of its sandbox does.
type watcher struct {
	id     string
	events *guest.FileEvents
	idle   *time.Timer
	cancel context.CancelFunc
}

// CreateWatcher is WatchFiles for callers who would rather ask: it returns the id
// of a watcher, which collects a bounded number of changes for WatcherEvents. It
// goes on when the connection to the agent breaks, with an overflow where changes
// may be missing. It is removed when nobody asks for five minutes, and does not
// keep the sandbox from being idle.
//
// Errors: those of WatchFiles; KindCapacity beyond 8 in a sandbox.
func (o *Orchestrator) CreateWatcher(ctx context.Context, who Caller, ref, path string, opt guest.WatchOptions) (id string, err error) {
	var random [10]byte
	rand.Read(random[:])
	life, cancel := context.WithCancel(o.ctx)
	w := &watcher{id: "wa" + hex.EncodeToString(random[:]), events: guest.NewFileEvents(), cancel: cancel}
	a, err := o.access(ctx, who, ref, opt.User, watchRecord(path, opt, w.id), nil)
	if err != nil {
		cancel()
		return "", err
	}
	defer a.done()
	if err := a.l.keepWatcher(w); err != nil {
		cancel()
		return "", err
	}
	g, err := a.s.Watch(ctx, path, opt)
	if err != nil {
		a.l.dropWatcher(w)
		return "", a.settled(ctx, path, err)
	}
	o.work.Go(func() {
		defer a.l.dropWatcher(w)
		a.l.collect(life, w, g, path, opt)
	})
	return w.id, nil
}

// collect moves what g yields into w until it is over.
func (l *live) collect(ctx context.Context, w *watcher, g *guest.Watch, path string, opt guest.WatchOptions) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // the sandbox's end ends it
		select {
		case <-l.dying:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		e, err := g.Next(ctx)
		if err == nil {
			w.events.Put(e)
			continue
		}
		g.Close()
		if err == io.EOF || ctx.Err() != nil {
			break
		}
		w.events.Lose()
		s, err := l.sessionLater(ctx)
		if err == nil {
			g, err = s.Watch(ctx, path, opt)
		}
		if err != nil {
			break
		}
	}
	// What has come can still be asked for, until nobody does.
	w.events.End(nil)
	select {
	case <-ctx.Done():
	case <-l.dying:
	}
}

// keepWatcher enters w and starts its clock.
func (l *live) keepWatcher(w *watcher) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending != nil {
		return l.goneLocked()
	}
	if len(l.watchers) >= maxWatchers {
		return sandbox.Errorf("watch", sandbox.KindCapacity, "the sandbox has %d watchers", maxWatchers).WithID(string(l.id)).
			WithHint("remove one; those that nobody asks go after %s", short(watcherIdle))
	}
	if l.watchers == nil {
		l.watchers = map[string]*watcher{}
	}
	l.watchers[w.id] = w
	w.idle = time.AfterFunc(watcherIdle, w.cancel)
	return nil
}

func (l *live) dropWatcher(w *watcher) {
	l.mu.Lock()
	delete(l.watchers, w.id)
	l.mu.Unlock()
	w.idle.Stop()
	w.cancel()
}

// watcher finds one.
func (l *live) watcher(id string) (*watcher, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.watchers[id]; w != nil {
		return w, nil
	}
	return nil, sandbox.Errorf("find watcher", sandbox.KindNotFound, "no watcher %q in this sandbox", clip(id)).WithID(string(l.id)).
		WithHint("it ends when nobody asks for %s, and with the server: create another one and list the directory", short(watcherIdle))
}

// WatcherEvents returns what a watcher has collected since it was last asked,
// without waiting. over says that nothing will follow: its directory is gone.
// Errors: KindNotFound; those of finding the sandbox.
func (o *Orchestrator) WatcherEvents(ctx context.Context, tenant sandbox.TenantID, ref, id string) (events []guest.FileEvent, over bool, err error) {
	l, done, err := o.look(ctx, tenant, ref)
	if err != nil {
		return nil, false, err
	}
	defer done()
	w, err := l.watcher(id)
	if err != nil {
		return nil, false, err
	}
	w.idle.Reset(watcherIdle)
	events, over, _ = w.events.Take()
	return events, over, nil
}

// RemoveWatcher ends a watcher. Errors: KindNotFound; those of finding the sandbox.
func (o *Orchestrator) RemoveWatcher(ctx context.Context, who Caller, ref, id string) error {
	l, done, err := o.look(ctx, who.Tenant, ref)
	if err != nil {
		return err
	}
	defer done()
	w, err := l.watcher(id)
	if err == nil {
		err = l.record(ctx, who, sandbox.Record{Class: sandbox.Flow, Action: "file.watch", Outcome: sandbox.OutcomeAllowed, Detail: map[string]string{"end": w.id}})
	}
	if err == nil {
		l.dropWatcher(w)
	}
	return err
}

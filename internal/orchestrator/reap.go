package orchestrator

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// How often the reaper looks for what should not exist, and for records that
// have been kept long enough.
const (
	sweepEvery = time.Minute
	purgeEvery = time.Hour
)

// reap sweeps until Close.
func (o *Orchestrator) reap() {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	var purged time.Time
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-t.C:
		}
		if err := o.sweep(o.ctx); err != nil && o.ctx.Err() == nil {
			o.Log.Error("sweep", "error", err)
		}
		if time.Since(purged) >= purgeEvery {
			purged = time.Now()
			if err := o.purge(o.ctx); err != nil && o.ctx.Err() == nil {
				o.Log.Error("purge", "error", err)
			}
		}
	}
}

// sweep destroys orphans and what an earlier end could not remove, and writes
// final records that could not be written.
func (o *Orchestrator) sweep(ctx context.Context) error {
	seen, err := o.sightings(ctx)
	if err != nil {
		return err
	}
	for id, s := range seen {
		if o.holds(id) {
			continue
		}
		if e := o.destroyOrphan(ctx, s); e != nil {
			err = e
		}
	}
	for _, l := range o.unburied() {
		if _, e := l.retry(ctx); e != nil {
			err = e
		}
	}
	return err
}

// holds reports whether a live sandbox of this process owns the instance.
func (o *Orchestrator) holds(id sandbox.InstanceID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.lives {
		if l.instance == id {
			select {
			case <-l.dying: // its own end removes it, or has tried
				return !l.over()
			default:
				return true
			}
		}
	}
	return false
}

// over reports whether the end is over.
func (l *live) over() bool {
	select {
	case <-l.dying:
	default:
		return false
	}
	select {
	case <-l.ending.done:
		return true
	default:
		return false
	}
}

// unburied returns the sandboxes whose final record could not be written.
func (o *Orchestrator) unburied() (ls []*live) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.lives {
		if l.over() {
			ls = append(ls, l)
		}
	}
	return ls
}

// purge forgets what ended longer than Retain ago.
func (o *Orchestrator) purge(ctx context.Context) error {
	before := time.Now().Add(-o.Retain)
	if _, err := o.Store.System().Purge(ctx, before); err != nil {
		return err
	}
	dirs, err := os.ReadDir(o.Runs)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		info, e := d.Info()
		if e != nil || info.ModTime().After(before) || !sandbox.RunID(d.Name()).Valid() || o.run(sandbox.RunID(d.Name())) != nil {
			continue
		}
		if e := os.RemoveAll(filepath.Join(o.Runs, d.Name())); e != nil {
			err = e
		}
	}
	return err
}

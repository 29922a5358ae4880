package orchestrator

import (
	"context"
	"io/fs"
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
		if err := o.followAll(o.ctx); err != nil && o.ctx.Err() == nil {
			o.Log.Error("follow the clock", "error", err)
		}
		if err := o.sweep(o.ctx); err != nil && o.ctx.Err() == nil {
			o.Log.Error("sweep", "error", err)
		}
		if err := o.expireSnapshots(o.ctx); err != nil && o.ctx.Err() == nil {
			o.Log.Error("snapshots whose time is over", "error", err)
		}
		if time.Since(purged) >= purgeEvery {
			more, err := o.purge(o.ctx)
			if err != nil && o.ctx.Err() == nil {
				o.Log.Error("purge", "error", err)
			}
			if !more { // else it goes on with the next sweep
				purged = time.Now()
			}
		}
	}
}

// sweep destroys orphans and what an earlier end could not remove, takes up wires
// that are cut off, and writes final records that could not be written.
func (o *Orchestrator) sweep(ctx context.Context) error {
	seen, err := o.sightings(ctx, nil)
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
	stray, e := o.strayWires(ctx)
	if e != nil {
		err = e
	}
	for _, id := range stray {
		if e := o.destroyOrphan(ctx, sighting{status: sandbox.Status{Instance: id}}); e != nil {
			err = e
		}
	}
	for _, l := range o.cutOffs() {
		l.adoptWire(ctx)
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
	l := o.instances[id]
	return l != nil && !l.over() // its own end removes it, unless it has tried
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

// countKept counts again what ended sandboxes and runs left on disk. What ends
// meanwhile may be counted twice, or not, until the next time.
func (o *Orchestrator) countKept(ctx context.Context) error {
	kept, err := o.Store.System().Kept(ctx, time.Now().Add(-o.Events.Retain()))
	if err == nil {
		o.ledger.setKept(kept)
	}
	return err
}

// diskUse is how many bytes of files lie below dir.
func diskUse(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // not there, or gone just now
		}
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			n += fi.Size()
		}
		return nil
	})
	return n
}

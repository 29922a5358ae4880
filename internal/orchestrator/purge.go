package orchestrator

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of one purge. What is left waits for the next.
const (
	purgeBatch = 500   // directories whose records are looked up at once
	purgeRuns  = 2_000 // directories removed
)

// purge forgets what ended longer than Retain ago, in bounded steps; more tells
// that some is left.
//
// Records go first. A file is removed for having no record and being old, so
// whatever was interrupted wherever, nothing dangles for ever.
func (o *Orchestrator) purge(ctx context.Context) (more bool, err error) {
	before := o.credible().Add(-o.Retain)
	_, more, err = o.Store.System().Purge(ctx, before)
	if err != nil {
		return more, err
	}
	failpoint.Hit("purge/after-records")
	m, err := o.purgeRunFiles(ctx, before)
	more = more || m
	failpoint.Hit("purge/after-runs")
	m, e := o.Events.Expire(ctx, before, o.Store.System().SandboxesAmong)
	failpoint.Hit("purge/after-events")
	err = errors.Join(err, e, o.journal.sweep(o.knows))
	if err == nil {
		err = o.countKept(ctx)
	}
	return more || m, err
}

// purgeRunFiles removes the directories of runs that have no record and did not
// change since before. What has another name than a run's is somebody else's.
func (o *Orchestrator) purgeRunFiles(ctx context.Context, before time.Time) (more bool, err error) {
	d, err := os.Open(o.Runs)
	if err != nil {
		return false, err
	}
	defer d.Close()
	removed := 0
	for {
		if err := ctx.Err(); err != nil {
			return true, err
		}
		entries, err := d.ReadDir(purgeBatch)
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		var old []sandbox.RunID
		for _, e := range entries {
			id := sandbox.RunID(e.Name())
			if info, err := e.Info(); err == nil && id.Valid() && info.ModTime().Before(before) && o.run(id) == nil {
				old = append(old, id)
			}
		}
		known, err := o.Store.System().RunsAmong(ctx, old)
		if err != nil {
			return false, err
		}
		for _, id := range old {
			if known[id] {
				continue
			}
			if removed++; removed > purgeRuns {
				return true, nil
			}
			if err := os.RemoveAll(filepath.Join(o.Runs, string(id))); err != nil {
				return false, err
			}
			failpoint.Hit("purge/after-run")
		}
	}
}

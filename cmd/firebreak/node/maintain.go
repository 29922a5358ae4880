package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maintainEvery is how often a server removes what has been kept long enough
// besides what the orchestrator purges.
const maintainEvery = time.Hour

// maintain removes old evidence and programs nobody uses any more, now and
// every hour until ctx ends.
func (n *node) maintain(ctx context.Context, c *config.Config, log *slog.Logger) {
	t := time.NewTicker(maintainEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		if err := n.expire(ctx, c, time.Now()); err != nil && ctx.Err() == nil {
			log.Error("expire evidence", "error", err)
		}
		if err := prunePrograms(c.Data); err != nil {
			log.Warn("programs of earlier versions", "error", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// keepRuns is how long the logs of in-process runs are kept where retain_audit
// does not say. Nobody maintains a machine without a server, and each run leaves
// one.
const keepRuns = 90 * 24 * time.Hour

// expire removes evidence that is too old: segments of the server's own log if
// retain_audit says so, and logs of in-process runs.
func (n *node) expire(ctx context.Context, c *config.Config, now time.Time) error {
	var err error
	if c.RetainAudit > 0 {
		_, err = n.evidence.Expire(ctx, now.Add(-c.RetainAudit))
	}
	return errors.Join(err, n.expireRuns(ctx, c, now))
}

// expireRuns removes whole logs of in-process runs that are too old, each
// recorded in this node's: a server does, and so does the next run.
func (n *node) expireRuns(ctx context.Context, c *config.Config, now time.Time) error {
	if c.RetainAudit == 0 && c.Origin("retain_audit") != "default" {
		return nil // somebody wants them for ever
	}
	before := now.Add(-cmp.Or(c.RetainAudit, keepRuns))
	var errs []error
	parent := filepath.Join(c.Data, "audit")
	dirs, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if d.IsDir() && strings.HasPrefix(d.Name(), "run-") && ctx.Err() == nil {
			errs = append(errs, n.expireRun(ctx, filepath.Join(parent, d.Name()), before))
		}
	}
	return errors.Join(errs...)
}

// expireRun removes the log in dir if its run is over and nothing in it is
// newer than before. Directories count: that of a run which begins now is empty
// until it has its lock.
func (n *node) expireRun(ctx context.Context, dir string, before time.Time) error {
	young := false
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "lock" { // who only looks takes that, too
			return err
		}
		fi, err := d.Info()
		young = young || err == nil && !fi.ModTime().Before(before)
		return err
	})
	if young || err != nil {
		return err
	}
	owner, err := store.Lock(dir)
	if sandbox.KindOf(err) == sandbox.KindUnavailable {
		return nil // the run goes on
	}
	if err != nil {
		return err
	}
	defer owner.Close()
	// A damaged log is kept: somebody should see it.
	_, head, err := audit.Prefix(dir)
	if err != nil {
		return err
	}
	if head.Position > 0 {
		if _, err := n.evidence.Record(ctx, sandbox.Record{
			Class: sandbox.Gate, Tenant: sandbox.DefaultTenant, Principal: "system",
			Action: "audit.expire", Outcome: sandbox.OutcomeAllowed, Object: filepath.Base(dir), Digest: hex.EncodeToString(head.Hash[:]),
			Detail: map[string]string{"through": strconv.FormatUint(uint64(head.Position), 10)},
		}); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// witnessed has the configured witnesses cosign the audit log, until ctx ends. That
// one cannot be asked is for the log; that one contradicts is evidence.
func (n *node) witnessed(ctx context.Context, c *config.Config, log *slog.Logger) {
	if len(c.AuditWitnesses) == 0 {
		return
	}
	s := audit.Submitter{Dir: filepath.Join(c.Data, "audit", "server"), Witnesses: c.AuditWitnesses, Log: log}
	s.Report = func(witness string, err error) {
		var no *audit.ContradictionError
		if !errors.As(err, &no) {
			return
		}
		r := own("audit.witness", sandbox.OutcomeFailed, map[string]string{"size": strconv.FormatInt(no.Size, 10), "seen": strconv.FormatInt(no.Seen, 10)})
		r.Object = witness
		if _, err := n.evidence.Record(ctx, r); err != nil && ctx.Err() == nil {
			log.Error("a witness's contradiction could not be recorded", "witness", witness, "error", err)
		}
	}
	s.Run(ctx)
}

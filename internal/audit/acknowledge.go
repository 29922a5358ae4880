package audit

import (
	"context"
	"encoding/base64"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ActionGap is the action of the first record of a log that follows one that
// was not what was signed.
const ActionGap = "audit.gap"

// unfinished is where Acknowledge makes the new log, and where the old one is
// for the moment between the two steps of their exchange.
func unfinished(dir string) string { return dir + ".acknowledging" }

// Acknowledge takes note of a log that Open refuses because it is not what was
// signed, or is damaged, or whose key is lost: the directory is kept aside as
// it is, and a new log begins in its place, whose first record says what was
// signed, what was found, who acknowledged that, and where the old one is kept.
// The new log has an origin of its own. It returns the directory that was kept.
//
// Interrupted anywhere, the log is still refused, and Acknowledge can be called
// again; or the new one is in place, and Open finishes. o is what the log is
// opened with.
//
// Errors: KindConflict when there is nothing to acknowledge; KindUnavailable
// when a process has the log open.
func Acknowledge(ctx context.Context, dir, principal string, o Options, log *slog.Logger) (aside string, err error) {
	const op = "acknowledge gap"
	if dir, err = filepath.Abs(dir); err != nil {
		return "", sandbox.Wrap(op, dir, err)
	}
	o.defaults(dir)
	if _, err := os.Stat(dir); err != nil {
		return "", sandbox.Wrap(op, dir, err)
	}
	lock, err := store.Lock(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	g, err := refusedBecause(dir, o)
	if err != nil {
		return "", sandbox.Wrap(op, dir, err)
	}
	now := time.Now().UTC().Format("20060102T150405Z")
	aside = dir + ".gap-" + now
	if _, err := os.Lstat(aside); !errors.Is(err, fs.ErrNotExist) {
		return "", errors.Join(err, sandbox.Errorf(op, sandbox.KindConflict, "%s is there already", aside).WithHint("try again"))
	}
	next := unfinished(dir)
	if err := os.RemoveAll(next); err != nil { // of an attempt that came to nothing
		return "", sandbox.Wrap(op, dir, err)
	}
	if err := begin(ctx, next, filepath.Base(dir)+"."+now, principal, g, filepath.Base(aside), o, log); err != nil {
		return "", errors.Join(sandbox.Wrap(op, dir, err), os.RemoveAll(next))
	}
	failpoint.Hit("audit/acknowledge-made")
	if err := exchange(next, dir); err != nil {
		return "", errors.Join(sandbox.Wrap(op, dir, err), os.RemoveAll(next))
	}
	failpoint.Hit("audit/acknowledge-exchanged")
	if err = syncDir(filepath.Dir(dir)); err == nil {
		err = os.Rename(next, aside)
	}
	if err == nil {
		err = syncDir(filepath.Dir(dir))
	}
	return aside, sandbox.Wrap(op, dir, err)
}

// refusedBecause is why Open refuses the log in dir, which the caller has locked.
func refusedBecause(dir string, o Options) (*GapError, error) {
	l := &Log{dir: dir, o: o}
	r := &recovery{dir: dir}
	var g *GapError
	_, err := l.approve(r)
	if r.tail != nil {
		r.tail.close()
	}
	switch {
	case err == nil:
		return nil, sandbox.Errorf("acknowledge gap", sandbox.KindConflict, "the log is what was signed: there is nothing to acknowledge")
	case errors.As(err, &g):
		return g, nil
	case sandbox.KindOf(err) == sandbox.KindInternal, errors.Is(err, errNoKey):
		// Damage, or a lost key: what is known is what the checkpoint says.
		g = &GapError{Reason: err.Error(), Found: int64(r.head.Position)}
		if c, err := unverified(dir); err == nil {
			g.Origin, g.Size, g.Root = c.Origin, c.Size, c.Root
		}
		return g, nil
	}
	return nil, err
}

// unverified reads a checkpoint whose signature cannot be checked.
func unverified(dir string) (Checkpoint, error) {
	msg, err := ReadCheckpoint(dir)
	if err != nil {
		return Checkpoint{}, err
	}
	return checkpointOf(msg)
}

// begin makes the log that follows.
func begin(ctx context.Context, dir, name, principal string, g *GapError, aside string, o Options, log *slog.Logger) error {
	k, err := readKey(o.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		k, err = makeKey(o.KeyFile)
	}
	if err != nil {
		return err
	}
	o.Origin = k.name() + "/" + name
	l, err := Open(dir, o, log)
	if err != nil {
		return err
	}
	reason := g.Reason
	if len(reason) > MaxDetail {
		reason = reason[:MaxDetail]
	}
	_, err = l.Record(ctx, sandbox.Record{
		Class: sandbox.Gate, Tenant: sandbox.DefaultTenant, Principal: principal, Action: ActionGap, Outcome: sandbox.OutcomeDone, Object: g.Origin,
		Detail: map[string]string{
			"signed": strconv.FormatInt(g.Size, 10), "root": base64.StdEncoding.EncodeToString(g.Root[:]),
			"found": strconv.FormatInt(g.Found, 10), "found_root": base64.StdEncoding.EncodeToString(g.Other[:]),
			"reason": reason, "aside": aside,
		},
	})
	return errors.Join(err, l.Close())
}

// finishAcknowledge gives the old log its name, if a crash kept Acknowledge
// from it. The new one, in dir, was opened.
func finishAcknowledge(dir string) error {
	old := unfinished(dir)
	if _, err := os.Lstat(old); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for e, err := range Scan(dir, 1) {
		if err != nil {
			return err
		}
		aside := e.Record.Detail["aside"]
		if e.Position != 1 || e.Record.Action != ActionGap || aside != filepath.Base(aside) {
			return nil // what is there is a new log that was not needed in the end
		}
		if err := os.Rename(old, filepath.Join(filepath.Dir(dir), aside)); err != nil {
			return err
		}
		return syncDir(filepath.Dir(dir))
	}
	return nil
}

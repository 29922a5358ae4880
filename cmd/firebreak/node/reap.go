package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// passingAge is when a directory that is being made or removed counts as dead:
// both take moments.
const passingAge = time.Minute

// reapTime bounds what one dead run may cost the live one that buries it.
const reapTime = 30 * time.Second

// reap removes what runs that died left behind. A directory whose lock is held
// is never touched. What fails is logged and tried again by the next. The end of
// ctx stops it between directories only: were each of many short runs to give
// up where it is, none would ever get to the end of one.
func (w Wiring) reap(ctx context.Context, c *config.Config, log *slog.Logger) {
	parent := filepath.Join(c.Data, "run")
	entries, err := os.ReadDir(parent)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			log.Error("reap", "error", err)
		}
		return
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return
		}
		dir := filepath.Join(parent, e.Name())
		if strings.HasPrefix(e.Name(), passing) {
			if st, err := e.Info(); err != nil || time.Since(st.ModTime()) < passingAge {
				continue
			}
		}
		one, cancel := context.WithTimeout(context.WithoutCancel(ctx), reapTime)
		if err := w.reapOne(one, c, dir, log); err != nil {
			log.Error("reap", "dir", dir, "error", err)
		}
		cancel()
	}
}

// reapedSuffix names the log of a reaping whose run's own log is not what was
// signed.
const reapedSuffix = "-reaped"

// reapOne opens a dead run's directory once more: recovery destroys what is left
// of its sandboxes and records it as lost. Then the directory goes.
func (w Wiring) reapOne(ctx context.Context, c *config.Config, dir string, log *slog.Logger) error {
	owner, err := store.Lock(dir)
	if sandbox.KindOf(err) == sandbox.KindUnavailable {
		return nil // alive
	}
	if err != nil {
		return err
	}
	defer owner.Close()
	if _, err := os.Stat(filepath.Join(dir, "state.db")); err == nil {
		log.Info("reaping a run that died", "dir", dir)
		o := options{dir: dir, audit: auditOf(c.Data, dir), config: c, destroy: true, dead: true, log: log}
		n, err := w.open(ctx, o)
		var gap *audit.GapError
		if errors.As(err, &gap) {
			// What lives has to go all the same. The evidence stays as it is, for
			// somebody to look at, and what happens now has a log of its own.
			log.Error("the evidence of a run that died is not what was signed", "dir", o.audit, "error", err)
			o.audit += reapedSuffix
			n, err = w.open(ctx, o)
		}
		if err == nil {
			err = n.close()
		}
		if err != nil {
			return err
		}
	}
	failpoint.Hit("reap/before-remove")
	return os.RemoveAll(dir)
}

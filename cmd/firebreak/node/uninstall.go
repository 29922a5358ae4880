package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// parts is what Firebreak makes in a data directory, in the order it is removed.
// Nothing else in it is: the directory might be one that holds other things, too.
// State goes first, once its sandboxes are gone, so that an uninstall that was
// interrupted need not start anything again; the marks of installed go last.
var parts = []string{"state.db", "state.db-wal", "state.db-shm", "state.db-redo", "state.db.before-v*", "secrets", "run", "instances", "machines", "machine-images", "wires", "processes", "snapshots", "events", "runs",
	"templates", "api-key", "token-key", "firebreak.sock", "audit", "libexec", "lock"}

// marks tell a data directory from any other that has, say, a directory called
// templates.
var marks = []string{"libexec/.lock", "state.db", "audit/server", "audit/run-*"}

// Uninstall destroys what sandboxes are left, with receipts, and removes the
// data directory's parts, evidence only if told so. Interrupted anywhere and
// repeated, it finishes.
//
// Errors: KindUnavailable while a server owns the directory, KindConflict while
// a run uses it.
func (w Wiring) Uninstall(ctx context.Context, c *config.Config, o cli.UninstallOptions) error {
	if dir, err := filepath.EvalSymlinks(c.Data); err == nil {
		c.Data = dir // what starts sandboxes must not meet a link
	}
	if len(present(c.Data, marks)) == 0 {
		o.Out("nothing is installed in " + c.Data)
		return nil
	}
	if err := private(c.Data); err != nil {
		return err
	}
	owner, err := store.Lock(c.Data)
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnavailable {
		return se.WithHint("stop the server first: systemctl stop firebreak, or end that process")
	}
	if err != nil {
		return err
	}
	defer owner.Close()
	if o.DryRun {
		for _, p := range removable(c.Data, o.KeepAudit) {
			o.Out("would remove " + p)
		}
		o.Out("nothing was done; --yes does it")
		return nil
	}
	if err := w.empty(ctx, c); err != nil {
		return err
	}
	failpoint.Hit("uninstall/emptied")
	return remove(c, o)
}

// empty destroys all sandboxes of the data directory, those of dead runs and
// those without a record included.
func (w Wiring) empty(ctx context.Context, c *config.Config) error {
	log := slog.New(slog.DiscardHandler)
	if len(present(c.Data, []string{"state.db", "instances/*", "machines/*", "wires/*"})) > 0 {
		n, err := w.open(ctx, options{dir: c.Data, audit: filepath.Join(c.Data, "audit", "server"), config: c, destroy: true, log: log})
		if err != nil {
			return err
		}
		if err := n.close(); err != nil {
			return err
		}
	}
	w.reap(ctx, c, log)
	if left := present(c.Data, []string{"run/*"}); len(left) > 0 {
		return sandbox.Errorf("uninstall", sandbox.KindConflict, "%d runs use %s", len(left), c.Data).WithHint("wait for them, or end them")
	}
	if left := present(c.Data, []string{"instances/[!.]*", "machines/[!.]*", "wires/*"}); len(left) > 0 {
		return sandbox.Errorf("uninstall", sandbox.KindInternal, "%d instances and wires are left", len(left)).WithID(left[0]).
			WithHint("something of them resists; look at what it is and try again")
	}
	return nil
}

// remove removes what is left, and says so.
func remove(c *config.Config, o cli.UninstallOptions) error {
	for _, p := range removable(c.Data, o.KeepAudit) {
		if err := os.RemoveAll(p); err != nil {
			return sandbox.Wrap("uninstall", p, err)
		}
		o.Out("removed " + p)
		failpoint.Hit("uninstall/after-part")
	}
	if p := c.Socket; abandoned(p) {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return sandbox.Wrap("uninstall", p, err)
		}
		o.Out("removed " + p)
		_ = os.Remove(filepath.Dir(p)) // it goes if it is empty
	}
	audit := filepath.Join(c.Data, "audit")
	switch {
	case o.KeepAudit && exists(audit):
		o.Out(fmt.Sprintf("kept %s: the evidence of what was done; --keep-audit=false removes it, too", audit))
	case os.Remove(c.Data) != nil && exists(c.Data):
		o.Out(fmt.Sprintf("kept %s: it holds other things", c.Data))
	default:
		o.Out("removed " + c.Data)
	}
	return nil
}

// abandoned reports whether path is a socket nobody listens on.
func abandoned(path string) bool {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Type() != fs.ModeSocket {
		return false
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
	}
	return err != nil
}

// removable lists the parts that are there.
func removable(data string, keepAudit bool) (paths []string) {
	for _, p := range parts {
		if p != "audit" || !keepAudit {
			paths = append(paths, present(data, []string{p})...)
		}
	}
	return paths
}

// present lists what of patterns is in data.
func present(data string, patterns []string) (paths []string) {
	root := os.DirFS(data)
	for _, p := range patterns {
		names, err := fs.Glob(root, p)
		if err != nil {
			continue // unreachable: patterns are constants
		}
		for _, n := range names {
			paths = append(paths, filepath.Join(data, filepath.FromSlash(n)))
		}
	}
	return paths
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

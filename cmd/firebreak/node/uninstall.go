package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// parts is what Firebreak makes in a data directory. Nothing else in it is
// removed: the directory might be one that holds other things, too.
var parts = []string{"run", "instances", "events", "runs", "templates", "libexec", "audit", "state.db", "state.db-wal", "state.db-shm", "api-key",
	"firebreak.sock", "lock"}

// Uninstall destroys what sandboxes are left and removes the data directory's
// parts. Errors: KindUnavailable while a server owns the directory, KindConflict
// while a run uses it.
func (w Wiring) Uninstall(ctx context.Context, c *config.Config, o cli.UninstallOptions) error {
	if _, err := os.Stat(c.Data); errors.Is(err, os.ErrNotExist) {
		o.Out("nothing is installed: " + c.Data + " does not exist")
		return nil
	}
	owner, err := store.Lock(c.Data)
	if err != nil {
		return err
	}
	defer owner.Close()
	if o.DryRun {
		for _, p := range present(c.Data) {
			o.Out("would remove " + p)
		}
		o.Out("nothing was done; --yes does it")
		return nil
	}
	log := slog.New(slog.DiscardHandler)
	if _, err := os.Stat(filepath.Join(c.Data, "state.db")); err == nil {
		n, err := w.open(ctx, options{dir: c.Data, audit: filepath.Join(c.Data, "audit", "server"), config: c, destroy: true, log: log})
		if err != nil {
			return err
		}
		if err := n.close(); err != nil {
			return err
		}
	}
	w.reap(ctx, c, log)
	if left, err := os.ReadDir(filepath.Join(c.Data, "run")); err == nil && len(left) > 0 {
		return sandbox.Errorf("uninstall", sandbox.KindConflict, "%d runs use %s", len(left), c.Data).WithHint("wait for them, or end them")
	}
	for _, p := range present(c.Data) {
		if err := os.RemoveAll(p); err != nil {
			return sandbox.Wrap("uninstall", p, err)
		}
		o.Out("removed " + p)
	}
	if err := os.Remove(c.Data); err != nil {
		o.Out(fmt.Sprintf("kept %s: it holds other things", c.Data))
		return nil
	}
	o.Out("removed " + c.Data)
	return nil
}

func present(data string) []string {
	var paths []string
	for _, p := range parts {
		if path := filepath.Join(data, p); exists(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

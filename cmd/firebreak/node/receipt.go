package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Receipt implements cli.App.Receipt, while no server has the data directory.
func (w Wiring) Receipt(ctx context.Context, c *config.Config, tenant sandbox.TenantID, id sandbox.ID) (_ *sandbox.Receipt, err error) {
	path := filepath.Join(c.Data, "state.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	owner, err := store.Lock(c.Data)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, owner.Close()) }()
	st, err := store.Open(ctx, path, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	sb, err := st.Tenant(tenant).Sandbox(ctx, id)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return nil, nil
	}
	return sb.Receipt, err
}

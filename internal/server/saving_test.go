package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// saving is the model backend as if it saved instances: what calls leave in the log
// does not depend on what is in a snapshot. That is tested with gVisor.
type saving struct{ *sim.Backend }

func (b saving) Info(ctx context.Context) (sandbox.Info, error) {
	i, err := b.Backend.Info(ctx)
	i.Capabilities.Snapshot, i.Capabilities.Pause = true, true
	return i, err
}

func (b saving) Create(ctx context.Context, s sandbox.Spec) (sandbox.Instance, error) {
	i, err := b.Backend.Create(ctx, s)
	return saved(i, s, err)
}

func (b saving) Attach(ctx context.Context, id sandbox.InstanceID) (sandbox.Instance, error) {
	i, err := b.Backend.Attach(ctx, id)
	return saved(i, sandbox.Spec{}, err)
}

func (b saving) Restore(ctx context.Context, s sandbox.Spec, from sandbox.Snapshot) (sandbox.Instance, error) {
	if _, err := os.Stat(filepath.Join(from.Dir, "file")); errors.Is(err, fs.ErrNotExist) {
		return nil, sandbox.Errorf("restore", sandbox.KindNotFound, "no such snapshot")
	}
	return b.Create(ctx, s)
}

func saved(i sandbox.Instance, s sandbox.Spec, err error) (sandbox.Instance, error) {
	if err != nil {
		return nil, err
	}
	return savedInstance{i, s}, nil
}

type savedInstance struct {
	sandbox.Instance
	spec sandbox.Spec
}

func (i savedInstance) Snapshot(_ context.Context, dir string) (sandbox.Snapshot, error) {
	err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	return sandbox.Snapshot{Dir: dir, Digest: "sha256:0", Size: 1, Created: time.Now(), Limits: i.spec.Limits}, err
}
